"""Draws the benchmark's table as bars."""

from __future__ import annotations

from typing import Any

from elstm.records.drawing import Figure, isolated_settings
from speed.layers import SHAPES


@isolated_settings()
def chart(rows: list[dict[str, Any]], path: str) -> None:
    """Draws bars of the training step's ratio to torch.nn.LSTM, one panel per shape."""
    shapes = [shape for shape in SHAPES if any(row["shape"] == shape for row in rows)]
    bars = max(sum(row["shape"] == shape for row in rows) for shape in shapes)
    figure = Figure(figsize=(3.6 * len(shapes), 1.2 + 0.24 * bars), layout="constrained")
    for axes, shape in zip(figure.subplots(1, len(shapes), squeeze=False)[0], shapes, strict=True):
        here = [row for row in rows if row["shape"] == shape]
        here = sorted(here, key=lambda row: "reference" in row["layer"])[::-1]  # bars go upwards
        ratios = [row["step"]["ratio"] for row in here]
        colours = ["#999999" if "reference" in row["layer"] else "#0072b2" for row in here]
        drawn = axes.barh([row["layer"] for row in here], ratios, color=colours)
        axes.axvline(1, color="black", lw=1, ls="--")
        clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8, bbox=clear)
        axes.set_xlim(0, 1.18 * max(*ratios, 1))
        axes.set_title(f"{shape}: T, B, I, H = {', '.join(map(str, SHAPES[shape]))}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("time of a training step / torch.nn.LSTM's", fontsize=9)
    figure.savefig(path, dpi=200)
