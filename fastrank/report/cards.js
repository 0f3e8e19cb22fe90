// What sections are made of: a card of lines with all runs in it, one card per run side by side, a chooser.
"use strict";

// The figure `key` with its definition; returns where its plot goes. more: what follows its name.
function plotCard(container, key, more = "") {
  const { label, text, source } = define(key);
  const node = element("div", { className: "plot" });
  container.append(
    element(
      "figure",
      { className: "card" },
      element("figcaption", { title: source }, label + more),
      element("p", { className: "caption", title: source }, text),
      node,
    ),
  );
  return node;
}

function lineCard(container, key, series, options) {
  const node = plotCard(container, key);
  if (series().length) picture(node, () => drawLines(node, series(), { x: stepRange(), ...options() }));
  else node.append(element("div", { className: "empty" }, "not recorded"));
}

function runLines(keys) {
  return shown().flatMap((run) =>
    keys
      .filter((key) => run.lines[key])
      .map((key, place) => {
        const line = run.lines[key];
        const [low, high] = ["_lo", "_hi"].map((end) => run.lines[key + end]);
        const bounded = define(key).bounds && low && high && low.steps.length === line.steps.length;
        return {
          name: keys.length > 1 ? `${run.name}, ${define(key).label.toLowerCase()}` : run.name,
          color: runColor(run.index),
          x: line.steps,
          y: line.values,
          dash: place ? "dot" : "solid",
          ...(bounded && { low: low.values, high: high.values }),
        };
      }),
  );
}

function select(label, options, value, change) {
  const box = element(
    "select",
    { onchange: () => change(box.value) },
    ...options.map(([key, text]) => element("option", { value: key, selected: key === value }, text)),
  );
  return element("label", {}, label, box);
}

function facets(container, runs, build, extra = () => "") {
  forget(container);
  container.dataset.runs = runs.length; // four stand better two by two
  for (const run of runs) {
    const node = element("div", { className: "plot" });
    container.append(
      element("figure", { className: "card" }, element("figcaption", {}, ...runTitle(run, extra(run))), node),
    );
    const draw = build(run, node);
    if (draw) picture(node, draw);
    else
      node.append(
        element("div", { className: "empty" }, run.steps ? "not recorded in this run" : "this run has no steps"),
      );
  }
}
