"""The evaluation of a checkpoint: its accuracy on photos, and the search for better facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoints import Checkpoint, Decisions
from ..errors import EvaluationError, SettingError
from ..images import DecodeLimits
from ..types import Scores
from .answers import Answers, Progress
from .facts import READING, TRIED, Facts, as_environment, as_flags, exist, facts_of, open_decisions, settings_between
from .matching import Matched, count_unmatched, match_classes
from .photos import Found, Photo, in_order, some
from .report import Accuracy, Certainty, measure_accuracy
from .search import Round, Search
from .trials import Truth, are_fractions, probabilities_of
from .unlabelled import Surer, certainty_of, try_unlabelled

FEW_PHOTOS = 30


@dataclass(frozen=True, slots=True)
class Options:
    limits: DecodeLimits
    threads: int = 1
    device: str = "auto"
    most_photos: int = 1000
    """The most photos for evaluating the checkpoint as it is served."""
    most_tried: int = 500
    """The most photos for trying an alternative."""
    everything: bool = False
    """Whether alternatives are tried for known decisions too."""
    only: tuple[str, ...] = ()
    """The decisions for which alternatives are tried, known or not; () for the choice by `everything`."""


@dataclass(frozen=True, slots=True)
class Used:
    """The number of photos that were used, and the reasons for leaving out the others."""

    found: int
    used: int
    skipped: tuple[tuple[str, str], ...]
    unmatched: tuple[tuple[str, int], ...] = ()
    """Names that are not classes of the model, with the number of their photos."""
    without_label: int = 0
    other_files: int = 0

    def document(self) -> dict[str, Any]:
        return {
            "found": self.found,
            "used": self.used,
            "skipped": [{"photo": name, "reason": reason} for name, reason in self.skipped],
            "unmatched": dict(self.unmatched),
            "without_label": self.without_label,
            "other_files": self.other_files,
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of an evaluation."""

    source: str
    model: str
    classes: int
    photos: Used
    notes: tuple[str, ...]
    accuracy: Accuracy | None
    """None if the photos have no labels."""
    certainty: Certainty
    tried: tuple[str, ...] = ()
    """The decisions for which alternatives were tried."""
    rounds: tuple[Round, ...] = ()
    surer: tuple[Surer, ...] = ()
    """Used instead of rounds, without labels."""
    settings: tuple[tuple[str, str], ...] = ()
    """Recommended settings: better beyond chance; without labels, those that make the network most confident."""
    better: Accuracy | None = None
    """The accuracy with these settings, on all photos."""
    is_of_a_service: bool = False
    """Whether a running service was evaluated, for which no alternatives can be tried."""
    converted: Checkpoint | None = None
    """The checkpoint with these settings; None if no alternative is better."""

    @property
    def can_be_set(self) -> bool:
        """Whether settings can express the recommendation; a converted file always can."""
        return exist(dict(self.settings))

    def document(self) -> dict[str, Any]:
        """As JSON."""
        settings = dict(self.settings)
        return {
            "source": self.source,
            "model": self.model,
            "classes": self.classes,
            "photos": self.photos.document(),
            "notes": list(self.notes),
            "accuracy": None if self.accuracy is None else self.accuracy.document(),
            "certainty": self.certainty.document(),
            "tried": list(self.tried),
            "rounds": [each.document() for each in self.rounds],
            "without_labels": [each.document() for each in self.surer],
            "recommendation": {
                "is_weak": self.accuracy is None,
                "settings": settings,
                "environment": as_environment(settings),
                "flags": as_flags(settings),
                "labels": list(self.converted.labels) if self.converted and "labels" in settings else None,
                "accuracy": None if self.better is None else self.better.document(),
            }
            if settings
            else None,
        }


def evaluate(
    checkpoint: Checkpoint, decisions: Decisions | None, found: Found, options: Options, progress: Progress
) -> Evaluation:
    """Evaluate `checkpoint` on `found`, and try alternatives to its decisions. Blocks for minutes.

    Raises `EvaluationError` if no photo can be used, `SettingError` for a decision that cannot vary.
    """
    names = _names(checkpoint, decisions, options)
    labels = shown_labels(checkpoint)
    matched = match_classes(found, labels) if found.is_labelled else None
    photos = in_order(usable(found, matched), options.most_photos)
    answers = Answers(checkpoint, options.limits, options.threads, options.device)
    base = facts_of(checkpoint)
    scores = answers.read(photos, base.run, progress)
    used = used_photos(found, answers.photos, answers.skipped, matched)
    if not answers.photos:
        raise EvaluationError(f"None of the {len(photos)} photos can be used. {_first(answers.skipped)}".strip())
    notes = [*notes_on(found, matched, len(answers.photos)), *_read_off(scores, base)]
    if matched is None:
        certainty, _ = certainty_of(scores, base)
        surer = try_unlabelled(answers, base, checkpoint, names, options.most_tried, progress)
        surest = next((each for each in surer if each.is_surer), None)
        settings = settings_between(base, surest.alternative.facts) if surest else {}
        return Evaluation(
            source=checkpoint.source,
            model=checkpoint.architecture,
            classes=checkpoint.class_count,
            photos=used,
            notes=tuple(notes),
            accuracy=None,
            certainty=certainty,
            tried=tuple(name for name in names if name not in READING),
            surer=tuple(surer),
            settings=tuple(settings.items()),
            converted=surest.alternative.facts.of(checkpoint, checkpoint.labels) if surest else None,
        )
    truth = truth_of(answers.photos, matched)
    accuracy = measure_accuracy(probabilities_of(scores, base), truth, matched.labels)
    search = Search(answers, checkpoint, matched.labels, truth, names, options.most_tried, progress)
    rounds = search.run(base)
    best = rounds[-1].base
    settings = settings_between(base, best)
    if matched.labels != labels and accuracy.top1.interval[0] > 1 / len(labels):
        # As far as these photos show, the folders' names are the model's labels.
        settings["labels"] = "labels.txt"
    better = accuracy
    if best.run != base.run:
        total = answers.missing([best.run], len(truth))
        answers.compute({best.run: ""}, len(truth), lambda done, _: progress("With what is better", done, total))
    if best != base:
        better = measure_accuracy(probabilities_of(answers.scores(best.run, len(truth)), best), truth, matched.labels)
    own = matched.labels if len(checkpoint.labels) > 1 else checkpoint.labels
    return Evaluation(
        source=checkpoint.source,
        model=checkpoint.architecture,
        classes=checkpoint.class_count,
        photos=used,
        notes=tuple(notes),
        accuracy=accuracy,
        certainty=certainty_of(scores, base)[0],
        tried=names,
        rounds=tuple(rounds),
        settings=tuple(settings.items()),
        better=better if settings else None,
        converted=best.of(checkpoint, own) if settings else None,
    )


def shown_labels(checkpoint: Checkpoint) -> tuple[str, ...]:
    """A label for each probability; a model with one output has a second label for the absence of its class."""
    if checkpoint.class_count == 1 and len(checkpoint.labels) == 1:
        return f"not {checkpoint.labels[0]}", checkpoint.labels[0]
    return checkpoint.labels


def usable(found: Found, matched: Matched | None) -> list[Photo]:
    """The photos whose labels are all classes of the model; all photos if none is labelled."""
    if matched is None:
        return list(found.photos)
    return [photo for photo in found.photos if all(name in matched.classes for name in photo.written)]


def truth_of(photos: Sequence[Photo], matched: Matched) -> Truth:
    """The classes that each photo shows, as (N, classes)."""
    truth = np.zeros((len(photos), len(matched.labels)), np.bool_)
    for row, photo in enumerate(photos):
        for name in photo.written:
            truth[row, list(matched.classes[name])] = True
    return truth


def used_photos(
    found: Found, photos: Sequence[Photo], skipped: Sequence[tuple[str, str]], matched: Matched | None
) -> Used:
    unmatched: Counter[str] = Counter() if matched is None else count_unmatched(found, matched)
    return Used(
        found=len(found.photos),
        used=len(photos),
        skipped=tuple(sorted(skipped)),
        unmatched=tuple(sorted(unmatched.items())),
        without_label=found.without_label,
        other_files=found.other_files,
    )


def _names(checkpoint: Checkpoint, decisions: Decisions | None, options: Options) -> tuple[str, ...]:
    possible = open_decisions(decisions, checkpoint, everything=True)
    if len(checkpoint.labels) == 1:
        possible = tuple(name for name in possible if name != "labels")
    for name in options.only:
        if name not in TRIED:
            raise SettingError(f"--try cannot be {name!r}: it is one of {', '.join(TRIED)}.")
        if name not in possible:
            raise SettingError(f"--try cannot be {name}: nothing of {checkpoint.architecture} can vary there.")
    chosen = options.only or open_decisions(decisions, checkpoint, options.everything)
    return tuple(name for name in possible if name in chosen)


def notes_on(found: Found, matched: Matched | None, used: int) -> list[str]:
    """Notes for the user on the photos, of which `used` were used."""
    notes = [found.hint] if found.hint else []
    if used < FEW_PHOTOS:
        notes.append(f"{used} photos are few: only large differences can be told from chance. Use a hundred or more.")
    if matched is not None and matched.note:
        notes.append(matched.note)
    if matched is not None and matched.unmatched:
        count = sum(count_unmatched(found, matched).values())
        notes.append(
            f"{len(matched.unmatched)} of the classes that the photos are sorted into are no classes of the model "
            f"({some(matched.unmatched)}): their {count} photos are left out."
        )
    return notes


def _read_off(scores: Scores, base: Facts) -> list[str]:
    """Notes on the scores themselves, which need no labels."""
    is_bounded = are_fractions(scores)
    if base.activation == "none" and not is_bounded:
        return ["The scores of some photos lie outside 0…1, though the activation is none: they are no probabilities."]
    if base.activation != "none" and is_bounded and len(scores) >= 8:
        adds_up = scores.shape[1] > 1 and bool(np.all(np.abs(scores.sum(axis=1) - 1) < 1e-3))
        if adds_up:
            return [
                "The scores of every photo lie in 0…1 and add up to 1: they are probabilities already, and "
                "RESNET_ACTIVATION should be none."
            ]
        return ["The scores of every photo lie in 0…1: if they are probabilities already, set RESNET_ACTIVATION=none."]
    return []


def _first(skipped: Sequence[tuple[str, str]]) -> str:
    return f"The first is {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
