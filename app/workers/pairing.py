"""What a living engine has loaded, and how each front-end is connected to it."""

from __future__ import annotations

import os
import socket
from typing import Any, Self

from ..engine.board import Board, create_board
from ..engine.segment import SlotLayout, create_segment
from ..pool import ModelFacts
from ..processes.channel import Message
from ..processes.shared_memory import take_from_memory
from .child import Child
from .facts import facts_from_json


class Pairing:
    """Of one life of an engine. Used as a context: its descriptors are closed at the end."""

    def __init__(self) -> None:
        """Raises `OSError` where the system has no room for a board."""
        self.board_descriptor = create_board()
        self.board = Board(self.board_descriptor)
        self._facts: int | None = None
        """The descriptor of what the engine's model is; None until it has loaded."""
        self._layout: SlotLayout | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.board_descriptor)
        if self._facts is not None:
            os.close(self._facts)
        self._facts = self._layout = None

    @property
    def facts(self) -> ModelFacts | None:
        return None if self._facts is None else facts_from_json(take_from_memory(self._facts))

    def has_loaded(self, message: Message) -> None:
        """The engine's `loaded`."""
        (self._facts,) = message.descriptors
        self._layout = SlotLayout(**message.fields["layout"])

    def pair(self, engine: Child, front_end: Child, **fields: Any) -> None:
        """Give them a connection and shared memory, once the engine has loaded; `fields` are for the front-end.

        Where the system has no room for that the front-end is killed: without an engine it is of no use, and for its
        successor there may be some.
        """
        if self._facts is None or self._layout is None:
            return
        layout = self._layout.as_fields()
        try:
            memory = create_segment(self._layout)
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                with ours, theirs:
                    engine.send("attach", [ours.fileno(), memory], layout=layout)
                    descriptors = [theirs.fileno(), memory, self._facts, self.board_descriptor]
                    front_end.send("engine", descriptors, layout=layout, **fields)
            finally:
                os.close(memory)
        except OSError as error:
            front_end.kill(f"it could not be connected to the model's process ({error.strerror or error})")
