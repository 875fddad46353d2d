"""Checkpoint files as people have them, and what loading and running one gives."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from app.backends.torch import DevicePlan, TorchBackend
from app.checkpoints import Weights, find_by_name
from app.images.geometry import resize_and_crop
from app.loading import load_model
from app.metrics import Metrics
from app.pool import LoadedModel
from app.settings import Settings
from app.types import Pixels, Preprocessing, Scores, Want
from tests.images_made import photo
from tests.lazy import torch, torchvision

State: TypeAlias = "dict[str, torch.Tensor]"


def make_network(architecture: str, classes: int = 1000, seed: int = 0, **options: Any) -> torch.nn.Module:
    """A torchvision network with seeded random weights whose logits tell photos and mistakes apart.

    As in trained ones, its normalisations know the statistics of photos, and its logits are of the order of 1; else
    random weights give logits in the thousands, or the same for every photo.
    """
    preset = torchvision.models.get_model_weights(architecture)["IMAGENET1K_V1"].transforms()
    batch = torch.stack([preset(photo(name)) for name in ("chelsea", "coffee", "astronaut", "rocket")])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        network = torchvision.models.get_model(architecture, weights=None, num_classes=classes, **options).eval()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.6, 1.4)
                module.bias.normal_(0, 0.2)
                module.momentum = 1.0
                module.train()
        network(batch)
        network.eval()
        classifier = [m for m in network.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)][-1]
        classifier.weight /= network(batch).std()
    return network


def named_like_resnet50() -> State:
    """All 320 names of a ResNet-50's state dict, each with one or two values: for tests of names, not of answers."""
    with torch.device("meta"):
        names = torchvision.models.resnet50().state_dict()
    state: State = {}
    for number, (name, tensor) in enumerate(names.items()):
        state[name] = torch.tensor([number, 0.5]) if tensor.is_floating_point() else torch.tensor(number)
    return state


def without_counters(state: Mapping[str, torch.Tensor]) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def same_weights(weights: Weights, state: Mapping[str, torch.Tensor]) -> bool:
    """Whether what was read holds the state dict's names, shapes and values, as float32 and without the counters."""
    expected = without_counters(state)
    return weights.keys() == expected.keys() and all(
        (weights[name].dtype == np.float32 or not tensor.is_floating_point())
        and np.array_equal(weights[name], tensor.float().numpy())
        for name, tensor in expected.items()
    )


def save_pth(state: object, path: Path, **options: Any) -> Path:
    torch.save(state, path, **options)
    return path


@dataclass
class Told:
    """A reporter that keeps what it is told."""

    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    downloads: list[tuple[str, int, int | None]] = field(default_factory=list)

    def step(self, text: str) -> None:
        self.steps.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def downloading(self, name: str, received: int, expected: int | None) -> None:
        self.downloads.append((name, received, expected))


def load(told: Told | None = None, **settings: Any) -> LoadedModel:
    """`load_model` by torch on one thread of the CPU; a plan of one image a batch keeps the warm-up short."""
    chosen = Settings(**({"backend": "torch", "device": "cpu", "compute_threads": 1, "max_batch_size": 1} | settings))
    return load_model(chosen, Metrics(), told or Told())


def scores_of(model: LoadedModel, images: list[Image.Image]) -> Scores:
    """What the model's engine, started and closed here, answers for RGB images prepared as the model says."""

    async def run() -> list[Scores]:
        await model.engine.start()
        try:
            deadline = time.monotonic() + 60
            batch = [np.asarray(resize_and_crop(image, model.preprocessing)) for image in images]
            scored = await asyncio.gather(*[model.engine.run(p, Want.SCORES, deadline) for p in batch])
            return [each.outputs.scores for each in scored]
        finally:
            await model.engine.close()

    return np.stack(asyncio.run(run()))


def reference_scores(network: torch.nn.Module, architecture: str, name: str, images: list[Image.Image]) -> Scores:
    """What torchvision's own module and torchvision's own preset `name` answer."""
    preset = torchvision.models.get_model_weights(architecture)[name].transforms()
    with torch.inference_mode():
        return np.asarray(network(torch.stack([preset(image) for image in images])).numpy())


def photos() -> list[Image.Image]:
    """Two that no network mistakes for each other."""
    return [photo("chelsea"), photo("coffee")]


def cpu_plan(dtype: torch.dtype | None = None, staged: bool = False) -> DevicePlan:
    """On CPU, in float32 unless told; `staged` takes the road through a slot's buffer that CUDA takes."""
    return DevicePlan(torch.device("cpu"), dtype or torch.float32, 2 if staged else 1, staged=staged)


def backend_of(network: torch.nn.Module, plan: DevicePlan | None = None) -> TorchBackend:
    """The torch backend around a copy of `network`, with ResNet-50's V1 preprocessing."""
    return TorchBackend(copy.deepcopy(network), resnet50_v1(), plan or cpu_plan())


def resnet50_v1() -> Preprocessing:
    return find_by_name("resnet50", "IMAGENET1K_V1").preprocessing


def pixels_of(images: list[Image.Image]) -> Pixels:
    """A batch of images by ResNet-50's V1 preprocessing."""
    return np.stack([np.asarray(resize_and_crop(image, resnet50_v1())) for image in images])
