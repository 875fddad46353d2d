"""What the living engine has loaded, and how each front-end is connected to it."""

from __future__ import annotations

import os
import socket

from ..engine.segment import SlotLayout, create_segment
from ..loading import ModelFacts
from ..processes.channel import Message
from ..processes.shared_memory import take_from_memory
from .child import Child
from .facts import facts_from_json


class Pairing:
    """Of one life of the engine after the other."""

    def __init__(self) -> None:
        self._facts: int | None = None
        """The descriptor of what the living engine's model is; None until it has loaded."""
        self._layout: SlotLayout | None = None

    @property
    def facts(self) -> ModelFacts | None:
        return None if self._facts is None else facts_from_json(take_from_memory(self._facts))

    def has_loaded(self, message: Message) -> None:
        """The engine's `loaded`."""
        (self._facts,) = message.descriptors
        self._layout = SlotLayout(**message.fields["layout"])

    def forget(self) -> None:
        """The engine has ended."""
        if self._facts is not None:
            os.close(self._facts)
        self._facts = self._layout = None

    def pair(self, engine: Child | None, front_end: Child | None) -> None:
        """Give them a connection and shared memory, once both are there and the engine has loaded.

        Where the system has no room for that the front-end is killed: without an engine it is of no use, and for its
        successor there may be some.
        """
        if front_end is None or engine is None or self._facts is None or self._layout is None:
            return
        layout = self._layout.as_fields()
        try:
            memory = create_segment(self._layout)
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                with ours, theirs:
                    engine.send("attach", [ours.fileno(), memory], layout=layout)
                    front_end.send("engine", [theirs.fileno(), memory, self._facts], layout=layout)
            finally:
                os.close(memory)
        except OSError as error:
            front_end.kill(f"it could not be connected to the model's process ({error.strerror or error})")
