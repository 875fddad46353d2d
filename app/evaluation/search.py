"""Which facts answer better than those assumed: one at a time, on more and more photos, and then the next on top."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..checkpoints import Checkpoint
from .alternatives import Alternative, alternatives, shown_order
from .answers import Answers, Progress, Run
from .facts import Facts
from .statistics import holm, sign_flips
from .trials import Trial, Truth, are_fractions, probabilities_of, try_alternative

ALPHA = 0.05
"""The chance, at the most, that a checkpoint without a mistake is told of one."""
_FIRST_LOOK = 32
_MOST_ROUNDS = 6
# Of alternatives that are passed over: the one-sided 1% point of the normal distribution.
_CLEARLY_WORSE = 2.33
# Of two alternatives that are both better than the base.
_APART = 0.05


@dataclass(frozen=True, slots=True)
class Round:
    """What was tried against one set of facts."""

    base: Facts
    trials: tuple[Trial, ...]
    """Of each alternative the last; the best first."""
    adopted: Trial | None
    as_good: tuple[str, ...]
    """Alternatives that cannot be told from the adopted one on these photos."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "trials": [trial.document() for trial in self.trials],
            "adopted": None if self.adopted is None else self.adopted.document(),
            "as_good": list(self.as_good),
        }


def looks_of(count: int) -> list[int]:
    """How many photos are looked at, and then how many more: 32, 64, 128, … and at last `count`."""
    looks = []
    look = _FIRST_LOOK
    while look * 3 // 2 < count:
        looks.append(look)
        look *= 2
    return [*looks, count]


@dataclass
class Search:
    """Tries alternatives of the decisions `names`, on up to `most` photos each."""

    answers: Answers
    checkpoint: Checkpoint
    labels: tuple[str, ...]
    truth: Truth
    names: Collection[str]
    most: int
    progress: Progress

    def run(self, base: Facts) -> list[Round]:
        """Rounds until nothing is better. The scores of `base` on all photos must be there."""
        rounds: list[Round] = []
        been = {base}
        while len(rounds) < _MOST_ROUNDS:
            found = self._round(base, been, len(rounds) + 1)
            rounds.append(found)
            if found.adopted is None:
                break
            base = found.adopted.alternative.facts
            been.add(base)
        return rounds

    def _round(self, base: Facts, been: Collection[Facts], number: int) -> Round:
        looks = looks_of(min(self.most, len(self.truth)))
        trying = [
            each
            for each in alternatives(base, self.checkpoint, self.names, self.labels)
            if each.facts not in been and self._is_plausible(each, base)
        ]
        trials: dict[tuple[str, str], Trial] = {}
        better: list[Trial] = []
        rivals: list[Trial] = []
        for count in looks:
            self._compute(base, trying, count, number)
            shown = self._shown_order(base, count)
            if shown is not None and shown.facts in {*been, *[each.facts for each in trying]}:
                shown = None
            now = {_key(each): self._try(each, base, count) for each in (*trying, *([shown] if shown else ()))}
            trials |= now
            self._correct(trials, now, len(looks))
            better = [trials[key] for key in now if trials[key].corrected_p < ALPHA]
            if better:
                leader = _best(better)
                rivals = [trials[key] for key in now if not _is_apart(leader, trials[key])]
                kept = [leader, *rivals] if rivals else []
            else:
                kept = _worth_more_photos([trials[key] for key in now])
            trying = [each.alternative for each in kept if not each.alternative.held_out]
            self._forget(
                base, trials, {each.facts.run for each in trying} | {each.alternative.facts.run for each in better}
            )
            if not trying and (better or shown is None):
                break
        adopted = _best(better) if better else None
        ordered = sorted(trials.values(), key=lambda trial: (trial is not adopted, trial.corrected_p, _goodness(trial)))
        as_good = tuple(
            f"{trial.alternative.fact} {trial.alternative.shown}"
            for trial in sorted(rivals, key=_goodness)
            if adopted is not None and trial.alternative.fact == adopted.alternative.fact
        )
        return Round(base, tuple(ordered), adopted, as_good)

    def _compute(self, base: Facts, trying: Collection[Alternative], count: int, number: int) -> None:
        runs: dict[Run, str] = {base.run: "as assumed"}
        for each in trying:
            runs.setdefault(each.facts.run, f"{each.fact} {each.shown}")
        total = self.answers.missing(runs, count)
        again = f", round {number}" if number > 1 else ""
        what = f"Alternatives, {count} photos{again}"
        if total:
            self.answers.compute(runs, count, lambda done, detail: self.progress(what, done, total, detail))

    def _try(self, alternative: Alternative, base: Facts, count: int) -> Trial:
        scores = self.answers.scores
        return try_alternative(
            alternative,
            scores(alternative.facts.run, count),
            base,
            scores(base.run, count),
            self.truth[:count],
        )

    def _shown_order(self, base: Facts, count: int) -> Alternative | None:
        """Read off every other photo, of those that show one class."""
        if "labels" not in self.names:
            return None
        plain = replace(base, order=None)
        found = probabilities_of(self.answers.scores(base.run, count), plain)[::2]
        truth = self.truth[:count:2]
        single = truth.sum(axis=1) == 1
        return shown_order(base, found[single].argmax(axis=1), truth[single].argmax(axis=1), truth.shape[1])

    def _is_plausible(self, alternative: Alternative, base: Facts) -> bool:
        """Whether photos could tell at all: see docs/evaluate.md, "What cannot be told"."""
        if alternative.fact != "activation":
            return True
        activation = alternative.facts.activation
        scores = self.answers.scores(base.run, self.answers.count(base.run))
        if activation == "none":
            return are_fractions(scores)
        outputs = scores.shape[1]
        if activation == "softmax":
            return outputs > 1
        several: bool = bool((self.truth.sum(axis=1) > 1).any())
        return bool(outputs != 2 or several)

    def _correct(self, trials: dict[tuple[str, str], Trial], now: Collection[tuple[str, str]], looks: int) -> None:
        """Holm's correction for all that were tried and answer otherwise, and Bonferroni's for the looks."""
        keys = [key for key, trial in trials.items() if not trial.is_same]
        values = holm([trials[key].p if key in now else 1.0 for key in keys])
        for key, value in zip(keys, values, strict=True):
            if key in now:
                trials[key] = replace(trials[key], corrected_p=min(1.0, value * looks))

    def _forget(self, base: Facts, trials: dict[tuple[str, str], Trial], kept: set[Run]) -> None:
        runs = {trial.alternative.facts.run for trial in trials.values()}
        self.answers.forget(runs - kept - {base.run})


def _key(alternative: Alternative) -> tuple[str, str]:
    return alternative.fact, alternative.shown


def _goodness(trial: Trial) -> tuple[float, float]:
    """Smaller is better: by how much the losses fall, and then by top-1."""
    return trial.fitted_difference, -trial.difference


def _best(better: list[Trial]) -> Trial:
    """An order that the photos show only where nothing that has a name of its own is better."""
    return min(better, key=lambda trial: (trial.alternative.held_out, *_goodness(trial)))


def _is_apart(leader: Trial, other: Trial) -> bool:
    """Whether `leader` is better than `other` by more than chance, or is that one, or they cannot be compared."""
    kinds = {trial.alternative.fact == "activation" for trial in (leader, other)}
    if other is leader or len(kinds) > 1 or len(other.losses) != len(leader.losses):
        return True
    return sign_flips(leader.losses - other.losses) < _APART


def _worth_more_photos(trials: list[Trial]) -> list[Trial]:
    """The better half, without what is clearly worse and what makes no difference."""
    open_ones = [trial for trial in trials if not trial.is_same and not _is_clearly_worse(trial)]
    open_ones.sort(key=_goodness)
    return open_ones[: max(1, (len(trials) + 1) // 2)]


def _is_clearly_worse(trial: Trial) -> bool:
    if trial.gained > trial.lost:
        return False
    deviation = float(np.std(trial.differences)) / max(1.0, float(np.sqrt(trial.photos)))
    return float(trial.differences.mean()) > _CLEARLY_WORSE * deviation
