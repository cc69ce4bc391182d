"""Run folders as elstm-train writes them, without training."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

COLUMNS = (
    "epoch", "step", "train_seconds", "wall_seconds", "lr", "train_loss", "train_accuracy",
    "grad_norm", "samples_per_second", "val_loss", "val_accuracy", "val_accuracy_batch_stats",
    "test_loss", "test_accuracy", "test_accuracy_batch_stats",
)  # fmt: skip
STEPS_PER_EPOCH = 390
# Name: final accuracy, epochs until it is nearly there, seconds per epoch, parameters.
MODELS = {
    "lstm": (0.881, 2.6, 6.1, 82_186),
    "bn_lstm": (0.893, 1.3, 7.4, 83_466),
    "elstm_bn": (0.897, 1.0, 7.2, 83_466),
    "gru": (0.884, 2.2, 5.0, 62_090),
}


def config(model: str, data: str, seed: int, epochs: int, **overrides: Any) -> dict[str, Any]:
    """A composed config; overrides by dotted key, with __ for the dots."""
    settings: dict[str, Any] = {
        "model": {"name": model, "hidden_size": 128, "num_layers": 1, "forget_bias": 1.0},
        "data": {
            "name": data,
            "root": "${oc.env:ELSTM_DATA,data}",
            "pixels_per_step": 28,
            "permute": False,
            "batch_size": 128,
        },
        "optimizer": {"name": "adam", "lr": 0.003, "beta1": 0.9},
        "scheduler": {"name": "constant", "warmup_steps": 0},
        "trainer": {"max_epochs": epochs, "device": "auto", "log_every": 50, "resume": None},
        "seed": seed,
    }
    if "bn" in model:
        settings["model"].update(eps=0.1, momentum=0.1, gamma_c=1.0)
    if model == "elstm_bn":
        settings["model"]["cell_norm"] = "update"
    for name, value in overrides.items():
        *groups, key = name.split("__")
        place = settings
        for group in groups:
            place = place.setdefault(group, {})
        place[key] = value
    return settings


def write_run(
    folder: Path,
    model: str = "lstm",
    data: str = "fashion_mnist",
    seed: int = 0,
    *,
    epochs: int = 10,
    state: str = "done",
    until: float | None = None,
    error: str | None = None,
    offset: float = 0.0,
    status: dict[str, Any] | None = None,
    **overrides: Any,
) -> Path:
    """One run folder with plausible curves.

    Args:
        folder: of the run.
        until: epochs trained so far, where the run is not done.
        offset: added to the accuracies.
        status: fields of status.json in place of the plausible ones.
        overrides: settings by dotted key, with __ for the dots.
    """
    settings = config(model, data, seed, epochs, **overrides)
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    final, pace, seconds, parameters = MODELS.get(model, MODELS["lstm"])
    # Part of the noise is the seed's, shared by all models: pairs matter.
    shared = np.random.default_rng(seed).normal()
    rng = np.random.default_rng([seed, sum(map(ord, str(settings)))])
    final = final + offset + 0.001 * shared + 0.0008 * rng.normal()
    seconds *= 1 + 0.03 * rng.normal()
    trained = float(epochs) if until is None else until
    rows, clock, accuracy, best, best_epoch, step = [], 0.0, 0.0, 0.0, 0, 0
    evaluations = 0.0
    gap = 0.0008 if "bn" in model else 0.0
    for step in range(50, int(trained * STEPS_PER_EPOCH) + 1, 10):
        epoch = step / STEPS_PER_EPOCH
        clock = epoch * seconds + evaluations
        common = {"epoch": epoch, "step": step, "train_seconds": epoch * seconds}
        if step % 50 == 0:
            loss = 0.25 + 1.1 * np.exp(-epoch / pace) + 0.25 / (epoch + 0.3) * pace / 2
            loss *= 1 + 0.02 * rng.normal()
            rows.append({**common, "wall_seconds": clock, "lr": 0.003, "train_loss": loss})
        if step % STEPS_PER_EPOCH == 0:
            evaluations += 0.6
            curve = 1 - 0.55 * np.exp(-epoch / (0.6 * pace)) - 0.1 * np.exp(-epoch / (2.5 * pace))
            accuracy = float(final * curve + 0.0015 * rng.normal())
            if accuracy > best:
                best, best_epoch = accuracy, round(epoch)
            rows.append(
                {**common, "wall_seconds": clock + 0.6, "val_loss": 1 - accuracy,
                 "val_accuracy": accuracy, "val_accuracy_batch_stats": accuracy + gap}
            )  # fmt: skip
    done = state == "done"
    test = best - 0.003 if done else None
    if done:
        rows.append(
            {"epoch": trained, "step": step, "train_seconds": trained * seconds,
             "wall_seconds": clock + 1, "test_accuracy": test,
             "test_accuracy_batch_stats": best - 0.003 + gap}
        )  # fmt: skip
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.9g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )
    fields = {
        "state": state,
        "error": error,
        "model": model,
        "data": data,
        "seed": seed,
        "epoch": trained,
        "step": step,
        "max_epochs": epochs,
        "best_val_accuracy": best or None,
        "best_epoch": best_epoch,
        "val_accuracy": accuracy or None,
        "val_accuracy_batch_stats": accuracy + gap if accuracy else None,
        "test_accuracy": test,
        "test_accuracy_batch_stats": None if test is None else test + gap,
        "train_seconds": trained * seconds,
        "wall_seconds": clock,
        "parameters": parameters,
        "device": "cpu",
        "backend": "cpu" if "bn" in model else "aten",
        "threads": 2,
        "precision": "fp32",
        "versions": {"python": "3.11.4", "torch": "2.11.0", "elstm": "0.1.0"},
        "git_commit": "0123456789abcdef",
        "git_dirty": False,
        "started": f"2025-01-02T03:{seed % 60:02}:00+00:00",
        "updated": "2025-01-02T04:00:00+00:00",
    }
    (folder / "status.json").write_text(json.dumps({**fields, **(status or {})}, indent=2))
    return folder


def write_inside(
    folder: Path,
    norms: dict[str, list[tuple[float, float, float]]],
    over_time: dict[str, list[float]],
) -> Path:
    """norms.csv and over_time.csv.

    Args:
        folder: of the run, which is returned.
        norms: by name, for each epoch the mean and deviation of gamma, and the spread.
        over_time: columns by name.
    """
    lines = ["epoch,step,norm,gamma_mean,gamma_std,beta_mean,beta_std,spread"]
    for name, course in norms.items():
        for epoch, (mean, sd, spread) in enumerate(course, start=1):
            lines.append(f"{epoch},{epoch * STEPS_PER_EPOCH},{name},{mean},{sd},,,{spread}")
    (folder / "norms.csv").write_text("\n".join(lines) + "\n")
    rows = zip(*over_time.values(), strict=True)
    lines = [",".join(["t", *over_time])]
    lines += [",".join(map(str, (t, *row))) for t, row in enumerate(rows, start=1)]
    (folder / "over_time.csv").write_text("\n".join(lines) + "\n")
    return folder
