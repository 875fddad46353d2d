"""What a request is spared, and that it is answered as before."""

from __future__ import annotations

import threading

import httpx
import pytest

from app.server.joined_writes import JoinedWrites
from tests.photos import make_jpeg, null_classes
from tests.running import RunningServer, post_image

IMAGE = make_jpeg(1)


class Transport:
    """Keeps what is written to it, one entry a system call."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def writelines(self, parts: tuple[bytes, ...]) -> None:
        self.calls.append(b"".join(parts))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def joined(transport: Transport) -> JoinedWrites:
    return JoinedWrites(transport)  # type: ignore[arg-type]


def test_head_and_body_are_one_write(joined: JoinedWrites, transport: Transport) -> None:
    """An answer's head goes out with the first part of its body, and what follows as it comes."""
    joined.write(b"head ")
    assert transport.calls == []
    joined.write(b"body")
    joined.write(b"more")
    assert transport.calls == [b"head body", b"more"]


def test_what_precedes_an_answer_is_not_held(joined: JoinedWrites, transport: Transport) -> None:
    """100 Continue goes out at once: its reader sends nothing before it has come."""
    joined.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert transport.calls == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    joined.write(b"head ")
    joined.write(b"")
    assert transport.calls == [b"HTTP/1.1 100 Continue\r\n\r\n", b"head "]


def test_a_head_whose_body_never_comes_is_sent(joined: JoinedWrites, transport: Transport) -> None:
    """Where an answer is given up after its head, the head goes out before the connection closes."""
    joined.write(b"head ")
    joined.close()
    assert transport.calls == [b"head "]
    assert joined.is_closing()


def test_nothing_is_written_to_a_closed_connection(joined: JoinedWrites, transport: Transport) -> None:
    """A head that waits when its connection is gone goes nowhere: the event loop raises for such a write."""
    joined.write(b"head ")
    transport.close()
    joined.close()
    assert transport.calls == []


def test_no_request_starts_a_thread(null_server: RunningServer, client: httpx.Client) -> None:
    """Beside decoding and the device nothing of an image's request runs on a thread of its own."""
    for _ in range(20):
        post_image(client, IMAGE)
    names = {thread.name for thread in threading.enumerate()}
    assert not [name for name in names if name.startswith("AnyIO")]


@pytest.mark.parametrize(
    ("params", "headers", "count"),
    [({}, {}, 5), ({"top_k": 3}, {}, 3), ({}, {"X-Request-Timeout-Ms": "9000"}, 5), ({"other": 1}, {}, 5)],
)
def test_parameters_or_none(client: httpx.Client, params: dict[str, int], headers: dict[str, str], count: int) -> None:
    """A request without parameters, which FastAPI does not look at, is answered as one with them."""
    answer = client.post("/predict", content=IMAGE, params=params, headers=headers)
    assert answer.status_code == 200
    predictions = answer.json()["predictions"]
    assert len(predictions) == count
    assert predictions[0]["class_id"] == null_classes(IMAGE)[0]


@pytest.mark.parametrize(
    ("params", "headers"),
    [({"top_k": 0}, {}), ({"top_k": "x"}, {}), ({}, {"X-Request-Timeout-Ms": "0"}), ({}, {"X-Request-Timeout-Ms": ""})],
)
def test_wrong_parameters_are_still_seen(
    client: httpx.Client, params: dict[str, object], headers: dict[str, str]
) -> None:
    """A parameter that cannot be is refused as ever."""
    answer = client.post("/predict", content=IMAGE, params=params, headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
