// What every figure means and where its definition comes from. A is a matrix [n, d] with one sample per row,
// σ1 >= σ2 >= ... its singular values; M are the logits of a batch before they are divided by T.
"use strict";

const PAPER = "Masarczyk et al. 2025, arXiv 2506.01562";

const DEFINITIONS = {
  "evaluated/rank": {
    label: "solution rank against its tolerance",
    text:
      "Singular values of the logits of the whole training set above a tolerance relative to σ₁; dotted after the " +
      "softmax. The marks are the ranks reported, at their tolerances.",
    source: `${PAPER}, sec. 2.1`,
  },
  "evaluated/probes": {
    label: "linear probes",
    text:
      "Accuracy of a linear probe of each layer, trained by Adam, dotted by ridge regression. The marks are the first " +
      "layers that reach the share of the last one's accuracy by which kappa is defined.",
    source: `${PAPER}, sec. 2.1 and Table 5`,
  },
  "evaluated/ood": {
    label: "linear probes on other data",
    text:
      "The same of probes trained and measured on an out-of-distribution set. The marks are the best layers; rho is " +
      "what the last one has lost of their accuracy.",
    source: `${PAPER}, sec. 2.1`,
  },
  rank: {
    label: "rank",
    text:
      "Numerical rank: the number of σᵢ > tol, with tol = max(atol, rtol·σ₁) and by default " +
      "rtol = max(n, d)·eps. [lo, hi] counts the same at tol plus and minus the error bound of the σᵢ.",
    source: `${PAPER}, sec. 3.1; tolerance of torch.linalg.matrix_rank`,
  },
  input_rank: {
    label: "rank of the input",
    text:
      "Numerical rank of all rows that the weight is multiplied with; it bounds the rank of the weight's gradient. " +
      "Summed over the forwards of a step.",
    source: `${PAPER}, eq. 3`,
  },
  bound_excess: {
    label: "gradient's rank above its bound",
    text: "By how much the gradient's rank exceeds its input's for certain: lo of the one minus hi of the other, or 0.",
    source: `${PAPER}, eq. 3`,
  },
  effective_rank: {
    label: "effective rank",
    text: "exp of the entropy of p, pᵢ = σᵢ / Σσ: the number of equal singular values with the same entropy.",
    source: "Roy & Vetterli 2007",
  },
  stable_rank: {
    label: "stable rank",
    text: "Σσᵢ² / σ₁²: at most the rank, and hardly moved by small singular values.",
    source: "Rudelson & Vershynin 2007",
  },
  frobenius: { label: "Frobenius norm", text: "‖A‖ = √Σσᵢ².", source: "", log: true },
  sigma_1: { label: "largest singular value", text: "σ₁, the spectral norm of A.", source: "", log: true },
  sigma: {
    label: "singular values",
    text:
      "The largest singular values σ₁ ≥ σ₂ ≥ … of the matrix, on a logarithmic axis. A collapse shows as a gap: " +
      "a few values grow while the others stay behind.",
    source: `${PAPER}, fig. 3`,
  },
  "logits/norm": {
    label: "Logits norm ‖M‖",
    log: true,
    text: "Frobenius norm of the batch's logits, before the division by T.",
    source: `${PAPER}, fig. 2`,
  },
  "logits/norm_over_T": {
    label: "Logits norm over temperature ‖M‖ / T",
    log: true,
    text: "What the softmax sees. At high T it starts near zero and must grow before the loss can fall.",
    source: `${PAPER}, sec. 3.1`,
  },
  "logits/rank": {
    label: "Rank before the softmax",
    bounds: true,
    text: "Numerical rank of the batch's logits M; the band is its interval [lo, hi].",
    source: `${PAPER}, fig. 5`,
  },
  "logits/softmax_rank": {
    label: "Rank after the softmax",
    bounds: true,
    text: "Numerical rank of softmax(M / T), rows being samples; the band is its interval [lo, hi].",
    source: `${PAPER}, fig. 5, Prop. 3.1`,
  },
  "train/loss": { label: "Training loss", text: "Loss of the batch, as trained.", source: "" },
  "train/accuracy": {
    label: "Training accuracy",
    text: "Share of the batch classified correctly.",
    source: "",
    percent: true,
  },
  solution_rank: {
    label: "solution rank",
    text: "Numerical rank of the logits before the softmax, over the whole set and not one batch.",
    source: `${PAPER}, sec. 2`,
  },
  max: {
    label: "maximum",
    text:
      "The largest |cosine| between the top-15 right singular vectors of the weight and the top-15 feature-side " +
      "singular vectors of its input: max over i, j of |⟨vᵢ(W), uⱼ(A)⟩|.",
    source: `${PAPER}, eq. 2, fig. 3`,
  },
  diagonal: {
    label: "diagonal",
    text: "Mean |cosine| of the i-th singular vector of the weight with the i-th of its input.",
    source: `${PAPER}, fig. 10`,
  },
  error: {
    label: "error bound",
    text: "Bound on the error of the largest cosine's own pair, from the vectors' residuals and gaps; another, less settled pair may truly be larger.",
    source: "Wedin 1972",
  },
  chance: {
    label: "chance level",
    text: "About √(2 ln 225 / d): the largest |cosine| to expect of unrelated directions in d dimensions.",
    source: "extreme value of 225 Gaussian cosines",
  },
  "align/mean_max": {
    label: "Mean alignment over the layers",
    text: "The largest |cosine| of each layer, averaged over the layers. Dotted: the chance level.",
    source: `${PAPER}, fig. 3`,
  },
  cosines: {
    label: "cosine matrix",
    text:
      "|⟨vᵢ(W), uⱼ(A)⟩|: row i is the i-th right singular vector of the layer's weight, column j the j-th " +
      "feature-side singular vector of its input; 0 is orthogonal, 1 the same direction.",
    source: `${PAPER}, eq. 2, fig. 10`,
  },
  layer_max: {
    label: "Maximum alignment of this layer",
    text: "Its largest |cosine| at every step; the band is the error bound. Dotted: the chance level of this layer.",
    source: `${PAPER}, eq. 2`,
  },
  "cost/track_ms": {
    label: "Milliseconds per step",
    text: "Solid: spent in fastrank. Dotted: the training step. Pale: every step; strong: running median.",
    source: "wall time",
  },
  "cost/step_ms": { label: "whole step", text: "", source: "" },
  "train/lr": { label: "Learning rate", text: "", source: "" },
  "cost/share": {
    label: "Tracking over the rest of the step",
    percent: true,
    text:
      "Tracking time over the rest of the step: 100 % means that tracking doubles it. The table gives the whole run's, " +
      "and apart from it the seconds of the first measured step, which computes every spectrum.",
    source: "",
  },
};

const KINDS = {
  act: "activations", weight: "weights", grad: "weight gradients", logits: "logits", align: "alignment",
  window: "activations of many steps",
};
const VECTOR_LABELS = { "logits/sigma": "before the softmax", "logits/softmax_sigma": "after the softmax" };

const kindLabel = (kind) => (Object.hasOwn(KINDS, kind) ? KINDS[kind] : kind);

function define(name) {
  return Object.hasOwn(DEFINITIONS, name)
    ? DEFINITIONS[name]
    : { label: name.replace(/_/g, " "), text: "", source: "" };
}
