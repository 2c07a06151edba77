// The step slider: stops are the steps the service listed. "latest" follows the run; anything else stays where it was put.
const FRAME_MS = 350;
const SLOW_FRAME_MS = 900;

export function startPlayer({ show }) {
  const element = (id) => document.getElementById(id);
  const [number, slider, play, back, on, latest] = ["step-number", "step-slider", "step-play", "step-back", "step-on", "step-latest"].map(element);
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  let stops = [];
  let at = null;
  let follow = true;
  let playing = false;

  function paint() {
    const index = nearest(at);
    slider.max = String(Math.max(0, stops.length - 1));
    slider.value = String(index);
    slider.setAttribute("aria-valuetext", at === null ? "no step" : `step ${at}`);
    slider.disabled = stops.length < 2;
    if (document.activeElement !== number) number.value = at ?? "";
    latest.setAttribute("aria-pressed", String(follow));
    play.setAttribute("aria-pressed", String(playing));
    play.textContent = playing ? "Pause" : "Play";
    play.disabled = stops.length < 2;
    back.disabled = index <= 0;
    on.disabled = index >= stops.length - 1;
  }

  function nearest(step) {
    if (step === null || stops.length === 0) return 0;
    let best = 0;
    for (let i = 1; i < stops.length; i++) if (Math.abs(stops[i] - step) < Math.abs(stops[best] - step)) best = i;
    return best;
  }

  async function go(step, { following = false } = {}) {
    follow = following;
    at = step;
    paint();
    await show(following ? null : step);
  }

  async function run() {
    if (nearest(at) >= stops.length - 1) at = stops[0];
    while (playing) {
      const started = performance.now();
      await go(at);
      const index = nearest(at);
      const wait = (calm.matches ? SLOW_FRAME_MS : FRAME_MS) - (performance.now() - started);
      await new Promise((done) => setTimeout(done, Math.max(0, wait)));
      if (!playing) return;
      if (index >= stops.length - 1) return stop();
      at = stops[index + 1];
    }
  }

  function stop() {
    playing = false;
    paint();
  }

  const move = (by) => {
    stop();
    const next = stops[nearest(at) + by];
    if (next !== undefined) go(next);
  };
  // What was asked for is read first: stopping paints the controls as they were.
  slider.addEventListener("input", () => {
    const asked = stops[Number(slider.value)];
    stop();
    go(asked);
  });
  number.addEventListener("change", () => {
    const asked = number.value;
    stop();
    if (asked !== "") go(Number(asked));
  });
  back.addEventListener("click", () => move(-1));
  on.addEventListener("click", () => move(1));
  latest.addEventListener("click", () => {
    stop();
    go(stops.at(-1) ?? null, { following: true });
  });
  play.addEventListener("click", () => {
    playing = !playing;
    paint();
    if (playing) run();
  });
  paint();

  return {
    go: (step) => {
      stop();
      return go(step);
    },
    start: (step) => {
      follow = step === null;
      at = step;
    },
    following: () => follow,
    update: (steps, shown) => {
      stops = steps;
      if (shown !== null && (follow || at === null)) at = shown;
      paint();
    },
  };
}
