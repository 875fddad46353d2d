"""The load curves: goodput, and the latency of accepted requests, over the offered load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.load import Case

_COLOURS = ("#1b7f5c", "#b3541e", "#2a5ea8", "#8a5aa8")
_IDEAL = "#9aa5b1"


def draw(cases: Sequence[Case], path: Path) -> None:
    """A PNG: goodput above, latency as a share of its limit below; open loops on the left, storms on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row", width_ratios=(2, 1))
    for column, is_storm in enumerate((False, True)):
        goodput, latency = axes[0][column], axes[1][column]
        for each in (goodput, latency):
            each.grid(alpha=0.25)
            each.spines[["top", "right"]].set_visible(False)
            each.axhline(1.0, color=_IDEAL, linestyle="--")
        for case, colour in zip(cases, _COLOURS, strict=False):
            rows = [row for row in case.rows if row["load"].startswith("storm") == is_storm]
            names = [row["load"].removeprefix("storm of ").replace("x", "×") for row in rows]
            label = f"{case.limit}, {case.processes}"
            line = {"color": colour, "marker": "o", "linestyle": "" if is_storm else "-", "label": label}
            goodput.plot(names, [row["share"] for row in rows], **line)
            latency.plot(names, [row["p99 ms"] / case.deadline_ms for row in rows], **line)
        latency.set_xlabel("clients that ask again at once" if is_storm else "requests, as multiples of the peak")
    axes[0][0].set_ylim(0, 1.15)
    axes[0][0].set_ylabel("answered in time, of the peak")
    axes[0][0].set_title("Arrivals that wait for nobody", loc="left")
    axes[0][1].set_title("Storms", loc="left")
    axes[0][0].legend(frameon=False, loc="lower left")
    axes[1][0].set_ylim(0, 1.15)
    axes[1][0].set_ylabel("p99 of the accepted, of its limit")
    figure.savefig(path, dpi=120)
