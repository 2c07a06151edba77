// Acknowledge and silence: a write to the API of this service, and then the page asks for its view again.
import { setStatus } from "./status.js";

const WHAT = { ack: "acknowledge", silence: "silence" };

export function startAlerts(changed) {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-act]");
    if (!button) return;
    const { act, alert, seconds } = button.dataset;
    button.disabled = true;
    try {
      const answer = await fetch(`/api/v1/alerts/${encodeURIComponent(alert)}/${act}`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(act === "silence" ? { duration_s: Number(seconds) } : {}),
      });
      if (!answer.ok) {
        const problem = await answer.json().catch(() => ({}));
        throw new Error(problem.detail ?? `the service answered ${answer.status}`);
      }
    } catch (error) {
      setStatus(document.getElementById("live").dataset.live, `Could not ${WHAT[act]} the alert: ${error.message}`);
    }
    button.disabled = false;
    await changed();
  });
}
