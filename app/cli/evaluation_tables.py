"""The report of `evaluate` as tables."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ..evaluation import TRIED, Evaluation, as_environment, as_flags
from ..evaluation.report import Accuracy
from ..evaluation.search import ALPHA, Round
from ..evaluation.trials import Trial
from .console import stderr, stdout

_SHOWN = 10
_MOST_CLASSES = 20
_AS_GOOD = 4
_MOST_TRIALS, _MOST_LATER_TRIALS = 16, 5


def show_evaluation(evaluation: Evaluation) -> None:
    """Print tables on stdout, and notes on omissions on stderr."""
    photos = evaluation.photos
    table = Table(title=escape(evaluation.source), title_justify="left", show_header=False)
    table.add_row("model", f"{escape(evaluation.model)}, {evaluation.classes} classes")
    unused = photos.found - photos.used - len(photos.skipped) - sum(count for _, count in photos.unmatched)
    table.add_row("photos", f"{photos.used} used" + (f" of {photos.found}" if photos.found != photos.used else ""))
    if photos.skipped:
        table.add_row("", f"{len(photos.skipped)} cannot be used")
    if photos.unmatched:
        table.add_row("", f"{sum(count for _, count in photos.unmatched)} of classes that the model does not have")
    if photos.without_label:
        table.add_row("", f"{photos.without_label} without a label, left out")
    if unused > 0:
        table.add_row("", f"{unused} more than --most-photos, left out by chance")
    if evaluation.accuracy is not None:
        _add_accuracy(table, evaluation.accuracy)
    else:
        certainty = evaluation.certainty
        table.add_row("confidence", f"{certainty.confidence:.3f}, mean probability of the first class")
        table.add_row("entropy", f"{certainty.entropy:.3f} nats")
    stdout.print(table)
    for name, reason in photos.skipped[:_SHOWN]:
        stderr.print(f"[bold yellow]Skipped[/] {escape(name)}: {escape(reason)}")
    if len(photos.skipped) > _SHOWN:
        stderr.print(f"[bold yellow]Skipped[/] {len(photos.skipped) - _SHOWN} more.")
    for note in evaluation.notes:
        stderr.print(f"[bold]Note:[/] {escape(note)}")
    if evaluation.accuracy is not None:
        _print_classes(evaluation.accuracy)
    for number, tried in enumerate(evaluation.rounds):
        _print_round(tried, number)
    if evaluation.surer:
        _print_surer(evaluation)


def _add_accuracy(table: Table, accuracy: Accuracy) -> None:
    for name, share in (("top-1", accuracy.top1), ("top-5", accuracy.top5)):
        if share is not None:
            low, high = share.interval
            table.add_row(name, f"{share.value:.1%}  (95%: {low:.1%} to {high:.1%}; {share.right} of {share.count})")
    table.add_row("probability of the truth", f"{accuracy.truth_probability:.3f} on average")
    table.add_row("log loss", f"{accuracy.log_loss:.3f}")
    table.add_row("calibration error", f"{accuracy.calibration.error:.1%}  (15 bins)")
    if accuracy.several:
        table.add_row(
            "several labels", f"{accuracy.several} photos: top-1 is right where the first class is one of them"
        )


def _print_classes(accuracy: Accuracy) -> None:
    title = "Classes, the worst first"
    if len(accuracy.classes) > _MOST_CLASSES:
        title += f" ({_MOST_CLASSES} of {len(accuracy.classes)})"
    table = Table(title=title, title_justify="left")
    for name in ("class", "label", "photos", "top-1", "precision", "probability"):
        table.add_column(name, justify="left" if name == "label" else "right")
    for each in sorted(accuracy.classes, key=lambda one: (one.top1, -one.photos, one.index))[:_MOST_CLASSES]:
        precision = "–" if each.precision is None else f"{each.precision:.1%}"
        table.add_row(
            str(each.index),
            escape(each.label),
            str(each.photos),
            f"{each.top1:.1%}",
            precision,
            f"{each.truth_probability:.3f}",
        )
    stdout.print(table)
    if accuracy.confusions:
        confused = Table("shown", "answered", "photos", title="Most confused", title_justify="left")
        for confusion in accuracy.confusions[:_SHOWN]:
            confused.add_row(escape(confusion.label), escape(confusion.answered), str(confusion.photos))
        stdout.print(confused)


def _print_round(tried: Round, number: int) -> None:
    if not tried.trials:
        return
    base = "as it is served" if number == 0 else "with what was better so far"
    table = Table(title=f"Alternatives, against the model {base}", title_justify="left")
    for name in ("setting", "value", "photos", "top-1", "difference (95%)", "log loss", "verdict"):
        table.add_column(name, justify="left" if name in ("setting", "value", "verdict") else "right")
    most = _MOST_TRIALS if number == 0 else _MOST_LATER_TRIALS
    for trial in tried.trials[:most]:
        low, high = trial.interval
        before = trial.base_right / max(1, trial.photos)
        table.add_row(
            trial.alternative.fact,
            escape(trial.alternative.shown),
            str(trial.photos),
            f"{before:.1%} → {before + trial.difference:.1%}",
            f"{trial.difference:+.1%} ({low:+.1%} to {high:+.1%})",
            f"{trial.base_log_loss:.3f} → {trial.log_loss:.3f}",
            _verdict(tried, trial),
        )
    stdout.print(table)
    if len(tried.trials) > most:
        stdout.print(f"{len(tried.trials) - most} more were tried: --json has them.")


def _verdict(tried: Round, trial: Trial) -> str:
    if trial is tried.trials[0] and tried.adopted:
        return f"[bold green]better[/] (p = {trial.corrected_p:.2g})"
    if trial.corrected_p < ALPHA:
        return f"[green]better[/] (p = {trial.corrected_p:.2g})"
    if trial.is_same:
        return "no difference"
    return "worse" if trial.is_worse or trial.interval[1] < 0 else "not beyond chance"


def _print_surer(evaluation: Evaluation) -> None:
    table = Table(title="Alternatives, by how sure they make the network", title_justify="left")
    for name in ("setting", "value", "photos", "confidence", "entropy", ""):
        table.add_column(name, justify="left" if name in ("setting", "value", "") else "right")
    for each in evaluation.surer[:_MOST_TRIALS]:
        verdict = "scaling contradicts the weights" if each.contradicted else "surer" if each.is_surer else ""
        table.add_row(
            each.alternative.fact,
            escape(each.alternative.shown),
            str(each.certainty.photos),
            f"{each.base.confidence:.3f} → {each.certainty.confidence:.3f}",
            f"{each.base.entropy:.3f} → {each.certainty.entropy:.3f}",
            verdict,
        )
    stdout.print(table)


def show_recommendation(evaluation: Evaluation, written: list[Path]) -> None:
    """Print the recommended settings, if any."""
    chosen = dict(evaluation.settings)
    if evaluation.is_of_a_service:
        return
    if not chosen:
        what = "surer" if evaluation.accuracy is None else "better beyond chance"
        if evaluation.tried:
            stdout.print(f"Nothing that was tried ({', '.join(evaluation.tried)}) is {what}.")
        if len(evaluation.tried) < len(TRIED):
            stdout.print("With --all the decisions that are known are tried too, as far as they can vary.")
        return
    if evaluation.accuracy is None:
        stdout.print(
            "These make the network surer, which is weak evidence: a wrong setting can too. Try them on photos with "
            "labels."
        )
    else:
        before, after = evaluation.accuracy.top1, (evaluation.better or evaluation.accuracy).top1
        low, high = after.interval
        stdout.print(
            f"[bold]Better on these photos:[/] top-1 {after.value:.1%} ({low:.1%} to {high:.1%}) instead of "
            f"{before.value:.1%}. Set:"
        )
    if evaluation.can_be_set:
        stdout.print(f"  {as_environment(chosen)}", markup=False)
        stdout.print(f"  {as_flags(chosen)}", markup=False)
    else:
        assert evaluation.converted is not None
        stdout.print(f"  {evaluation.converted.preprocessing.describe()}", markup=False)
        stdout.print("No setting says that: --write writes a file that has it.")
    if "labels" in chosen and not written:
        stdout.print(
            "labels.txt: the labels in another order, which --write-labels writes and --write has in the file."
        )
    as_good = [name for each in evaluation.rounds for name in each.as_good]
    if as_good:
        stdout.print(
            f"Better too, and these photos do not tell them apart: {', '.join(as_good[:_AS_GOOD])}"
            f"{', …' if len(as_good) > _AS_GOOD else '.'}",
            markup=False,
        )
    for path in written:
        stdout.print(f"{path} has it in it.", markup=False)
