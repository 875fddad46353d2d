"""torchvision's other classifiers, built by torchvision itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..errors import CheckpointError, SettingError
from ..layers import ResNetSwitches
from .alterations import no_head
from .fitting import check_fit, check_floats, misfit

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, NDArray[Any]]
IMAGENET_CLASSES = 1000
# torchvision builds these two with a second classifier for training; files hold it, inference does not run it.
_AUXILIARY = {"inception_v3": ("AuxLogits.",), "googlenet": ("aux1.", "aux2.")}
COUNTER = "num_batches_tracked"


def count_classes_of_other(architecture: str, weights: Weights, switches: ResNetSwitches | None) -> int:
    """As `build.count_classes`."""
    skeleton = skeleton_of(architecture, IMAGENET_CLASSES)
    if switches is not None and switches.head:
        raise no_head(architecture)
    ignored = _AUXILIARY.get(architecture, ())
    head = _head_name(skeleton)
    classes = int(weights[head].shape[0]) if head in weights and weights[head].ndim else 0
    if classes < 1:
        raise misfit(architecture, _shapes(skeleton), weights, ignored)
    fitted = skeleton_of(architecture, classes)
    check_fit(architecture, _shapes(fitted), weights, ignored)
    check_floats({name: None for name in _shapes(fitted) if fitted.state_dict()[name].is_floating_point()}, weights)
    return classes


def skeleton_of(architecture: str, classes: int) -> torch.nn.Module:
    """The network without memory for its weights (torch's meta device), where it can be built so."""
    try:
        import torch
    except ImportError:
        raise without_torch(architecture) from None
    try:
        with torch.device("meta"):
            return create_other(architecture, classes)
    except NotImplementedError:
        # RegNet computes with values while it is built.
        return create_other(architecture, classes)


def create_other(architecture: str, classes: int) -> torch.nn.Module:
    """Raises `SettingError` for a name that torchvision does not have."""
    try:
        import torchvision.models
    except ImportError:
        raise without_torch(architecture) from None
    if architecture not in torchvision.models.list_models(module=torchvision.models):
        raise SettingError(f"RESNET_ARCHITECTURE cannot be {architecture!r}: torchvision has no such classifier.")
    options: dict[str, Any] = {"num_classes": classes}
    if architecture in _AUXILIARY:
        # transform_input re-normalises for weights that were trained elsewhere; torchvision's own loader sets it.
        options |= {"aux_logits": False, "init_weights": False, "transform_input": True}
    network: torch.nn.Module = torchvision.models.get_model(architecture, weights=None, **options)
    return network


def without_torch(architecture: str) -> CheckpointError:
    return CheckpointError(
        f"{architecture} is built by torchvision, which is not installed here (pip install torch torchvision); a "
        f"ResNet needs neither."
    )


def _head_name(skeleton: torch.nn.Module) -> str:
    """The last weight whose first axis is the classes: the classifier's, for every network here."""
    return [
        name
        for name, parameter in skeleton.named_parameters()
        if name.endswith("weight") and parameter.shape[0] == IMAGENET_CLASSES
    ][-1]


def _shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if not name.endswith(COUNTER)}
