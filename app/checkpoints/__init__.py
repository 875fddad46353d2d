"""A file of a known format → weights under torchvision's names, and what is known about how to serve them."""

from .base import Checkpoint, Contents, Decision, Stored, Told, Weights
from .decisions import Decisions, decide, warnings_of
from .download import Progress, fetch
from .locate import CheckpointFile, OfflineDemo, PublishedName, Source, locate
from .offline_demo import read_offline_demo
from .published import (
    PublishedWeights,
    default_preprocessing,
    find_by_name,
    find_by_sha256,
    published_resnet50_preprocessing,
)
from .readers import read_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointFile",
    "Contents",
    "Decision",
    "Decisions",
    "OfflineDemo",
    "Progress",
    "PublishedName",
    "PublishedWeights",
    "Source",
    "Stored",
    "Told",
    "Weights",
    "decide",
    "default_preprocessing",
    "fetch",
    "find_by_name",
    "find_by_sha256",
    "locate",
    "published_resnet50_preprocessing",
    "read_checkpoint",
    "read_offline_demo",
    "warnings_of",
]
