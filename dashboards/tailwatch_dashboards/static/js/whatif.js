// The sliders of "What if". They only say what is asked for: the service answers with the section that is shown.
import { morph } from "./morph.js";

const WAIT_MS = 60;
const POSITIONS = 400;

// Ratios move by the logarithm of their distance from 1, the budget by its own logarithm.
const placeOf = (field) => (field === "budget" ? Math.log : (x) => Math.log(Math.abs(Math.log(x))));

function toPosition(field, value, least, most) {
  const place = placeOf(field);
  return ((place(value) - place(least)) / (place(most) - place(least))) * POSITIONS;
}

function toValue(field, position, least, most) {
  const place = placeOf(field);
  const at = place(least) + (place(most) - place(least)) * (position / POSITIONS);
  const value = field === "budget" ? Math.exp(at) : Math.exp((field === "lower" ? -1 : 1) * Math.exp(at));
  const digits = field === "budget" ? 2 : Math.max(2, 2 - Math.floor(Math.log10(Math.abs(value - 1))));
  const rounded = Number(field === "budget" || value < 0.01 ? value.toPrecision(2) : value.toFixed(digits));
  return Math.min(most, Math.max(least, rounded));
}

export function startWhatIf({ runId, stepOf }) {
  const root = document.getElementById("whatif");
  const result = document.getElementById("whatif-result");
  let timer = 0;
  let number = 0;

  const chosen = () => root.querySelector('input[name="correction"]:checked')?.value;
  const fieldset = () => root.querySelector(`fieldset[data-correction="${chosen()}"]`);

  for (const slider of root.querySelectorAll(".slider")) {
    const [range, box] = slider.querySelectorAll("input");
    const { field, least, most, value } = slider.dataset;
    const put = (x) => {
      range.value = String(toPosition(field, x, Number(least), Number(most)));
      range.setAttribute("aria-valuetext", String(x));
    };
    put(Number(value));
    range.addEventListener("input", () => {
      const x = toValue(field, Number(range.value), Number(least), Number(most));
      box.value = String(x);
      range.setAttribute("aria-valuetext", String(x));
      ask();
    });
    box.addEventListener("input", () => {
      if (!box.validity.valid || box.value === "") return;
      put(Number(box.value));
      ask();
    });
  }

  async function fetchResult() {
    const name = chosen();
    if (!name) return;
    const query = new URLSearchParams({ correction: name });
    if (stepOf() !== null) query.set("step", String(stepOf()));
    for (const slider of fieldset().querySelectorAll(".slider")) query.set(slider.dataset.field, slider.querySelector('input[type="number"]').value);
    const ticket = ++number;
    const answer = await fetch(`/runs/${encodeURIComponent(runId)}/what-if?${query}`, { headers: { accept: "application/json" } });
    if (ticket !== number) return;
    if (!answer.ok) {
      const problem = await answer.json().catch(() => ({}));
      result.textContent = problem.errors?.[0]?.reason ?? `The service answered ${answer.status}.`;
      return;
    }
    morph(result, (await answer.json()).sections["whatif-result"]);
  }

  function ask() {
    clearTimeout(timer);
    timer = setTimeout(() => fetchResult().catch(() => {}), WAIT_MS);
  }

  root.addEventListener("change", (event) => {
    if (event.target.name !== "correction") return;
    for (const one of root.querySelectorAll("fieldset")) one.hidden = one.dataset.correction !== chosen();
    ask();
  });
  return { refresh: ask };
}
