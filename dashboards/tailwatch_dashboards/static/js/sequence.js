// The sequence of a worst token, where the tokens of the step are kept.
import { morph } from "./morph.js";

export function startSequences({ runId, stepOf }) {
  const panel = document.getElementById("sequence");
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-sequence]");
    if (!button) return;
    const { rank, part, row, position } = button.dataset;
    const query = new URLSearchParams({ rank, part, row, position });
    if (stepOf() !== null) query.set("step", String(stepOf()));
    const answer = await fetch(`/runs/${encodeURIComponent(runId)}/sequence?${query}`, { headers: { accept: "application/json" } });
    panel.hidden = false;
    if (answer.ok) morph(panel, (await answer.json()).sections.sequence);
    else panel.textContent = `The service answered ${answer.status}.`;
    panel.focus({ preventScroll: true });
    panel.scrollIntoView({ block: "nearest" });
  });
}
