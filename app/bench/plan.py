"""The length of each measurement of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .loops import Arrivals

Kind = Literal["standard", "quick", "soak"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The measurements of a run and their lengths."""

    kind: Kind
    p99_ms: float
    clients: int
    arrivals: Arrivals
    seconds: float
    """Length of one measurement; of some the half."""
    step_requests: int
    """Fewest requests in an open-loop step."""
    step_targets: float
    """Shortest open-loop step, in multiples of the latency target. At a rate that is too high by a part x, the queue
    takes target / x to grow until the target is missed: 20 targets show an excess of 5%."""
    most_step_seconds: float
    """Longest open-loop step, so that a slow service does not hold the run; `asked_…` may exceed it."""
    rounds: int
    tolerance: float
    most_steps: int
    curve: tuple[float, ...]
    """Rates measured beside the search's, as parts of the closed loop's throughput."""
    soak_requests: int = 0
    wait_seconds: float = 300.0
    asked_seconds: float = 0.0
    """Length of an open-loop step that the user asked for; 0: none."""
    asked_requests: int = 0

    def requests_at(self, rate: float) -> int:
        """The number of requests in a step at this rate."""
        wanted = max(self.step_requests, math.ceil(rate * max(self.seconds, self.step_targets * self.p99_ms / 1e3)))
        asked = max(self.asked_requests, math.ceil(rate * self.asked_seconds))
        return max(1, asked, min(wanted, int(rate * self.most_step_seconds)))

    @property
    def give_up_seconds(self) -> float:
        """How long answers are waited for after a step's last arrival; later ones have missed every target."""
        return max(2.0, 4 * self.p99_ms / 1e3)


def plan_run(
    *,
    quick: bool,
    p99_ms: float,
    clients: int,
    arrivals: Arrivals,
    seconds: float | None,
    step_requests: int | None,
    rounds: int | None,
    soak_requests: int | None,
    wait_seconds: float,
) -> Plan:
    """The standard run, the quick one (about 20 s on a service that answers 20 a second), or a soak."""
    return Plan(
        kind="soak" if soak_requests else "quick" if quick else "standard",
        p99_ms=p99_ms,
        clients=clients,
        arrivals=arrivals,
        seconds=seconds or (1.0 if quick else 5.0),
        step_requests=step_requests or (40 if quick else 500),
        step_targets=4.0 if quick else 20.0,
        most_step_seconds=4.0 if quick else 90.0,
        rounds=rounds or (1 if quick else 3),
        tolerance=0.2 if quick else 0.05,
        most_steps=4 if quick else 14,
        curve=(0.5,) if quick else (0.5, 1.5),
        soak_requests=soak_requests or 0,
        wait_seconds=wait_seconds,
        asked_seconds=seconds or 0.0,
        asked_requests=step_requests or 0,
    )
