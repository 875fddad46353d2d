"""A few slots, and a bounded queue for them that its callers can leave."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..errors import DeadlineExceeded, EngineUnavailable, Overloaded

T = TypeVar("T")

ALL_LOST = "Every decoder is held by an image that takes longer than this server allows."
CLOSED = "This server decodes no more images."


class Usual:
    """How long a piece of work has its slot: about the last twenty say what is usual."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def took(self, seconds: float) -> None:
        self.seconds += (seconds - self.seconds) / (20 if self.seconds else 1)


@dataclass(slots=True, eq=False)
class _Turn(Generic[T]):
    """Work that waits for its slot."""

    begin: Callable[[asyncio.Future[T]], None]
    outcome: asyncio.Future[T]
    waits: bool = True

    def begins(self) -> bool:
        """Begin; False where that fails, which its caller is told, and the slot is free as before."""
        self.waits = False
        try:
            self.begin(self.outcome)
        except Exception as error:
            if not self.outcome.done():
                self.outcome.set_exception(error)
            return False
        return True


class Slots:
    """Which work may begin, and when; the work itself says when its slot is free again.

    First come, first served. What waits is held here and nowhere else, so that a caller that leaves takes its work
    along. Belongs to one event loop.
    """

    def __init__(self, count: int, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.usable = count
        """Slots that are free or will be."""
        self._free = count
        self._max_waiting = max_waiting
        self._clock = clock
        self._turns: deque[_Turn[Any]] = deque()
        self._refusal = ""
        self._stuck_since: float | None = None
        self._usual = Usual()

    @property
    def predicted_wait_seconds(self) -> float:
        """How long work that came now would wait for its slot."""
        return 0.0 if self._free else (self.waiting + 1) * self._usual.seconds / max(1, self.usable)

    def took(self, seconds: float) -> None:
        """A piece of work had its slot for so long."""
        self._usual.took(seconds)

    @property
    def stuck_seconds(self) -> float:
        """How long no slot has been usable."""
        return 0.0 if self._stuck_since is None else self._clock() - self._stuck_since

    @property
    def waiting(self) -> int:
        return len(self._turns)

    async def run(self, begin: Callable[[asyncio.Future[T]], None], deadline: float) -> T:
        """What `begin` makes of the future that it is given, once there is a slot for it.

        From its call on the slot is the work's: `give_back` or `lose` it. The future is cancelled when the caller
        leaves or `deadline`, an absolute monotonic time, passes. Raises `Overloaded` at once where too many wait,
        `EngineUnavailable` where no slot is usable, and `DeadlineExceeded`.
        """
        turn: _Turn[T] = _Turn(begin, asyncio.get_running_loop().create_future())
        self._take(turn, deadline)
        try:
            async with asyncio.timeout(self._seconds_to(deadline)):
                return await turn.outcome
        except TimeoutError:
            raise DeadlineExceeded() from None
        finally:
            if turn.waits:
                with suppress(ValueError):
                    self._turns.remove(turn)
            # It holds its error, whose frames hold this one: the image would wait for the garbage collector.
            del turn

    def give_back(self) -> None:
        """The slot is free: whoever waits longest has it, and begins here and now, not in a later round of the loop."""
        while self._turns:
            turn = self._turns.popleft()
            if not turn.outcome.done() and turn.begins():
                return
        self._free += 1

    def lose(self) -> None:
        """The slot is held by work that may never end."""
        self.usable -= 1
        if not self.usable:
            self._stuck_since = self._clock()
            self._refuse_all(ALL_LOST)

    def regain(self) -> None:
        """A lost slot's work has ended after all."""
        self.usable += 1
        self._stuck_since = None
        self.give_back()

    def close(self) -> None:
        """Refuse what waits and what comes."""
        self._refusal = CLOSED
        self._refuse_all(CLOSED)

    def _take(self, turn: _Turn[Any], deadline: float) -> None:
        """Begin, or wait."""
        refusal = self._refusal or ("" if self.usable else ALL_LOST)
        if refusal:
            raise EngineUnavailable(refusal, retry_after_seconds=5.0)
        if self._clock() >= deadline:
            raise DeadlineExceeded()
        if self._free:
            self._free -= turn.begins()
            return
        if len(self._turns) >= self._max_waiting:
            raise Overloaded(retry_after_seconds=1.0)
        self._turns.append(turn)

    def _seconds_to(self, deadline: float) -> float:
        return max(0.0, deadline - self._clock())

    def _refuse_all(self, reason: str) -> None:
        while self._turns:
            turn = self._turns.popleft()
            if not turn.outcome.done():
                turn.outcome.set_exception(EngineUnavailable(reason, retry_after_seconds=5.0))


class SlottedDecoder:
    """What every decoder tells of its slots; `Decoder` says what each means."""

    def __init__(self, count: int, slots: Slots) -> None:
        self.slots = count
        self.lost = 0
        self._slots = slots

    @property
    def waiting(self) -> int:
        return self._slots.waiting

    @property
    def usable(self) -> int:
        return self._slots.usable

    @property
    def predicted_wait_seconds(self) -> float:
        return self._slots.predicted_wait_seconds

    @property
    def stuck_seconds(self) -> float:
        return self._slots.stuck_seconds
