"""The report of a quantization as a picture."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

from ..errors import QuantizationError
from .report import Report
from .search import worst_first

INSTALL = "pip install 'resnet-serve[pictures]'"
_FLOAT32, _INT8 = "#4477aa", "#ee6677"  # distinguishable by colour-blind readers (Paul Tol's "bright" scheme)
_SHOWN_LAYERS = 12


def check_can_draw() -> None:
    """Raises `QuantizationError` with the install command if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise QuantizationError(f"--report draws with matplotlib, which is not installed. {INSTALL}")


def draw(report: Report) -> bytes:
    """A PNG: probabilities of both networks, speeds, and the layers' damage if it was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 3 if report.damages else 2
    figure = Figure(figsize=(4.6 * panels, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    record = report.record
    figure.suptitle(f"{record.architecture} in int8 against float32\n{record.agreement.describe()}", fontsize=9)
    _draw_probabilities(axes[0], report)
    _draw_speeds(axes[1], report)
    if report.damages:
        _draw_layers(axes[2], report)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=110)
    return target.getvalue()


def _draw_probabilities(axes: Any, report: Report) -> None:
    agreement = report.record.agreement
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.scatter(*zip(*report.best, strict=True), s=16, color=_INT8, alpha=0.7, linewidths=0)
    axes.set(
        title=f"{agreement.images} held-out photos, {len(report.disagreements)} with another first class",
        xlabel="probability of float32's first class, in float32",
        ylabel="in int8",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
        aspect="equal",
    )
    axes.title.set_fontsize(9)


def _draw_speeds(axes: Any, report: Report) -> None:
    speeds = report.record.speeds
    rates = (1 / speeds.float32_seconds, 1 / speeds.int8_seconds)
    bars = axes.bar(("float32", "int8"), rates, color=(_FLOAT32, _INT8), width=0.6)
    axes.bar_label(bars, [f"{rate:.1f}" for rate in rates])
    axes.set(
        title=f"{speeds.ratio:.2f} × as fast, {report.int8_bytes / report.float32_bytes:.2f} × as large",
        ylabel=f"images a second, one at a time, {speeds.threads} threads",
    )
    axes.title.set_fontsize(9)


def _draw_layers(axes: Any, report: Report) -> None:
    kept = set(report.record.kept_float)
    names = worst_first(report.damages)[:_SHOWN_LAYERS][::-1]
    colours = [_FLOAT32 if name in kept else _INT8 for name in names]
    places = range(len(names))
    axes.barh(places, [report.damages[name] for name in names], color=colours)
    axes.set_yticks(places, [_short(name) for name in names])
    axes.set(
        title=f"worst layers alone; {len(kept)} kept in float32 (blue)",
        xlabel="error of the scores, of their deviation",
    )
    axes.title.set_fontsize(9)
    axes.tick_params(axis="y", labelsize=7)


def _short(name: str) -> str:
    """The end of a node's path, without its number and operator: "12:/net/layer1/layer1.0/conv1/Conv"."""
    path = name.partition(":")[2].strip("/")
    return path.rpartition("/")[0][-32:] or path[-32:]
