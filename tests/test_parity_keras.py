"""Keras's ResNets, saved by Keras itself in each of its three containers, answer here as they do there.

The containers and logits under tests/parity/fixtures were written by tests/parity/make_keras.py.
"""

from __future__ import annotations

import lzma
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from app.checkpoints import Contents, decide_all, read_checkpoint
from app.errors import CheckpointError
from app.layers import ResNetSwitches
from app.networks import build_network, count_classes
from app.networks.build import describe_fitted, module_of
from app.networks.description import Description, Step
from app.settings import Settings
from tests.lazy import torch
from tests.parity.patterns import FIXTURES, inputs

CONTAINERS = (".h5", ".weights.h5", ".keras")
SWITCHES = {
    "keras": ResNetSwitches(stride_in="1x1", epsilon=1.001e-5),
    "keras-old": ResNetSwitches(stride_in="1x1", pool="valid", epsilon=1e-3),
}


@dataclass
class Saved:
    """One network's three files, and what Keras answers."""

    name: str
    folder: Path
    _contents: dict[str, Contents] = field(default_factory=dict)

    def path(self, suffix: str) -> Path:
        return self.folder / f"{self.name}{suffix}"

    @property
    def logits(self) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = np.load(FIXTURES / self.name / "logits.npy")
        return logits

    @property
    def contents(self) -> Contents:
        """Of the weights-only file, for tests that read no other."""
        return self.read(".weights.h5")

    def read(self, suffix: str) -> Contents:
        if suffix not in self._contents:
            self._contents[suffix] = read_checkpoint(self.path(suffix))
        return self._contents[suffix]


@pytest.fixture(scope="module", params=["keras", "keras-old", "keras-v2"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    """Each network in turn, so that only one's 300 MB lie there at a time."""
    folder = tmp_path_factory.mktemp("keras")
    with (
        lzma.open(FIXTURES / request.param / "containers.tar.xz") as packed,
        tarfile.open(fileobj=packed, mode="r|") as archive,
    ):
        archive.extractall(folder, filter="data")
    yield Saved(request.param, folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(inputs().transpose(0, 3, 1, 2)))


def distance(network: torch.nn.Module, photos: torch.Tensor, logits: NDArray[np.float32]) -> float:
    """The largest difference to `logits`, of as many photos as are given."""
    with torch.inference_mode():
        scores = network.eval()(photos).numpy()
    return float(np.abs(scores - logits[: len(photos)]).max())


def build(contents: Contents, switches: ResNetSwitches | None = None) -> torch.nn.Module:
    """With what the checkpoint tells, or with other switches."""
    decisions = decide_all(Settings(), contents)
    is_v1 = decisions.architecture.value == "resnet50"
    return build_network(
        decisions.architecture.value, contents.weights, (switches or decisions.switches) if is_v1 else None
    )


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_model_saved_by_keras_answers_as_keras_does(saved: Saved, photos: torch.Tensor, suffix: str) -> None:
    """Each container of each network gives Keras's own logits within 1e-4, by what the file tells and no setting."""
    contents = saved.read(suffix)
    assert distance(build(contents), photos, saved.logits) < 1e-4


def _padded_with_nothing(step: Step) -> Step:
    return replace(step, zeros=None, operation=replace(step.layer, padding=(1, 1))) if step.name == "pool" else step


def _strided_at_the_start(step: Step) -> Step:
    stage, _, rest = step.name.removeprefix("layer").partition(".")
    block, _, leaf = rest.partition(".")
    if stage not in ("1", "2", "3") or leaf not in ("spatial", "shortcut", "skip"):
        return step
    stride = (2, 2) if block == "0" else (1, 1)
    return replace(step, operation=replace(step.layer, stride=stride))


def _with_another_epsilon(step: Step) -> Step:
    return replace(step, operation=replace(step.layer, value=1e-3)) if step.kind == "batch_norm" else step


def test_each_switch_that_is_set_wrong_shows(saved: Saved, photos: torch.Tensor) -> None:
    """A wrong stride, stem, pool or epsilon moves the logits well beyond the tolerance: agreement is no accident."""
    wrong: dict[str, torch.nn.Module] = {}
    if saved.name == "keras-v2":
        spoilers: list[Callable[[Step], Step]] = [_padded_with_nothing, _strided_at_the_start, _with_another_epsilon]
        weights = saved.contents.weights
        right_steps = describe_fitted("resnet50v2", weights).steps
        for spoil in spoilers:
            spoiled = Description(tuple(map(spoil, right_steps)))
            assert spoiled.steps != right_steps
            wrong[spoil.__name__] = module_of(spoiled, weights).eval()
    else:
        right = SWITCHES[saved.name]
        assert decide_all(Settings(), saved.contents).switches == right
        changes: list[dict[str, Any]] = [
            {"stride_in": "3x3"},
            {"stem": "same"},
            *({"pool": pool} for pool in ("symmetric", "ceil", "valid") if pool != right.pool),
            {"epsilon": 1e-5 if right.epsilon == 1e-3 else 1e-3},
        ]
        for change in changes:
            wrong[str(change)] = build(saved.contents, replace(right, **change))
    distances = {name: distance(network, photos[:1], saved.logits) for name, network in wrong.items()}
    assert min(distances.values()) > 1e-3, distances


def test_a_file_without_layer_names_is_read_by_their_order(saved: Saved) -> None:
    """With the names that current Keras adds taken out, as older Keras 3 wrote it, the order of layers suffices."""
    bare = saved.path("-bare.weights.h5")
    shutil.copyfile(saved.path(".weights.h5"), bare)
    with h5py.File(bare, "r+") as file:
        file.visititems(lambda _, entry: entry.attrs.pop("name", None) and None)
    found = read_checkpoint(bare)
    bare.unlink()
    assert found.family == saved.contents.family
    assert found.weights.keys() == saved.contents.weights.keys()
    assert all(np.array_equal(found.weights[key], saved.contents.weights[key]) for key in found.weights)


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_what_a_whole_model_tells_is_taken_from_its_config(saved: Saved, suffix: str) -> None:
    """Strides, padding, epsilon and the softmax come from the configuration where a file has one, and say so."""
    contents = saved.read(suffix)
    decisions = decide_all(Settings(), contents)
    has_config = suffix != ".weights.h5"
    assert decisions.activation.value == "softmax"
    source = "the file's config" if has_config else "the family's way"
    if saved.name == "keras-v2":
        assert (decisions.architecture.value, decisions.epsilon.source) == ("resnet50v2", source)
        return
    assert decisions.switches == SWITCHES[saved.name]
    told = (decisions.stride_in, decisions.stem, decisions.pool, decisions.epsilon)
    assert {decision.source for decision in told} == {source}
    assert decisions.pool.is_assumed is (saved.name == "keras-old" and not has_config)


def test_a_bias_that_does_not_number_the_classes_is_refused(saved: Saved) -> None:
    """A classifier whose bias has another length than its classes is named, with both shapes, in one line."""
    wrong = saved.path("-wrong.weights.h5")
    shutil.copyfile(saved.path(".weights.h5"), wrong)
    with h5py.File(wrong, "r+") as file:
        del file["layers/dense/vars/1"]
        file["layers/dense/vars/1"] = np.zeros(999, np.float32)
    contents = read_checkpoint(wrong)
    wrong.unlink()
    with pytest.raises(CheckpointError, match=r"fc.bias is 999 where 1000 was expected") as caught:
        count_classes(decide_all(Settings(), contents).architecture.value, contents.weights)
    assert "\n" not in str(caught.value)
