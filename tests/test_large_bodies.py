"""The largest body of every kind stops neither the event loop nor the memory's bounds.

`tests.large_bodies` says how a skip of the loop's clock is told from a machine that does other things.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.large_bodies import (
    BASE64,
    CASES,
    IMAGES,
    MAX_SKIP_SECONDS,
    ClockedService,
    clocked_service,
    json_case,
    send,
    shortest_skip,
)
from tests.process_costs import growth

# As bodies were parsed once: whole, on another thread, where one call holds the interpreter's lock.
PARSES_ON_A_THREAD = """
import asyncio, re
from app.api import road

receive_body = road.receive_body

async def read(receive, parser):
    images = await receive_body(receive, parser)
    await asyncio.to_thread(re.sub, "[ \\t\\r\\n]+", "", "QUJD" * 10_000_000)
    return images

road.receive_body = read
"""


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClockedService]:
    with clocked_service(tmp_path_factory.mktemp("service")) as clocked:
        yield clocked


@pytest.mark.parametrize("name", CASES)
def test_no_body_stops_the_event_loop(clocked: ClockedService, name: str) -> None:
    """While the largest body of a kind is read and answered, a clock on the loop skips no more than 50 ms."""
    case = CASES[name]
    assert shortest_skip(clocked, partial(send, clocked, case.request(), case.codes)) <= MAX_SKIP_SECONDS


@pytest.mark.parametrize("name", IMAGES)
def test_no_image_stops_the_event_loop(clocked: ClockedService, name: str) -> None:
    """While an image as large as its format may be is decoded and answered, the clock skips no more than 50 ms."""
    case = IMAGES[name]
    assert shortest_skip(clocked, partial(send, clocked, case.request(), case.codes)) <= MAX_SKIP_SECONDS


def test_the_clock_notices_a_call_that_holds_the_lock(tmp_path: Path) -> None:
    """A clock that could not fail would show nothing: base64 decoded whole, as it was once, makes it skip."""
    case = CASES["JSON, one image in a batch"]
    with clocked_service(tmp_path, before=PARSES_ON_A_THREAD) as clocked:
        assert shortest_skip(clocked, partial(send, clocked, case.request(), case.codes)) > MAX_SKIP_SECONDS


def test_three_of_the_largest_at_once(clocked: ClockedService) -> None:
    """Three bodies of 57 MB of JSON stop nothing, and never take more memory than they are long."""
    case = json_case(BASE64, "unsupported_image_format", size=57_000_000)
    request = case.request()

    def three() -> None:
        with ThreadPoolExecutor(3) as clients:
            list(clients.map(lambda _: send(clocked, request, case.codes), range(3)))

    assert growth(clocked.service, three) < 3 * len(request)
    assert shortest_skip(clocked, three) <= MAX_SKIP_SECONDS
