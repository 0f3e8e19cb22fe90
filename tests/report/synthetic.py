"""Runs that look like training without any: T = 1 keeps its rank, T = 100 collapses from 94 to 11 and recovers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from fastrank.record import RunWriter

CLASSES = 94
BATCH = 256
TOP = 15


def resnet_layers(count: int = 20) -> list[tuple[str, int]]:
    """(name, width) of `count` layers of a ResNet-18: stem, blocks, pooled features, classifier."""
    names = [("conv1", 64)]
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            names += [(f"layer{stage}.{block}.conv1", width), (f"layer{stage}.{block}.conv2", width)]
            if stage > 1 and block == 0:
                names.append((f"layer{stage}.0.downsample.0", width))
    names += [("global_pool", 512), ("fc", CLASSES)]
    body = names[:-1]
    return (body * math.ceil(count / len(body)))[: count - 1] + names[-1:]


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _spectrum(rank: float, width: int, scale: float) -> np.ndarray:
    """`width` singular values that stay near `scale` up to `rank` and then fall off a cliff."""
    index = np.arange(width)
    return scale * (index + 1) ** -0.5 / (1 + np.exp(((index - rank) / max(0.4, rank / 12)).clip(max=40)))


def write_run(
    path: str | Path,
    T: float = 1,
    layers: int = 20,
    steps: int = 600,
    seed: int = 0,
    align_every: int = 5,
    names: list[tuple[str, int]] | None = None,
    close: bool = True,
    **config,
) -> Path:
    """Writes one run. A collapse of depth log10(T) travels from the last layer to the first and back."""
    rng = np.random.default_rng(seed)
    names = names or resnet_layers(layers)
    depth = np.linspace(0, 1, len(names))
    heat = math.log10(T) / 2  # 0 at T = 1, 1 at T = 100
    settings = {
        "model": "resnet18", "data": "glyphs", "temperature": T, "epochs": 16, "seed": seed,
        "lr": 0.1 if T < 10 else 1.0, "batch_size": BATCH,
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
        "layers": "*", "metrics": "default", "loss": "TemperedCE", **config,
    }  # fmt: skip
    writer = RunWriter(path, settings)
    for step in range(steps):
        t = step / 600
        # Activity of the collapse per layer: late layers first, and they recover last.
        onset = _sigmoid((t - 0.08 - 0.12 * (1 - depth)) * 60) * (1 - _sigmoid((t - 0.42 - 0.35 * depth) * 12))
        collapse = heat * onset
        jitter = rng.normal(0, 1, len(names))
        scalars: dict[str, float] = {}
        arrays: dict[str, np.ndarray] = {}
        for index, (name, width) in enumerate(names):
            full = min(width, BATCH)
            for kind, share, scale in (
                ("act", 1.0, 300.0),
                ("weight", 0.25, 3.0),
                ("grad", 1.2, 0.02 * math.exp(-3 * t)),
            ):
                low = 11 / full if kind != "weight" else 0.6
                rank = (
                    full * (1 - min(1.0, share * collapse[index]) * (1 - low))
                    - abs(jitter[index]) * (kind == "grad") * 2
                )
                rank = float(np.clip(round(rank + (kind == "act") * jitter[index] * 0.8), 1, full))
                growth = 1 + 12 * heat * _sigmoid((t - 0.2) * 25) * depth[index]
                sigma = _spectrum(rank, full, scale * growth) * np.exp(rng.normal(0, 0.02, full))
                sigma = np.sort(sigma)[::-1]
                p = sigma / sigma.sum()
                frobenius = float(np.sqrt((sigma**2).sum()))
                loose = rng.random() < 0.01
                scalars |= {
                    f"{kind}/{name}/rank": rank,
                    f"{kind}/{name}/rank_lo": rank - loose,
                    f"{kind}/{name}/rank_hi": rank + loose,
                    f"{kind}/{name}/effective_rank": float(np.exp(-(p * np.log(p + 1e-300)).sum())),
                    f"{kind}/{name}/stable_rank": (frobenius / sigma[0]) ** 2,
                    f"{kind}/{name}/frobenius": frobenius,
                    f"{kind}/{name}/sigma_1": float(sigma[0]),
                }
                arrays[f"{kind}/{name}/sigma"] = sigma[:TOP]
        if step % align_every == 0:
            maxima = []
            for index, (name, width) in enumerate(names):
                chance = math.sqrt(2 * math.log(225) / (width * 9 if "conv" in name else width))
                strength = min(0.97, chance + 0.95 * collapse[index] ** 1.5 + 0.1 * heat * t)
                cosines = np.abs(rng.normal(0, chance / 3, (TOP, TOP)))
                for k in range(TOP):
                    cosines[k, k] = max(cosines[k, k], strength * math.exp(-k / (1 + 5 * collapse[index])))
                    if k:
                        cosines[k, k - 1] = max(cosines[k, k - 1], 0.5 * strength * math.exp(-k / 3))
                cosines = cosines.clip(0, 1)
                maxima.append(cosines.max())
                arrays[f"align/{name}/cosines"] = cosines
                scalars |= {
                    f"align/{name}/max": float(cosines.max()),
                    f"align/{name}/diagonal": float(np.diag(cosines).mean()),
                    f"align/{name}/error": 0.004 + 0.01 * float(rng.random()),
                    f"align/{name}/chance": chance,
                }
            scalars["align/mean_max"] = float(np.mean(maxima))
        norm = 60 * (1 + 8 * t) * (1 + heat * 260 * _sigmoid((t - 0.16) * 22)) * math.exp(rng.normal(0, 0.02))
        logits_rank = float(np.clip(round(CLASSES - (CLASSES - 11) * collapse[-1] + rng.normal(0, 0.5)), 1, CLASSES))
        softmax_rank = float(round(CLASSES * _sigmoid((t - 0.2 * heat) * 30)))
        progress = _sigmoid((t - 0.12 - 0.3 * heat) * 14)
        scalars |= {
            "logits/norm": norm, "logits/norm_over_T": norm / T,
            "logits/rank": logits_rank,
            "logits/rank_lo": logits_rank - (step % 17 < 4), "logits/rank_hi": logits_rank + (step % 17 < 6),
            "logits/softmax_rank": softmax_rank,
            "logits/softmax_rank_lo": softmax_rank - 1, "logits/softmax_rank_hi": softmax_rank + 1,
            "train/loss": math.log(CLASSES) * (1 - 0.985 * progress) * math.exp(rng.normal(0, 0.06)),
            "train/accuracy": float(np.clip(0.011 + 0.975 * progress + rng.normal(0, 0.012), 0, 1)),
            "train/lr": settings["lr"] * 0.5 * (1 + math.cos(math.pi * t)), "train/epoch": step // 37,
            "cost/step_ms": 210 + rng.gamma(2, 6) + (300 if step == 0 else 0),
        }  # fmt: skip
        scalars["cost/track_ms"] = scalars["cost/step_ms"] * (
            0.07 + 0.02 * rng.random() + 0.05 * (step % align_every == 0)
        )
        scalars["cost/share"] = scalars["cost/track_ms"] / scalars["cost/step_ms"]
        arrays["logits/sigma"] = np.sort(_spectrum(logits_rank, CLASSES, norm / 4))[::-1][:TOP]
        arrays["logits/softmax_sigma"] = np.sort(_spectrum(softmax_rank, CLASSES, 4.0))[::-1][:TOP]
        writer.log_step(step, scalars, arrays)
    if not close:
        writer.close(finished=False)
        return Path(path)
    if steps:
        solution_rank = {
            "rank": int(logits_rank),
            "lo": int(logits_rank) - 1,
            "hi": int(logits_rank),
            "tol": norm * 9.5e-4,
        }
        solution_rank["definition"] = "#{sigma_i > max(m, n) * eps * sigma_1}"
        writer.set_evaluation({
            "train_accuracy": 0.991 - 0.02 * heat, "test_accuracy": 0.953 - 0.04 * heat, "samples": 9400,
            "solution_rank": solution_rank, "logits_norm": norm * 6.1, "logits_norm_over_T": norm * 6.1 / T,
        })  # fmt: skip
        writer.note(steps // 2, f"grad/{names[0][0]}/rank", "the gradient holds inf: mixed precision skipped this step")
    writer.close()
    return Path(path)
