// The sections of the page, from the one JSON blob (its shape is stated in content.py). State is what the reader
// chose; a change redraws the sections that depend on it.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs.map((run, index) => ({ ...run, index }));
const state = { hidden: new Set(), kind: "act", metric: "rank", relative: "no", vectorKind: "act", layer: null, vector: null,
  alignMetric: "max", cosineLayer: null, cosineStep: null };

const byId = (id) => document.getElementById(id);
const shown = () => RUNS.filter((run) => !state.hidden.has(run.index));
const union = (lists) => [...new Set(lists.flat())];
const temperature = (run) => (run.T === null || run.T === undefined ? "" : `T = ${round(run.T)}`);
const stepRange = () => {
  const last = Math.max(1, ...shown().map((run) => run.last ?? 0));
  return [-0.01 * last, 1.01 * last];
};

function runTitle(run, extra = "") {
  const dot = element("span", { className: "dot" });
  dot.style.background = runColor(run.index);
  return [dot, element("span", {}, run.name), element("span", { className: "quiet" }, [temperature(run), extra].filter(Boolean).join(", "))];
}

function caption(node, names, more = "") {
  node.replaceChildren();
  for (const name of names) {
    const { label, text, source } = define(name);
    if (text) node.append(element("strong", {}, label), `: ${text}${source ? ` (${source})` : ""} `);
  }
  node.append(more);
}

// ---- header

function drawHeader() {
  const names = RUNS.map((run) => run.name);
  byId("title").textContent = names.length < 4 ? names.join(" vs ") : `${names.length} runs compared`;
  document.title = `${byId("title").textContent} · fastrank`;
  byId("subtitle").textContent = `Spectral record of ${RUNS.length} training run${RUNS.length > 1 ? "s" : ""}; written ${DATA.generated} by fastrank ${DATA.version}`;
  const percent = (value) => (typeof value === "number" ? `${(100 * value).toFixed(1)} %` : "—");
  const columns = [
    ["run", "", null],
    ["T", "Softmax temperature of the loss", (run) => round(run.T)],
    ["train acc.", "Accuracy on the training set after training", (run) => percent(run.evaluation.train_accuracy)],
    ["test acc.", "Accuracy on held-out data after training", (run) => percent(run.evaluation.test_accuracy)],
    ["solution rank", define("solution_rank").text, (run) => rankCell(run)],
    ["‖M‖", "Frobenius norm of the logits of the whole set, before the division by T", (run) => round(run.evaluation.logits_norm)],
    ["‖M‖ / T", "The same divided by T: what the softmax sees", (run) => round(run.evaluation.logits_norm_over_T)],
    ["tracking", define("cost/share").text, (run) => percent(run.overhead)],
    ["steps", "Number of recorded steps", (run) => run.steps.toLocaleString("en")],
  ];
  const head = element("tr", {}, ...columns.map(([label, title, cell]) =>
    element("th", { className: cell ? "number" : "", ...(title && { title }) }, label)));
  const rows = RUNS.map((run) => element("tr", {}, ...columns.map(([, , cell]) => {
    if (cell) return element("td", { className: "number" }, cell(run));
    const status = run.status === "finished" ? null : element("span", { className: "status" }, run.status);
    return element("td", {}, runTitle(run)[0], " ", run.name, status);
  })));
  byId("summary").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
  const missing = RUNS.filter((run) => run.steps === 0).map((run) => run.name);
  const unevaluated = RUNS.filter((run) => run.steps && !Object.keys(run.evaluation).length).map((run) => run.name);
  byId("summary-note").textContent = [
    missing.length ? `No step was recorded in ${missing.join(", ")}.` : "",
    unevaluated.length ? `No evaluation after training in ${unevaluated.join(", ")}.` : "",
    "Hover over a column's name for its definition.",
  ].filter(Boolean).join(" ");
}

function rankCell(run) {
  const of = (name) => run.evaluation[`solution_rank.${name}`];
  if (of("rank") === undefined) return "—";
  const interval = of("lo") === undefined ? null : element("span", { className: "interval" }, ` [${round(of("lo"))}, ${round(of("hi"))}]`);
  const title = [of("definition"), of("tol") === undefined ? "" : `tol = ${round(of("tol"))}`].filter(Boolean).join("; ");
  return element("span", { title }, round(of("rank")), interval);
}

function drawSetup() {
  const tables = ["config", "evaluation", "environment", "git"].map((part) => setupTable(part)).filter(Boolean);
  const differing = setupTable("config", true);
  byId("setup").replaceChildren(...(differing && RUNS.length > 1
    ? [element("div", { className: "setup" }, element("div", {}, element("h3", {}, "What differs"), differing))] : []),
    element("details", {}, element("summary", {}, "Everything that was set: configuration, evaluation, environment, repository"),
      element("div", { className: "setup" }, ...tables)));
}

function setupTable(part, onlyDiffering = false) {
  const keys = union(RUNS.map((run) => Object.keys(run[part])));
  const differs = (key) => new Set(RUNS.map((run) => JSON.stringify(run[part][key]))).size > 1;
  const chosen = onlyDiffering ? keys.filter(differs) : keys;
  if (!chosen.length) return null;
  const head = element("tr", {}, ...[part, ...RUNS.map((run) => run.name)].map((name) => element("th", {}, name)));
  const rows = chosen.map((key) => element("tr", { className: RUNS.length > 1 && differs(key) && !onlyDiffering ? "differs" : "" },
    element("td", {}, key), ...RUNS.map((run) => element("td", {}, part === "evaluation" ? round(run[part][key]) : String(run[part][key] ?? "—")))));
  return element("div", { className: "scroll" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}

function drawChips() {
  byId("chips").replaceChildren(...(RUNS.length < 2 ? [] : RUNS.map((run) => element("button", {
    type: "button", title: `Show or hide ${run.name}`, ariaPressed: String(!state.hidden.has(run.index)),
    onclick: () => {
      if (!state.hidden.delete(run.index) && shown().length > 1) state.hidden.add(run.index);
      drawChips();
      drawSections();
    },
  }, ...runTitle(run).slice(0, 2)))));
}

// ---- lines of all runs in one picture

function lineCard(container, key, series, options) {
  const { label, text, source } = define(key);
  const node = element("div", { className: "plot" });
  container.append(element("figure", { className: "card" }, element("figcaption", { title: source }, label),
    element("p", { className: "caption", title: source }, text), node));
  if (series().length) picture(node, () => drawLines(node, series(), { x: stepRange(), ...options() }));
  else node.append(element("div", { className: "empty" }, "not recorded"));
}

function runLines(keys) {
  return shown().flatMap((run) => keys.filter((key) => run.lines[key]).map((key, place) => {
    const line = run.lines[key];
    const [low, high] = ["_lo", "_hi"].map((end) => run.lines[key + end]);
    const bounded = define(key).bounds && low && high && low.steps.length === line.steps.length;
    return {
      name: keys.length > 1 ? `${run.name}, ${define(key).label.toLowerCase()}` : run.name, color: runColor(run.index), x: line.steps, y: line.values,
      dash: place ? "dot" : "solid", ...(bounded && { low: low.values, high: high.values }),
    };
  }));
}

function drawLogits() {
  const container = byId("logit-lines");
  forget(container);
  const ranks = () => {
    const top = extent(runLines(["logits/rank"]).concat(runLines(["logits/softmax_rank"])).map((one) => one.high || one.y));
    return top && [0, 1.06 * top[1]];
  };
  const options = {
    "train/loss": () => {
      const span = extent(runLines(["train/loss"]).map((one) => one.y));
      return { log: span && span[0] > 0 && span[1] / span[0] > 100 };
    },
    "train/accuracy": () => ({ percent: true, range: [-0.02, 1.02] }),
    "logits/norm": () => ({ log: true }),
    "logits/norm_over_T": () => ({ log: true }),
    "logits/rank": () => ({ range: ranks() }),
    "logits/softmax_rank": () => ({ range: ranks() }),
  };
  for (const key of ["logits/norm", "logits/rank", "train/loss", "logits/norm_over_T", "logits/softmax_rank", "train/accuracy"]) {
    lineCard(container, key, () => runLines([key]), options[key]);
  }
}

function drawCost() {
  const container = byId("cost-lines");
  forget(container);
  lineCard(container, "cost/track_ms", () => runLines(["cost/track_ms"]), () => ({}));
  lineCard(container, "cost/step_ms", () => runLines(["cost/step_ms"]), () => ({}));
  lineCard(container, "cost/share", () => runLines(["cost/share"]), () => ({ percent: true }));
}

// ---- heatmaps: layers x steps, one facet per run

function select(label, options, value, change) {
  const box = element("select", { onchange: () => change(box.value) },
    ...options.map(([key, text]) => element("option", { value: key, selected: key === value }, text)));
  return element("label", {}, label, box);
}

function facets(container, runs, build, extra = () => "") {
  forget(container);
  for (const run of runs) {
    const node = element("div", { className: "plot" });
    container.append(element("figure", { className: "card" }, element("figcaption", {}, ...runTitle(run, extra(run))), node));
    const draw = build(run, node);
    if (draw) picture(node, draw);
    else node.append(element("div", { className: "empty" }, run.steps ? "not recorded in this run" : "this run has no steps"));
  }
}

const fill = (row, count) => (row.length === count ? row : Array(count).fill(row[0]));

function mapRows(run, kind, metric) {
  const map = run.maps[kind];
  if (!map || !map.metrics[metric]) return null;
  return { ...map, rows: map.metrics[metric].map((row) => fill(row, map.steps.length)) };
}

function drawMap() {
  const kinds = union(RUNS.map((run) => Object.keys(run.maps))).filter((kind) => kind !== "align");
  if (!kinds.includes(state.kind)) state.kind = kinds[0];
  const metrics = union(RUNS.map((run) => Object.keys(run.maps[state.kind]?.metrics ?? {})));
  if (!metrics.includes(state.metric)) state.metric = metrics[0];
  const controls = byId("map-controls");
  controls.hidden = !kinds.length;
  if (kinds.length) controls.replaceChildren(
    select("Of the", kinds.map((kind) => [kind, KINDS[kind] || kind]), state.kind, (kind) => { state.kind = kind; drawMap(); }),
    select("show the", metrics.map((metric) => [metric, define(metric).label]), state.metric, (metric) => { state.metric = metric; drawMap(); }),
    select("coloured", [["no", "by its value"], ["yes", "relative to the layer's largest"]], state.relative,
      (relative) => { state.relative = relative; drawMap(); }));

  const largest = {};
  const maps = new Map(shown().map((run) => [run, kinds.length ? mapRows(run, state.kind, state.metric) : null]));
  for (const map of maps.values()) map?.rows.forEach((row, i) => {
    const top = extent([row]);
    largest[map.layers[i]] = Math.max(largest[map.layers[i]] ?? 0, top ? top[1] : 0);
  });
  const relative = state.relative === "yes";
  const value = (map, i, cell) => (cell === null ? null : relative ? (largest[map.layers[i]] ? cell / largest[map.layers[i]] : null) : cell);
  const log = Boolean(define(state.metric).log) && !relative;
  const all = [...maps.values()].filter(Boolean).flatMap((map) => map.rows);
  const span = extent(log ? all.map((row) => row.filter((cell) => cell > 0)) : all);
  const bounds = relative ? [0, 1] : span && (log ? [span[0], Math.max(span[1], span[0] * 1.01)] : [Math.min(0, span[0]), span[1] || 1]);
  const { label } = define(state.metric);
  const paintScale = () => drawScale(byId("map-scale"), bounds, log, relative ? `${label} / its largest in that layer, over all runs` : label);
  paintScale();
  facets(byId("map-facets"), shown(), (run, node) => {
    const map = maps.get(run);
    if (!map || !bounds) return null;
    return () => {
      paintScale();
      drawHeatmap(node, { rows: map.rows.map((row, i) => row.map((cell) => value(map, i, cell))), layers: map.layers, steps: map.steps,
        texts: relative ? (i, j) => ` of ${round(largest[map.layers[i]])}: ${round(map.rows[i][j])}` : null,
        bounds, log, x: stepRange(), label: relative ? "share" : label, choose: follow });
    };
  });
  const doubts = shown().filter((run) => run.maps[state.kind]?.uncertain[state.metric] !== undefined).map((run) =>
    `${run.name} ${(100 * run.maps[state.kind].uncertain[state.metric]).toFixed(1)} %`);
  caption(byId("map-caption"), [state.metric],
    (doubts.length ? `Share of values whose interval [lo, hi] holds more than one rank: ${doubts.join(", ")}. ` : "") + thinned("maps", state.kind));
}

function thinned(part, kind) {
  const few = shown().filter((run) => run[part][kind] && run[part][kind].steps.length < run.steps);
  return few.length ? `Shown: ${few.map((run) => `${run[part][kind].steps.length} of ${run.steps.toLocaleString("en")} steps (${run.name})`).join(", ")}.` : "";
}

// ---- singular values of one matrix

function follow(layer) {
  if (RUNS.some((run) => run.vectors[state.kind]?.layers.includes(layer))) { state.vectorKind = state.kind; state.vector = layer; drawSigma(); }
  if (RUNS.some((run) => run.matrices.align?.layers.includes(layer))) { state.cosineLayer = layer; drawCosines(); }
}

function drawSigma() {
  const kinds = union(RUNS.map((run) => Object.keys(run.vectors)));
  if (!kinds.includes(state.vectorKind)) state.vectorKind = kinds[0];
  const kind = state.vectorKind;
  const layers = union(RUNS.map((run) => run.vectors[kind]?.layers ?? []));
  if (!layers.includes(state.vector)) state.vector = layers[Math.floor(0.7 * layers.length)];
  const controls = byId("sigma-controls");
  controls.hidden = !kinds.length;
  if (kinds.length) controls.replaceChildren(
    select("Of the", kinds.map((name) => [name, KINDS[name] || name]), kind, (name) => { state.vectorKind = name; drawSigma(); }),
    select(kind === "logits" ? "" : "of layer", layers.map((layer) => [layer, VECTOR_LABELS[`${kind}/${layer}`] || layer]), state.vector,
      (layer) => { state.vector = layer; drawSigma(); }));

  const lines = new Map(shown().map((run) => {
    const vectors = run.vectors[kind];
    const place = vectors ? vectors.layers.indexOf(state.vector) : -1;
    return [run, place < 0 ? null : { steps: vectors.steps, values: vectors.values[place] }];
  }));
  const positive = [...lines.values()].filter(Boolean).flatMap((one) => one.values).map((row) => row.filter((value) => value > 0));
  const span = extent(positive);
  // Values that are zero but for rounding would stretch the axis over the ones that matter.
  const range = span && [Math.log10(Math.max(span[0], span[1] * 1e-9)) - 0.1, Math.log10(span[1]) + 0.1];
  const count = Math.max(0, ...[...lines.values()].filter(Boolean).map((one) => one.values.length));
  const paintScale = () => drawScale(byId("sigma-scale"), count > 1 ? [1, count] : null, false, "place i of σᵢ, the largest first");
  paintScale();
  facets(byId("sigma-facets"), shown(), (run, node) => {
    const one = lines.get(run);
    if (!one || !range) return null;
    return () => {
      paintScale();
      const colors = ramp(count);
      drawLines(node, one.values.map((values, i) => ({ name: `σ${i + 1}`, color: colors[i], x: one.steps, y: values, width: i ? 1.3 : 2 })),
        { log: true, range, x: stepRange(), height: 340, together: false });
    };
  });
  caption(byId("sigma-caption"), ["sigma"], thinned("vectors", kind));
}

// `count` colours along the theme's ramp; its palest end would vanish as a thin line.
function ramp(count) {
  const stops = theme().ramp.slice(1).reverse();
  const channel = (color, i) => parseInt(color.slice(1 + 2 * i, 3 + 2 * i), 16);
  return Array.from({ length: count }, (_, index) => {
    const at = (index / Math.max(1, count - 1)) * (stops.length - 1);
    const [from, to] = [stops[Math.floor(at)], stops[Math.ceil(at)]];
    const mix = [0, 1, 2].map((i) => Math.round(channel(from, i) + (at % 1) * (channel(to, i) - channel(from, i))));
    return "#" + mix.map((part) => part.toString(16).padStart(2, "0")).join("");
  });
}

// ---- alignment

function chanceOf(run, layer = null) {
  const map = mapRows(run, "align", "chance");
  const chosen = map ? map.rows.filter((_, i) => layer === null || map.layers[i] === layer) : [];
  const values = finite(chosen.map((row) => finite(row)[0] ?? null));
  return values.length ? values.reduce((a, b) => a + b) / values.length : null;
}

function withChance(run, series, layer = null) {
  const chance = chanceOf(run, layer);
  const ends = [series.x[0], series.x[series.x.length - 1]];
  return chance === null ? [series] : [series, { name: `${run.name}, chance`, color: runColor(run.index), x: ends, y: [chance, chance], dash: "dot", width: 1.2 }];
}

function drawAlignment() {
  const container = byId("align-lines");
  forget(container);
  lineCard(container, "align/mean_max", () => shown().filter((run) => run.lines["align/mean_max"]).flatMap((run) => {
    const line = run.lines["align/mean_max"];
    return withChance(run, { name: run.name, color: runColor(run.index), x: line.steps, y: line.values });
  }), () => ({ range: [0, 1.02], height: 260 }));

  const metrics = union(RUNS.map((run) => Object.keys(run.maps.align?.metrics ?? {})));
  if (!metrics.includes(state.alignMetric)) state.alignMetric = metrics[0];
  const controls = byId("align-controls");
  controls.hidden = !metrics.length;
  controls.replaceChildren(select("Per layer, show the", metrics.map((metric) => [metric, define(metric).label]), state.alignMetric,
    (metric) => { state.alignMetric = metric; drawAlignment(); }));
  const chances = finite(shown().map((run) => chanceOf(run)));
  const mean = chances.length ? chances.reduce((a, b) => a + b) / chances.length : null;
  const paintScale = () => drawScale(byId("align-scale"), metrics.length ? [0, 1] : null, false, metrics.length ? define(state.alignMetric).label : "",
    mean === null ? [] : [{ at: mean, title: `chance, ${round(mean, 2)} in the mean over layers` }]);
  paintScale();
  facets(byId("align-facets"), shown(), (run, node) => {
    const map = metrics.length ? mapRows(run, "align", state.alignMetric) : null;
    if (!map) return null;
    const [error, chance] = ["error", "chance"].map((metric) => mapRows(run, "align", metric));
    return () => {
      paintScale();
      drawHeatmap(node, { rows: map.rows, layers: map.layers, steps: map.steps, bounds: [0, 1], log: false, x: stepRange(),
        label: define(state.alignMetric).label, choose: (layer) => { state.cosineLayer = layer; drawCosines(); },
        texts: (i, j) => (error ? ` ± ${round(error.rows[i][j], 2)}` : "") + (chance ? `<br>chance ${round(chance.rows[i][j], 2)}` : "") });
    };
  });
  caption(byId("align-caption"), metrics.length ? [state.alignMetric, "chance"] : [], thinned("maps", "align"));
  drawCosines();
}

function drawCosines() {
  const layers = union(RUNS.map((run) => run.matrices.align?.layers ?? []));
  const steps = union(RUNS.map((run) => run.matrices.align?.steps ?? [])).sort((a, b) => a - b);
  const controls = byId("cosine-controls");
  controls.hidden = !layers.length;
  if (!layers.includes(state.cosineLayer)) state.cosineLayer = layers[Math.floor(0.7 * layers.length)];
  if (!steps.includes(state.cosineStep)) state.cosineStep = steps[Math.floor(0.4 * steps.length)];
  const says = element("output", {}, `step ${state.cosineStep}`);
  const slider = element("input", { type: "range", min: 0, max: Math.max(0, steps.length - 1), value: steps.indexOf(state.cosineStep), ariaLabel: "step",
    oninput: () => { state.cosineStep = steps[slider.value]; says.textContent = `step ${state.cosineStep}`; paint(); } });
  slider.value = steps.indexOf(state.cosineStep);
  controls.replaceChildren(select("Layer", layers.map((layer) => [layer, layer]), state.cosineLayer, (layer) => { state.cosineLayer = layer; drawCosines(); }),
    element("label", {}, "at", slider, says));

  // The latest matrix of a run that is not later than the slider's step; its first one before that.
  const matrixOf = (run) => {
    const { layers: own, steps: at, values } = run.matrices.align;
    return values[own.indexOf(state.cosineLayer)][Math.max(0, at.findLastIndex((step) => step <= state.cosineStep))];
  };
  const drawn = [];
  facets(byId("cosine-facets"), shown(), (run, node) => {
    if (!run.matrices.align?.layers.includes(state.cosineLayer)) return null;
    const draw = () => drawMatrix(node, matrixOf(run));
    drawn.push(node);
    return draw;
  }, (run) => { const chance = layers.length ? chanceOf(run, state.cosineLayer) : null; return chance === null ? "" : `chance ${round(chance, 2)}`; });
  const paint = () => drawn.forEach((node) => { if (pictures.get(node)?.drawn) guarded(pictures.get(node).draw); });
  caption(byId("cosine-caption"), layers.length ? ["cosines"] : []);
}

// ---- notes, definitions

function drawNotes() {
  const notes = RUNS.flatMap((run) => run.notes.map((note) => [run, note]));
  byId("notes").hidden = !notes.length;
  const head = element("tr", {}, ...["run", "figure", "steps", "remark"].map((name) => element("th", {}, name)));
  byId("note-table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...notes.map(([run, note]) => element("tr", {},
    element("td", {}, run.name), element("td", {}, note.key),
    element("td", {}, note.count > 1 ? `${note.count}, from ${note.first} to ${note.last}` : String(note.first)), element("td", {}, note.text)))));
}

function drawDefinitions() {
  byId("definition-list").replaceChildren(...Object.values(DEFINITIONS).flatMap(({ label, text, source }) => [
    element("dt", {}, label), element("dd", {}, text, source ? element("span", { className: "source" }, source) : null)]));
  byId("footer").textContent = `fastrank ${DATA.version}. Rows of every matrix are samples. Series are thinned for display only: the run directories hold every step.`;
}

function drawSections() {
  for (const section of [drawLogits, drawMap, drawSigma, drawAlignment, drawCost]) guarded(section);
}

window.addEventListener("error", (event) => fail(event.error || event.message));
window.addEventListener("unhandledrejection", (event) => fail(event.reason));
for (const part of [drawHeader, drawSetup, drawChips, drawSections, drawNotes, drawDefinitions]) guarded(part);
dark.addEventListener("change", () => { drawHeader(); drawChips(); redrawAll(); });
