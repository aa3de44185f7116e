"use strict";
// what the pages' scripts share
const find = (id) => document.getElementById(id);

// in the MLflow UI's artifact view, whose sandbox forbids to open or to download anything
const embedded = window.parent !== window;

function made(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text; // never as HTML: names may hold anything
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// plotly reads a few tags in its texts; names are to be drawn as they are
function plain(text) {
  const short = text.length > 90 ? `${text.slice(0, 60)}…${text.slice(-25)}` : text;
  return short.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function shown(value) {
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e7)) return String(Number(value.toPrecision(5)).toExponential());
  return value.toLocaleString("en-US", { maximumSignificantDigits: 5 });
}

async function loadPlotly() {
  const bytes = Uint8Array.from(atob(find("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

function swatch(look) {
  const xmlns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(xmlns, "svg");
  const stroke = document.createElementNS(xmlns, "line");
  const dashes = look.dash === "solid" ? "none" : look.dash;
  const attributes = { x1: 0, x2: 26, y1: 4, y2: 4, stroke: look.colour, "stroke-width": 3 };
  for (const [key, value] of Object.entries({ ...attributes, "stroke-dasharray": dashes }))
    stroke.setAttribute(key, value);
  svg.append(stroke);
  return svg;
}

function opens(run) {
  return /^https?:\/\//.test(run.address || "");
}

// what a run's line says: its name, how it differs from others, and where its page is
function runLine(run) {
  const line = made("div", `Run ${[run.name || run.id, run.apart].filter(Boolean).join(" · ")}: `);
  if (!opens(run)) line.append(`its id is ${run.id}`);
  else if (embedded) line.append(made("code", run.address));
  else {
    const link = { href: run.address, target: "_blank", rel: "noopener noreferrer" };
    line.append(made("a", run.address, link));
  }
  return line;
}

const LEAST_SPAN = 0.05; // of the values: what is steadier than that is drawn as steady

// the range of a values' axis: a steady line is drawn as steady, not as noise
function valueRange(values, log) {
  let there = values.filter((v) => v !== null && (!log || v > 0));
  if (!there.length) return null;
  if (!log && there.every((v) => v === 0)) return [-0.06, 1];
  if (log) there = there.map(Math.log10);
  const low = there.reduce((a, b) => Math.min(a, b));
  const high = there.reduce((a, b) => Math.max(a, b));
  const least = log ? LEAST_SPAN : LEAST_SPAN * Math.max(Math.abs(low), Math.abs(high));
  const pad = 0.07 * (high - low) + Math.max(0, least - (high - low)) / 2;
  return [low - pad, high + pad];
}
