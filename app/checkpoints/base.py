"""The types on a checkpoint's road: a reader's findings, the contents of a file, the decisions, the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from numpy.typing import NDArray

from ..layers import InputChange, Layer, ResNetSwitches
from ..preprocessing import PreprocessingFacts
from ..types import Activation, Preprocessing
from .quantized import QuantizedRecord

Weights = Mapping[str, NDArray[Any]]
"""Parameter and buffer names, as torchvision spells them, → float32 arrays."""


Modules = Mapping[str, Mapping[str, Any]]
"""A module's parts by name → their attributes: `class`, `stride`, `padding`, `eps`, `ceil_mode`, …"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """A value that the tensors do not state, and its source."""

    value: T
    source: str
    """Shown to the user: "RESNET_STEM", "config.json", "the file's graph", "the usual way"."""
    is_assumed: bool = False
    """Whether the value is a guess that nothing in the checkpoint confirms; the user is then warned."""


@dataclass(frozen=True, slots=True)
class Told:
    """Facts that a container or a family states beside the tensors. None leaves a fact to the next source."""

    architecture: Decision[str] | None = None
    """"resnet50", one of `networks.RESNET50_VARIANTS`, or a torchvision name."""
    stride_in: Decision[Literal["3x3", "1x1"]] | None = None
    stem: Decision[Literal["symmetric", "same"]] | None = None
    pool: Decision[Literal["symmetric", "ceil", "valid"]] | None = None
    epsilon: Decision[float] | None = None
    preprocessing: Decision[Preprocessing] | None = None
    labels: Decision[tuple[str, ...]] | None = None
    altered: Decision[tuple[Layer, ...]] | None = None
    """Layers of the body that differ from torchvision's, by torchvision's names."""
    head: Decision[tuple[Layer, ...]] | None = None
    """The classifier's layers in order, each with the name of its tensors in `Stored.tensors`, without the leaf.
    `names.settle_names` renames layer i to `fc.i`. Dropout is left out. () means one dense layer."""
    activation: Decision[Activation] | None = None
    """The function from the last layer's scores to probabilities; "none" where the network's graph contains it."""
    input: Decision[InputChange] | None = None
    """The change that the file's own code makes to its input before the network, and after the preprocessing."""

    def then(self, other: Told) -> Told:
        """These facts, and those of `other` where they are None."""
        return Told(**{each.name: getattr(self, each.name) or getattr(other, each.name) for each in fields(Told)})


@dataclass(frozen=True, slots=True)
class Graph:
    """A network stored as a graph that contains its weights (an ONNX file), after its checks and its trial run."""

    model: bytes
    input_name: str
    output_name: str
    dtype: Literal["float32", "float16", "uint8"]
    """The input's data type."""
    layout: Literal["nchw", "nhwc"]
    size: tuple[int, int] | None
    """Height and width of its input; None for any."""
    batch_size: int | None
    """The only batch size that it accepts; None for any."""
    class_count: int
    scale: Literal["unit", "levels"] | None = None
    """The range of its input if it normalises that itself: 0 to 1 ("unit") or 0 to 255 ("levels"); else None."""
    takes_pixels: bool = False
    """Whether it takes decoded RGB levels in uint8: the graph contains channel order and normalisation."""
    is_exported: bool = False
    """Whether this service wrote it from a checkpoint's weights; otherwise it is the user's own."""
    trial_scores: str = ""
    """In a graph that this service wrote: its logits for the images of `backends.trial`, float32 in base64."""
    computes_in: str = ""
    """The number format that it computes in, shown to the user; empty if it is the input's."""
    path: Path | None = None
    """The file with the model, whose weights may be in another file beside it; `model` is then empty."""
    quantized: QuantizedRecord | None = None
    """The record of a graph that `quantize` wrote: its measured agreement with float32, and images to check it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The result of a reader: float arrays under their stored names, and the container's facts."""

    tensors: Weights
    told: Told = Told()
    warnings: tuple[str, ...] = ()
    graph: Graph | None = None
    """In place of tensors."""
    notes: tuple[str, ...] = ()
    """Left-out and ignored parts of the checkpoint that cannot change an answer, a sentence each."""


@dataclass(frozen=True, slots=True)
class Contents:
    """A checkpoint read and renamed: weights under torchvision's names, and all facts that it states."""

    path: Path
    """The file or folder that was read."""
    weights: Weights
    sha256: str
    """Hex digest of the file, or of all files of the checkpoint in their order."""
    container: str
    family: str
    told: Told
    warnings: tuple[str, ...] = ()
    graph: Graph | None = None
    """In place of `weights`: the graph contains its own."""
    notes: tuple[str, ...] = ()
    """Left-out and ignored parts of the checkpoint that cannot change an answer, a sentence each."""
    preprocessing_beside: PreprocessingFacts | None = None
    """Facts in the user's own file beside the checkpoint; they take precedence over the checkpoint's."""
    is_offline_demo: bool = False
    """Whether it is the offline demo, to which settings of the network and of preprocessing do not apply."""
    fallback_warning: str | None = None
    """A sentence for the user if it replaces weights that could not be downloaded; else None."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """Every decision that serving a checkpoint needs, each with its source."""

    architecture: Decision[str]
    stride_in: Decision[Literal["3x3", "1x1"]]
    stem: Decision[Literal["symmetric", "same"]]
    pool: Decision[Literal["symmetric", "ceil", "valid"]]
    epsilon: Decision[float]
    preprocessing: Decision[Preprocessing]
    altered: Decision[tuple[Layer, ...]]
    head: Decision[tuple[Layer, ...]]
    activation: Decision[Activation]
    labels: Decision[tuple[str, ...]] = Decision((), "decided once the classes are counted")

    @property
    def switches(self) -> ResNetSwitches:
        return ResNetSwitches(
            *(self.stride_in.value, self.stem.value, self.pool.value, self.epsilon.value),
            altered=self.altered.value,
            head=self.head.value,
        )

    def switches_of(self, architecture: str) -> ResNetSwitches | None:
        """The switches that a network of this name takes; None where it takes none."""
        if architecture == "resnet50":
            return self.switches
        altered, head = self.altered.value, self.head.value
        return ResNetSwitches(altered=altered, head=head) if altered or head else None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A network's weights, with all facts that serving them needs."""

    weights: Weights
    architecture: str
    class_count: int
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    sha256: str
    """Hex digest of the weights file."""
    source: str
    """The path of the weights file."""
    warnings: tuple[str, ...] = ()
    """Assumptions that could be wrong, each a sentence."""
    switches: ResNetSwitches | None = None
    """The ResNet-50 variant that these weights are for; None for other networks."""
    graph: Graph | None = None
    """In place of `weights`: the network's graph from the file."""
    activation: Activation = "softmax"
    """The function from the network's scores to probabilities."""
    is_fallback: bool = False
    """Whether it replaces other weights that could not be downloaded."""
    decisions: Decisions | None = None
    """Each decision with its source; None for a checkpoint from an artifact, whose record names them."""
    notes: tuple[str, ...] = ()
    """Ignored parts of the checkpoint that cannot change an answer, a sentence each."""
