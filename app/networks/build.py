"""Networks by name, filled with weights, or a refusal that says what was expected and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..errors import CheckpointError, SettingError
from ..resources import may_run_written_memory
from ..types import ResNetSwitches
from .layers import count_outputs, set_altered, set_head
from .resnet50 import set_switches
from .signatures import advice

if TYPE_CHECKING:
    import torch

_IMAGENET_CLASSES = 1000
# torchvision builds these two with a second classifier for training; files hold it, inference does not run it.
_AUXILIARY = {"inception_v3": ("AuxLogits.",), "googlenet": ("aux1.", "aux2.")}
_COUNTER = "num_batches_tracked"
DEEP_STEM_NETWORKS = ("resnet50c", "resnet50d", "resnet50s", "resnet50t")
RESNET50_VARIANTS = (*DEEP_STEM_NETWORKS, "resnet50v2")
TIMM_NETWORKS = frozenset({"tf_efficientnet_lite0"})


def count_classes(
    architecture: str, weights: Mapping[str, NDArray[Any]], switches: ResNetSwitches | None = None
) -> int:
    """How many classes the checkpoint's last layer has.

    Raises `CheckpointError` where the checkpoint is not of `architecture` and `switches`, in one line.
    """
    if switches is not None and switches.head:
        return _count_of_head(architecture, weights, switches)
    skeleton = _skeleton(architecture, _IMAGENET_CLASSES)
    head = _head_name(skeleton)
    if head not in weights:
        raise _misfit(architecture, _shapes(skeleton), weights)
    classes = int(weights[head].shape[0]) if weights[head].ndim else 0
    if classes < 1:
        raise _misfit(architecture, _shapes(skeleton), weights)
    expected = _shapes(_skeleton(architecture, classes))
    found = {name: tuple(values.shape) for name, values in weights.items() if name in expected}
    if found != expected or _unexpected(architecture, expected, weights):
        raise _misfit(architecture, expected, weights)
    for name in expected:
        if weights[name].dtype.kind != "f" and _is_float(skeleton, name):
            found_type = weights[name].dtype
            raise CheckpointError(
                f"The checkpoint's {name} is {found_type}. Expected floats: quantized weights do not fit."
            )
    return classes


def _spare_executable_memory() -> None:
    """Where the system forbids memory that is written and run, let PyTorch do without oneDNN, which writes its kernels.

    It would fail at the first convolution: "could not create a primitive".
    """
    if not may_run_written_memory():
        import torch

        torch.backends.mkldnn.set_flags(False)  # type: ignore[no-untyped-call]


def _count_of_head(architecture: str, weights: Mapping[str, NDArray[Any]], switches: ResNetSwitches) -> int:
    """The same of a network whose classifier is a head of several layers."""
    skeleton = _skeleton(architecture, 1)
    set_head(skeleton, switches.head, weights, architecture)
    expected = _shapes(skeleton)
    found = {name: tuple(values.shape) for name, values in weights.items() if name in expected}
    if found != expected or _unexpected(architecture, expected, weights):
        raise _misfit(architecture, expected, weights)
    return count_outputs(switches.head, weights)


def build_network(
    architecture: str, weights: Mapping[str, NDArray[Any]], switches: ResNetSwitches | None = None
) -> torch.nn.Module:
    """A module of `architecture` that holds `weights`, in float32 on CPU. Raises as `count_classes` does.

    `switches` makes a resnet50 the variant that they say; other architectures take none.
    """
    classes = count_classes(architecture, weights, switches)
    _spare_executable_memory()
    skeleton = _skeleton(architecture, classes)
    if switches is not None:
        if architecture == "resnet50":
            set_switches(skeleton, switches)
        set_altered(skeleton, switches.altered)
        if switches.head:
            set_head(skeleton, switches.head, weights, architecture)
    network = _filled(skeleton, weights)
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        # It computes constants that no checkpoint holds (Swin's position tables): build it with memory.
        network = _filled(_create(architecture, classes), weights)
    return network


def _filled(network: torch.nn.Module, weights: Mapping[str, NDArray[Any]]) -> torch.nn.Module:
    import torch

    # Its own state dict, so that the versions that some networks ask for (MNASNet) stay with it.
    state = network.state_dict()
    state |= {
        # Copied into torch's own memory: how a file's bytes happen to be aligned would choose among kernels that differ
        # in the last bit, and then one network from two files would not give one answer.
        name: torch.tensor(values)
        for name, values in weights.items()
        if name in state
    }
    state |= {name: torch.zeros((), dtype=torch.int64) for name in state if name.endswith(_COUNTER)}
    network.load_state_dict(state, strict=True, assign=True)
    return network


def _skeleton(architecture: str, classes: int) -> torch.nn.Module:
    """The network without memory for its weights (torch's meta device), where it can be built so."""
    import torch

    try:
        with torch.device("meta"):
            return _create(architecture, classes)
    except NotImplementedError:
        # RegNet computes with values while it is built.
        return _create(architecture, classes)


def _create(architecture: str, classes: int) -> torch.nn.Module:
    if architecture in TIMM_NETWORKS:
        return _timm(architecture, classes)
    if architecture in DEEP_STEM_NETWORKS:
        from .deep_stem import create_deep_stem

        return create_deep_stem(architecture, classes)
    if architecture == "resnet50v2":
        from .resnet50v2 import ResNet50V2

        return ResNet50V2(classes)
    import torchvision.models

    if architecture not in torchvision.models.list_models(module=torchvision.models):
        raise SettingError(f"RESNET_ARCHITECTURE cannot be {architecture!r}: torchvision has no such classifier.")
    options: dict[str, Any] = {"num_classes": classes}
    if architecture in _AUXILIARY:
        # transform_input re-normalises for weights that were trained elsewhere; torchvision's own loader sets it.
        options |= {"aux_logits": False, "init_weights": False, "transform_input": True}
    network: torch.nn.Module = torchvision.models.get_model(architecture, weights=None, **options)
    return network


def _timm(architecture: str, classes: int) -> torch.nn.Module:
    try:
        import timm
    except ImportError:
        raise CheckpointError(
            f"{architecture} needs the package timm, which is not installed. pip install 'resnet-serve[offline-demo]'"
        ) from None
    network: torch.nn.Module = timm.create_model(architecture, pretrained=False, num_classes=classes)
    return network


def _head_name(skeleton: torch.nn.Module) -> str:
    """The last weight whose first axis is the classes: the classifier's, for every network here."""
    return [
        name
        for name, parameter in skeleton.named_parameters()
        if name.endswith("weight") and parameter.shape[0] == _IMAGENET_CLASSES
    ][-1]


def _is_float(network: torch.nn.Module, name: str) -> bool:
    return bool(network.state_dict()[name].is_floating_point())


def _shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if not name.endswith(_COUNTER)}


def _unexpected(
    architecture: str, expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, NDArray[Any]]
) -> list[str]:
    ignored = _AUXILIARY.get(architecture, ())
    return [name for name in weights if name not in expected and not (ignored and name.startswith(ignored))]


def _misfit(
    architecture: str, expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, NDArray[Any]]
) -> CheckpointError:
    """One line: the first thing that is missing, of another shape, or too much."""
    missing = [name for name in expected if name not in weights]
    other = [name for name in expected if name in weights and tuple(weights[name].shape) != expected[name]]
    extra = _unexpected(architecture, expected, weights)
    if missing:
        found = f"it lacks {len(missing)} of {len(expected)} entries, {missing[0]} first; it has {_some(weights)}"
    elif other:
        name = other[0]
        found = f"{name} is {_shape(weights[name].shape)} where {_shape(expected[name])} was expected"
    else:
        found = f"it has {len(extra)} entries that the network does not, {extra[0]} first"
    return CheckpointError(f"The checkpoint does not fit {architecture}: {found}. {advice(architecture, weights)}")


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single value"


def _some(weights: Mapping[str, NDArray[Any]]) -> str:
    names = list(weights)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "none"
