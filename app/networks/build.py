"""Networks by name, filled with weights, or a refusal that says what was expected and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..layers import ResNetSwitches
from ..resources import may_run_written_memory
from .alterations import count_outputs
from .described import describe, is_described
from .description import Description
from .fitting import check_fit, check_floats, misfit
from .others import COUNTER, IMAGENET_CLASSES, count_classes_of_other, create_other, skeleton_of

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, NDArray[Any]]


def count_classes(architecture: str, weights: Weights, switches: ResNetSwitches | None = None) -> int:
    """How many classes the checkpoint's last layer has. Imports torch for networks that have no description.

    Raises `CheckpointError` where the checkpoint is not of `architecture` and `switches`, in one line.
    """
    if not is_described(architecture):
        return count_classes_of_other(architecture, weights, switches)
    head = switches.head if switches is not None else ()
    if head:
        classes = 1
    else:
        classifier = weights.get(f"{describe(architecture, IMAGENET_CLASSES).steps[-1].name}.weight")
        classes = int(classifier.shape[0]) if classifier is not None and classifier.ndim else 0
    if classes < 1:
        raise misfit(architecture, describe(architecture, IMAGENET_CLASSES, switches).shapes(), weights)
    expected = describe(architecture, classes, switches, weights).shapes()
    check_fit(architecture, expected, weights)
    check_floats(expected, weights)
    return count_outputs(head, weights) if head else classes


def describe_fitted(architecture: str, weights: Weights, switches: ResNetSwitches | None = None) -> Description:
    """The description of the network that `weights` fill. Raises as `count_classes` does."""
    classes = count_classes(architecture, weights, switches)
    return describe(architecture, classes, switches, weights)


def build_network(architecture: str, weights: Weights, switches: ResNetSwitches | None = None) -> torch.nn.Module:
    """A torch module of `architecture` that holds `weights`, in float32 on CPU. Raises as `count_classes` does.

    `switches` makes a resnet50 the variant that they say; other networks take its altered layers and its head.
    """
    if is_described(architecture):
        description = describe_fitted(architecture, weights, switches)
        _spare_executable_memory()
        return module_of(description, weights)
    classes = count_classes(architecture, weights, switches)
    _spare_executable_memory()
    network = _filled(skeleton_of(architecture, classes), weights)
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        # It computes constants that no checkpoint holds (Swin's position tables): build it with memory.
        network = _filled(create_other(architecture, classes), weights)
    return network


def module_of(description: Description, weights: Weights) -> torch.nn.Module:
    """The torch module of `description`, which `weights` fit."""
    import torch

    from .torch_module import DescribedNetwork

    with torch.device("meta"):
        network = DescribedNetwork(description)
    return _filled(network, weights)


def _spare_executable_memory() -> None:
    """Where the system forbids memory that is written and run, let PyTorch do without oneDNN, which writes its kernels.

    It would fail at the first convolution: "could not create a primitive".
    """
    if not may_run_written_memory():
        import torch

        torch.backends.mkldnn.set_flags(False)  # type: ignore[no-untyped-call]


def _filled(network: torch.nn.Module, weights: Weights) -> torch.nn.Module:
    import torch

    # Its own state dict, so that the versions that some networks ask for (MNASNet) stay with it.
    state = network.state_dict()
    state |= {
        # Copied into torch's own memory: the alignment of a file's bytes would choose among kernels that differ in the
        # last bit, and then one network from two files would not give one answer.
        name: torch.tensor(values)
        for name, values in weights.items()
        if name in state
    }
    state |= {name: torch.zeros((), dtype=torch.int64) for name in state if name.endswith(COUNTER)}
    network.load_state_dict(state, strict=True, assign=True)
    return network
