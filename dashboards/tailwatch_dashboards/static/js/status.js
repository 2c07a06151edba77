// The connection dot and the banner under it.
const dot = document.getElementById("live");
const banner = document.getElementById("banner");

export function setStatus(state, message = "") {
  if (dot.dataset.live !== state) {
    dot.dataset.live = state;
    dot.querySelector(".live-word").textContent = state;
  }
  banner.hidden = message === "";
  if (banner.textContent !== message) banner.textContent = message;
}

export function beat() {
  delete dot.dataset.beat;
  requestAnimationFrame(() => (dot.dataset.beat = ""));
}
