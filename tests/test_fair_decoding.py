"""Single photos beside batches of the largest images: who is decoded next, over HTTP, with a decode that is held."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from anyio.lowlevel import checkpoint

from app.checkpoints import published_resnet50_preprocessing
from app.classifier import Classifier
from app.images import decode, threads
from app.settings import Settings
from app.types import Pixels
from tests import images_made as made
from tests.photos import LIMITS, make_jpeg, null_classes
from tests.running import RunningServer, post_image, running_server, wait_until

SLOTS = 2
SMALL = make_jpeg(1, (64, 48))
LARGE = made.forged_jpeg(7000, 7000)
# Of each of three requests: as many as can be decoded within the deadline.
COUNT = 20


class HeldDecode:
    """Decodes of large images begin, and end one at a time as the test lets them; small ones are decoded as ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[bytes] = []
        self._may_end = threading.Semaphore(0)

        def held(data: bytes, *how: Any) -> Pixels:
            self.begun.append(data)
            if data.startswith(LARGE):
                assert self._may_end.acquire(timeout=60)
                return decode(SMALL, *how)
            return decode(data, *how)

        monkeypatch.setattr(threads, "decode", held)

    def let_end(self, count: int = 1) -> None:
        self._may_end.release(count)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldDecode]:
    held = HeldDecode(monkeypatch)
    yield held
    held.let_end(10_000)


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with running_server(Settings(backend="null", port=0, log_level="error", decode_threads=SLOTS)) as server:
        yield server


def decoder_of(server: RunningServer) -> Any:
    classifier: Classifier = server.app.state.classifier
    return classifier.decoder


def post_batch(client: httpx.Client, name: str, count: int = 40) -> httpx.Response:
    """Large images, each of which says whose it is behind its end."""
    files = [("image", (f"{number}.jpg", LARGE + name.encode() * 8)) for number in range(count)]
    return client.post("/predict/batch", files=files)


def test_a_single_photo_waits_for_no_more_than_what_is_being_decoded(server: RunningServer, held: HeldDecode) -> None:
    """Beside three requests of images of 49 megapixels, each single photo is the next to be decoded; and of the
    three none is ahead of another by more than an image or two."""
    decoder = decoder_of(server)
    assert decoder.cost_of(LARGE).megapixels == 49
    with httpx.Client(base_url=server.address, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        batches = [pool.submit(post_batch, client, name, COUNT) for name in "abc"]
        wait_until(lambda: len(held.begun) == SLOTS and decoder.waiting == 3 * COUNT - SLOTS)
        for _ in range(10):
            begun = len(held.begun)
            single: Future[httpx.Response] = pool.submit(post_image, client, SMALL)
            wait_until(lambda: decoder.waiting == 3 * COUNT - large_begun(held) + 1)
            held.let_end()
            answer = single.result()
            assert answer.status_code == 200
            assert answer.json()["predictions"][0]["class_id"] == null_classes(SMALL)[0]
            # One of the large ones ended for it, and only then one more began.
            assert held.begun[begun] == SMALL
            wait_until(lambda begun=begun: len(held.begun) == begun + 2)  # type: ignore[misc]
        held.let_end(3 * COUNT)
        answers = [batch.result() for batch in batches]
    assert [each["status"] for answer in answers for each in answer.json()["results"]] == [200] * 3 * COUNT
    owners = [data[len(LARGE) :] for data in held.begun if data.startswith(LARGE)]
    # The first request may have begun before the others came.
    for end in range(SLOTS, len(owners) + 1):
        counts = Counter(owners[SLOTS:end])
        waiting = [counts[name.encode() * 8] for name in "abc"]
        if max(waiting) < COUNT - SLOTS:
            assert max(waiting) - min(waiting) <= SLOTS + 1


def large_begun(held: HeldDecode) -> int:
    return sum(data.startswith(LARGE) for data in held.begun)


@pytest.mark.anyio
async def test_what_images_really_took_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of images that look as small as can be, and take long, has no more time than single ones beside it."""
    now = [1000.0]
    begun: list[bytes] = []
    may_begin = threading.Event()

    def taking_long(data: bytes, *how: Any) -> Pixels:
        assert may_begin.wait(30)
        begun.append(data)
        now[0] += 0.7 if data == b"hides" else 0.05
        return decode(SMALL, *how)

    monkeypatch.setattr(threads, "decode", taking_long)
    decoder = threads.ThreadDecoder(LIMITS, slots=1, max_waiting=300, timeout_seconds=60, clock=lambda: now[0])
    batch = object()
    how = published_resnet50_preprocessing()
    asked = [asyncio.create_task(decoder.decode(b"hides", how, now[0] + 1e6, batch)) for _ in range(20)]
    asked += [asyncio.create_task(decoder.decode(b"single", how, now[0] + 1e6)) for _ in range(200)]
    while decoder.waiting < 219:
        await checkpoint()
    may_begin.set()
    await asyncio.gather(*asked)
    await decoder.close()
    spent = {b"hides": 0.0, b"single": 0.0}
    for data in begun:
        spent[data] += 0.7 if data == b"hides" else 0.05
        if spent[b"single"] < 9.9:
            assert abs(spent[b"hides"] - spent[b"single"]) <= 0.75
    assert begun.count(b"hides") == 20


@pytest.mark.parametrize("timeout_ms", [500, 3000])
def test_a_batch_that_cannot_be_in_time_is_told_so_before_it_is_decoded(
    server: RunningServer, held: HeldDecode, timeout_ms: int
) -> None:
    """Of forty images that would take half a minute those that have no room before the deadline are refused at once,
    with when to come again; the others are decoded and answered."""
    decoder = decoder_of(server)
    held.let_end(40)
    with httpx.Client(base_url=server.address, timeout=60) as client:
        client.headers["X-Request-Timeout-Ms"] = str(timeout_ms)
        answer = post_batch(client, "a")
    assert answer.status_code == 200
    results = answer.json()["results"]
    codes = Counter((each["status"], each.get("code")) for each in results)
    assert codes[503, "overloaded"] > 25
    assert codes[200, None] >= 1
    assert sum(codes.values()) == 40
    assert all(each["retry_after_ms"] > 0 for each in results if each["status"] == 503)
    # What was refused was not decoded.
    assert len(held.begun) == codes[200, None] + codes[504, "deadline_exceeded"]
    assert decoder.waiting == 0
    assert server.app.state.classifier.model.schedule.held == 0
