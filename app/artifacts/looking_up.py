"""torchvision's weights by name: from what was kept of an earlier start, or from torchvision itself."""

from __future__ import annotations

from contextlib import suppress

from .. import checkpoints
from ..checkpoints import LookUp, PublishedWeights
from .store import Store


class NotRemembered(Exception):
    """No earlier start has kept the weights of this name: torchvision has to be asked."""


def look_up_remembered(store: Store) -> LookUp:
    """Imports nothing; raises `NotRemembered`."""

    def look_up(architecture: str, name: str) -> PublishedWeights:
        weights = store.published(architecture, name)
        if weights is None:
            raise NotRemembered
        return weights

    return look_up


def look_up_and_remember(store: Store) -> LookUp:
    """Asks torchvision, and keeps the answer for the next start."""

    def look_up(architecture: str, name: str) -> PublishedWeights:
        weights = checkpoints.find_by_name(architecture, name)
        with suppress(OSError):
            store.remember(name, weights)
        return weights

    return look_up
