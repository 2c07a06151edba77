// One event stream per page. The browser resumes it by itself with Last-Event-ID; what was missed in between is covered by
// asking for the view again on every (re)connect and on "reset".
import { beat, setStatus } from "./status.js";

const RETRY_MS = 3000;

export function startLive(runId, changed) {
  let source;

  function connect() {
    source = new EventSource(`/api/v1/runs/${encodeURIComponent(runId)}/live`);
    source.onopen = () => {
      setStatus("live");
      changed();
    };
    source.onerror = () => {
      setStatus("disconnected", "Connection lost. The page shows the last state it saw and resumes by itself.");
      // A closed source (the service answered with an error) is not retried by the browser.
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
    };
    source.onmessage = () => {
      beat();
      changed();
    };
    source.addEventListener("reset", () => changed());
  }

  connect();
  window.addEventListener("pagehide", () => source.close());
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) connect();
  });
}
