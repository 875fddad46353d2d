"""The highest rate that keeps a target, by bisection over open-loop steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .steps import Step

Measure = Callable[[float], Awaitable[Step]]
_UP, _DOWN = 1.25, 0.6
_RETREAT = 0.95


@dataclass(frozen=True, slots=True)
class Highest:
    """The result of the search."""

    rate: float | None
    """Requests a second; None if no rate kept the target."""
    confirmed: bool
    """Whether a second step at that rate also kept the target."""
    reason: str
    """How the search ended, in one sentence."""
    steps: tuple[Step, ...]
    """In the order of measurement."""


async def find_highest(
    measure: Measure, *, start: float, lowest: float, tolerance: float = 0.05, most_steps: int = 16
) -> Highest:
    """Look for the highest rate at which a step keeps its target.

    The rate goes up or down from `start` until one rate keeps the target and another does not, then between the two
    until they are within `tolerance`. The result is measured again, and lowered by a twentieth as long as that fails.
    No rate below `lowest` is tried. `most_steps` bounds the number of steps.
    """
    steps: list[Step] = []

    async def keeps(rate: float) -> bool:
        steps.append(await measure(rate))
        return steps[-1].keeps_target

    kept: float | None = None
    missed: float | None = None
    rate = max(start, lowest)
    # One step is reserved for the confirmation.
    while len(steps) < most_steps - 1:
        if await keeps(rate):
            kept = rate
        else:
            missed = rate
        if kept is None:
            if rate <= lowest:
                break
            rate = max(rate * _DOWN, lowest)
        elif missed is None:
            rate *= _UP
        elif missed <= kept * (1 + tolerance):
            break
        else:
            rate = (kept + missed) / 2
    if kept is None:
        tried = min(step.offered_rate or 0.0 for step in steps)
        return Highest(None, False, f"The target is not kept at any rate tried, down to {tried:.3g}/s.", tuple(steps))
    rate = kept
    while len(steps) < most_steps:
        if await keeps(rate):
            lowered = "" if rate == kept else f" {kept:.3g}/s kept it once and did not again."
            open_end = " No higher rate was tried." if missed is None else ""
            return Highest(rate, True, f"Kept twice at {rate:.3g}/s.{lowered}{open_end}", tuple(steps))
        if rate * _RETREAT < lowest:
            break
        rate *= _RETREAT
    return Highest(
        kept,
        False,
        f"{kept:.3g}/s kept it once and missed it when measured again; no rate was confirmed.",
        tuple(steps),
    )
