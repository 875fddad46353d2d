"""The engines of a service of several processes: one for each model that is loaded, swapped or unloaded."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

from ..engine.board import Board
from ..metrics import SharedFiles
from ..pool import ModelConflict, ModelFacts, ModelNotFound
from ..settings import Settings
from ..types import ModelIdentity
from .child import Child
from .engine_keeper import EngineKeeper, Surroundings

ENGINE = "engine"
Guarded = Callable[[Coroutine[Any, Any, None]], Coroutine[Any, Any, None]]


class Engines:
    """The engines' keepers. Part of the supervisor, and of its event loop."""

    def __init__(self, surroundings: Surroundings, guarded: Guarded) -> None:
        """`guarded` wraps background tasks: if one fails unexpectedly, the service ends."""
        self._surroundings = surroundings
        self._guarded = guarded
        self._keys = itertools.count()
        self._keepers: dict[EngineKeeper, asyncio.Task[None]] = {}

    # --- models

    def start_first(self, settings: Settings) -> None:
        """Serve the service's first model. If that fails, the service ends."""
        keeper = self._start(settings, None)

        def served(ready: asyncio.Future[ModelFacts]) -> None:
            error = ready.exception()
            if isinstance(error, Exception) and not self._surroundings.is_stopping():
                self._surroundings.fail(error)

        keeper.ready.add_done_callback(served)

    async def load_model(self, settings: Settings, replaces: ModelIdentity | None = None) -> ModelFacts:
        """Serve the model that `settings` name, on its own engine beside the others; returns when it is warm.

        The model that it replaces serves until then. Each front-end then gives out no new leases of the old model, and
        disconnects from its engine after the last one; the engine's process ends when all have disconnected. Raises
        `ModelNotFound` and `ModelConflict` for the model to be replaced, `StartError` if the new one cannot be loaded,
        and `DeviceLost` if its process ends repeatedly.
        """
        replaced = None if replaces is None else self._find(replaces)
        if replaced is not None and any(keeper.replaces is replaced for keeper in self._keepers):
            raise ModelConflict(f"The model {replaces} is being replaced already.")
        keeper = self._start(settings, replaced)
        facts = await keeper.ready
        if replaced is not None:
            keeper.replaces = None
            keeper.is_default, replaced.is_default = replaced.is_default, False
            replaced.retire()
        return facts

    async def unload_model(self, identity: ModelIdentity) -> None:
        """Stop serving the model; returns when its engine's process has ended. Raises as `load_model`."""
        keeper = self._find(identity)
        keeper.retire()
        for front_end in self._surroundings.front_ends():
            front_end.send("retire", model=keeper.key)
        await asyncio.wait([self._keepers[keeper]])

    def _find(self, identity: ModelIdentity) -> EngineKeeper:
        for keeper in self._keepers:
            if (facts := keeper.facts) is not None and facts.identity == identity and not keeper.is_retiring:
                if not keeper.is_ready:
                    raise ModelConflict(f"The model {identity} is being loaded.")
                return keeper
        raise ModelNotFound(f"There is no model {identity} here.")

    def _start(self, settings: Settings, replaces: EngineKeeper | None) -> EngineKeeper:
        """Raises `OSError` if the files for its metrics cannot be created."""
        # A free name is used again, so that the files of its metrics continue to count.
        taken = {keeper.name for keeper in self._keepers}
        names = itertools.chain([ENGINE], (f"{ENGINE}-{number}" for number in itertools.count(1)))
        name = next(name for name in names if name not in taken)
        SharedFiles(self._surroundings.metrics_folder, name).create()
        keeper = EngineKeeper(
            self._surroundings, self._is_taken, next(self._keys), name, settings, replaces, not self._keepers
        )
        self._keepers[keeper] = asyncio.get_running_loop().create_task(self._guarded(self._keep(keeper)))
        return keeper

    async def _keep(self, keeper: EngineKeeper) -> None:
        try:
            if (error := await keeper.keep()) is not None:
                self._surroundings.fail(error)
        finally:
            del self._keepers[keeper]

    def _is_taken(self, keeper: EngineKeeper, identity: ModelIdentity) -> bool:
        """Whether another engine serves this name and version, and will continue to."""
        others = [each for each in self._keepers if not each.is_retiring and each not in (keeper, keeper.replaces)]
        return any(facts.identity == identity for each in others if (facts := each.facts) is not None)

    # --- their processes

    @property
    def is_ready(self) -> bool:
        """Whether the default model is being served."""
        return any(keeper.is_default and keeper.is_ready for keeper in self._keepers)

    @property
    def default_facts(self) -> ModelFacts | None:
        """The facts of the default model, if it is loaded."""
        return next((keeper.facts for keeper in self._keepers if keeper.is_default), None)

    def serving(self) -> list[tuple[Child, Board]]:
        """The engine processes that serve, each with its board."""
        return [
            (keeper.child, keeper.pairing.board)
            for keeper in self._keepers
            if keeper.child is not None and keeper.child.is_ready and keeper.pairing is not None
        ]

    def pair(self, front_end: Child) -> None:
        """Connect a front-end to every engine that has loaded its model."""
        for keeper in self._keepers:
            if not keeper.is_retiring:
                keeper.pair(front_end)

    def forget_front_end(self, number: int) -> None:
        """The front-end's process has ended, so it holds no reservations."""
        for keeper in self._keepers:
            if keeper.pairing is not None:
                keeper.pairing.board.hold(number, 0)

    def send(self, kind: str) -> None:
        """Send a message to every engine."""
        for keeper in self._keepers:
            if keeper.child is not None:
                keeper.child.send(kind)

    def kill(self) -> None:
        for keeper in self._keepers:
            if keeper.child is not None:
                keeper.child.kill()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until every engine has ended, or for `seconds`."""
        if self._keepers:
            await asyncio.wait(list(self._keepers.values()), timeout=seconds)
