"""Messages between processes: framed, in order, with their descriptors; and the errors that may be sent in them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import ExportFailed, ImageCorrupt, Internal, MalformedRequest, Overloaded, StartError, Unavailable
from app.processes.channel import MOST_BYTES, Channel, Message
from app.processes.error_codec import ErrorCodec
from app.processes.framing import HEAD, Records, pack

ERRORS = ErrorCodec[Exception](Internal, ImageCorrupt, Overloaded, ExportFailed, StartError)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    channel, theirs = Channel.pair()
    with contextlib.closing(channel), contextlib.closing(Channel(theirs)) as other:
        yield channel, other


@pytest.fixture
def raw() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and the socket of a peer that sends what it likes."""
    channel, theirs = Channel.pair()
    with contextlib.closing(channel), theirs:
        yield channel, theirs


def test_messages_arrive_in_order_with_their_descriptors(ends: tuple[Channel, Channel], tmp_path: Path) -> None:
    """Each message comes with the descriptors that were sent beside it, as new ones of the receiver's own."""
    ours, theirs = ends
    for number in range(20):
        with (tmp_path / str(number)).open("w") as file:
            ours.send("message", [file.fileno()] * (number % 3), number=number)
    for number in range(20):
        message = theirs.receive()
        assert message is not None
        assert (message.kind, message.fields) == ("message", {"number": number})
        names = [Path(f"/proc/self/fd/{each}").readlink().name for each in message.descriptors]
        assert names == [str(number)] * (number % 3)
        for each in message.descriptors:
            assert not os.get_inheritable(each)
            os.close(each)


@pytest.mark.anyio
async def test_a_message_larger_than_a_socket_holds_arrives(ends: tuple[Channel, Channel]) -> None:
    """A message of megabytes is sent and received in pieces."""
    ours, theirs = ends
    arrived: asyncio.Queue[Message] = asyncio.Queue()
    theirs.listen(arrived.put_nowait)
    await asyncio.to_thread(ours.send, "large", text="x" * 5_000_000)
    assert len((await arrived.get()).fields["text"]) == 5_000_000


@pytest.mark.anyio
async def test_a_listener_gets_messages_that_came_with_the_first(ends: tuple[Channel, Channel]) -> None:
    """Messages that were read together with one that was received are delivered all the same."""
    ours, theirs = ends
    for kind in ("start", "second", "third"):
        ours.send(kind)
    first = theirs.receive()
    assert first is not None
    assert first.kind == "start"
    arrived: asyncio.Queue[Message] = asyncio.Queue()
    theirs.listen(arrived.put_nowait)
    assert [(await arrived.get()).kind, (await arrived.get()).kind] == ["second", "third"]


@pytest.mark.anyio
@pytest.mark.parametrize("has_unread", [False, True], ids=["quietly", "with unread messages"])
async def test_the_end_of_a_peer_is_noticed_once(ends: tuple[Channel, Channel], has_unread: bool) -> None:
    """A peer that ends, whether or not it has read its messages, is told once, after its last message."""
    ours, theirs = ends
    seen: asyncio.Queue[str] = asyncio.Queue()
    ours.listen(lambda message: seen.put_nowait(message.kind), lambda: seen.put_nowait("gone"))
    theirs.send("last")
    if has_unread:
        ours.send("unread")
    theirs._connection.close()
    assert await seen.get() == "last"
    assert await seen.get() == "gone"
    ours.close()
    assert seen.empty()


def test_closing_delivers_the_last_messages(ends: tuple[Channel, Channel]) -> None:
    """Messages that have arrived when a channel is closed reach its listener."""

    async def run() -> list[str]:
        ours, theirs = ends
        kinds: list[str] = []
        ours.listen(lambda message: kinds.append(message.kind))
        theirs.send("one")
        theirs.send("two")
        theirs.close()
        ours.close()
        return kinds

    assert asyncio.run(run()) == ["one", "two"]


@pytest.mark.parametrize(
    "data",
    [
        HEAD.pack(MOST_BYTES + 1, 0),
        HEAD.pack(2, 0) + b"[]",
        HEAD.pack(3, 0) + b"{}}",
        HEAD.pack(2, 0) + b"{}",
        HEAD.pack(200_000, 0) + b"[" * 200_000,
        pack({"kind": "x"}, descriptors=1),
    ],
    ids=["too long", "no object", "no JSON", "no kind", "nested", "descriptor missing"],
)
def test_a_garbled_message_is_an_error(raw: tuple[Channel, socket.socket], data: bytes) -> None:
    """A peer that sends anything but messages is refused."""
    channel, peer = raw
    peer.settimeout(5)
    with contextlib.suppress(TimeoutError):
        peer.sendall(data)
    with pytest.raises(OSError, match="A message between processes"):
        channel.receive()


def test_half_a_message_is_none(raw: tuple[Channel, socket.socket]) -> None:
    """A peer that ends in the middle of a message has sent nothing."""
    channel, peer = raw
    peer.sendall(pack({"kind": "whole"}) + pack({"kind": "half"})[:-1])
    peer.close()
    message = channel.receive()
    assert message is not None
    assert message.kind == "whole"
    assert channel.receive() is None


def test_a_peer_that_does_not_read_holds_nobody_for_ever() -> None:
    """Sending gives up, and the channel is then closed for sending, so that no message follows half of one."""
    ours, theirs = socket.socketpair()
    with contextlib.closing(Channel(ours, patience_seconds=0.05)) as channel, theirs:
        with pytest.raises(OSError, match="timed out"):
            channel.send("large", text="x" * 5_000_000)
        with pytest.raises(OSError, match=r"timed out|Broken pipe"):
            channel.send("next")
        received = b"".join(iter(lambda: theirs.recv(1 << 16), b""))
        assert 0 < len(received) < 5_000_000


def test_records_are_whole_however_they_arrive() -> None:
    """A stream that comes byte by byte, or all at once, gives the same records."""
    record = struct.Struct("<BI")
    data = b"".join(record.pack(number, number * 7) for number in range(9))
    for step in (1, 2, 4, 7, len(data)):
        records = Records(record)
        found = [each for begin in range(0, len(data), step) for each in records.feed(data[begin : begin + step])]
        assert found == [(number, number * 7) for number in range(9)]


@pytest.mark.parametrize(
    "error",
    [
        ImageCorrupt("It is cut."),
        Overloaded("Later.", retry_after_seconds=2.5),
        Overloaded(),
        ExportFailed("It answers otherwise.", may_pass=True),
        StartError("One line."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_it_was(error: Exception) -> None:
    """The class, the text and the other arguments of an error survive the way to another process."""
    arrived = ERRORS.decode(ERRORS.encode(error))
    assert type(arrived) is type(error)
    assert (str(arrived), vars(arrived)) == (str(error), vars(error))


def test_an_error_that_is_not_listed_says_nothing_of_itself() -> None:
    """Any other error arrives as the first class with its default text; a subclass as its nearest base."""
    for error in (ValueError("/secret/path"), MalformedRequest("secret"), Unavailable("secret")):
        arrived = ERRORS.decode(ERRORS.encode(error))
        assert (type(arrived), str(arrived)) == (Internal, str(Internal()))

    class OfItsOwn(ExportFailed):
        pass

    assert type(ERRORS.decode(ERRORS.encode(OfItsOwn("why")))) is ExportFailed


@pytest.mark.parametrize("document", [{}, {"error": "SystemExit"}, {"error": "ImageCorrupt", "text": 1, "may_pass": 1}])
def test_an_error_that_nobody_sends_is_not_made(document: dict[str, object]) -> None:
    """A document that names another class, or arguments that the class does not take, makes no error."""
    with pytest.raises((KeyError, TypeError)):
        ERRORS.decode(document)
