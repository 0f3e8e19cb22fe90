// Around the pictures: the summary, what was set, the runs to show, notes and definitions.
"use strict";

function drawHeader() {
  const names = RUNS.map((run) => run.name);
  byId("title").textContent = names.length < 4 ? names.join(" vs ") : `${names.length} runs compared`;
  document.title = `${byId("title").textContent} · fastrank`;
  byId("subtitle").textContent =
    `Spectral record of ${RUNS.length} training run${RUNS.length > 1 ? "s" : ""}; ` +
    `written ${DATA.generated} by fastrank ${DATA.version}`;
  const percent = (value) => (typeof value === "number" ? `${(100 * value).toFixed(1)} %` : "—");
  const columns = [
    ["run", "", null],
    ["T", "Softmax temperature of the loss", (run) => round(run.T)],
    ["train acc.", "Accuracy on the training set after training", (run) => percent(run.evaluation.train_accuracy)],
    ["test acc.", "Accuracy on held-out data after training", (run) => percent(run.evaluation.test_accuracy)],
    ["solution rank", define("solution_rank").text, (run) => rankCell(run)],
    [
      "‖M‖",
      "Frobenius norm of the logits of the whole set, before the division by T",
      (run) => round(run.evaluation.logits_norm),
    ],
    ["‖M‖ / T", "The same divided by T: what the softmax sees", (run) => round(run.evaluation.logits_norm_over_T)],
    ["tracking", define("cost/share").text, trackingCell],
    ["steps", "Number of recorded steps", (run) => run.steps.toLocaleString("en")],
  ];
  const head = element(
    "tr",
    {},
    ...columns.map(([label, title, cell]) =>
      element("th", { className: cell ? "number" : "", ...(title && { title }) }, label),
    ),
  );
  const rows = RUNS.map((run) =>
    element(
      "tr",
      {},
      ...columns.map(([, , cell]) => {
        if (cell) return element("td", { className: "number" }, cell(run));
        const status = run.status === "finished" ? null : element("span", { className: "status" }, run.status);
        return element("td", {}, runTitle(run)[0], " ", run.name, status);
      }),
    ),
  );
  byId("summary").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
  const missing = RUNS.filter((run) => run.steps === 0).map((run) => run.name);
  const unevaluated = RUNS.filter((run) => run.steps && !Object.keys(run.evaluation).length).map((run) => run.name);
  byId("summary-note").textContent = [
    missing.length ? `No step was recorded in ${missing.join(", ")}.` : "",
    unevaluated.length ? `No evaluation after training in ${unevaluated.join(", ")}.` : "",
    "Hover over a column's name for its definition.",
  ]
    .filter(Boolean)
    .join(" ");
}

function trackingCell(run) {
  const parts = [];
  if (run.overhead !== null) parts.push(`${(100 * run.overhead).toFixed(1)} %`);
  if (run.setup !== null) parts.push(`${run.setup} s`);
  return parts.join(" + ") || "—";
}

function rankCell(run) {
  const of = (name) => run.evaluation[`solution_rank.${name}`];
  if (of("rank") === undefined) return "—";
  const interval =
    of("lo") === undefined
      ? null
      : element("span", { className: "interval" }, ` [${round(of("lo"))}, ${round(of("hi"))}]`);
  const title = [of("definition"), of("tol") === undefined ? "" : `tol = ${round(of("tol"))}`]
    .filter(Boolean)
    .join("; ");
  return element("span", { title }, round(of("rank")), interval);
}

function drawSetup() {
  const tables = ["config", "evaluation", "environment", "git"].map((part) => setupTable(part)).filter(Boolean);
  const differing = setupTable("config", true);
  byId("setup").replaceChildren(
    ...(differing && RUNS.length > 1
      ? [
          element(
            "div",
            { className: "setup differences" },
            element("div", {}, element("h3", {}, "What differs"), differing),
          ),
        ]
      : []),
    element(
      "details",
      {},
      element("summary", {}, "Everything that was set: configuration, evaluation, environment, repository"),
      element("div", { className: "setup" }, ...tables),
    ),
  );
}

function setupTable(part, onlyDiffering = false) {
  const keys = union(RUNS.map((run) => Object.keys(run[part])));
  const differs = (key) => new Set(RUNS.map((run) => JSON.stringify(run[part][key]))).size > 1;
  const chosen = onlyDiffering ? keys.filter(differs) : keys;
  if (!chosen.length) return null;
  const head = element("tr", {}, ...[part, ...RUNS.map((run) => run.name)].map((name) => element("th", {}, name)));
  const rows = chosen.map((key) =>
    element(
      "tr",
      { className: RUNS.length > 1 && differs(key) && !onlyDiffering ? "differs" : "" },
      element("td", {}, key),
      ...RUNS.map((run) =>
        element("td", {}, part === "evaluation" ? round(run[part][key]) : String(run[part][key] ?? "—")),
      ),
    ),
  );
  return element(
    "div",
    { className: "scroll" },
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)),
  );
}

function drawChips() {
  byId("chips").replaceChildren(
    ...(RUNS.length < 2
      ? []
      : RUNS.map((run) =>
          element(
            "button",
            {
              type: "button",
              title: `Show or hide ${run.name}`,
              ariaPressed: String(!state.hidden.has(run.index)),
              onclick: () => {
                if (!state.hidden.delete(run.index) && shown().length > 1) state.hidden.add(run.index);
                drawChips();
                drawSections();
              },
            },
            ...runTitle(run).slice(0, 2),
          ),
        )),
  );
}

function drawNotes() {
  const notes = RUNS.flatMap((run) => run.notes.map((note) => [run, note]));
  byId("notes").hidden = !notes.length;
  const head = element("tr", {}, ...["run", "figure", "steps", "remark"].map((name) => element("th", {}, name)));
  byId("note-table").replaceChildren(
    element("thead", {}, head),
    element(
      "tbody",
      {},
      ...notes.map(([run, note]) =>
        element(
          "tr",
          {},
          element("td", {}, run.name),
          element("td", {}, note.key),
          element("td", {}, note.count > 1 ? `${note.count}, from ${note.first} to ${note.last}` : String(note.first)),
          element("td", {}, note.text),
        ),
      ),
    ),
  );
}

function drawDefinitions() {
  byId("definition-list").replaceChildren(
    ...Object.values(DEFINITIONS)
      .filter(({ text }) => text)
      .flatMap(({ label, text, source }) => [
        element("dt", {}, label),
        element("dd", {}, text, source ? element("span", { className: "source" }, source) : null),
      ]),
  );
  byId("footer").textContent =
    `fastrank ${DATA.version}. Rows of every matrix are samples. ` +
    "Series are thinned for display only: the run directories hold every step.";
}
