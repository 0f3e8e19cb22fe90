// The page's data (its shape is stated in content.py), what the reader chose, and what every section needs.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs.map((run, index) => ({ ...run, index }));
for (const run of RUNS) {
  // Their keys are anyone's names: "constructor" must be absent where no run has it.
  for (const part of ["config", "evaluation", "environment", "git", "lines", "maps", "vectors"])
    Object.setPrototypeOf(run[part], null);
  for (const map of Object.values(run.maps)) {
    Object.setPrototypeOf(map.metrics, null);
    Object.setPrototypeOf(map.uncertain, null);
  }
}
const state = {
  hidden: new Set(),
  kind: "act",
  metric: null, // chosen by what the runs show, see startingMetric
  relative: "no",
  vectorKind: "act",
  vector: null,
  alignMetric: "max",
  cosineLayer: null,
  cosineStep: null,
};

const byId = (id) => document.getElementById(id);
const shown = () => RUNS.filter((run) => !state.hidden.has(run.index));
const union = (lists) => [...new Set(lists.flat())];
const temperature = (run) => (run.T === null || run.T === undefined ? "" : `T = ${round(run.T)}`);
const lastStep = () => Math.max(1, ...shown().map((run) => run.last ?? 0));
const stepRange = () => [-0.01 * lastStep(), 1.01 * lastStep()];

// The same for columns of heatmaps, to the outer edges of the first and the last.
function columnRange(maps) {
  const columns = Math.max(2, ...maps.filter(Boolean).map((map) => map.steps.length));
  const half = Math.max(1, lastStep() / (columns - 1)) / 2;
  return [-half, lastStep() + half];
}

function runTitle(run, extra = "") {
  const dot = element("span", { className: "dot" });
  dot.style.background = runColor(run.index);
  return [
    dot,
    element("span", {}, run.name),
    element("span", { className: "quiet" }, [temperature(run), extra].filter(Boolean).join(", ")),
  ];
}

function caption(node, names, more = "") {
  node.replaceChildren();
  for (const name of names) {
    const { label, text, source } = define(name);
    if (text) node.append(element("strong", {}, label), `: ${text}${source ? ` (${source})` : ""} `);
  }
  node.append(more);
}
