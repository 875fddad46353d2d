"""The maximum batch size: the planned one, halved after out-of-memory errors and raised again later."""

from __future__ import annotations

# Full batches that must run well before the next size is tried: memory that others took may be free again.
_GROW_AFTER = 50


class BatchCap:
    """The largest batch to form at present; between 1 and `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = most
        self._full_batches = 0

    def plan(self, most: int) -> None:
        """A new plan, from which to begin."""
        self.most = self.now = most
        self._full_batches = 0

    def ran_out_of_memory(self, batch_size: int) -> None:
        self.now = max(1, min(self.now, batch_size // 2))
        self._full_batches = 0

    def ran_well(self, batch_size: int) -> None:
        if batch_size < self.now or self.now == self.most:
            return
        self._full_batches += 1
        if self._full_batches >= _GROW_AFTER:
            self.now = min(self.most, 2 * self.now)
            self._full_batches = 0
