"""A checkpoint file → a `Checkpoint`, in three steps: find, read, decide."""

from .base import Checkpoint, Contents, Decision, Decisions, Graph, Stored, Told, Weights
from .converted import write_converted
from .deciding import decide
from .decisions import decide_all, notes_of, warnings_of
from .depends import depends_on, sha256_of
from .download import Progress, fetch
from .finding import Found, download, find, published_architecture
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
from .reading import open_checkpoint, read, read_and_decide
from .record import ArtifactRecord, Record
from .scaling import is_scaling_unlikely

__all__ = [
    "PRESETS",
    "ArtifactRecord",
    "CheckImages",
    "Checkpoint",
    "CheckpointFile",
    "Contents",
    "Cpu",
    "Decision",
    "Decisions",
    "Found",
    "Graph",
    "OfflineDemo",
    "Progress",
    "PublishedName",
    "PublishedWeights",
    "QuantizedRecord",
    "Record",
    "Source",
    "Speeds",
    "Stored",
    "Told",
    "Weights",
    "decide",
    "decide_all",
    "default_preprocessing",
    "depends_on",
    "download",
    "fetch",
    "find",
    "find_by_name",
    "find_by_sha256",
    "home_of",
    "is_scaling_unlikely",
    "locate",
    "notes_of",
    "offline_demo_file",
    "open_checkpoint",
    "published_architecture",
    "published_resnet50_preprocessing",
    "read",
    "read_and_decide",
    "read_checkpoint",
    "read_offline_demo",
    "sha256_of",
    "warnings_of",
    "write_converted",
]
