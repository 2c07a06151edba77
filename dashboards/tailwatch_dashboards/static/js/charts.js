// Plotly on the page: figures come ready from the service and are only shown here. What this file adds is what ties the charts
// together: one step axis (zoom in one zooms all), one cursor, one mark at the chosen step.
// Buttons are named one by one: the library's own set has one that sends data to a cloud.
const COMMON = { responsive: true, displaylogo: false, showTips: false };
const CONFIG = { ...COMMON, doubleClick: "reset", modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]] };
const whole = { name: "whole run", title: "Whole run", icon: window.Plotly?.Icons.home, click: () => zoomTo(null) };
const STEP_CONFIG = { ...COMMON, doubleClick: false, modeBarButtons: [["zoom2d", "pan2d", whole]] };
const STEP_FIGURES = ["quantiles", "kl", "staleness", "ess", "course"];
const NARROW = 560;
const CLICK_MS = 320;

const plot = (name) => document.getElementById(`plot-${name}`);
const frame = (name) => plot(name).parentElement;
let chosen = null;
let onStep = () => {};
let onZoom = () => {};
let zoom = null;
let extent = null;
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
  const steps = STEP_FIGURES.includes(name);
  if (steps) extent = layout.xaxis?.range ?? extent; // the same in all of them
  if (steps && zoom && layout.xaxis) layout.xaxis = { ...layout.xaxis, range: zoom };
  await Plotly.react(plot(name), figure.data, layout, steps ? STEP_CONFIG : CONFIG);
  frame(name).classList.add("ready");
  legend(name, figure.data);
  if (first) wire(name);
  mark(name);
}

// The legend is ours: it wraps with the card and takes no room from the plot.
function legend(name, traces) {
  const list = document.getElementById(`legend-${name}`);
  const items = traces.filter((trace) => trace.type !== "bar" && trace.showlegend !== false && trace.name).map((trace) => {
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
  for (const axis of [layout.xaxis, layout.yaxis, layout.yaxis2, layout.yaxis3]) if (axis?.title) axis.title = { ...axis.title, font: { size: 11 } };
}

function wire(name) {
  const element = plot(name);
  if (!STEP_FIGURES.includes(name)) return;
  element.on("plotly_hover", (event) => cursor(event.xvals?.[0] ?? event.points[0].x));
  element.on("plotly_unhover", () => cursor(null));
  // A double click resets the zoom; neither of its clicks may choose a step.
  let pending = 0;
  let doubled = -Infinity;
  element.on("plotly_click", (event) => {
    clearTimeout(pending);
    if (performance.now() - doubled < CLICK_MS) return;
    pending = setTimeout(() => onStep(event.points[0].x), CLICK_MS);
  });
  element.on("plotly_doubleclick", () => {
    clearTimeout(pending);
    doubled = performance.now();
    zoomTo(null);
  });
  element.on("plotly_relayout", followZoom);
  element.on("plotly_afterplot", () => mark(name));
}

function followZoom(change) {
  const low = change["xaxis.range[0]"] ?? change["xaxis.range"]?.[0];
  const high = change["xaxis.range[1]"] ?? change["xaxis.range"]?.[1];
  if (!syncing && low !== undefined && high !== undefined) zoomTo([low, high]);
}

// One range for all charts over steps; null is the whole run, which also follows it as it grows.
async function zoomTo(range) {
  syncing = true;
  zoom = range;
  onZoom(range);
  for (const name of STEP_FIGURES) {
    if (plot(name)._fullLayout?.xaxis) await Plotly.relayout(plot(name), { "xaxis.range": [...(range ?? extent)] });
  }
  syncing = false;
  for (const name of STEP_FIGURES) mark(name);
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
