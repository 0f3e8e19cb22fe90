// The section on whole data sets: the solution rank against its tolerance, and the probes' accuracies by layer.
"use strict";

function drawEvaluated() {
  const container = byId("evaluated-lines");
  forget(container);
  byId("evaluated").hidden = !RUNS.some((run) => run.evaluated);
  const runs = shown().filter((run) => run.evaluated);
  if (!runs.length) return;
  const rank = runs.flatMap((run) =>
    ["before", "after"]
      .filter((when) => Object.hasOwn(run.evaluated.ranks, when))
      .map((when) => {
        const { tolerance, rank, at, found } = run.evaluated.ranks[when];
        const further = at !== null && at < tolerance[tolerance.length - 1]; // of full rank at its tolerance
        const x = further ? [...tolerance, at] : tolerance;
        return {
          name: when === "after" ? `${run.name}, after the softmax` : run.name,
          color: runColor(run.index),
          x,
          y: further ? [...rank, rank.length] : rank,
          texts: x.map((value) => `tolerance ${round(value)}`),
          dash: when === "after" ? "dot" : "solid",
          mark: at !== null && found !== null ? [at, found] : null,
        };
      }),
  );
  curveCard(container, "evaluated/rank", "", rank, {
    x: { title: "tolerance / σ₁", type: "log" },
    y: { rangemode: "tozero" },
    shape: "vh",
  });
  const probes = (of, figure) =>
    runs.flatMap((run) =>
      Object.entries(of(run) || {}).map(([how, one]) => ({
        name: `${run.name}, ${how}${one[figure] === null ? "" : `, ${figure} = ${round(one[figure], 3)}`}`,
        color: runColor(run.index),
        x: one.layers.map((_, i) => i + 1),
        y: one.accuracies,
        texts: one.layers,
        dash: how === "ridge" ? "dot" : "solid",
        mark: one.mark === null ? null : [one.mark + 1, one.accuracies[one.mark]],
      })),
    );
  const options = {
    x: { title: "layer" },
    y: { tickformat: ".0%", range: [-0.02, 1.04] },
    shape: "linear",
  };
  curveCard(container, "evaluated/probes", "", probes((run) => run.evaluated.probes, "kappa"), options);
  for (const name of union(runs.map((run) => Object.keys(run.evaluated.ood)))) {
    const of = (run) => (Object.hasOwn(run.evaluated.ood, name) ? run.evaluated.ood[name] : null);
    curveCard(container, "evaluated/ood", `: ${name}`, probes(of, "rho"), options);
  }
}

// series: [{name, color, x, y, texts, dash, mark}]: texts say what each point is, mark [x, y] is drawn as a diamond.
function curveCard(container, key, more, series, options) {
  const node = plotCard(container, key, more);
  if (series.length) picture(node, () => drawCurves(node, series, options));
  else node.append(element("div", { className: "empty" }, "not recorded"));
}

function drawCurves(node, series, { x, y, shape }) {
  const traces = series.flatMap((one) => {
    const name = plain(one.name, 60);
    const curve = {
      x: one.x,
      y: one.y,
      type: "scatter",
      mode: shape === "linear" ? "lines+markers" : "lines",
      line: { color: one.color, width: 1.6, dash: one.dash, shape },
      marker: { color: one.color, size: 4 },
      text: one.texts.map((text) => plain(text, 40)),
      hovertemplate: `%{text}: %{y}<extra>${name}</extra>`,
    };
    const mark = one.mark && {
      x: [one.mark[0]],
      y: [one.mark[1]],
      type: "scatter",
      mode: "markers",
      marker: { color: one.color, size: 10, symbol: one.dash === "dot" ? "diamond-open" : "diamond" },
      hovertemplate: `%{y}<extra>${name}</extra>`,
    };
    return mark ? [curve, mark] : [curve];
  });
  return plot(node, traces, layout(260, { x, y, more: { hovermode: "closest" } }));
}
