"""Checkpoint files: found, read as weights under torchvision's names, with the decisions that serving them needs."""

from .base import Checkpoint, Contents, Decision, Graph, Stored, Told, Weights
from .converted import write_converted
from .decisions import Decisions, decide, notes_of, warnings_of
from .depends import depends_on, sha256_of
from .download import Progress, fetch
from .folders import home_of
from .locate import CheckpointFile, OfflineDemo, PublishedName, Source, locate
from .offline_demo import offline_demo_file, read_offline_demo
from .presets import PRESETS
from .published import (
    PublishedWeights,
    default_preprocessing,
    find_by_name,
    find_by_sha256,
    published_resnet50_preprocessing,
)
from .quantized import CheckImages, Cpu, QuantizedRecord, Speeds
from .readers import read_checkpoint
from .scaling import is_scaling_unlikely

__all__ = [
    "PRESETS",
    "CheckImages",
    "Checkpoint",
    "CheckpointFile",
    "Contents",
    "Cpu",
    "Decision",
    "Decisions",
    "Graph",
    "OfflineDemo",
    "Progress",
    "PublishedName",
    "PublishedWeights",
    "QuantizedRecord",
    "Source",
    "Speeds",
    "Stored",
    "Told",
    "Weights",
    "decide",
    "default_preprocessing",
    "depends_on",
    "fetch",
    "find_by_name",
    "find_by_sha256",
    "home_of",
    "is_scaling_unlikely",
    "locate",
    "notes_of",
    "offline_demo_file",
    "published_resnet50_preprocessing",
    "read_checkpoint",
    "read_offline_demo",
    "sha256_of",
    "warnings_of",
    "write_converted",
]
