// One event stream per page. The browser resumes it by itself with Last-Event-ID; what was missed in between is covered by
// asking for the view again on every (re)connect and on "reset".
import { beat, setStatus } from "./status.js";

const KINDS = [
  "message", "step_closed", "step_revised", "attempt_started", "weight_sync", "resume", "checkpoint", "config", "config_change",
  "finished", "lost", "run_updated", "scalars",
];
const RETRY_MS = 3000;

export function startLive(runId, changed) {
  let source;
  let opened = false;

  function connect() {
    source = new EventSource(`/api/v1/runs/${encodeURIComponent(runId)}/live`);
    source.onopen = () => {
      setStatus("live");
      if (opened) changed();
      opened = true;
    };
    source.onerror = () => {
      setStatus("disconnected", "Connection lost. The page shows the last state it saw and resumes by itself.");
      // A closed source (the service answered with an error) is not retried by the browser.
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
    };
    for (const kind of KINDS) {
      source.addEventListener(kind, () => {
        beat();
        changed();
      });
    }
    source.addEventListener("reset", () => changed());
  }

  connect();
  window.addEventListener("pagehide", () => source.close());
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) connect();
  });
}
