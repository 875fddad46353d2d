"""The facts of the model that an engine has loaded, and the connections of front-ends to the engine."""

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
    """Belongs to one run of an engine. A context manager that closes its descriptors."""

    def __init__(self) -> None:
        """Raises `OSError` if the system has no room for a board."""
        self.board_descriptor = create_board()
        self.board = Board(self.board_descriptor)
        self._facts: int | None = None
        """The descriptor of the model's facts; None until the engine has loaded it."""
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
        """Handle the engine's message `loaded`."""
        (self._facts,) = message.descriptors
        self._layout = SlotLayout(**message.fields["layout"])

    def pair(self, engine: Child, front_end: Child, **fields: Any) -> None:
        """Give both a connection and shared memory, if the engine has loaded; `fields` are sent to the front-end.

        If the system has no room for them the front-end is killed: it is of no use without an engine, and its
        replacement may find room.
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
