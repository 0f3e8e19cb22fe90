// Draws the page; a part that fails says so and leaves the others alone.
"use strict";

function drawSections() {
  for (const section of [drawLogits, drawMap, drawSigma, drawAlignment, drawEvaluated, drawCost]) guarded(section);
}

window.addEventListener("error", (event) => fail(event.error || event.message));
window.addEventListener("unhandledrejection", (event) => fail(event.reason));
for (const part of [drawHeader, drawSetup, drawChips, drawSections, drawNotes, drawDefinitions]) guarded(part);

// The tables can be read while Plotly, by far the longest script, is still being compiled.
function loadPlotly() {
  if (window.Plotly) return;
  document.head.append(element("script", { textContent: byId("plotly").textContent }));
  startDrawing();
}
requestAnimationFrame(() => setTimeout(loadPlotly));
setTimeout(loadPlotly, 500); // a tab in the background has no frames

dark.addEventListener("change", () => {
  drawHeader();
  drawChips();
  drawSections();
});
