"""Who is decoded next, and what an image is expected to cost: the queue and the estimate, without any decoding."""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.images.cost import Cost, Costs, cost_of
from app.images.fair import FairQueue
from tests import images_made as made
from tests.photos import encode, make_jpeg


@dataclass(eq=False)
class Piece:
    """An image in the queue."""

    seconds: float
    batch: str | None = None


def filled(*pieces: Piece) -> FairQueue[Piece]:
    queue: FairQueue[Piece] = FairQueue()
    for piece in pieces:
        queue.put(piece)
    return queue


def taken(queue: FairQueue[Piece], count: int | None = None) -> list[Piece]:
    """All, or the next few, in their order."""
    found = []
    while (count is None or len(found) < count) and (piece := queue.take()) is not None:
        found.append(piece)
    return found


# --- order


def test_single_images_are_served_in_the_order_they_came() -> None:
    """Whatever they cost."""
    pieces = [Piece(seconds) for seconds in (3.0, 0.1, 2.0, 0.0)]
    queue = filled(*pieces)
    assert len(queue) == 4
    assert taken(queue) == pieces
    assert (len(queue), queue.take()) == (0, None)


def test_one_batch_alone_is_served_in_its_order() -> None:
    """A request that nobody is beside has all the decoding."""
    pieces = [Piece(seconds, "a") for seconds in (3.0, 0.1, 2.0)]
    assert taken(filled(*pieces)) == pieces


@pytest.mark.parametrize("batches", [1, 3, 50])
def test_a_single_image_is_next_beside_any_number_of_batches(batches: int) -> None:
    """However much of theirs waits, and however much was served: a single one is before all of it."""
    queue = filled(*[Piece(0.7, f"batch {number}") for number in range(batches) for _ in range(40)])
    for served in (0, 1, 7):
        taken(queue, served)
        single = Piece(0.01)
        queue.put(single)
        assert queue.take() is single


def test_single_images_one_after_another_are_each_next() -> None:
    """Small ones that come one at a time, as from one client, never wait for two of a batch's large ones."""
    queue = filled(*[Piece(0.7, "batch") for _ in range(1000)])
    for _ in range(50):
        single = Piece(0.01)
        queue.put(single)
        assert single in taken(queue, 2)


def test_batches_go_on_beside_single_images_without_end() -> None:
    """Where both always have something, each of the two has half of the decoding time."""
    queue = filled(*[Piece(0.1, "batch") for _ in range(100)], *[Piece(0.02) for _ in range(500)])
    pieces = taken(queue, 300)
    spent = {kind: sum(each.seconds for each in pieces if each.batch == kind) for kind in ("batch", None)}
    assert spent["batch"] == pytest.approx(spent[None], abs=0.11)


@pytest.mark.parametrize("costs", [(0.1, 0.1), (0.4, 0.1), (0.7, 0.01)])
def test_batches_have_the_same_time_each(costs: tuple[float, float]) -> None:
    """Of two requests each has half of the time, not half of the images, within the cost of one."""
    queue = filled(*[Piece(cost, name) for name, cost in zip("ab", costs, strict=True) for _ in range(200)])
    spent = {"a": 0.0, "b": 0.0}
    for _ in range(150):
        piece = queue.take()
        assert piece is not None
        assert piece.batch is not None
        spent[piece.batch] += piece.seconds
        assert abs(spent["a"] - spent["b"]) <= max(costs) + 1e-9


def test_who_comes_later_gains_nothing_by_it() -> None:
    """A request that was idle shares from now on; it has no claim to the time that others had before."""
    queue = filled(*[Piece(1.0, "early") for _ in range(100)])
    taken(queue, 50)
    for _ in range(50):
        queue.put(Piece(1.0, "late"))
    pieces = taken(queue, 20)
    assert abs(sum(each.batch == "late" for each in pieces) - 10) <= 1


def test_a_batch_that_was_empty_for_a_moment_gains_nothing_by_it() -> None:
    """A request whose images come one at a time is not before one whose images all wait."""
    queue = filled(*[Piece(1.0, "waits") for _ in range(100)])
    ones = 0
    for _ in range(40):
        if not any(each.batch == "one at a time" for each in _pieces(queue)):
            queue.put(Piece(1.0, "one at a time"))
        piece = queue.take()
        assert piece is not None
        ones += piece.batch == "one at a time"
    assert abs(ones - 20) <= 1


def _pieces(queue: FairQueue[Piece]) -> list[Piece]:
    found = list(queue._singles.works)
    for flow in queue._batches.values():
        found += flow.works
    return found


def test_what_is_put_back_is_the_next_of_its_flow() -> None:
    """It had been taken: it is before those that came after it."""
    for batch in (None, "batch"):
        pieces = [Piece(0.1, batch) for _ in range(3)]
        queue = filled(*pieces)
        first = queue.take()
        assert first is pieces[0]
        queue.put_back(first)
        assert taken(queue) == pieces


@pytest.mark.parametrize("has_singles", [False, True])
def test_new_requests_without_end_keep_nobody_waiting(has_singles: bool) -> None:
    """A batch whose next image is large has its turn once the others have had as much, also where there is a new one
    for each that is served."""
    large = Piece(0.7, "large")
    queue = filled(Piece(0.7, "large"), large)
    taken(queue, 1)
    before = 0.0
    queue.put(Piece(0.01, "small"))
    for number in range(1000):
        if has_singles:
            queue.put(Piece(0.01))
        piece = queue.take()
        assert piece is not None
        if piece.batch:
            queue.put(Piece(0.01, f"small {number}"))
        if piece is large:
            break
        before += piece.seconds
    # First single ones make up for the first large image.
    assert 0 < before <= (3 if has_singles else 1) * 0.72


@pytest.mark.parametrize("singles", [1, 5])
def test_a_batch_of_images_that_look_cheap_gains_nothing(singles: int) -> None:
    """What its images really took counts: single ones have as much time beside them."""
    queue = filled(*[Piece(0.0, "batch") for _ in range(200)], *[Piece(0.05) for _ in range(2000)])
    spent = {"batch": 0.0, None: 0.0}
    for _ in range(singles * 100):
        piece = queue.take()
        assert piece is not None
        took = 0.7 if piece.batch else 0.05
        queue.charge(piece.batch, took - piece.seconds)
        spent[piece.batch] += took
        assert abs(spent["batch"] - spent[None]) <= 0.75
    assert spent["batch"] > 0


def test_between_batches_what_images_took_counts_too() -> None:
    """Of two batches, one of which says nothing of what it costs, each has half of the time."""
    queue = filled(*[Piece(0.0, "hides") for _ in range(200)], *[Piece(0.1, "honest") for _ in range(2000)])
    spent = {"hides": 0.0, "honest": 0.0}
    for _ in range(300):
        piece = queue.take()
        assert piece is not None
        assert piece.batch is not None
        took = 0.7 if piece.batch == "hides" else 0.1
        queue.charge(piece.batch, took - piece.seconds)
        spent[piece.batch] += took
        assert abs(spent["hides"] - spent["honest"]) <= 0.8


# --- sums


def test_an_estimate_counts_what_goes_before() -> None:
    """A single image waits for single ones and for as much of the batches; one of a batch for its share."""
    queue = filled(Piece(0.3), Piece(0.2))
    assert queue.seconds_before(None, 0.1) == pytest.approx(0.5)
    queue.put(Piece(10.0, "large"))
    # What the batches have in the time of half a second.
    assert queue.seconds_before(None, 0.1) == pytest.approx(1.0)
    # Its own request's before it, and half of the time is single images'.
    assert queue.seconds_before("large", 1.0) == pytest.approx(10.5)
    # Another request waits for as much of the first one's as it has itself, and for single ones.
    assert queue.seconds_before("small", 0.2) == pytest.approx(0.2 + 0.4)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "take", "take", "discard", "back"]),
        st.sampled_from([None, None, "a", "b", "c"]),
        st.floats(0, 5),
        st.integers(0, 100),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(actions=ACTIONS)
def test_it_is_first_in_first_out_within_each_request_whatever_happens(
    actions: list[tuple[str, str | None, float, int]],
) -> None:
    """Beside a model of one list for each request: nothing is lost, doubled or out of order, and sums are right."""
    queue: FairQueue[Piece] = FairQueue()
    model: dict[str | None, deque[Piece]] = {key: deque() for key in (None, "a", "b", "c")}
    had: list[Piece] = []
    for action, batch, seconds, number in actions:
        waiting = [piece for flow in model.values() for piece in flow]
        if action == "put":
            piece = Piece(seconds, batch)
            queue.put(piece)
            model[batch].append(piece)
        elif action == "take":
            peeked = queue.peek_seconds()
            begun: list[Piece] = []
            found = queue.take(begun.append)
            assert begun == ([] if found is None else [found])
            assert (found is None) == (not waiting)
            assert peeked == (None if found is None else found.seconds)
            if found is not None:
                assert model[found.batch].popleft() is found
                had.append(found)
        elif action == "discard":
            candidates = waiting + had
            if candidates:
                piece = candidates[number % len(candidates)]
                queue.discard(piece)
                if piece in model[piece.batch]:
                    model[piece.batch].remove(piece)
        elif had:
            piece = had.pop(number % len(had))
            queue.put_back(piece)
            model[piece.batch].appendleft(piece)
        assert len(queue) == sum(map(len, model.values()))
        singles = sum(piece.seconds for piece in model[None])
        batches = sum(piece.seconds for key in "abc" for piece in model[key])
        assert queue.seconds_before(None, 0.0) == pytest.approx(singles + min(singles, batches), abs=1e-6)
    assert len(taken(queue)) == sum(map(len, model.values()))
    assert queue._batches == {}


@settings(max_examples=200, deadline=None)
@given(
    costs=st.lists(
        st.tuples(st.sampled_from([None, "a", "b", "c"]), st.sampled_from([0.001, 0.02, 0.7])), min_size=4, max_size=60
    )
)
def test_nobody_has_more_than_one_image_more_than_their_share(costs: list[tuple[str | None, float]]) -> None:
    """While two of them have something to decode, what each has had of it differs by no more than one image of each."""
    queue = filled(*[Piece(seconds, batch) for batch, seconds in costs])
    left = {key: [seconds for batch, seconds in costs if batch == key] for key in (None, "a", "b", "c")}
    spent = dict.fromkeys(left, 0.0)
    largest = max(seconds for _, seconds in costs)
    while (piece := queue.take()) is not None:
        spent[piece.batch] += piece.seconds
        left[piece.batch].pop(0)
        batches = [key for key in "abc" if left[key]]
        if len(batches) == 3:
            assert max(spent[key] for key in batches) - min(spent[key] for key in batches) <= 2 * largest + 1e-9
        if left[None] and len(batches) == 3:
            assert abs(spent[None] - sum(spent[key] for key in "abc")) <= 2 * largest + 1e-9


def test_threads_that_take_at_once_have_each_image_once() -> None:
    """Of ten thousand images that eight threads take while they are put and discarded, none is lost or had twice."""
    queue: FairQueue[Piece] = FairQueue()
    pieces = [Piece(0.001 * (number % 7), (None, "a", "b")[number % 3]) for number in range(10_000)]
    had: list[list[Piece]] = [[] for _ in range(8)]
    begun: list[Piece] = []
    done = threading.Event()

    def take(mine: list[Piece]) -> None:
        while True:
            is_last = done.is_set()
            if (piece := queue.take(begun.append)) is not None:
                mine.append(piece)
            elif is_last:
                return

    threads = [threading.Thread(target=take, args=(mine,)) for mine in had]
    for thread in threads:
        thread.start()
    for number, piece in enumerate(pieces):
        queue.put(piece)
        if number % 50 == 0:
            queue.discard(pieces[number // 2])
    done.set()
    for thread in threads:
        thread.join(60)
    all_had = [piece for mine in had for piece in mine]
    assert len(all_had) == len({id(piece) for piece in all_had})
    assert {id(piece) for piece in begun} == {id(piece) for piece in all_had}
    discarded = {id(pieces[number // 2]) for number in range(0, len(pieces), 50)}
    missing = {id(piece) for piece in pieces} - {id(piece) for piece in all_had}
    assert missing <= discarded
    assert (len(queue), queue.peek_seconds()) == (0, None)


# --- estimates

SIZE = (120, 70)
MEGAPIXELS = 120 * 70 / 1e6
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "JPEG": (lambda: make_jpeg(1, SIZE), "jpeg"),
    "JPEG with metadata": (
        lambda: encode(Image.new("RGB", SIZE), exif=made.exif_orientation(6), icc_profile=bytes(100_000)), "jpeg"
    ),
    "grey JPEG": (lambda: encode(Image.new("L", SIZE)), "jpeg"),
    "progressive JPEG": (lambda: encode(Image.new("RGB", SIZE), progressive=True), "progressive"),
    "PNG": (lambda: encode(Image.new("RGB", SIZE), "PNG"), "png"),
    "GIF": (lambda: encode(Image.new("P", SIZE), "GIF"), "gif"),
    "BMP": (lambda: encode(Image.new("RGB", SIZE), "BMP"), "bmp"),
    "WebP": (lambda: encode(Image.new("RGB", SIZE), "WEBP"), "webp"),
    "lossless WebP": (lambda: encode(Image.new("RGB", SIZE), "WEBP", lossless=True), "webp"),
    "WebP with alpha": (lambda: encode(Image.new("RGBA", SIZE, (1, 2, 3, 4)), "WEBP"), "webp"),
    "WebP with metadata": (lambda: encode(Image.new("RGB", SIZE), "WEBP", exif=made.exif_orientation(6)), "webp"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_an_images_header_says_its_size(name: str) -> None:
    """Of every format that is read, and of every way to write it."""
    make, kind = FILES[name]
    cost = cost_of(make(), 50)
    assert cost.kind == kind
    assert cost.megapixels == pytest.approx(MEGAPIXELS)


def test_a_bmp_from_its_top_has_a_size_too() -> None:
    """A negative height is a direction."""
    data = bytearray(encode(Image.new("RGB", SIZE), "BMP"))
    data[22:26] = struct.pack("<i", -SIZE[1])
    assert cost_of(bytes(data), 50) == Cost("bmp", pytest.approx(MEGAPIXELS))


FORGED: dict[str, Callable[[int, int], bytes]] = {
    "jpeg": made.forged_jpeg, "gif": made.forged_gif, "bmp": made.forged_bmp, "webp": made.forged_webp
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_what_is_refused_by_its_size_costs_nothing(name: str) -> None:
    """An image above the largest that is decoded has no time set aside."""
    data = FORGED[name](16_000, 16_000)
    if name == "gif":  # the size of its screen
        data = data[:6] + struct.pack("<HH", 16_000, 16_000) + data[10:]
    assert cost_of(data, 300).megapixels == pytest.approx(256)
    assert cost_of(data, 255).megapixels == 0


def test_fill_bytes_and_segments_hide_no_size() -> None:
    """Before a JPEG's size there may be thousands of bytes of filling, and dozens of segments."""
    image = make_jpeg(1, SIZE)
    filled_up = image[:2] + b"\xff" * 10_000 + image[2:]
    assert cost_of(filled_up, 50).megapixels == pytest.approx(MEGAPIXELS)
    many = image[:2] + b"\xff\xfe\x00\x03x" * 60 + image[2:]
    assert cost_of(many, 50).megapixels == pytest.approx(MEGAPIXELS)


@settings(max_examples=500, deadline=None)
@given(
    start=st.sampled_from([make()[:200] for make, _ in FILES.values()]),
    cut=st.integers(0, 200),
    changed=st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), max_size=20),
    tail=st.binary(max_size=50),
)
def test_no_damaged_header_raises(start: bytes, cut: int, changed: list[tuple[int, int]], tail: bytes) -> None:
    """Whatever is cut off or altered, there is an estimate, and it is within the limit."""
    data = bytearray(start[:cut])
    for at, value in changed:
        if at < len(data):
            data[at] = value
    cost = cost_of(bytes(data) + tail, 50)
    assert 0 <= cost.megapixels <= 50
    assert 0 <= Costs().seconds(cost) < 10


@given(data=st.binary(max_size=100))
def test_no_bytes_raise(data: bytes) -> None:
    """What is no image at all is no reason to fail."""
    cost_of(data, 50)


def test_it_learns_how_long_each_kind_takes() -> None:
    """A kind's images teach about others of their kind alone, whatever their size; and what is usual follows all."""
    costs = Costs()
    assert costs.seconds(None) == 0
    assert costs.seconds(Cost("jpeg", 10)) > 0
    png_before = costs.seconds(Cost("png", 10))
    for number in range(200):
        size = 0.1 + number % 5
        costs.took(Cost("jpeg", size), 0.2 * (size + 0.05))
    assert costs.seconds(Cost("jpeg", 10)) == pytest.approx(0.2 * 10.05, rel=1e-3)
    assert costs.seconds(Cost("png", 10)) == png_before
    assert 0.2 * 0.15 < costs.seconds(None) < 0.2 * 4.15


def test_the_first_image_says_what_is_usual() -> None:
    """Before it nothing is known; one more changes little."""
    costs = Costs()
    costs.took(Cost("png", 1), 1.0)
    assert costs.seconds(None) == 1.0
    costs.took(Cost("png", 1), 3.0)
    assert costs.seconds(None) == pytest.approx(1.1)
