"""Processes of a service that live and do nothing: they are ended, and what follows is as if they had died."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from app.workers.watch import LOOK_SECONDS, Watch
from tests.several_processes import Several, ask_all, several_processes, statuses
from tests.test_workers_faults import check_that_it_is_alive_and_not_ready

# What stands still is ended after ten seconds; here after two.
SOONER = """
if "serve" in sys.orig_argv:
    from app.workers import watch

    watch._STILL_SECONDS = 2.0
"""


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    with several_processes(tmp_path_factory.mktemp("service"), at_start=SOONER) as several:
        yield several
        assert several.service.stop() == 0


def test_an_engine_that_stands_still_is_ended_and_started_again(several: Several) -> None:
    """Its process lives and does nothing: its requests get a retryable 503, readiness says so, and it recovers."""
    (engine,) = several.pids("engine")
    os.kill(engine, signal.SIGSTOP)
    with ThreadPoolExecutor(8) as pool:
        for each in ask_all(several, pool, range(8)):
            answer = each.result()
            assert isinstance(answer, httpx.Response), answer
            assert (answer.status_code, answer.json()["code"]) == (503, "engine_unavailable")
            assert (answer.json()["retryable"], int(answer.headers["Retry-After"]) >= 1) == (True, True)
        check_that_it_is_alive_and_not_ready(several)
        assert "it stood still for 2 seconds" in several.service.wait_for("It is started again")
        several.wait_until_ready()
        assert several.pids("engine") != [engine]
        assert statuses(ask_all(several, pool, range(8))) == [200] * 8


def test_a_front_end_that_stands_still_is_replaced(several: Several) -> None:
    """What waits at its socket is answered by its successor, and the other front-end and the engine live on."""
    (still, other), engine = several.pids("front-end"), several.pids("engine")
    os.kill(still, signal.SIGSTOP)
    with ThreadPoolExecutor(16) as pool:
        assert statuses(ask_all(several, pool, range(16))) == [200] * 16
    assert "it stood still for 2 seconds" in several.service.wait_for("It is replaced")
    several.wait_until_ready()
    assert still not in several.pids("front-end")
    assert other in several.pids("front-end")
    assert several.pids("engine") == engine


def test_who_did_not_run_itself_judges_nobody() -> None:
    """Ten seconds without a sign are too long; not where the watch's own looks had a gap, as after a sleep of the
    machine, until ten more have passed."""
    now = [100.0]
    watch = Watch(clock=lambda: now[0])

    def look_until(end: float) -> None:
        while now[0] < end:
            now[0] += LOOK_SECONDS
            watch.look()

    look_until(110.0)
    assert watch.why_still(99.9) is None  # nobody is judged by what was before the watch began
    look_until(110.5)
    assert watch.why_still(99.9) == "it stood still for 10 seconds"
    assert watch.why_still(101.0) is None
    now[0] = 3600.0
    watch.look()
    assert watch.why_still(101.0) is None
    look_until(3610.0)
    assert watch.why_still(101.0) is None
    look_until(3610.5)
    assert watch.why_still(101.0) is not None
    assert watch.why_still(3600.5) is None
