"""The cost of each stage, the throughput that they allow, and the share of it that is reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .pace import Pace
from .steps import Step

STAGES = ("decode", "http", "transfer", "model")


@dataclass(frozen=True, slots=True)
class Round:
    """One pass over all measurements: a slow minute of the machine affects all of them."""

    decode: Pace
    """Decoding in one process for each CPU."""
    decode_alone: Pace
    """Decoding in one process."""
    smallest: Pace
    """Decoding the HTTP roofline's image, in one process."""
    model: Pace
    """The bare loop at the planned batch."""
    model_alone: Pace
    """The bare loop at batch 1, one call at a time."""
    transfer: Pace
    http: Step
    """Closed loop on the null backend: one-pixel images with bodies as large as the photos."""
    http_cpu_seconds: float
    """CPU time of that server meanwhile."""
    served: Step
    """Closed loop on the service under measurement."""
    single: Step
    """The same with one client."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds an image, and the rates and ratios that follow; each is the median of the rounds."""

    cpus: int
    side_by_side: bool
    """Whether the model runs on its own device beside the CPUs."""
    decode_cpu_seconds: float
    http_cpu_seconds: float
    transfer_seconds: float
    model_seconds: float
    """1 / the bare loop's rate at the planned batch."""
    shares: dict[str, float]
    """Shares of a request's cost by stage; they sum to 1."""
    bottleneck: str
    decode_rate: float
    """Images a second that these CPUs decode when they do nothing else."""
    http_rate: float
    model_rate: float
    possible_rate: float
    served_rate: float
    served_of_possible: float
    served_of_decode: float
    single_ms: float | None
    """One client's median latency; None where no round had an answer."""
    single_parts_ms: float
    """A lone decode and a lone call of the backend: the lower bound of `single_ms`."""
    single_ratio: float | None


def costs_of(rounds: Sequence[Round], cpus: int, side_by_side: bool) -> Costs:
    """Ratios are taken within each round, so that a slowdown of the whole machine is in both sides."""

    def median(value: Callable[[Round], float]) -> float:
        return statistics.median(value(each) for each in rounds)

    def cpu(each: Round) -> float:
        return each.decode.cpu_seconds_an_image + _http_cpu(each)

    def possible(each: Round) -> float:
        if side_by_side:
            return min(each.model.rate, cpus / max(cpu(each), 1e-9))
        # A model that uses all CPUs takes them from decoding; one with fewer threads leaves the rest to it. The
        # available CPUs are those that decoding got in this round: other programs may use some.
        got = min(cpus, each.decode.rate * each.decode.cpu_seconds_an_image)
        return min(each.model.rate, got / max(each.model.cpu_seconds_an_image + cpu(each), 1e-9))

    singles = [(each.single.latency_ms.p50, _parts_ms(each)) for each in rounds if each.single.latency_ms]
    decode = median(lambda each: each.decode.cpu_seconds_an_image)
    http = median(_http_cpu)
    transfer = median(lambda each: each.transfer.seconds / each.transfer.images)
    model = median(lambda each: 1 / each.model.rate)
    seconds = dict(zip(STAGES, (decode / cpus, http / cpus, transfer, model), strict=True))
    total = sum(seconds.values())
    return Costs(
        cpus=cpus,
        side_by_side=side_by_side,
        decode_cpu_seconds=decode,
        http_cpu_seconds=http,
        transfer_seconds=transfer,
        model_seconds=model,
        shares={name: value / total for name, value in seconds.items()},
        bottleneck=_bottleneck(seconds, side_by_side),
        decode_rate=median(lambda each: each.decode.rate),
        http_rate=median(lambda each: each.http.throughput),
        model_rate=median(lambda each: each.model.rate),
        possible_rate=median(possible),
        served_rate=median(lambda each: each.served.throughput),
        served_of_possible=median(lambda each: each.served.throughput / possible(each)),
        served_of_decode=median(lambda each: each.served.throughput / each.decode.rate),
        single_ms=statistics.median(ms for ms, _ in singles) if singles else None,
        single_parts_ms=median(_parts_ms),
        single_ratio=statistics.median(ms / parts for ms, parts in singles) if singles else None,
    )


def _http_cpu(each: Round) -> float:
    """The server's CPU time an image without decoding: its time for the smallest image less that of decoding it."""
    answered = max(each.http.good, 1)
    return max(0.0, each.http_cpu_seconds / answered - each.smallest.cpu_seconds_an_image)


def _parts_ms(each: Round) -> float:
    return each.decode_alone.call_ms + each.model_alone.call_ms


def _bottleneck(seconds: dict[str, float], side_by_side: bool) -> str:
    """The largest stage; with the model on its own device, the larger stage of the busier side."""
    if not side_by_side:
        return max(seconds, key=lambda name: seconds[name])
    on_device = seconds["model"] + seconds["transfer"] >= seconds["decode"] + seconds["http"]
    group = ("transfer", "model") if on_device else ("decode", "http")
    return max(group, key=lambda name: seconds[name])
