// The run list: polls its first page, morphs the rows, filters what is loaded, adds further pages on demand.
import { startClock, tick } from "./clock.js";
import { morph } from "./morph.js";
import { setStatus } from "./status.js";
import { startThemeSwitch } from "./theme-switch.js";

const POLL_MS = 3000;
const rows = document.getElementById("rows");
const box = document.getElementById("q");
const more = document.getElementById("more");
let pages = 1;
let last = "";

function filter() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let visible = 0;
  for (const row of rows.children) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    visible += row.hidden ? 0 : 1;
  }
  document.getElementById("none-match").hidden = visible > 0 || rows.children.length === 0;
  const url = new URL(window.location.href);
  if (box.value) url.searchParams.set("q", box.value);
  else url.searchParams.delete("q");
  window.history.replaceState(null, "", url);
}

async function page(cursor) {
  const start = new URL(window.location.href).searchParams.get("cursor") ?? "";
  const query = cursor ?? start;
  const answer = await fetch(`/view${query ? `?cursor=${encodeURIComponent(query)}` : ""}`, { headers: { accept: "application/json" } });
  if (answer.status === 401) window.location.assign("/login?next=/");
  if (!answer.ok) throw new Error(`the list answered ${answer.status}`);
  return answer.json();
}

async function refresh() {
  let cursor = null;
  let html = "";
  let summary = "";
  for (let i = 0; i < pages; i++) {
    const view = await page(cursor);
    html += view.sections.rows;
    summary = i === 0 ? view.sections.summary : summary;
    cursor = view.next_cursor;
    if (!cursor) break;
  }
  if (html !== last) {
    last = html;
    morph(rows, html);
    if (pages === 1) morph(document.getElementById("summary"), summary);
    filter();
  }
  more.hidden = !cursor;
  document.getElementById("empty").hidden = rows.children.length > 0;
  tick();
}

async function poll() {
  for (;;) {
    if (!document.hidden) {
      try {
        await refresh();
        setStatus("live");
      } catch (error) {
        setStatus("disconnected", `The service does not answer (${error.message}). The list shows the last state it saw.`);
      }
    }
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}

box.addEventListener("input", filter);
box.form.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", async (event) => {
  event.preventDefault();
  pages += 1;
  await refresh();
});
startThemeSwitch();
startClock();
if (box.value) filter();
poll();
