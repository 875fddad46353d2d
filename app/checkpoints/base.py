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
"""A module's parts by name → what they state: `class`, `stride`, `padding`, `eps`, `ceil_mode`, …"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """A value that the tensors do not tell, and where it came from."""

    value: T
    source: str
    """For a person: "RESNET_STEM", "config.json", "the file's graph", "the family's way", "assumed"."""
    is_assumed: bool = False
    """Whether it could be wrong without a sign; then it is warned of."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a container or a family tells beside the tensors. None: nothing, and the next in line is asked."""

    architecture: Decision[str] | None = None
    """"resnet50", one of `networks.RESNET50_VARIANTS`, or a torchvision name."""
    stride_in: Decision[Literal["3x3", "1x1"]] | None = None
    stem: Decision[Literal["symmetric", "same"]] | None = None
    pool: Decision[Literal["symmetric", "ceil", "valid"]] | None = None
    epsilon: Decision[float] | None = None
    preprocessing: Decision[Preprocessing] | None = None
    labels: Decision[tuple[str, ...]] | None = None
    altered: Decision[tuple[Layer, ...]] | None = None
    """Layers of the body that are not torchvision's, by torchvision's names."""
    head: Decision[tuple[Layer, ...]] | None = None
    """The classifier's layers in their order, each by the name that its tensors are stored under (`Stored.tensors`,
    less the leaf); `names.settle_names` makes `fc.i` of layer i. Dropout is left out. () is one dense layer."""
    activation: Decision[Activation] | None = None
    """What turns the last layer's scores into probabilities; "none" where the network's graph has done so."""
    input: Decision[InputChange] | None = None
    """What the file's own code does to its input before the network; whatever prepares the images comes before it."""

    def then(self, other: Told) -> Told:
        """This, and where it says nothing, `other`."""
        return Told(**{each.name: getattr(self, each.name) or getattr(other, each.name) for each in fields(Told)})


@dataclass(frozen=True, slots=True)
class Graph:
    """A network that comes as a graph with its weights in it (an ONNX file), examined and tried."""

    model: bytes
    input_name: str
    output_name: str
    dtype: Literal["float32", "float16", "uint8"]
    """Of its input."""
    layout: Literal["nchw", "nhwc"]
    size: tuple[int, int] | None
    """Height and width that it takes; None for any."""
    batch_size: int | None
    """The one number of images that it takes at a time; None for any."""
    class_count: int
    scale: Literal["unit", "levels"] | None = None
    """Of a graph that normalises its input itself: whether that is from 0 to 1, or from 0 to 255."""
    takes_pixels: bool = False
    """Whether it takes RGB levels as they are decoded, in uint8: channel order and normalisation are in it."""
    is_exported: bool = False
    """Whether this service wrote it from a checkpoint's weights; else it is the user's own."""
    trial_scores: str = ""
    """Of one that this service wrote: the network's logits for the images of `backends.trial`, float32 in base64."""
    computes_in: str = ""
    """Its numbers, for a person; empty where they are its input's."""
    path: Path | None = None
    """A file that has the model, its weights perhaps in another beside it; then `model` is empty."""
    quantized: QuantizedRecord | None = None
    """Of a graph that `quantize` wrote: what it promised, and how to see whether that holds here."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a reader found: float arrays under the names they were stored with, and what the container tells."""

    tensors: Weights
    told: Told = Told()
    warnings: tuple[str, ...] = ()
    graph: Graph | None = None
    """In place of tensors."""
    notes: tuple[str, ...] = ()
    """What was left out or passed over and cannot change an answer, a sentence each."""


@dataclass(frozen=True, slots=True)
class Contents:
    """A checkpoint read and renamed: weights under torchvision's names, and all that it tells."""

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
    """In place of weights, which it has in it."""
    notes: tuple[str, ...] = ()
    """What was left out or passed over and cannot change an answer, a sentence each."""
    preprocessing_beside: PreprocessingFacts | None = None
    """What the user's own file beside the checkpoint states; it goes before what the checkpoint tells."""
    is_offline_demo: bool = False
    """Whether it is the offline demo: settings of the network and its preprocessing are meant for other weights."""
    fallback_warning: str | None = None
    """Set where it stands in for weights that could not be downloaded: a sentence that says so."""


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
    """A network's weights and all that is needed to serve them right."""

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
    """Of a ResNet-50: the variant of it that these weights are for."""
    graph: Graph | None = None
    """In place of weights: the network as the file has it."""
    activation: Activation = "softmax"
    """What turns the network's scores into probabilities."""
    is_fallback: bool = False
    """Whether it stands in for other weights that were not to be had."""
    decisions: Decisions | None = None
    """Each decision with its source; None of a checkpoint that comes from an artifact, whose record names them."""
    notes: tuple[str, ...] = ()
    """What was passed over and cannot change an answer, a sentence each."""
