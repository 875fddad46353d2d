"""A bounded queue that becomes batches and gives each caller its own answer. Knows no HTTP, no images, no torch."""

from .batcher import Batched, Batcher

__all__ = ["Batched", "Batcher"]
