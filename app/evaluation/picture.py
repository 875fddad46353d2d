"""The report of an evaluation as a picture."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import EvaluationError
from .evaluate import Evaluation
from .report import Accuracy
from .search import ALPHA, Round

INSTALL = "pip install 'resnet-serve[pictures]'"
# Distinguishable by colour-blind readers (Paul Tol's "bright" scheme).
_BLUE, _RED, _GREY, _GREEN = "#4477aa", "#ee6677", "#bbbbbb", "#228833"
_SHOWN = 25
_MATRIX = 20
_WIDTH, _HEIGHT = 5.4, 4.8


def check_can_draw() -> None:
    """Raises `EvaluationError` with the install command if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise EvaluationError(f"--picture draws with matplotlib, which is not installed. {INSTALL}")


def draw(evaluation: Evaluation) -> bytes:
    """A PNG: the reliability diagram, the classes, and each round of alternatives."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: list[Callable[[Any], None]] = []
    accuracy = evaluation.accuracy
    if accuracy is not None:
        panels += [lambda axes: _draw_reliability(axes, accuracy), lambda axes: _draw_classes(axes, accuracy)]
    rounds = [each for each in evaluation.rounds[:2] if each.trials]
    panels += [partial(_draw_round, tried=tried, is_first=tried is rounds[0]) for tried in rounds]
    if evaluation.surer:
        panels.append(lambda axes: _draw_entropies(axes, evaluation))
    figure = Figure(figsize=(_WIDTH * max(1, len(panels)), _HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(evaluation), fontsize=9)
    if panels:
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            panel(axes)
            axes.title.set_fontsize(9)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=110)
    return target.getvalue()


def _title(evaluation: Evaluation) -> str:
    accuracy = evaluation.accuracy
    if accuracy is None:
        return f"{evaluation.model} on {evaluation.certainty.photos} photos without labels"
    low, high = accuracy.top1.interval
    return f"{evaluation.model} on {accuracy.count} photos: top-1 {accuracy.top1.value:.1%} ({low:.1%} to {high:.1%})"


def _draw_reliability(axes: Any, accuracy: Accuracy) -> None:
    bins = [each for each in accuracy.calibration.bins if each.count]
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.bar(
        [(each.low + each.high) / 2 for each in bins],
        [each.accuracy for each in bins],
        width=1 / len(accuracy.calibration.bins),
        color=_BLUE,
        edgecolor="white",
    )
    axes.plot([each.confidence for each in bins], [each.accuracy for each in bins], "o", color=_RED, markersize=4)
    for each in bins:
        axes.annotate(str(each.count), ((each.low + each.high) / 2, 0.01), ha="center", fontsize=6, color="white")
    axes.set(
        title=f"Reliability: calibration error {accuracy.calibration.error:.1%} (photos in each bin)",
        xlabel="probability of the first class",
        ylabel="share that is right",
        xlim=(0, 1),
        ylim=(0, 1),
    )


def _draw_classes(axes: Any, accuracy: Accuracy) -> None:
    """A confusion matrix if there are few classes; else the accuracy of the worst ones."""
    if len(accuracy.classes) <= _MATRIX:
        _draw_matrix(axes, accuracy)
        return
    worst = sorted(accuracy.classes, key=lambda each: (each.top1, -each.photos))[:_SHOWN][::-1]
    axes.barh(range(len(worst)), [each.top1 for each in worst], color=_BLUE)
    axes.set_yticks(range(len(worst)), [f"{_short(each.label)} ({each.photos})" for each in worst], fontsize=6)
    axes.set(title=f"The worst of {len(accuracy.classes)} classes (photos)", xlabel="top-1", xlim=(0, 1))


def _draw_matrix(axes: Any, accuracy: Accuracy) -> None:
    labels = [each.label for each in accuracy.classes]
    others = sorted({each.answered for each in accuracy.confusions} - set(labels))
    columns = labels + (["other classes"] if others else [])
    counts = [[0.0] * len(columns) for _ in labels]
    for row, each in enumerate(accuracy.classes):
        counts[row][row] = each.right
    for confusion in accuracy.confusions:
        column = labels.index(confusion.answered) if confusion.answered in labels else len(labels)
        counts[labels.index(confusion.label)][column] += confusion.photos
    shares = [[count / each.photos for count in row] for row, each in zip(counts, accuracy.classes, strict=True)]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            if count:
                colour = "white" if shares[row][column] > 0.5 else "black"
                axes.annotate(f"{count:g}", (column, row), ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(columns)), [_short(label) for label in columns], rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels], fontsize=7)
    axes.set(title="Photos by class and first class answered", xlabel="answered", ylabel="shown")


def _draw_round(axes: Any, tried: Round, is_first: bool) -> None:
    """Differences in top-1 from the base, with their confidence intervals."""
    trials = tried.trials[:_SHOWN][::-1]
    for place, trial in enumerate(trials):
        low, high = trial.interval
        better = trial.corrected_p < ALPHA
        colour = _GREEN if better else _GREY if low <= 0 <= high else _RED if high < 0 else _BLUE
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([trial.difference], [place], "o", color=colour, markersize=4)
    axes.axvline(0, color="0.7", linewidth=1)
    names = [f"{_short(f'{trial.alternative.fact} {trial.alternative.shown}', 40)}" for trial in trials]
    axes.set_yticks(range(len(trials)), names, fontsize=6)
    base = "as it is served" if is_first else "with what is better"
    axes.set(title=f"Alternatives, {base} (green: better)", xlabel="top-1, difference and 95% interval")


def _draw_entropies(axes: Any, evaluation: Evaluation) -> None:
    surer = evaluation.surer[:_SHOWN][::-1]
    colours = [_GREEN if each.is_surer else _GREY for each in surer]
    axes.barh(range(len(surer)), [each.certainty.entropy for each in surer], color=colours)
    axes.axvline(surer[0].base.entropy if surer else 0, color=_RED, linewidth=1)
    names = [_short(f"{each.alternative.fact} {each.alternative.shown}", 40) for each in surer]
    axes.set_yticks(range(len(surer)), names, fontsize=6)
    axes.set(title="Without labels: weak evidence (red: as it is served)", xlabel="mean entropy, nats")


def _short(label: str, most: int = 18) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"
