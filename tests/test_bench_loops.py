"""The loops, the search and the costs of `bench`, in virtual time: what they count, and from when."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from app.bench.answers import Answer, classes_of, parse_head, read_answer
from app.bench.costs import STAGES, Round, costs_of
from app.bench.loops import closed_loop, due_times, open_loop
from app.bench.pace import Pace, repeat, together
from app.bench.plan import plan_run
from app.bench.processes import MemorySample
from app.bench.search import Highest, find_highest
from app.bench.soak import memory_of
from app.bench.steps import Step, latency_of, percentile
from app.bench.target import parse_target
from app.errors import SettingError
from tests.virtual_time import run

GOOD = Answer(200, stages_ms=(1.0, 2.0, 3.0), batch_size=4)


def now() -> float:
    return asyncio.get_running_loop().time()


class OneAtATime:
    """A server that takes a known time for each request, and can be stopped by a gate."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.gate = asyncio.Event()
        self.gate.set()
        self._lock = asyncio.Lock()

    async def ask(self, number: int) -> Answer:
        async with self._lock:
            await self.gate.wait()
            await asyncio.sleep(self.seconds)
        return GOOD


def stalled(loop: Callable[[OneAtATime], Awaitable[Step]]) -> Step:
    """What a loop says of a server that answers in 1 ms, and stalls from second 1 to second 3."""

    async def main() -> Step:
        server = OneAtATime(0.001)
        timers = asyncio.get_running_loop()
        timers.call_at(now() + 1.0, server.gate.clear)
        timers.call_at(now() + 3.0, server.gate.set)
        return await loop(server)

    return run(main())


def test_a_stall_is_in_every_latency_that_was_due_meanwhile() -> None:
    """Of 400 requests due in 4 seconds, the 200 due in a stall of 2 seconds have waited for its end."""
    step = stalled(
        lambda server: open_loop(
            server.ask, rate=100, requests=400, target_ms=50, arrivals="steady", give_up_seconds=10, clock=now
        )
    )
    assert (step.requests, step.good, step.unanswered) == (400, 400, 0)
    assert step.latency_ms is not None
    assert 1990 <= step.latency_ms.max <= 2010
    # The one due t seconds before the stall's end waits t seconds at least: 195 of them more than 50 ms, and those
    # behind them in the queue, which drains at 1000 a second while 100 a second come, a few more.
    late = step.requests - step.in_time
    assert 195 <= late <= 195 + 30
    assert step.latency_ms.p90 > 1500
    assert not step.keeps_target


def test_a_closed_loop_hides_that_stall() -> None:
    """The same stall is in one latency of each closed-loop client: that is why the open loop tells latency."""
    step = stalled(lambda server: closed_loop(server.ask, clients=2, seconds=4, target_ms=50, clock=now))
    assert step.requests - step.in_time == 2
    assert step.latency_ms is not None
    assert step.latency_ms.p99 < 10
    assert step.latency_ms.max > 1990


def test_the_generators_own_lateness_counts() -> None:
    """Where the generator itself is held up, the latency still counts from when the request was due."""

    async def main() -> Step:
        clock = now()

        async def ask(number: int) -> Answer:
            nonlocal clock
            clock += 0.5
            return GOOD

        return await open_loop(ask, rate=10, requests=5, target_ms=1000, arrivals="steady", clock=lambda: clock)

    step = run(main())
    # The last was due after 0.4 s, and the generator did nothing else for 5 × 0.5 s.
    assert step.latency_ms is not None
    assert step.latency_ms.max == pytest.approx(2100)
    assert step.send_lag_p99_ms > 100


def test_closed_loop_counts() -> None:
    """Two clients and a server of one at a time, 10 ms each: 100 answers a second, each after 20 ms."""

    async def main() -> Step:
        return await closed_loop(OneAtATime(0.01).ask, clients=2, requests=100, target_ms=500, clock=now)

    step = run(main())
    assert (step.loop, step.clients, step.requests, step.good, step.wrong) == ("closed", 2, 100, 100, 0)
    assert step.seconds == pytest.approx(1.0)
    assert step.throughput == pytest.approx(100)
    assert step.latency_ms is not None
    assert step.latency_ms.p50 == pytest.approx(20)
    assert step.stages_ms == pytest.approx({"decode": 1, "queue": 2, "inference": 3, "other": 14}, rel=0.02)
    assert step.batch_sizes == {"4": 100}


def test_a_lost_answer_does_not_hold_a_closed_loop() -> None:
    """A request that is never answered is given up and counted, and its client asks on: a soak ends."""

    async def ask(number: int) -> Answer:
        if number == 7:
            await asyncio.Event().wait()
        await asyncio.sleep(0.01)
        return GOOD

    async def main() -> Step:
        async with asyncio.timeout(1000):
            return await closed_loop(ask, clients=2, requests=100, target_ms=500, give_up_seconds=5, clock=now)

    step = run(main())
    assert (step.requests, step.good, step.unanswered) == (100, 99, 0)
    assert step.connection_errors == {"no answer": 1}


def test_every_outcome_is_counted_once() -> None:
    """Refusals, wrong answers, broken connections and what is given up each have their count."""
    outcomes = [GOOD, Answer(503, code="overloaded"), Answer(200, is_wrong=True), Answer(None, error="reset"), None]

    async def ask(number: int) -> Answer:
        outcome = outcomes[number % 5]
        if outcome is None:
            await asyncio.Event().wait()
            raise AssertionError
        return outcome

    async def main() -> Step:
        loop = asyncio.get_running_loop()
        return await open_loop(ask, rate=10, requests=50, target_ms=100, give_up_seconds=1, clock=loop.time)

    step = run(main())
    assert (step.requests, step.good, step.wrong, step.unanswered) == (50, 10, 10, 10)
    assert step.statuses == {"200": 20, "503": 10}
    assert step.codes == {"overloaded": 10}
    assert step.connection_errors == {"reset": 10}
    assert step.in_time == 10


def test_arrivals() -> None:
    """Steady ones are evenly spaced; the others are as many, independent, and the same for the same seed."""
    assert list(due_times(4, 3, "steady", 0)) == [0, 0.25, 0.5]
    moments = list(due_times(100, 10_000, "poisson", 1))
    assert moments == list(due_times(100, 10_000, "poisson", 1)) != list(due_times(100, 10_000, "poisson", 2))
    # A step of 200 has the rate that it is reported with, whatever the seed.
    for seed in range(50):
        first, *_, last = due_times(100, 200, "poisson", seed)
        assert 0 <= first < last <= 2
        assert last - first == pytest.approx(2, rel=0.05)
    gaps = [later - before for before, later in itertools.pairwise(moments)]
    # Of an exponential distribution the share of gaps longer than the mean is 1/e.
    assert sum(gap > 0.01 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)


def test_percentiles_are_values_that_were_measured() -> None:
    """Nearest rank: of 100 values the 99th percentile is the 99th."""
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.99, 0.999)] == [50, 99, 100]
    assert percentile([7.0], 0.5) == 7
    assert latency_of([]) is None


def search(capacity: float, *, start: float, slowdown: Callable[[float], float] = lambda rate: 1.0) -> Highest:
    """The search on a server that takes 1 / capacity seconds for each request, of which the target lets ten wait."""

    async def measure(rate: float) -> Step:
        server = OneAtATime(slowdown(rate) / capacity)
        return await open_loop(
            server.ask, rate=rate, requests=1000, target_ms=10e3 / capacity, arrivals="steady", clock=now
        )

    return run(find_highest(measure, start=start, lowest=1.0))


@pytest.mark.parametrize("start", [20.0, 80.0, 400.0])
def test_the_search_finds_a_known_capacity(start: float) -> None:
    """From below, from near and from above it comes within a few percent of what the server can do, and confirms it."""
    highest = search(100.0, start=start)
    assert highest.confirmed
    assert highest.rate == pytest.approx(100, rel=0.06)
    assert len(highest.steps) <= 16
    assert [step.keeps_target for step in highest.steps if step.offered_rate == highest.rate] == [True, True]


def test_the_search_says_so_where_even_the_lowest_rate_fails() -> None:
    """No rate keeps the target: none is given, and the sentence says down to which it was tried."""

    async def measure(rate: float) -> Step:
        async def refuse(number: int) -> Answer:
            return Answer(503, code="overloaded")

        return await open_loop(refuse, rate=rate, requests=10, target_ms=100, clock=now)

    highest = run(find_highest(measure, start=50, lowest=10))
    assert (highest.rate, highest.confirmed) == (None, False)
    assert "not kept at any rate tried, down to 10/s" in highest.reason
    assert highest.steps[-1].offered_rate == 10


def test_a_rate_that_was_kept_once_and_never_again_is_not_confirmed() -> None:
    """The sentence says that it was measured again and missed."""
    taken: list[float] = []

    async def measure(rate: float) -> Step:
        taken.append(rate)
        return replace(step(100, 1.0), loop="open", offered_rate=rate, in_time=100 if len(taken) == 1 else 0)

    highest = run(find_highest(measure, start=50, lowest=10, most_steps=6))
    assert (highest.rate, highest.confirmed) == (50, False)
    assert "kept it once and missed it when measured again" in highest.reason


def test_a_rate_that_is_not_kept_again_is_lowered() -> None:
    """A server that was quick once: the rate that is given is one that was kept when it was measured again."""
    seen: list[float] = []

    def slowdown(rate: float) -> float:
        # From the first rate on that is measured again, it is a tenth slower.
        seen.append(rate)
        return 1.0 if len(set(seen)) < len(seen) else 0.9

    highest = search(100.0, start=80, slowdown=slowdown)
    assert highest.confirmed
    assert highest.rate is not None
    assert 94 <= highest.rate <= 102
    assert [step.keeps_target for step in highest.steps[-3:]] == [False, False, True]
    assert "kept it once and did not again" in highest.reason


def step(good: int, seconds: float, p50: float = 10.0) -> Step:
    latencies = latency_of([p50] * good)
    return Step("closed", None, 1, good, seconds, good, good, 500, 0, 0, {"200": good}, {}, {}, latencies, {}, {}, 0.0)


def a_round(slowdown: float = 1.0) -> Round:
    """Two CPUs; 4 ms of CPU to decode, 1 ms for HTTP, 40 ms for the model; 18 of 23.5 possible images a second."""
    return Round(
        decode=Pace(500, 1.0 * slowdown, 2.0, 4.0),
        decode_alone=Pace(250, 1.0, 1.0, 4.0 * slowdown),
        smallest=Pace(1000, 1.0, 0.25, 0.25),
        model=Pace(25, 1.0 * slowdown, 2.0, 40.0),
        model_alone=Pace(25, 1.0, 2.0, 40.0 * slowdown),
        transfer=Pace(100_000, 1.0, 1.0, 0.01),
        http=step(1000, 1.0),
        http_cpu_seconds=1.25,
        served=step(18, 1.0 * slowdown),
        single=step(20, 1.0, 50.0 * slowdown),
    )


def test_what_is_possible_follows_from_the_parts() -> None:
    """1 / (1 / bare loop + CPU seconds / CPUs), the shares of a request sum to 1, and the bottleneck is the largest."""
    costs = costs_of([a_round()], cpus=2, side_by_side=False)
    assert costs.decode_cpu_seconds == pytest.approx(0.004)
    assert costs.http_cpu_seconds == pytest.approx(0.001)
    assert costs.possible_rate == pytest.approx(1 / (0.04 + 0.005 / 2))
    assert costs.served_of_possible == pytest.approx(18 * (0.04 + 0.005 / 2))
    assert costs.served_of_decode == pytest.approx(18 / 500)
    assert costs.single_ratio == pytest.approx(50 / 44)
    assert set(costs.shares) == set(STAGES)
    assert sum(costs.shares.values()) == pytest.approx(1)
    assert costs.bottleneck == "model"
    assert costs.shares["decode"] == pytest.approx(0.002 / (0.0425 + 1e-5))


def test_a_device_of_its_own_runs_beside_the_cpus() -> None:
    """There the slower side is what is possible, and the bottleneck is on it."""
    costs = costs_of([a_round()], cpus=2, side_by_side=True)
    assert costs.possible_rate == pytest.approx(25)
    assert costs.bottleneck == "model"
    fast = Pace(10_000, 1.0, 0.1, 1.0)
    quick = Round(**{name: getattr(a_round(), name) for name in Round.__slots__} | {"model": fast})
    costs = costs_of([quick], cpus=2, side_by_side=True)
    assert costs.possible_rate == pytest.approx(2 / 0.005)
    assert costs.bottleneck == "decode"


def test_ratios_are_taken_within_rounds() -> None:
    """A round's latency is held against the parts of that round: the medians of both may be of different rounds."""
    singles, models = (50.0, 100.0, 60.0), (40.0, 84.0, 56.0)
    rounds = [
        replace(a_round(), single=step(20, 1.0, single), model_alone=Pace(25, 1.0, 2.0, model))
        for single, model in zip(singles, models, strict=True)
    ]
    # 50 / 44, 100 / 88 and 60 / 60; of the medians it would be 60 / 60.
    assert costs_of(rounds, 2, False).single_ratio == pytest.approx(50 / 44)
    rounds = [
        replace(a_round(), served=step(good, 1.0), decode=Pace(decoded, 1.0, 2.0, 4.0))
        for good, decoded in ((10, 500), (20, 1000), (30, 600))
    ]
    # 1/50, 1/50 and 1/20; of the medians it would be 20 / 600.
    assert costs_of(rounds, 2, False).served_of_decode == pytest.approx(1 / 50)


def test_a_model_on_fewer_threads_leaves_cpus_to_the_rest() -> None:
    """One that takes one of two CPUs decodes beside itself: the bare loop is possible, as long as the CPUs do."""
    one_thread = replace(a_round(), model=Pace(25, 1.0, 1.0, 40.0))
    assert costs_of([one_thread], cpus=2, side_by_side=False).possible_rate == pytest.approx(25)
    # Another program has the second CPU: it is not left to anybody here.
    shared = replace(one_thread, decode=Pace(250, 1.0, 1.0, 4.0))
    assert costs_of([shared], cpus=2, side_by_side=False).possible_rate == pytest.approx(1 / (0.04 + 0.005))
    costly = replace(one_thread, http_cpu_seconds=1000 * 0.06025)
    assert costs_of([costly], cpus=2, side_by_side=False).possible_rate == pytest.approx(2 / (0.04 + 0.004 + 0.06))


def test_a_round_without_an_answer_to_one_client_is_left_out() -> None:
    """It has no latency: neither 0 ms nor a ratio of 0; and where there is none at all it is said."""
    failed = replace(a_round(), single=step(0, 1.0))
    costs = costs_of([failed, failed, a_round()], cpus=2, side_by_side=False)
    assert (costs.single_ms, costs.single_ratio) == (50, pytest.approx(50 / 44))
    costs = costs_of([failed], cpus=2, side_by_side=False)
    assert costs.single_ms is costs.single_ratio is None


def test_paces_of_processes_side_by_side_add_up() -> None:
    """Rates and CPU seconds are sums."""
    both = together([Pace(100, 1.0, 0.9, 9.0), Pace(300, 2.0, 1.8, 7.0)])
    assert both.rate == pytest.approx(250)
    assert (both.images, both.cpu_seconds) == (400, pytest.approx(2.7))


def test_a_pace_counts_calls() -> None:
    """At least one call is made, and each is given the next number."""
    numbers: list[int] = []
    pace = repeat(numbers.append, 8, 0.0)
    assert numbers == [0]
    assert pace.images == 8
    assert pace.rate > 0


def samples(sizes: list[int], files: int = 20) -> list[MemorySample]:
    return [MemorySample(float(second), size * 1_000_000, files) for second, size in enumerate(sizes)]


def test_growth_is_what_comes_after_the_warm_up() -> None:
    """What the first fifth fills is no growth; what goes on growing is, and of few samples nothing is said."""
    warm = memory_of(samples([100, 200, 300, *[310] * 17]), is_long=True)
    assert warm is not None
    assert (warm.before_bytes, warm.peak_bytes, warm.grew) == (100_000_000, 310_000_000, False)
    leaks = memory_of(samples(list(range(300, 400, 5))), is_long=True)
    assert leaks is not None
    assert leaks.grew is True
    files = memory_of([MemorySample(n, 1, 10 + n) for n in range(20)], is_long=True)
    assert files is not None
    assert files.grew is True
    few, changing = memory_of(samples([100, 200]), True), memory_of(samples([100] * 20), is_long=False)
    assert few is not None
    assert changing is not None
    assert few.grew is changing.grew is None
    assert memory_of([], True) is None


def test_steps_are_long_enough_to_see_a_queue_grow() -> None:
    """A standard step lasts twenty targets and has 500 requests; no step lasts for ever on a slow service."""
    common = {"clients": 16, "arrivals": "steady", "seconds": None, "step_requests": None, "rounds": None}
    standard = plan_run(quick=False, p99_ms=500, soak_requests=None, wait_seconds=1, **common)  # type: ignore[arg-type]
    assert standard.requests_at(300) == 3000
    assert standard.requests_at(20) == 500
    assert standard.requests_at(1) == 90
    quick = plan_run(quick=True, p99_ms=500, soak_requests=None, wait_seconds=1, **common)  # type: ignore[arg-type]
    assert quick.requests_at(20) == 40
    assert quick.requests_at(0.01) == 1
    # The bound on a step's length is the plan's own: what a person asks for is taken.
    for asked, least in (({"step_requests": 500}, 500), ({"seconds": 200.0}, 200)):
        options = common | asked
        slow = plan_run(quick=True, p99_ms=500, soak_requests=None, wait_seconds=1, **options)  # type: ignore[arg-type]
        assert slow.requests_at(1) == least


def test_an_answer_is_read_as_it_is() -> None:
    """Stages, batch size and code are read; a 200 that is no prediction, or that of another image, is wrong."""
    head = b"HTTP/1.1 200 OK\r\nServer-Timing: decode;dur=1.50, queue;dur=0.25, inference;dur=3\r\nX-Batch-Size: 2\r\n"
    body = b'{"predictions": [{"class_id": 7, "probability": 0.9}, {"class_id": 3, "probability": 0}]}'
    answer = read_answer(head, 200, body, (7, 3))
    assert answer == Answer(200, stages_ms=(1.5, 0.25, 3.0), batch_size=2)
    assert read_answer(b"HTTP/1.1 200 OK\r\n", 200, body, None).is_good
    odd = read_answer(head.replace(b"1.50", b"1.2.3").replace(b"0.25", b"."), 200, body, None)
    assert odd.is_good
    assert odd.stages_ms == ()
    assert read_answer(head, 200, body, (3, 7)).is_wrong
    for wrong in (b"", b"[]", b"{}", b'{"predictions": []}', b'{"predictions": [{"class_id": "7", "probability": 1}]}'):
        assert read_answer(head, 200, wrong, None).is_wrong
        with pytest.raises(ValueError, match=r"."):
            classes_of(wrong)
    assert read_answer(head, 503, b'{"code": "overloaded"}', None) == Answer(503, code="overloaded")
    assert read_answer(head, 502, b"<html>", None) == Answer(502)
    assert parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n").closes
    for foreign in (b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n"):
        with pytest.raises(ValueError, match="no"):
            parse_head(foreign)


def test_urls() -> None:
    """An address with or without port and prefix is taken; anything else is refused by name."""
    assert parse_target("http://localhost:8000/").url == "http://localhost:8000"
    assert parse_target("https://example.org/resnet/").url == "https://example.org:443/resnet"
    assert parse_target("http://[::1]:9").authority == "[::1]:9"
    for wrong in (
        "localhost:8000",
        "ftp://x",
        "http://",
        "http://x:port",
        "http://u:p@x",
        "http://x/?a=1",
        "http://x:99999",
    ):
        with pytest.raises(SettingError, match="--url cannot be"):
            parse_target(wrong)
