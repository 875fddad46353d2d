"""Alternatives on photos without labels, compared by the network's confidence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import Checkpoint, is_scaling_unlikely
from ..types import Activation, Scores
from .alternatives import Alternative, alternatives
from .answers import Answers, Progress, Run
from .facts import READING, Facts
from .report import Certainty, entropies
from .search import ALPHA
from .statistics import holm, sign_flips
from .trials import probabilities_of

_PHOTOS = 64


@dataclass(frozen=True, slots=True)
class Surer:
    """An alternative, and the network's confidence with it."""

    alternative: Alternative
    certainty: Certainty
    base: Certainty
    p: float
    """The p-value that its entropies are lower by chance, corrected for the number of alternatives."""
    contradicted: bool
    """Whether its scaling contradicts the statistics of the first batch normalisation."""

    @property
    def is_surer(self) -> bool:
        return self.p < ALPHA and not self.contradicted

    def document(self) -> dict[str, Any]:
        return {
            "setting": self.alternative.fact,
            "value": self.alternative.shown,
            "certainty": self.certainty.document(),
            "base": self.base.document(),
            "p_corrected": self.p,
            "scaling_contradicts_the_weights": self.contradicted,
        }


def certainty_of(scores: Scores, facts: Facts) -> tuple[Certainty, NDArray[np.float64]]:
    """The certainty of all answers, and the entropy of each photo's answer."""
    found = probabilities_of(scores, facts)
    each = entropies(found, _is_exclusive(facts.activation, scores))
    return Certainty(len(found), float(found.max(axis=1).mean()), float(each.mean())), each


def try_unlabelled(
    answers: Answers, base: Facts, checkpoint: Checkpoint, names: tuple[str, ...], most: int, progress: Progress
) -> list[Surer]:
    """Every alternative that changes the scores, in ascending order of entropy."""
    names = tuple(name for name in names if name not in READING)
    trying = alternatives(base, checkpoint, names, checkpoint.labels)
    count = min(_PHOTOS, most, len(answers.photos))
    runs: dict[Run, str] = {base.run: "as assumed"}
    for each in trying:
        runs.setdefault(each.facts.run, f"{each.fact} {each.shown}")
    total = answers.missing(runs, count)
    what = f"Alternatives, {count} photos"
    if total:
        answers.compute(runs, count, lambda done, detail: progress(what, done, total, detail))
    reference, before = certainty_of(answers.scores(base.run, count), base)
    found = []
    for each in trying:
        certainty, after = certainty_of(answers.scores(each.facts.run, count), each.facts)
        unlikely = is_scaling_unlikely(checkpoint.weights, each.facts.preprocessing)
        found.append(Surer(each, certainty, reference, sign_flips(after - before), unlikely))
    values = holm([each.p for each in found])
    found = [replace(each, p=value) for each, value in zip(found, values, strict=True)]
    return sorted(found, key=lambda each: (each.contradicted, each.certainty.entropy))


def _is_exclusive(activation: Activation, scores: Scores) -> bool:
    if activation == "none":
        return bool(np.all(np.abs(scores.sum(axis=1) - 1) < 1e-3))
    return activation == "softmax" or scores.shape[1] == 1
