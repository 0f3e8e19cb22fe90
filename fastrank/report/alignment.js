// The section on the alignment of weights with their inputs.
"use strict";

function chanceOf(run, layer = null) {
  const map = mapRows(run, "align", "chance");
  const chosen = map ? map.rows.filter((_, i) => layer === null || map.layers[i] === layer) : [];
  const values = finite(chosen.map((row) => finite(row)[0] ?? null));
  return values.length ? values.reduce((a, b) => a + b) / values.length : null;
}

function withChance(run, series, layer = null) {
  const chance = chanceOf(run, layer);
  const ends = [series.x[0], series.x[series.x.length - 1]];
  return chance === null
    ? [series]
    : [
        series,
        {
          name: `${run.name}, chance`,
          color: runColor(run.index),
          x: ends,
          y: [chance, chance],
          dash: "dot",
          width: 1.2,
        },
      ];
}

function drawAlignment() {
  const container = byId("align-lines");
  forget(container);
  lineCard(
    container,
    "align/mean_max",
    () =>
      shown()
        .filter((run) => run.lines["align/mean_max"])
        .flatMap((run) => {
          const line = run.lines["align/mean_max"];
          return withChance(run, { name: run.name, color: runColor(run.index), x: line.steps, y: line.values });
        }),
    () => ({ range: [0, 1.02], height: 260 }),
  );

  const metrics = union(RUNS.map((run) => Object.keys(run.maps.align?.metrics ?? {})));
  if (!metrics.includes(state.alignMetric)) state.alignMetric = metrics[0];
  const controls = byId("align-controls");
  controls.hidden = !metrics.length;
  if (metrics.length)
    controls.replaceChildren(
      select(
        "Per layer, show the",
        metrics.map((metric) => [metric, define(metric).label]),
        state.alignMetric,
        (metric) => {
          state.alignMetric = metric;
          drawAlignment();
        },
      ),
    );
  const chances = finite(shown().map((run) => chanceOf(run)));
  const mean = chances.length ? chances.reduce((a, b) => a + b) / chances.length : null;
  const paintScale = () =>
    drawScale(
      byId("align-scale"),
      metrics.length ? [0, 1] : null,
      false,
      metrics.length ? define(state.alignMetric).label : "",
      {
        marks: mean === null ? [] : [{ at: mean, title: `chance level, ${round(mean, 2)} on average over the layers` }],
      },
    );
  paintScale();
  facets(byId("align-facets"), shown(), (run, node) => {
    const map = metrics.length ? mapRows(run, "align", state.alignMetric) : null;
    if (!map) return null;
    const [error, chance] = ["error", "chance"].map((metric) => mapRows(run, "align", metric));
    return () => {
      paintScale();
      return drawHeatmap(node, {
        rows: map.rows,
        layers: map.layers,
        steps: map.steps,
        bounds: [0, 1],
        log: false,
        x: columnRange(shown().map((one) => one.maps.align)),
        label: define(state.alignMetric).label,
        choose: (layer) => {
          state.cosineLayer = layer;
          drawCosines();
        },
        texts: (i, j) =>
          (error ? ` ± ${round(error.rows[i][j], 2)}` : "") +
          (chance ? `<br>chance ${round(chance.rows[i][j], 2)}` : ""),
      });
    };
  });
  caption(byId("align-caption"), metrics.length ? [state.alignMetric, "chance"] : [], thinned("maps", "align"));
  drawCosines();
}

function drawCosines() {
  const layers = union(RUNS.map((run) => run.cosines?.layers ?? []));
  const steps = union(RUNS.map((run) => run.cosines?.steps ?? [])).sort((a, b) => a - b);
  const controls = byId("cosine-controls");
  controls.hidden = !layers.length;
  if (!layers.includes(state.cosineLayer)) state.cosineLayer = layers[Math.floor(0.7 * layers.length)];
  if (!steps.includes(state.cosineStep)) state.cosineStep = steps[Math.floor(0.4 * steps.length)];
  const says = element("output", {}, `step ${state.cosineStep}`);
  const slider = element("input", {
    type: "range",
    min: 0,
    max: Math.max(0, steps.length - 1),
    value: steps.indexOf(state.cosineStep),
    ariaLabel: "step",
    oninput: () => {
      state.cosineStep = steps[slider.value];
      says.textContent = `step ${state.cosineStep}`;
      repaint(drawn);
    },
  });
  slider.value = steps.indexOf(state.cosineStep);
  controls.replaceChildren(
    select(
      "Layer",
      layers.map((layer) => [layer, layer]),
      state.cosineLayer,
      (layer) => {
        state.cosineLayer = layer;
        drawCosines();
      },
    ),
    element("label", {}, "at", slider, says),
  );

  // The latest matrix of a run that is not later than the slider's step; its first one before that.
  const matrixOf = (run) => {
    const { layers: own, steps: at, values } = run.cosines;
    return values[own.indexOf(state.cosineLayer)][
      Math.max(
        0,
        at.findLastIndex((step) => step <= state.cosineStep),
      )
    ];
  };
  const lines = () =>
    shown().flatMap((run) => {
      const [max, error] = ["max", "error"].map((metric) => mapRows(run, "align", metric));
      const place = max ? max.layers.indexOf(state.cosineLayer) : -1;
      if (place < 0) return [];
      const [y, bound] = [max.rows[place], error ? error.rows[place] : null];
      const edge = (sign) =>
        y.map((value, i) => (value === null || bound[i] === null ? null : value + sign * bound[i]));
      return withChance(
        run,
        { name: run.name, color: runColor(run.index), x: max.steps, y, ...(bound && { low: edge(-1), high: edge(1) }) },
        state.cosineLayer,
      );
    });
  forget(byId("cosine-lines"));
  if (layers.length) lineCard(byId("cosine-lines"), "layer_max", lines, () => ({ range: [0, 1.02], height: 220 }));
  const drawn = [];
  facets(
    byId("cosine-facets"),
    shown(),
    (run, node) => {
      if (!run.cosines?.layers.includes(state.cosineLayer)) return null;
      const draw = () => drawMatrix(node, matrixOf(run));
      drawn.push(node);
      return draw;
    },
    (run) => {
      const chance = layers.length ? chanceOf(run, state.cosineLayer) : null;
      return chance === null ? "" : `chance ${round(chance, 2)}`;
    },
  );
  caption(byId("cosine-caption"), layers.length ? ["cosines"] : []);
}
