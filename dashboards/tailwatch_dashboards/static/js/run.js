// The run page: asks for the run's view, morphs the sections, hands the figures to Plotly; again whenever the run moves.
import { startAlerts } from "./alerts.js";
import { draw, markStep, savePng, startCharts } from "./charts.js";
import { startClock, tick } from "./clock.js";
import { startLive } from "./live.js";
import { morph } from "./morph.js";
import { startPlayer } from "./player.js";
import { startPopovers } from "./popover.js";
import { startSequences } from "./sequence.js";
import { repaint, setStatus } from "./status.js";
import { startThemeSwitch, theme } from "./theme-switch.js";
import { startWhatIf } from "./whatif.js";

const GAP_MS = 500;
const LAG_GAP_MS = 5000;
const runId = document.getElementById("run").dataset.run;
const address = new URL(window.location.href);
const asked = address.searchParams.get("step");
let fixed = asked === null || asked === "" || asked === "latest" ? null : Number(asked);
let running = null;
let again = false;
let number = 0;
let shown = null;
let lagAt = -Infinity;
let lagTimer = 0;

function remember(name, value) {
  const url = new URL(window.location.href);
  if (value === null) url.searchParams.delete(name);
  else url.searchParams.set(name, value);
  window.history.replaceState(null, "", url);
}

async function fetchView({ part = "" } = {}) {
  const query = new URLSearchParams({ theme: theme() });
  if (fixed !== null) query.set("step", String(fixed));
  if (part) query.set("part", part);
  const answer = await fetch(`/runs/${encodeURIComponent(runId)}/view?${query}`, { headers: { accept: "application/json" } });
  if (answer.status === 401) window.location.assign(`/login?next=${encodeURIComponent(window.location.pathname + window.location.search)}`);
  if (!answer.ok) throw new Error(`view answered ${answer.status}`);
  return answer.json();
}

async function apply(view) {
  if (view.title) document.title = view.title;
  document.getElementById("content").hidden = view.last_step === null;
  const waiting = document.getElementById("waiting");
  if (waiting) waiting.hidden = view.last_step !== null;
  for (const [id, html] of Object.entries(view.sections)) morph(document.getElementById(id), html);
  for (const [name, href] of Object.entries(view.links.csv)) document.querySelector(`[data-csv="${name}"]`).href = href;
  for (const [name, href] of Object.entries(view.links.calls)) document.querySelector(`[data-call="${name}"]`).href = href;
  tick();
  repaint();
  if (view.last_step === null) return;
  shown = view.step;
  whatIf.refresh();
  if (view.steps) player.update(view.steps, view.step);
  for (const [name, figure] of Object.entries(view.figures)) await draw(name, figure);
  markStep(fixed === null ? null : view.step);
}

// Mismatch against staleness is read from many summaries: by itself, after the rest, and seldom while a run streams in.
function refreshLag() {
  clearTimeout(lagTimer);
  lagTimer = setTimeout(async () => {
    lagAt = performance.now();
    try {
      const view = await fetchView({ part: "lag" });
      await draw("staleness", view.figures.staleness);
    } catch {
      // The next view says what is wrong with the connection.
    }
  }, Math.max(0, lagAt + LAG_GAP_MS - performance.now()));
}

// One request at a time, and at most two a second: a run that closes steps faster is shown at that pace.
async function refresh() {
  if (running) {
    again = true;
    return;
  }
  do {
    again = false;
    const ticket = ++number;
    running = fetchView().then((view) => ticket === number && apply(view));
    try {
      await running;
      if (shown !== null) refreshLag();
    } catch (error) {
      setStatus("disconnected", `The service does not answer (${error.message}). Trying again.`);
      again = true;
      await new Promise((done) => setTimeout(done, 4 * GAP_MS));
    }
    await new Promise((done) => setTimeout(done, GAP_MS));
  } while (again);
  running = null;
}

async function showStep(step) {
  fixed = step;
  remember("step", step);
  const ticket = ++number;
  const view = await fetchView({ part: step === null ? "" : "step" });
  if (ticket === number) await apply(view);
}

const player = startPlayer({ show: showStep });
player.start(fixed);
const from = address.searchParams.get("from");
const to = address.searchParams.get("to");
startCharts({
  pickStep: (step) => player.go(step),
  zoomed: (range) => {
    remember("from", range ? Math.round(range[0] * 100) / 100 : null);
    remember("to", range ? Math.round(range[1] * 100) / 100 : null);
  },
  range: from !== null && to !== null && Number.isFinite(Number(from) + Number(to)) ? [Number(from), Number(to)] : null,
});
const stepOf = () => fixed ?? shown;
const whatIf = startWhatIf({ runId, stepOf });
startSequences({ runId, stepOf });
startAlerts(refresh);
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-step]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  player.go(Number(link.dataset.step));
});
document.addEventListener("click", async (event) => {
  const png = event.target.closest("[data-png]");
  if (png) await savePng(png.dataset.png, `tailwatch-${runId}-${png.dataset.png}`);
  const share = event.target.closest("[data-share]");
  if (share) {
    await navigator.clipboard.writeText(window.location.href);
    share.textContent = "Copied";
    setTimeout(() => (share.textContent = "Copy link"), 1500);
  }
});
window.addEventListener("themechange", () => {
  lagAt = -Infinity;
  refresh();
});
startThemeSwitch();
startPopovers();
startClock();
startLive(runId, refresh);
refresh();
