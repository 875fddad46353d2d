"""Settings that choose a checkpoint and say how it is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from ..files import own_temporary_folder
from .group import Group
from .preprocessing import PreprocessingSettings

# The settings that change the network of a ResNet-50.
SWITCHES = ("stride_in", "stem", "pool", "epsilon")


def _default_cache_dir() -> Path:
    """$XDG_CACHE_HOME, else ~/.cache (XDG base directory specification); without a home, a temporary folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet-serve"
    except RuntimeError:  # neither HOME nor an entry in the user database, as with a container's --user 12345
        return own_temporary_folder("resnet-serve")


class NetworkSettings(Group):
    """Which weights are served, and the network that they belong to."""

    title: ClassVar[str] = "Weights and network"

    weights: str | None = Field(
        None,
        description=(
            "A checkpoint file, a folder with one checkpoint, a torchvision weight name such as IMAGENET1K_V2, "
            "or offline-demo. Unset: the one checkpoint in model_weights/, else IMAGENET1K_V2."
        ),
    )
    weights_fallback: Literal["none", "offline-demo"] = Field(
        "none", description="What to serve, with a warning, where the weights cannot be downloaded."
    )
    architecture: str = Field(
        "auto",
        description="The network: resnet50, another torchvision classifier, or auto to tell it from the checkpoint.",
    )
    stride_in: Literal["auto", "3x3", "1x1"] = Field(
        "auto",
        description=(
            "Of a ResNet-50: the convolution that has a stage's stride, 3x3 (v1.5) or 1x1 (v1, the paper's). "
            "auto: as the checkpoint's family has it."
        ),
    )
    stem: Literal["auto", "symmetric", "same"] = Field(
        "auto", description="Of a ResNet-50: padding of the first convolution, symmetric or TensorFlow's same."
    )
    pool: Literal["auto", "symmetric", "ceil", "valid"] = Field(
        "auto", description="Of a ResNet-50: padding of the first pool, symmetric, at the end (ceil) or none (valid)."
    )
    epsilon: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Of a ResNet-50: epsilon of batch normalisation. Unset: as the checkpoint's family has it.",
    )


class OutputSettings(Group):
    """How the outputs of the network become an answer."""

    title: ClassVar[str] = "Outputs"

    activation: Literal["auto", "softmax", "sigmoid", "none"] = Field(
        "auto",
        description=(
            "What makes probabilities of the network's scores: softmax (one class is right), sigmoid (each class "
            "stands alone), none (they are probabilities already). auto: as the checkpoint says, else softmax, and "
            "sigmoid for one output."
        ),
    )
    labels: Path | None = Field(
        None,
        description="A labels.txt (a name a line) or an index_to_name.json. Unset: looked for beside the checkpoint.",
    )
    onnx_output: str | None = Field(
        None,
        max_length=256,
        description="Of an ONNX file with several outputs: the name of the one with the scores. Unset: it is found.",
    )
    model_name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="The name answers give the model. Unset: the architecture.",
    )
    min_agreement: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Of a quantized model: the least share of photos on which its first class is float32's.",
    )


class StorageSettings(Group):
    """Where checkpoints come from, and where files are kept."""

    title: ClassVar[str] = "Files"

    max_checkpoint_bytes: int = Field(1_073_741_824, ge=1, description="Largest checkpoint file that is read.")
    cache_dir: Path = Field(default_factory=_default_cache_dir, description="Where downloads and artifacts are kept.")
    download_mirror: str | None = Field(
        None,
        description="Base URL of a mirror that holds torchvision's weight files under their own names.",
    )


# pydantic lists the fields of the last base first.
class CheckpointSettings(StorageSettings, OutputSettings, PreprocessingSettings, NetworkSettings):
    """Everything that reading a checkpoint needs."""
