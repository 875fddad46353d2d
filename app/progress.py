"""Progress of loading a model: the interface that is told of it, its form as log lines, and as a channel's messages."""

from __future__ import annotations

import logging
from typing import Protocol

from .processes.channel import Channel, Message

logger = logging.getLogger(__name__)


class Reporter(Protocol):
    """Is told each step of loading."""

    def step(self, text: str) -> None:
        """A step begins that may take a while."""
        ...

    def warn(self, text: str) -> None: ...

    def downloading(self, name: str, received: int, expected: int | None) -> None:
        """Bytes so far, and in all if the server said."""
        ...


class LogReporter:
    """Progress as log lines; of a download one line every tenth."""

    def __init__(self) -> None:
        self._tenths = 0

    def step(self, text: str) -> None:
        self._tenths = 0
        logger.info("%s …", text)

    def warn(self, text: str) -> None:
        logger.warning("%s", text)

    def downloading(self, name: str, received: int, expected: int | None) -> None:
        tenths = received * 10 // expected if expected else received >> 24
        if tenths > self._tenths:
            self._tenths = tenths
            of = f" of {expected / 1e6:.0f}" if expected else ""
            logger.info("Downloading %s: %.0f%s MB", name, received / 1e6, of)


class ChannelReporter:
    """Progress as messages to another process, which may come from any thread; `report` is the other side."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def step(self, text: str) -> None:
        self._channel.tell("step", text=text)

    def warn(self, text: str) -> None:
        self._channel.tell("warn", text=text)

    def downloading(self, name: str, received: int, expected: int | None) -> None:
        self._channel.tell("downloading", name=name, received=received, expected=expected)


def report(message: Message, reporter: Reporter) -> bool:
    """Pass a message of a `ChannelReporter` on; False where the message is of another kind."""
    fields = message.fields
    match message.kind:
        case "step":
            reporter.step(fields["text"])
        case "warn":
            reporter.warn(fields["text"])
        case "downloading":
            reporter.downloading(fields["name"], fields["received"], fields["expected"])
        case _:
            return False
    return True
