"""Progress of loading a model: its interface, and its forms as log lines and as messages on a channel."""

from __future__ import annotations

import logging
from typing import Protocol

from .processes.channel import Channel, Message

logger = logging.getLogger(__name__)


class Reporter(Protocol):
    """Receives the steps of loading."""

    def step(self, text: str) -> None:
        """A step begins that may take some time."""
        ...

    def warn(self, text: str) -> None: ...

    def downloading(self, name: str, received: int, expected: int | None) -> None:
        """Bytes so far, and the total if the server sent it."""
        ...


class LogReporter:
    """Progress as log lines; for a download, a line for each tenth."""

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
    """Progress as messages to another process, from any thread; `report` is the receiving side."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def step(self, text: str) -> None:
        self._channel.tell("step", text=text)

    def warn(self, text: str) -> None:
        self._channel.tell("warn", text=text)

    def downloading(self, name: str, received: int, expected: int | None) -> None:
        self._channel.tell("downloading", name=name, received=received, expected=expected)


def report(message: Message, reporter: Reporter) -> bool:
    """Pass on a message of a `ChannelReporter`; False if the message is of another kind."""
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
