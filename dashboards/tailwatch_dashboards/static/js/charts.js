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
  legend(name, figure.data);
  if (first) wire(name);
  mark(name);
}

// The legend is ours: it wraps with the card and takes no room from the plot.
function legend(name, traces) {
  const list = document.getElementById(`legend-${name}`);
  const items = traces.filter((trace) => trace.showlegend !== false && trace.name).map((trace) => {
    const item = document.createElement("li");
    item.append(swatch(trace), trace.name);
    return item;
  });
  list.replaceChildren(...items);
}

function swatch(trace) {
  const make = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const svg = make("svg", { viewBox: "0 0 20 12", "aria-hidden": "true" });
  if (trace.fill === "toself" || trace.marker?.symbol === "square") {
    svg.append(make("rect", { x: 0, y: 1, width: 20, height: 10, fill: trace.fillcolor ?? trace.marker.color }));
  } else if (trace.mode === "markers") {
    svg.append(make("circle", { cx: 10, cy: 6, r: 3, fill: "none", stroke: trace.marker.color, "stroke-width": 1.2 }));
  } else {
    const dash = trace.line.dash ? { "stroke-dasharray": "5 3" } : {};
    svg.append(make("path", { d: "M0 6H20", stroke: trace.line.color, "stroke-width": trace.line.width ?? 2, ...dash }));
  }
  return svg;
}

// On a phone the axis titles and legend share less room.
function narrow(layout) {
  layout.margin = { l: 52, r: 12, t: 8, b: 44 };
  const ticks = layout.xaxis?.tickvals;
  if (ticks?.length > 8) layout.xaxis = { ...layout.xaxis, tickvals: ticks.filter((_, i) => i % 2 === 0), ticktext: layout.xaxis.ticktext.filter((_, i) => i % 2 === 0) };
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
  const figure = { data: element.data, layout: { ...element.layout, paper_bgcolor: paper, showlegend: true, margin: { ...element.layout.margin, t: 56 } }, config: CONFIG };
  return Plotly.downloadImage(figure, { format: "png", scale: 2, width: element.clientWidth, height: element.clientHeight, filename: title });
}
