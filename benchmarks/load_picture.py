"""The load curve: what a service still answers, and how late, while more and more is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

_GOOD, _IDEAL, _LATE = "#1b7f5c", "#9aa5b1", "#b3541e"


class Point(Protocol):
    """One rate of arrivals."""

    @property
    def offered(self) -> float: ...
    @property
    def goodput(self) -> float: ...
    @property
    def p50_ms(self) -> float: ...
    @property
    def p99_ms(self) -> float: ...
    @property
    def times_peak(self) -> float: ...


def draw(peak: float, points: Sequence[Point], deadline_ms: float, path: Path) -> None:
    """Goodput above, latency of what was accepted below, both over the offered load; written to `path` as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    goodput, latency = figure.subplots(2, 1, sharex=True)
    offered = [point.offered for point in points]
    for axes in (goodput, latency):
        axes.set_xscale("log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.axvline(peak, color=_IDEAL, linewidth=1, linestyle=":")
    goodput.plot(
        offered, [min(rate, peak) for rate in offered], color=_IDEAL, linestyle="--", label="the most possible"
    )
    goodput.plot(offered, [point.goodput for point in points], color=_GOOD, marker="o", label="answered in time")
    goodput.set_ylim(0, peak * 1.2)
    goodput.set_ylabel("answers a second")
    goodput.set_title("What is answered in time, over what is asked", loc="left")
    goodput.legend(frameon=False, loc="lower right")
    latency.axhline(deadline_ms, color=_IDEAL, linestyle="--", label="deadline")
    latency.plot(offered, [point.p99_ms for point in points], color=_LATE, marker="o", label="p99 of the accepted")
    latency.plot(offered, [point.p50_ms for point in points], color=_GOOD, marker="o", label="median of the accepted")
    latency.set_ylim(0, deadline_ms * 1.2)
    latency.set_ylabel("milliseconds")
    latency.set_xlabel("requests a second, as multiples of the peak (the dotted line)")
    latency.set_xticks(offered, [f"{point.times_peak:g}×" for point in points])
    latency.minorticks_off()
    latency.legend(frameon=False, loc="center right")
    figure.savefig(path, dpi=120)
