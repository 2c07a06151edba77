// Keeps "3 s ago" true, and says "stale" where a running job has been silent for long.
function age(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

function tick() {
  const now = Date.now() / 1000;
  for (const time of document.querySelectorAll("time[data-at]")) {
    const text = `${age(now - Number(time.dataset.at))} ago`;
    if (time.textContent !== text) time.textContent = text;
  }
  const seen = document.getElementById("seen");
  const time = seen?.querySelector("time");
  if (time) {
    const stale = seen.dataset.activity === "running" && now - Number(time.dataset.at) > Number(seen.dataset.staleAfter);
    seen.classList.toggle("stale", stale);
    if (stale) time.textContent = `stale: ${time.textContent}`;
  }
}

export function startClock() {
  tick();
  setInterval(tick, 1000);
}

export { tick };
