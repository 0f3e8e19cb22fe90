// The sections on the logits and on cost: series without a layer, all runs in one picture.
"use strict";

function drawLogits() {
  const container = byId("logit-lines");
  forget(container);
  const ranks = () => {
    const top = extent(
      runLines(["logits/rank"])
        .concat(runLines(["logits/softmax_rank"]))
        .map((one) => one.high || one.y),
    );
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
  const keys = [
    "logits/norm",
    "logits/norm_over_T",
    "train/loss",
    "logits/rank",
    "logits/softmax_rank",
    "train/accuracy",
  ];
  for (const key of keys) lineCard(container, key, () => runLines([key]), options[key]);
  const elsewhere = /^(cost\/(track_ms|step_ms|share|setup_ms)|align\/mean_max|train\/epoch)$|_(lo|hi)$/;
  const others = union(RUNS.map((run) => Object.keys(run.lines))).filter(
    (key) => !keys.includes(key) && !elsewhere.test(key),
  );
  const more = byId("more");
  more.hidden = !others.length;
  more.ontoggle = drawLogits; // what is folded away has no width to draw in
  forget(byId("more-lines"));
  if (more.open)
    for (const key of others)
      lineCard(
        byId("more-lines"),
        key,
        () => runLines([key]),
        () => ({}),
      );
}

function drawCost() {
  const container = byId("cost-lines");
  forget(container);
  const medians = (keys) => () => runLines(keys).map((one) => ({ ...one, median: true }));
  lineCard(container, "cost/track_ms", medians(["cost/track_ms", "cost/step_ms"]), () => ({ log: true }));
  lineCard(container, "cost/share", medians(["cost/share"]), () => {
    const span = extent(runLines(["cost/share"]).map((one) => one.y));
    return { percent: true, range: span && [0, 1.05 * span[1]] };
  });
  const rows = shown().flatMap((run) => run.costs.map((row) => [run, ...row]));
  byId("costs").hidden = !rows.length;
  const head = ["run", "source", "ms", "share", "MB"].map((name, i) => element("th", { className: i > 1 ? "number" : "" }, name));
  byId("cost-table").replaceChildren(
    element("thead", {}, element("tr", {}, ...head)),
    element(
      "tbody",
      {},
      ...rows.map(([run, source, ms, share, megabytes]) =>
        element(
          "tr",
          {},
          element("td", {}, run.name),
          element("td", {}, source),
          ...[round(ms), share === null ? "—" : `${round(100 * share, 3)} %`, round(megabytes)].map((text) =>
            element("td", { className: "number" }, text),
          ),
        ),
      ),
    ),
  );
}
