"""Converted checkpoints: safetensors files whose metadata states every decision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import CheckpointError
from ..files import write_whole
from ..layers import Layer, ResNetSwitches
from ..types import Activation, Preprocessing
from .base import Checkpoint, Decision, Told

METADATA_KEY = "resnet_serve"
_SOURCE = "the file's own word"


class _Written(BaseModel):
    """The decisions that `convert` writes and `read_decisions` reads. Later versions add members and change none."""

    model_config = ConfigDict(extra="ignore")

    version: Literal[1] = 1
    architecture: str
    stride_in: Literal["3x3", "1x1"]
    stem: Literal["symmetric", "same"]
    pool: Literal["symmetric", "ceil", "valid"]
    epsilon: float
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    altered: tuple[Layer, ...] = ()
    head: tuple[Layer, ...] = ()
    activation: Activation = "softmax"
    converted_from_sha256: str


def write_converted(checkpoint: Checkpoint, target: Path) -> None:
    """Write weights and decisions to `target`. Raises `CheckpointError` for a graph, or if writing fails."""
    from safetensors.numpy import save

    if checkpoint.graph is not None:
        raise CheckpointError(f"{checkpoint.source} is a graph and not weights: it is served as it is.")
    switches = checkpoint.switches or ResNetSwitches()
    written = _Written(
        architecture=checkpoint.architecture,
        stride_in=switches.stride_in,
        stem=switches.stem,
        pool=switches.pool,
        epsilon=switches.epsilon,
        preprocessing=checkpoint.preprocessing,
        labels=checkpoint.labels,
        altered=switches.altered,
        # By the tensors' names in the new file, not by those in the original.
        head=tuple(replace(layer, name=f"fc.{number}") for number, layer in enumerate(switches.head)),
        activation=checkpoint.activation,
        converted_from_sha256=checkpoint.sha256,
    )
    try:
        write_whole(target, save(dict(checkpoint.weights), {METADATA_KEY: written.model_dump_json()}))
    except OSError as error:
        raise CheckpointError(f"Cannot write {target}: {error.strerror or error}.") from None


def read_decisions(metadata: dict[str, str] | None, path: Path) -> Told:
    """The decisions that `convert` wrote into a safetensors file's metadata; none in other files.

    Raises `CheckpointError` for damaged ones.
    """
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        return Told()
    try:
        written = _Written.model_validate_json(text)
    except ValidationError:
        raise CheckpointError(f"{path} has damaged decisions in its metadata. Convert the checkpoint again.") from None
    plain = (
        *("architecture", "stride_in", "stem", "pool", "epsilon", "altered", "head"),
        *("preprocessing", "labels", "activation"),
    )
    return Told(**{name: Decision(getattr(written, name), _SOURCE) for name in plain})
