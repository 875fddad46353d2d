"""The search for better facts: rounds of single changes, on more and more photos, each based on the last."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from ..checkpoints import Checkpoint
from .alternatives import Alternative, alternatives, shown_order
from .answers import Answers, Progress, Run
from .facts import PREPROCESSING, Facts, merged
from .statistics import holm, sign_flips
from .trials import Reading, Trial, Truth, are_fractions, compare_readings, probabilities_of, read_answers

ALPHA = 0.05
"""The highest probability that a mistake is reported for a checkpoint without one."""
_FIRST_LOOK = 32
_MOST_ROUNDS = 6
# The p-value below which one of two alternatives, both better than the base, is better than the other.
_APART = 0.05
# The margin for shares of different photos, which cannot be compared photo by photo.
_AS_MUCH = 0.05
# Single changes that are tried in pairs: the p-value that makes one promising, their number, and the photos used.
_HOPEFUL, _MOST_HOPEFUL, _MOST_FOR_PAIRS = 0.2, 8, 128


@dataclass(frozen=True, slots=True)
class Round:
    """The trials against one set of facts."""

    base: Facts
    trials: tuple[Trial, ...]
    """The last trial of each alternative, in descending order of quality."""
    adopted: Trial | None
    as_good: tuple[str, ...]
    """Alternatives that these photos cannot distinguish from the adopted one."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "trials": [trial.document() for trial in self.trials],
            "adopted": None if self.adopted is None else self.adopted.document(),
            "as_good": list(self.as_good),
        }


def looks_of(count: int) -> list[int]:
    """The numbers of photos at which trials are compared: 32, 64, 128, … and finally `count`."""
    looks = []
    look = _FIRST_LOOK
    while look * 3 // 2 < count:
        looks.append(look)
        look *= 2
    return [*looks, count]


@dataclass
class _Sifted:
    """The last trial of each alternative; the better ones; and those that cannot be distinguished from the best."""

    trials: dict[tuple[str, str], Trial] = field(default_factory=dict)
    better: list[Trial] = field(default_factory=list)
    rivals: list[Trial] = field(default_factory=list)


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
        """Rounds until no alternative is better. The scores of `base` on all photos must have been computed."""
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
        trying = [
            each
            for each in alternatives(base, self.checkpoint, self.names, self.labels)
            if each.facts not in been and self._is_plausible(each, base)
        ]
        what = "Alternatives" if number == 1 else f"Round {number}"
        sifted = self._sift(base, trying, been, what, self.most)
        trials = sifted.trials
        if not sifted.better:
            pairs = self._pairs(base, been, list(trials.values()))
            possible = len(trials) * (len(trials) - 1) // 2
            sifted = self._sift(base, pairs, been, "Pairs of alternatives", _MOST_FOR_PAIRS, possible)
            trials = trials | sifted.trials
        adopted = _best(sifted.better) if sifted.better else None
        ordered = sorted(trials.values(), key=lambda trial: (trial is not adopted, trial.corrected_p, _goodness(trial)))
        as_good = tuple(
            f"{trial.alternative.fact} {trial.alternative.shown}"
            for trial in sorted(sifted.rivals, key=_goodness)
            if adopted is not None and _decision(trial) == _decision(adopted)
        )
        return Round(base, tuple(ordered), adopted, as_good)

    def _sift(
        self,
        base: Facts,
        trying: list[Alternative],
        been: Collection[Facts],
        what: str,
        most: int,
        possible: int | None = None,
    ) -> _Sifted:
        """Try fewer and fewer alternatives on more and more photos, until the best is known or all photos are used.

        `possible` is the number of alternatives from which these were chosen with the same photos, if they were.
        """
        looks = looks_of(min(most, len(self.truth)))
        found = _Sifted()
        for count in looks:
            self._compute(base, trying, count, what)
            shown = self._shown_order(base, count) if possible is None else None
            if shown is not None and shown.facts in {*been, *[each.facts for each in trying]}:
                shown = None
            reading = self._read(base, count)
            now = {
                _key(each): compare_readings(each, self._read(each.facts, count), reading)
                for each in (*trying, *([shown] if shown else ()))
            }
            found.trials |= now
            _correct(found.trials, now, len(looks), possible)
            latest = [found.trials[key] for key in now]
            found.better = [trial for trial in latest if trial.corrected_p < ALPHA]
            if found.better:
                leader = _best(found.better)
                found.rivals = [trial for trial in latest if not _is_apart(leader, trial)]
                kept = [leader, *found.rivals] if found.rivals else []
            else:
                kept = _worth_more_photos(latest)
            trying = [each.alternative for each in kept if not each.alternative.held_out]
            needed = {each.facts.run for each in trying} | {each.alternative.facts.run for each in found.better}
            self.answers.forget({each.alternative.facts.run for each in latest} - needed - {base.run})
            if not trying and (found.better or shown is None):
                break
        return found

    def _pairs(self, base: Facts, been: Collection[Facts], trials: list[Trial]) -> list[Alternative]:
        """Combine two changes, because two mistakes can hide each other: the best that are not worse than the base.

        That is done if one of them seems better, or if the share of right answers is below the middle between the share
        of the most common class and 1.
        """
        # A label order derived from these photos can only be tested on the others.
        open_ones = [each for each in trials if not (each.is_worse or each.is_same or each.alternative.held_out)]
        hopeful = sorted(open_ones, key=_goodness)
        has_cause = any(each.p_loss < _HOPEFUL for each in hopeful)
        right = self._read(base, self.answers.count(base.run)).is_right.mean()
        if not has_cause and right > (1 + self.truth.mean(axis=0).max()) / 2:
            return []
        pairs: list[Alternative] = []
        # The best alternative of each setting first.
        firsts = {each.alternative.fact: each for each in reversed(hopeful)}
        hopeful.sort(key=lambda each: firsts[each.alternative.fact] is not each)
        for one, other in combinations([each.alternative for each in hopeful[:_MOST_HOPEFUL]], 2):
            facts = merged(base, one.facts, other.facts)
            if facts is not None and facts not in been and facts not in {pair.facts for pair in pairs}:
                pairs.append(Alternative(f"{one.fact} and {other.fact}", f"{one.shown} and {other.shown}", facts))
        return pairs

    def _compute(self, base: Facts, trying: Collection[Alternative], count: int, what: str) -> None:
        runs: dict[Run, str] = {base.run: "as assumed"}
        for each in trying:
            runs.setdefault(each.facts.run, f"{each.fact} {each.shown}")
        total = self.answers.missing(runs, count)
        what = f"{what}, {count} photos"
        if total:
            self.answers.compute(runs, count, lambda done, detail: self.progress(what, done, total, detail))

    def _read(self, facts: Facts, count: int) -> Reading:
        return read_answers(self.answers.scores(facts.run, count), facts, self.truth[:count])

    def _shown_order(self, base: Facts, count: int) -> Alternative | None:
        """The label order found from every other photo; photos of several classes are left out."""
        if "labels" not in self.names:
            return None
        plain = replace(base, order=None)
        found = probabilities_of(self.answers.scores(base.run, count), plain)[::2]
        truth = self.truth[:count:2]
        single = truth.sum(axis=1) == 1
        return shown_order(base, found[single].argmax(axis=1), truth[single].argmax(axis=1), truth.shape[1])

    def _is_plausible(self, alternative: Alternative, base: Facts) -> bool:
        """Whether photos can test the alternative: see docs/evaluate.md, "What cannot be told"."""
        if alternative.fact != "activation":
            return True
        activation = alternative.facts.activation
        scores = self.answers.scores(base.run, self.answers.count(base.run))
        if activation == "none":
            return are_fractions(scores)
        outputs = int(scores.shape[1])
        if activation == "softmax":
            return outputs > 1
        several: bool = bool((self.truth.sum(axis=1) > 1).any())
        return bool(outputs != 2 or several)


def _correct(
    trials: dict[tuple[str, str], Trial], now: Collection[tuple[str, str]], looks: int, possible: int | None
) -> None:
    """Correct p-values for the number of looks (Bonferroni) and of alternatives: Holm's correction for all tried ones
    that change answers, or Bonferroni's for all `possible` ones.
    """
    keys = [key for key, trial in trials.items() if not trial.is_same]
    values = [trials[key].p if key in now else 1.0 for key in keys]
    corrected = holm(values) if possible is None else [min(1.0, value * possible) for value in values]
    for key, value in zip(keys, corrected, strict=True):
        if key in now:
            trials[key] = replace(trials[key], corrected_p=min(1.0, value * looks))


def _key(alternative: Alternative) -> tuple[str, str]:
    return alternative.fact, alternative.shown


def _decision(trial: Trial) -> str:
    """The trial's decision: all parts of a preprocessing are one."""
    name = trial.alternative.fact
    return "preprocessing" if name in PREPROCESSING else name


def _goodness(trial: Trial) -> tuple[float, float]:
    """A sort key, best first: by the change of the losses, then by top-1."""
    return trial.fitted_difference, -trial.difference


def _best(better: list[Trial]) -> Trial:
    """The best trial. The order found from the photos wins only if every named alternative is clearly less accurate."""
    named = [trial for trial in better if not trial.alternative.held_out]
    for shown in better:
        if shown.alternative.held_out and all(_share(shown) > _share(trial) + _AS_MUCH for trial in named):
            return shown
    return min(named, key=_goodness)


def _share(trial: Trial) -> float:
    return trial.right / trial.photos


def _is_apart(leader: Trial, other: Trial) -> bool:
    """Whether `leader` is significantly better than `other`; also true for itself and if they cannot be compared."""
    kinds = {trial.alternative.fact == "activation" for trial in (leader, other)}
    if other is leader or len(kinds) > 1 or len(other.losses) != len(leader.losses):
        return True
    return sign_flips(leader.losses - other.losses) < _APART


def _worth_more_photos(trials: list[Trial]) -> list[Trial]:
    """The better half, without those that are clearly worse or make no difference."""
    open_ones = [trial for trial in trials if not trial.is_same and not trial.is_worse]
    open_ones.sort(key=_goodness)
    return open_ones[: max(1, (len(trials) + 1) // 2)]
