// Draws the page; a part that fails says so and leaves the others alone.
"use strict";

function drawSections() {
  for (const section of [drawLogits, drawMap, drawSigma, drawAlignment, drawEvaluated, drawCost]) guarded(section);
}

window.addEventListener("error", (event) => fail(event.error || event.message));
window.addEventListener("unhandledrejection", (event) => fail(event.reason));
for (const part of [drawHeader, drawSetup, drawChips, drawSections, drawNotes, drawDefinitions]) guarded(part);
dark.addEventListener("change", () => {
  drawHeader();
  drawChips();
  drawSections();
});
