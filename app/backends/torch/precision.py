"""Where the network runs, and in which number format."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import SettingError
from ...types import Preprocessing
from ..trial import trial_images
from .folding import fold_batch_norms
from .forward import Forward

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_CUDA_SLOTS = 2
# Compute capabilities (CUDA C++ Programming Guide, "Compute Capabilities"): tensor cores for float16 came with 7.0,
# for bfloat16 with 8.0.
_FLOAT16_SINCE = (7, 0)
_BFLOAT16_SINCE = (8, 0)
# What rounding may move a probability by before a format is passed over: three times what bfloat16 moved on photos.
_LARGEST_DISTANCE = 0.05
# Folding only reorders float32's arithmetic.
_LARGEST_FOLDED = 1e-3


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """Where the network runs and in which number format."""

    device: torch.device
    dtype: torch.dtype
    slots: int
    """Batches in flight: one computes while the other's transfer and answer overlap with it."""
    staged: bool
    """Whether batches travel through slots with buffers and buckets of their own; on CUDA they always do."""
    fallbacks: tuple[torch.dtype, ...] = ()
    """Formats to try, in order, where `dtype` turns out not to hold this network. None where the user chose it."""
    graphs: bool = True
    """Whether slots capture their programs."""
    folded: bool = False
    """Whether normalisations are folded into convolutions: not on CPU, where the network as it is is the reference."""

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


def plan_device(device: str, precision: str) -> DevicePlan:
    """Resolve "auto" and check that the device is there, and that this build of PyTorch can use it."""
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if available else "cpu"
    if not device.startswith("cuda"):
        dtype = getattr(torch, "float32" if precision == "auto" else precision)
        return DevicePlan(torch.device("cpu"), dtype, 1, staged=False)
    count = torch.cuda.device_count() if available else 0
    chosen = torch.device(device)
    if not available or (chosen.index or 0) >= count:
        raise SettingError(
            f"RESNET_DEVICE is {device}, but PyTorch finds {count} CUDA devices. Set RESNET_DEVICE=cpu, or give "
            f"the process a GPU (for containers: docker-compose.gpu.yml and the NVIDIA container toolkit)."
        )
    chosen = torch.device("cuda", chosen.index or 0)
    capability = torch.cuda.get_device_capability(chosen)
    built_for = torch.cuda.get_arch_list()
    if not has_kernels_for(capability, built_for):
        raise SettingError(
            f"{torch.cuda.get_device_name(chosen)} has compute capability {capability[0]}.{capability[1]}, which "
            f"PyTorch {torch.__version__} is not built for ({', '.join(built_for)}). Set RESNET_DEVICE=cpu, or install "
            "a build of PyTorch for that GPU (https://pytorch.org/get-started)."
        )
    formats = (precision,) if precision != "auto" else formats_for(capability)
    dtype, *fallbacks = (getattr(torch, name) for name in formats)
    return DevicePlan(chosen, dtype, _CUDA_SLOTS, staged=True, fallbacks=tuple(fallbacks), folded=True)


def formats_for(capability: tuple[int, int]) -> tuple[str, ...]:
    """The formats worth trying on a GPU of this compute capability, best first.

    Where float16 and bfloat16 are equally fast, float16 is the more accurate one: its 10 bits of mantissa move
    probabilities by about a quarter of what bfloat16's 7 do. It ends at 65,504, which some networks exceed; bfloat16
    reaches as far as float32.
    """
    half = {"float16": _FLOAT16_SINCE, "bfloat16": _BFLOAT16_SINCE}
    return (*(name for name, since in half.items() if capability >= since), "float32")


def has_kernels_for(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether a build for these architectures ("sm_80", "compute_90") runs on a GPU of this capability.

    Machine code runs on its own major version from its minor version on, intermediate code on everything later
    ("Application Compatibility" in NVIDIA's compatibility guides). A build that does not say is believed.
    """
    number = 10 * capability[0] + capability[1]
    names = [re.fullmatch(r"(sm|compute)_(\d+)[a-z]?", name) for name in built_for]
    known = [(name[1], int(name[2])) for name in names if name]
    return not known or any(
        number >= built and (kind == "compute" or number // 10 == built // 10) for kind, built in known
    )


def place_network(network: torch.nn.Module, preprocessing: Preprocessing, plan: DevicePlan) -> Forward:
    """The network on its device, in the first format of the plan that holds it.

    It is held to the network as it came, in float32 on the same device, by made images: folded normalisations that
    answer otherwise are left as they were. With fallbacks, a format whose probabilities overflow or are far off is
    passed over, with a warning that says by how much.
    """
    import torch

    if not plan.fallbacks and not plan.folded:
        return Forward(network, preprocessing, plan.device, plan.dtype)
    full = Forward(network, preprocessing, plan.device, torch.float32)
    images = torch.from_numpy(trial_images(preprocessing.crop)).to(plan.device)
    with torch.inference_mode():
        expected = full(images).softmax(1)

        def distance_of(forward: Forward) -> float:
            return float((forward(images).softmax(1) - expected).abs().max())

        if plan.folded:
            folded = Forward(fold_batch_norms(network), preprocessing, plan.device, torch.float32)
            if distance_of(folded) <= _LARGEST_FOLDED:
                full, network = folded, folded.network
            else:
                logger.warning(
                    "Folded into its convolutions, the normalisations answer otherwise: they are left as they are."
                )
        for dtype in (plan.dtype, *plan.fallbacks):
            if dtype == torch.float32:
                break
            half = Forward(copy.deepcopy(network), preprocessing, plan.device, dtype)
            distance = distance_of(half) if plan.fallbacks else 0.0
            if distance <= _LARGEST_DISTANCE:  # never, where it is not a number
                return half
            logger.warning(
                "%s does not hold this network: on made images its probabilities are %s from float32's.",
                str(dtype).removeprefix("torch.").capitalize(),
                f"up to {distance:.2g}" if distance == distance else "not numbers, and so",
            )
    return full
