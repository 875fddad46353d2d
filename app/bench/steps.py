"""The result of one load step: counts, latencies, and the mean time of each stage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from .answers import STAGES, Answer


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies of right answers in milliseconds, from when each request was due (open loop) or sent (closed loop)."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    mean: float


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one loop."""

    loop: Literal["open", "closed"]
    offered_rate: float | None
    """Requests due a second; None in a closed loop."""
    clients: int | None
    requests: int
    """Sent, or due."""
    seconds: float
    """From the first request to the last answer, or to the end of sending if that is later."""
    good: int
    """Right answers …"""
    in_time: int
    """… and those within the target."""
    target_ms: float
    wrong: int
    unanswered: int
    """Without an answer at the end of the loop."""
    statuses: dict[str, int]
    codes: dict[str, int]
    connection_errors: dict[str, int]
    latency_ms: Latency | None
    stages_ms: dict[str, float]
    """Means over right answers with Server-Timing; "other" is the rest of the latency: sockets, HTTP, waiting."""
    batch_sizes: dict[str, int]
    send_lag_p99_ms: float
    """How late the generator sent requests, in an open loop; part of the latencies."""
    generator_cpu_seconds: float = 0.0

    @property
    def throughput(self) -> float:
        """Right answers a second."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def goodput(self) -> float:
        """Right answers within the target, a second."""
        return self.in_time / self.seconds if self.seconds else 0.0

    @property
    def outcomes(self) -> str:
        """The outcomes of all requests as text."""
        counts = {**self.statuses, **self.codes, **self.connection_errors}
        told = ", ".join(f"{count} × {name}" for name, count in counts.items()) or "no answer at all"
        return f"{told}, {self.wrong} wrong."

    @property
    def keeps_target(self) -> bool:
        """Whether 99 of 100 requests got a right answer within the target; a refusal counts as a miss."""
        return self.requests > 0 and self.in_time >= 0.99 * self.requests


@dataclass
class Tally:
    """Collects the answers of one loop."""

    target_ms: float
    statuses: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    connection_errors: Counter[str] = field(default_factory=Counter)
    batch_sizes: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    lags_ms: list[float] = field(default_factory=list)
    wrong: int = 0
    answered: int = 0
    _stages: list[float] = field(default_factory=lambda: [0.0] * len(STAGES))
    _other_ms: float = 0.0
    _staged: int = 0

    def add(self, answer: Answer, latency_seconds: float) -> None:
        self.answered += 1
        if answer.status is None:
            self.connection_errors[answer.error or "unknown"] += 1
            return
        self.statuses[str(answer.status)] += 1
        if answer.code is not None:
            self.codes[answer.code] += 1
        self.wrong += answer.is_wrong
        if not answer.is_good:
            return
        latency_ms = latency_seconds * 1e3
        self.latencies_ms.append(latency_ms)
        if answer.batch_size is not None:
            self.batch_sizes[str(answer.batch_size)] += 1
        if answer.stages_ms:
            self._staged += 1
            for index, ms in enumerate(answer.stages_ms):
                self._stages[index] += ms
            self._other_ms += latency_ms - sum(answer.stages_ms)

    def step(
        self,
        loop: Literal["open", "closed"],
        *,
        requests: int,
        seconds: float,
        offered_rate: float | None = None,
        clients: int | None = None,
    ) -> Step:
        stages = {}
        if self._staged:
            stages = {name: ms / self._staged for name, ms in zip(STAGES, self._stages, strict=True)}
            stages["other"] = self._other_ms / self._staged
        return Step(
            loop=loop,
            offered_rate=offered_rate,
            clients=clients,
            requests=requests,
            seconds=seconds,
            good=len(self.latencies_ms),
            in_time=sum(each <= self.target_ms for each in self.latencies_ms),
            target_ms=self.target_ms,
            wrong=self.wrong,
            unanswered=requests - self.answered,
            statuses=dict(self.statuses),
            codes=dict(self.codes),
            connection_errors=dict(self.connection_errors),
            latency_ms=latency_of(self.latencies_ms),
            stages_ms=stages,
            batch_sizes=dict(self.batch_sizes),
            send_lag_p99_ms=percentile(sorted(self.lags_ms), 0.99) if self.lags_ms else 0.0,
        )


def latency_of(latencies_ms: Sequence[float]) -> Latency | None:
    if not latencies_ms:
        return None
    ordered = sorted(latencies_ms)
    p50, p90, p99, p999 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99, 0.999))
    return Latency(p50, p90, p99, p999, ordered[-1], sum(ordered) / len(ordered))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of `ordered` (not empty, ascending) do not exceed: nearest rank."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
