// Plotly on the page: figures come ready from the service and are only shown here. What this file adds is what ties the charts
// together: one step axis (zoom in one zooms all), one cursor, one mark at the chosen step.
const CONFIG = {
  responsive: true,
  displaylogo: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toImage"],
  doubleClick: "reset",
};
const STEP_FIGURES = ["quantiles", "kl"];
const NARROW = 560;

const plot = (name) => document.getElementById(`plot-${name}`);
const frame = (name) => plot(name).parentElement;
let chosen = null;
let onStep = () => {};
let onZoom = () => {};
let zoom = null;
let syncing = false;
const stamps = new Map();

export function startCharts({ pickStep, zoomed, range }) {
  onStep = pickStep;
  onZoom = zoomed;
  zoom = range;
}

export async function draw(name, figure) {
  const text = JSON.stringify(figure);
  if (stamps.get(name) === text) return;
  const first = !stamps.has(name);
  stamps.set(name, text);
  const layout = figure.layout;
  if (plot(name).clientWidth < NARROW) narrow(layout);
  if (STEP_FIGURES.includes(name) && zoom && layout.xaxis) layout.xaxis = { ...layout.xaxis, range: zoom };
  await Plotly.react(plot(name), figure.data, layout, CONFIG);
  frame(name).classList.add("ready");
  if (first) wire(name);
  mark(name);
}

// On a phone the axis titles and legend share less room.
function narrow(layout) {
  layout.margin = { l: 52, r: 12, t: 8, b: 44 };
  for (const axis of [layout.xaxis, layout.yaxis]) if (axis?.title) axis.title = { ...axis.title, font: { size: 11 } };
}

function wire(name) {
  const element = plot(name);
  if (!STEP_FIGURES.includes(name)) return;
  element.on("plotly_hover", (event) => cursor(event.xvals?.[0] ?? event.points[0].x));
  element.on("plotly_unhover", () => cursor(null));
  element.on("plotly_click", (event) => onStep(event.points[0].x));
  element.on("plotly_relayout", (change) => followZoom(name, change));
  element.on("plotly_afterplot", () => mark(name));
}

async function followZoom(name, change) {
  if (syncing || !Object.keys(change).some((key) => key.startsWith("xaxis.range") || key === "xaxis.autorange")) return;
  syncing = true;
  const full = plot(name)._fullLayout.xaxis;
  const whole = full._rangeInitial0 === full.range[0] && full._rangeInitial1 === full.range[1];
  const range = [...full.range];
  zoom = whole ? null : range;
  onZoom(zoom);
  for (const other of STEP_FIGURES) {
    if (other !== name && plot(other)._fullLayout?.xaxis) await Plotly.relayout(plot(other), { "xaxis.range": range });
  }
  syncing = false;
  for (const each of STEP_FIGURES) mark(each);
}

// Lines over the plot are our own elements: moving them costs no redraw.
function put(line, name, step) {
  const layout = plot(name)._fullLayout;
  const axis = layout?.xaxis;
  if (step === null || !axis || axis.visible === false || step < axis.range[0] || step > axis.range[1]) {
    line.hidden = true;
    return;
  }
  line.hidden = false;
  line.style.left = `${axis._offset + axis.d2p(step)}px`;
  line.style.top = `${layout._size.t}px`;
  line.style.height = `${layout._size.h}px`;
}

function cursor(step) {
  for (const name of STEP_FIGURES) put(frame(name).querySelector(".cursor"), name, step === null ? null : Math.round(step));
}

function mark(name) {
  if (STEP_FIGURES.includes(name)) put(frame(name).querySelector(".chosen"), name, chosen);
}

export function markStep(step) {
  chosen = step;
  for (const name of STEP_FIGURES) mark(name);
}

export function savePng(name, title) {
  const background = getComputedStyle(document.documentElement).getPropertyValue("--surface");
  const element = plot(name);
  const paper = getComputedStyle(element.closest(".card")).backgroundColor || background;
  const figure = { data: element.data, layout: { ...element.layout, paper_bgcolor: paper }, config: CONFIG };
  return Plotly.downloadImage(figure, { format: "png", scale: 2, width: element.clientWidth, height: element.clientHeight, filename: title });
}
