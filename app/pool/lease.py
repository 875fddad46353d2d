"""Leases: a request holds one from its admission to its answer, and no model closes under a lease."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from .model import LoadedModel
from .unknown import ModelConflict

PoolState = Literal["loading", "serving", "unloading"]


class PooledModel:
    """A model in the pool and the number of its leases. Belongs to one event loop."""

    __slots__ = ("__weakref__", "_loop", "_on_unused", "closed", "leases", "model", "state")

    def __init__(self, model: LoadedModel, on_unused: Callable[[PooledModel], None]) -> None:
        """`on_unused` is called when the model is being unloaded and its last lease has been given back."""
        self.model = model
        self.state: PoolState = "loading"
        self.leases = 0
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        """Done when the model has been closed."""
        self._on_unused = on_unused

    def lease(self) -> Lease:
        """Raises `ModelConflict` where the model is being unloaded."""
        if self.state == "unloading":
            raise ModelConflict(f"{describe(self.model)} is being unloaded.")
        return Lease(self)

    def given_back(self) -> None:
        """Called by a lease, once."""
        self.leases -= 1
        if self.state == "unloading" and not self.leases:
            self._on_unused(self)

    def given_back_by_collection(self) -> None:
        """`given_back` for a lease that was garbage-collected, from any thread."""
        with suppress(RuntimeError):  # the loop is closed, and with it the pool
            self._loop.call_soon_threadsafe(self.given_back)


class Lease:
    """The right to use a model. `give_back` ends it; so does the end of a `with` block."""

    __slots__ = ("_pooled",)

    def __init__(self, pooled: PooledModel) -> None:
        self._pooled: PooledModel | None = pooled
        pooled.leases += 1

    @property
    def is_open(self) -> bool:
        """Whether the lease has not been given back yet."""
        return self._pooled is not None

    @property
    def model(self) -> LoadedModel:
        """The leased model, until the lease ends: an idle connection keeps its last request, and must keep no model."""
        if self._pooled is None:
            raise ModelConflict("The lease has been given back.")
        return self._pooled.model

    def give_back(self) -> None:
        """End the lease. Further calls do nothing."""
        pooled = self._pooled
        if pooled is not None:
            self._pooled = None
            pooled.given_back()

    def __enter__(self) -> LoadedModel:
        return self.model

    def __exit__(self, *error: object) -> None:
        self.give_back()

    def __del__(self) -> None:
        pooled = self._pooled
        if pooled is not None:
            # A bug in the program. Without this call the model would never be closed.
            pooled.given_back_by_collection()
            warnings.warn(
                f"A lease of {describe(self.model)} was never given back.", ResourceWarning, stacklevel=1, source=self
            )


def describe(model: LoadedModel) -> str:
    """The model's name and version, for error texts."""
    return f"The model {model.identity.name}, version {model.identity.version},"
