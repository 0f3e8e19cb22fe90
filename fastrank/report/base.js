// Colours of both themes, small helpers, and the queue that draws the pictures one after another. Every name reaches
// the page through textContent, and Plotly through `plain`, which leaves it no markup to obey.
"use strict";

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const THEMES = {
  light: {
    text: "#22262b",
    quiet: "#666c74",
    grid: "#eceae4",
    card: "#ffffff",
    gap: "#f1efe9",
    runs: ["#2f6f9f", "#c8553d", "#4d8b57", "#8a62a8", "#b8892b", "#3a8f8a", "#7a6a5d", "#c06c9b"],
    ramp: ["#f3f0e2", "#d3e4c5", "#9ccdb6", "#5ca9a7", "#317f96", "#225579", "#1a2c50"],
  },
  dark: {
    text: "#dde1e6",
    quiet: "#949ca6",
    grid: "#2a3038",
    card: "#1b1f25",
    gap: "#22272e",
    runs: ["#6fb1e0", "#f08a6f", "#86c48f", "#bd99d9", "#e0b75e", "#74c5bf", "#b5a595", "#e59dc4"],
    ramp: ["#20283a", "#224a6b", "#2b7488", "#4a9f9b", "#86c6ac", "#c8e2bb", "#f6f2dc"],
  },
};
const theme = () => (dark.matches ? THEMES.dark : THEMES.light);
const runColor = (index) => theme().runs[index % theme().runs.length];
const scale = () => theme().ramp.map((color, i, all) => [i / (all.length - 1), color]);

function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Plotly reads a few tags, %{...} and $...$ in its texts: a name must mean itself.
function plain(text, longest = 26) {
  const short = text.length > longest ? text.slice(0, longest - 13) + "…" + text.slice(-12) : text;
  return short
    .replace(/&/g, "&amp;")
    .replace(/</g, "&lt;")
    .replace(/>/g, "&gt;")
    .replace(/%/g, "&#37;")
    .replace(/\$/g, "&#36;");
}

// Made once: toLocaleString makes one for each of a heatmap's 20,000 cells, which took seconds.
const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 12 });

function round(value, digits = 4) {
  if (value === null || value === undefined || typeof value !== "number") return value ?? "—";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
  const size = Math.abs(value);
  if (size >= 1e8 || size < 1e-3) return value.toExponential(2);
  return NUMBER.format(Number(value.toPrecision(digits)));
}

function finite(values) {
  return values.filter((value) => value !== null && Number.isFinite(value));
}

function extent(lists) {
  let [low, high] = [Infinity, -Infinity];
  for (const list of lists)
    for (const value of list) {
      if (value !== null && Number.isFinite(value)) {
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
  return low > high ? null : [low, high];
}

// Pictures are drawn one after another, in the order of the page, so that it can be read while they come. Plotly
// finishes a picture later than its call returns: a node is drawn again, or given up, only after that.
const pictures = new Map();
let drawing = false;

function picture(node, draw) {
  pictures.set(node, { node, draw, drawn: false, done: Promise.resolve() });
  if (window.Plotly) startDrawing();
}

function startDrawing() {
  if (drawing) return;
  drawing = true;
  setTimeout(drawNext);
}

function drawNext() {
  const waiting = [...pictures.values()].find((entry) => !entry.drawn);
  drawing = Boolean(waiting);
  if (waiting) paint(waiting).then(() => setTimeout(drawNext));
}

function paint(entry) {
  entry.drawn = true;
  entry.done = entry.done.then(() => pictures.get(entry.node) === entry && entry.draw()).catch(fail);
  return entry.done;
}

function repaint(nodes) {
  for (const node of nodes) if (pictures.get(node)?.drawn) paint(pictures.get(node));
}

function forget(container) {
  for (const node of container.querySelectorAll(".plot")) {
    const entry = pictures.get(node);
    if (entry && pictures.delete(node)) entry.done.then(() => window.Plotly?.purge(node));
  }
  container.replaceChildren();
}

function fail(error) {
  const box = document.getElementById("failure");
  box.textContent = `A part of this page could not be drawn: ${error && error.message ? error.message : error}`;
  box.hidden = false;
  console.error(error);
}

function guarded(work) {
  try {
    work();
  } catch (error) {
    fail(error);
  }
}
