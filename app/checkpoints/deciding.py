"""The third step of a checkpoint's road: contents → a Checkpoint, with every decision settled and its source named."""

from __future__ import annotations

from dataclasses import replace

from ..errors import printable
from ..labels import Labels, are_labels_of, choose_labels, labels_beside, labels_not_used
from ..networks import count_classes
from ..settings import ENV_PREFIX, CheckpointSettings
from .base import Checkpoint, Contents, Decision
from .decisions import decide_all, notes_of, warnings_of, with_activation_for
from .folders import home_of
from .published import find_by_sha256


def decide(contents: Contents, settings: CheckpointSettings) -> Checkpoint:
    """Check that `contents` fit their network, and make the decisions that they leave open.

    Raises a `StartError` in one line: `CheckpointError`, `LabelsError` or `SettingError`.
    """
    if contents.is_offline_demo:
        settings = CheckpointSettings(labels=settings.labels)
    decisions = decide_all(settings, contents)
    architecture = decisions.architecture.value
    switches = decisions.switches_of(architecture)
    class_count = (
        contents.graph.class_count if contents.graph else count_classes(architecture, contents.weights, switches)
    )
    decisions = with_activation_for(class_count, decisions)
    labels, label_notes = _labels(settings, contents, class_count, architecture)
    decisions = replace(decisions, labels=labels)
    warnings = (
        *([contents.fallback_warning] if contents.fallback_warning is not None else []),
        *warnings_of(contents, decisions, contents.path.name),
        *_warnings_of_labels(contents, labels, class_count),
    )
    notes = (*contents.notes, *notes_of(contents, decisions), *label_notes)
    return Checkpoint(
        weights=contents.weights,
        architecture=architecture,
        class_count=class_count,
        preprocessing=decisions.preprocessing.value,
        labels=labels.value,
        sha256=contents.sha256,
        source=str(contents.path),
        # Both may contain names from the file, and are shown on a terminal.
        warnings=tuple(map(printable, warnings)),
        notes=tuple(map(printable, notes)),
        switches=None if contents.graph else switches,
        graph=contents.graph,
        activation=decisions.activation.value,
        is_fallback=contents.fallback_warning is not None,
        decisions=decisions,
    )


def _labels(
    settings: CheckpointSettings, contents: Contents, class_count: int, architecture: str
) -> tuple[Decision[Labels], tuple[str, ...]]:
    """Labels and notes: from the setting's file, the checkpoint, a file beside it, ImageNet's, or the indices."""
    if settings.labels is not None:
        return Decision(choose_labels(class_count, settings.labels), f"{ENV_PREFIX}LABELS"), ()
    home = home_of(contents.path)
    told = contents.told.labels
    if told is not None and are_labels_of(told.value, class_count):
        return told, tuple(labels_not_used(home, told.value, told.source))
    source = "ImageNet's, by their number" if class_count in (1000, 1001) else "the class indices"
    # The categories of published weights are known: a labels file beside them belongs to other weights.
    if find_by_sha256(architecture, contents.sha256) is not None:
        labels = Decision(choose_labels(class_count, None), source)
        return labels, tuple(labels_not_used(home, labels.value, "torchvision, whose weights these are,"))
    beside = labels_beside(home, class_count)
    return Decision(choose_labels(class_count, beside), beside.name if beside else source), ()


def _warnings_of_labels(contents: Contents, labels: Decision[Labels], class_count: int) -> tuple[str, ...]:
    """A sentence if the number of labels in the checkpoint differs from its number of classes."""
    told = contents.told.labels
    if told is None or are_labels_of(told.value, class_count) or labels.source == f"{ENV_PREFIX}LABELS":
        return ()
    return (
        f"{contents.path.name} names {len(told.value):,} classes ({told.source}) and has {class_count:,} outputs: its "
        f"names are not used, but {labels.source}. Name the classes with {ENV_PREFIX}LABELS.",
    )
