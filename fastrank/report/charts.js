// The three pictures of the page, lines over steps, a heatmap and a matrix, and the legend of their colours.
"use strict";

function layout(height, axes) {
  const colors = theme();
  const axis = (options) => ({
    gridcolor: colors.grid,
    zerolinecolor: colors.grid,
    linecolor: colors.grid,
    tickcolor: colors.grid,
    automargin: true,
    tickfont: { color: colors.quiet, size: 11 },
    exponentformat: "power",
    ...options,
    title: options.title ? { text: options.title, font: { size: 12, color: colors.quiet }, standoff: 6 } : undefined,
  });
  return {
    height,
    margin: { l: 46, r: 10, t: 8, b: 36 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: colors.text, size: 12 },
    showlegend: false,
    hoverlabel: {
      bgcolor: colors.card,
      bordercolor: colors.grid,
      font: { color: colors.text, size: 12 },
      align: "left",
    },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colors.quiet, activecolor: colors.text },
    xaxis: axis(axes.x),
    yaxis: axis(axes.y),
    ...(axes.more || {}),
  };
}

function plot(node, traces, options) {
  return Plotly.react(node, traces, options, {
    responsive: true,
    displaylogo: false,
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
  });
}

// series: [{name, color, x, y, low, high, dash, width, median}]: low and high make a band; median draws a running
// median over the pale series itself, for figures that jump from step to step.
function drawLines(
  node,
  series,
  { log = false, percent = false, range = null, x = null, height = 230, together = true } = {},
) {
  const traces = [];
  for (const one of series) {
    const color = one.color;
    if (one.low) {
      const edge = { x: one.x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", type: "scatter" };
      traces.push({ ...edge, y: one.high }, { ...edge, y: one.low, fill: "tonexty", fillcolor: color + "38" });
    }
    if (one.median) {
      traces.push({
        x: one.x,
        y: one.y,
        type: "scatter",
        mode: "lines",
        line: { color: color + "40", width: 1 },
        hoverinfo: "skip",
      });
    }
    const y = one.median ? runningMedian(one.y) : one.y;
    traces.push({
      x: one.x,
      y: log ? y.map((value) => (value > 0 ? value : null)) : y,
      type: "scatter",
      mode: one.x.length > 1 ? "lines" : "markers",
      name: plain(one.name, 40),
      line: { color, width: one.width || 1.6, dash: one.dash || "solid" },
      marker: { color, size: 7 },
      customdata: one.low ? one.x.map((_, i) => `[${round(one.low[i])}, ${round(one.high[i])}]`) : one.x.map(() => ""),
      hovertemplate: `%{y:${percent ? ".2%" : ".5~g"}} %{customdata}<extra>${plain(one.name, 40)}</extra>`,
    });
  }
  return plot(
    node,
    traces,
    layout(height, {
      x: { title: "step", range: x, showgrid: false, hoverformat: "d" },
      y: {
        type: log ? "log" : "linear",
        tickformat: percent ? ".0%" : "",
        range,
        dtick: log ? decades(series, range) : undefined,
      },
      more: { hovermode: together ? "x unified" : "closest" },
    }),
  );
}

// Whole decades as ticks where the data span more than one.
function decades(series, range) {
  const span = extent(series.map((one) => one.y.filter((value) => value > 0)));
  const count = range ? range[1] - range[0] : span ? Math.log10(span[1] / span[0]) : 0;
  return count > 1 ? Math.max(1, Math.ceil(count / 6)) : undefined;
}

function runningMedian(values) {
  const half = Math.max(2, Math.round(values.length / 40));
  return values.map((_, i) => {
    const near = finite(values.slice(Math.max(0, i - half), i + half + 1)).sort((a, b) => a - b);
    return near.length ? near[near.length >> 1] : null;
  });
}

// rows: [layers][steps]; bounds: [low, high] of the colours, shared by all runs.
function drawHeatmap(node, { rows, texts, layers, steps, bounds, log, x, label, choose }) {
  const rowHeight = Math.max(9, Math.min(22, 520 / layers.length));
  const every = Math.ceil(12 / rowHeight);
  const labelled = layers.map((_, i) => i).filter((i) => i % every === 0);
  const z = log ? rows.map((row) => row.map((value) => (value > 0 ? Math.log10(value) : null))) : rows;
  const [low, high] = log ? bounds.map(Math.log10) : bounds;
  const options = layout(Math.max(150, rowHeight * layers.length + 56), {
    x: { title: "step", range: x, showgrid: false, zeroline: false },
    y: {
      autorange: "reversed",
      tickvals: labelled,
      ticktext: labelled.map((i) => plain(layers[i])),
      showgrid: false,
      zeroline: false,
    },
  });
  options.plot_bgcolor = theme().gap;
  const hover = rows.map((row, i) => {
    const name = `<b>${plain(layers[i], 60)}</b><br>step `;
    return row.map((value, j) => `${name}${steps[j]}<br>${label} ${round(value)}${texts ? texts(i, j) : ""}`);
  });
  const trace = {
    type: "heatmap",
    x: steps,
    y: layers.map((_, i) => i),
    z,
    zmin: low,
    zmax: high > low ? high : low + 1,
    text: hover,
    hovertemplate: "%{text}<extra></extra>",
    colorscale: scale(),
    showscale: false,
    hoverongaps: false,
    zsmooth: false,
  };
  return plot(node, [trace], options).then(() => {
    node.removeAllListeners("plotly_click");
    node.on("plotly_click", (event) => choose(layers[event.points[0].y]));
  });
}

function drawMatrix(node, matrix) {
  const names = matrix.map((_, i) => String(i + 1));
  const options = layout(330, {
    x: {
      title: "input's singular vector j",
      dtick: 2,
      tick0: 1,
      showgrid: false,
      zeroline: false,
      constrain: "domain",
    },
    y: {
      title: "weight's vector i",
      autorange: "reversed",
      dtick: 2,
      tick0: 1,
      scaleanchor: "x",
      showgrid: false,
      zeroline: false,
      constrain: "domain",
    },
  });
  const trace = {
    type: "heatmap",
    x: matrix[0].map((_, j) => j + 1),
    y: names.map(Number),
    z: matrix,
    zmin: 0,
    zmax: 1,
    colorscale: scale(),
    showscale: false,
    xgap: 1,
    ygap: 1,
    hoverongaps: false,
    hovertemplate: "i = %{y}, j = %{x}<br>|cos| = %{z:.2f}<extra></extra>",
  };
  return plot(node, [trace], options);
}

// The colours' legend, once for all facets; marks: [{at, title}].
function drawScale(container, bounds, log, label, { marks = [], colors = theme().ramp } = {}) {
  container.replaceChildren();
  if (!bounds) return;
  const bar = element("span", { className: "bar" });
  bar.style.background = `linear-gradient(to right, ${colors.join(", ")})`;
  const place = (value) =>
    log ? Math.log(value / bounds[0]) / Math.log(bounds[1] / bounds[0]) : (value - bounds[0]) / (bounds[1] - bounds[0]);
  for (const mark of marks) {
    const tick = element("span", { className: "tick", title: mark.title });
    tick.style.left = `${100 * Math.min(1, Math.max(0, place(mark.at)))}%`;
    bar.append(tick);
  }
  const note = label + (log ? ", logarithmic" : "") + marks.map((mark) => `; mark: ${mark.title}`).join("");
  container.append(
    element(
      "div",
      { className: "scale" },
      element("span", {}, round(bounds[0], 3)),
      bar,
      element("span", {}, round(bounds[1], 3)),
      element("span", {}, note),
    ),
  );
}
