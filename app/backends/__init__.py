"""What runs a network: the contract (`base`), the registry, and one file for each backend."""

from .base import Backend, BackendOptions, Batch
from .registry import create_backend, null_checkpoint

__all__ = ["Backend", "BackendOptions", "Batch", "create_backend", "null_checkpoint"]
