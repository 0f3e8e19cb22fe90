// The sections on the layers: a map of all of them, and the singular values of one. One card per run, same scales.
"use strict";

const fill = (row, count) => (row.length === count ? row : Array(count).fill(row[0]));

function mapRows(run, kind, metric) {
  const map = run.maps[kind];
  if (!map || !map.metrics[metric]) return null;
  return { ...map, rows: map.metrics[metric].map((row) => fill(row, map.steps.length)) };
}

// The rank, unless nearly every value of it is the same, as where all batches are smaller than what they span.
function startingMetric(metrics) {
  const rows = RUNS.flatMap((run) => mapRows(run, state.kind, "rank")?.rows ?? []);
  const values = rows.flat().filter((value) => value !== null);
  const largest = values.reduce((a, b) => Math.max(a, b), 0);
  const flat = values.filter((value) => value === largest).length > 0.95 * values.length;
  return flat && metrics.includes("effective_rank") ? "effective_rank" : metrics[0];
}

function drawMap() {
  const kinds = union(RUNS.map((run) => Object.keys(run.maps))).filter((kind) => kind !== "align");
  if (!kinds.includes(state.kind)) state.kind = kinds[0];
  const metrics = union(RUNS.map((run) => Object.keys(run.maps[state.kind]?.metrics ?? {})));
  if (!metrics.includes(state.metric)) state.metric = startingMetric(metrics);
  const controls = byId("map-controls");
  controls.hidden = !kinds.length;
  if (!kinds.length) return facets(byId("map-facets"), shown(), () => null);
  controls.replaceChildren(
    select(
      "Of the",
      kinds.map((kind) => [kind, kindLabel(kind)]),
      state.kind,
      (kind) => {
        state.kind = kind;
        drawMap();
      },
    ),
    select(
      "show the",
      metrics.map((metric) => [metric, define(metric).label]),
      state.metric,
      (metric) => {
        state.metric = metric;
        drawMap();
      },
    ),
    select(
      "coloured",
      [
        ["no", "by its value"],
        ["yes", "relative to the layer's largest"],
      ],
      state.relative,
      (relative) => {
        state.relative = relative;
        drawMap();
      },
    ),
  );

  const maps = new Map(shown().map((run) => [run, mapRows(run, state.kind, state.metric)]));
  const largest = new Map();
  for (const map of maps.values())
    map?.rows.forEach((row, i) => {
      const top = extent([row]);
      largest.set(map.layers[i], Math.max(largest.get(map.layers[i]) ?? 0, top ? top[1] : 0));
    });
  const relative = state.relative === "yes";
  const value = (map, i, cell) =>
    cell === null ? null : relative ? (largest.get(map.layers[i]) ? cell / largest.get(map.layers[i]) : null) : cell;
  const log = Boolean(define(state.metric).log) && !relative;
  const all = [...maps.values()].filter(Boolean).flatMap((map) => map.rows);
  const span = extent(log ? all.map((row) => row.filter((cell) => cell > 0)) : all);
  const bounds =
    span &&
    (relative ? [0, 1] : log ? [span[0], Math.max(span[1], span[0] * 1.01)] : [Math.min(0, span[0]), span[1] || 1]);
  const { label } = define(state.metric);
  const paintScale = () =>
    drawScale(byId("map-scale"), bounds, log, relative ? `${label} / its largest in that layer, over all runs` : label);
  paintScale();
  facets(byId("map-facets"), shown(), (run, node) => {
    const map = maps.get(run);
    if (!map || !bounds) return null;
    return () => {
      paintScale();
      return drawHeatmap(node, {
        rows: map.rows.map((row, i) => row.map((cell) => value(map, i, cell))),
        layers: map.layers,
        steps: map.steps,
        texts: relative ? (i, j) => ` of ${round(largest.get(map.layers[i]))}: ${round(map.rows[i][j])}` : null,
        bounds,
        log,
        x: columnRange([...maps.values()]),
        label: relative ? "share" : label,
        choose: follow,
      });
    };
  });
  const doubts = shown()
    .filter((run) => run.maps[state.kind]?.uncertain[state.metric] !== undefined)
    .map((run) => `${run.name} ${(100 * run.maps[state.kind].uncertain[state.metric]).toFixed(1)} %`);
  caption(
    byId("map-caption"),
    [state.metric],
    (doubts.length ? `Share of values whose interval [lo, hi] holds more than one rank: ${doubts.join(", ")}. ` : "") +
      thinned("maps", state.kind),
  );
}

function thinned(part, kind) {
  const few = shown().filter((run) => run[part][kind] && run[part][kind].steps.length < run.steps);
  const counts = union(few.map((run) => `${run[part][kind].steps.length} of ${run.steps.toLocaleString("en")}`));
  return counts.length ? `Steps shown: ${counts.join(", ")}.` : "";
}

function follow(layer) {
  if (RUNS.some((run) => run.vectors[state.kind]?.layers.includes(layer))) {
    state.vectorKind = state.kind;
    state.vector = layer;
    drawSigma();
  }
  if (RUNS.some((run) => run.cosines?.layers.includes(layer))) {
    state.cosineLayer = layer;
    drawCosines();
  }
}

function drawSigma() {
  const kinds = union(RUNS.map((run) => Object.keys(run.vectors)));
  if (!kinds.includes(state.vectorKind)) state.vectorKind = kinds[0];
  const kind = state.vectorKind;
  const layers = union(RUNS.map((run) => run.vectors[kind]?.layers ?? []));
  if (!layers.includes(state.vector)) state.vector = layers.at(-1);
  const controls = byId("sigma-controls");
  controls.hidden = !kinds.length;
  if (kinds.length)
    controls.replaceChildren(
      select(
        "Of the",
        kinds.map((name) => [name, kindLabel(name)]),
        kind,
        (name) => {
          state.vectorKind = name;
          drawSigma();
        },
      ),
      select(
        kind === "logits" ? "" : "of layer",
        layers.map((layer) => [layer, VECTOR_LABELS[`${kind}/${layer}`] || layer]),
        state.vector,
        (layer) => {
          state.vector = layer;
          drawSigma();
        },
      ),
    );

  const lines = new Map(
    shown().map((run) => {
      const vectors = run.vectors[kind];
      const place = vectors ? vectors.layers.indexOf(state.vector) : -1;
      return [run, place < 0 ? null : { steps: vectors.steps, values: vectors.values[place] }];
    }),
  );
  const positive = [...lines.values()]
    .filter(Boolean)
    .flatMap((one) => one.values)
    .map((row) => row.filter((value) => value > 0));
  const span = extent(positive);
  // Values that are zero but for rounding would stretch the axis over the ones that matter.
  const range = span && [Math.log10(Math.max(span[0], span[1] * 1e-9)) - 0.1, Math.log10(span[1]) + 0.1];
  const count = Math.max(0, ...[...lines.values()].filter(Boolean).map((one) => one.values.length));
  const paintScale = () =>
    drawScale(byId("sigma-scale"), count > 1 ? [1, count] : null, false, "index i of σᵢ, the largest first", {
      colors: ramp(count),
    });
  paintScale();
  facets(byId("sigma-facets"), shown(), (run, node) => {
    const one = lines.get(run);
    if (!one || !range) return null;
    return () => {
      paintScale();
      const colors = ramp(count);
      return drawLines(
        node,
        one.values.map((values, i) => ({
          name: `σ${i + 1}`,
          color: colors[i],
          x: one.steps,
          y: values,
          width: i ? 1.3 : 2,
        })),
        { log: true, range, x: stepRange(), height: 340, together: false },
      );
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
