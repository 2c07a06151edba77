// The connection dot and the banner under it.
const dot = document.getElementById("live");
const banner = document.getElementById("banner");

// A run that has ended is not live, however well the page is connected.
function word(state) {
  const activity = document.querySelector("#run-facts .activity")?.dataset.activity;
  return state === "live" && activity && activity !== "running" ? "connected" : state;
}

export function repaint() {
  const label = dot.querySelector(".live-word");
  const text = word(dot.dataset.live);
  if (label.textContent !== text) label.textContent = text;
}

export function setStatus(state, message = "") {
  dot.dataset.live = state;
  repaint();
  banner.hidden = message === "";
  if (banner.textContent !== message) banner.textContent = message;
}

export function beat() {
  delete dot.dataset.beat;
  requestAnimationFrame(() => (dot.dataset.beat = ""));
}
