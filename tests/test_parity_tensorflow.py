"""The original ResNet-50 and TF-slim's, from TensorFlow's own files to TensorFlow's own logits, without TensorFlow."""

from __future__ import annotations

import dataclasses
import lzma
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.checkpoints.tensor_bundle import read_tensor_bundle
from app.errors import CheckpointError
from app.layers import ResNetSwitches
from app.networks import build_network
from app.settings import Settings
from tests.examined import Examined, examine
from tests.lazy import torch
from tests.parity.patterns import FIXTURES, inputs

NETWORKS = ("original", "slim")
TOLERANCE = 1e-4


def unpack(name: str, folder: Path) -> Path:
    """TensorFlow's checkpoint as TensorFlow wrote it; its `.index`."""
    packed = FIXTURES / name
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(
        lzma.decompress((packed / "model.ckpt.data-00000-of-00001.xz").read_bytes())
    )
    (folder / "model.ckpt.index").write_bytes((packed / "model.ckpt.index").read_bytes())
    return folder / "model.ckpt.index"


@pytest.fixture(scope="module", params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def examined(name: str, tmp_path_factory: pytest.TempPathFactory) -> Examined:
    return examine(Settings(), unpack(name, tmp_path_factory.mktemp(name)))


def logits(examined: Examined, switches: ResNetSwitches | None) -> NDArray[np.float32]:
    network = build_network("resnet50", examined.contents.weights, switches).eval()
    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy(inputs().transpose(0, 3, 1, 2).copy())).numpy())


def test_the_logits_are_tensorflows(name: str, examined: Examined) -> None:
    """On real photos the logits are TensorFlow's within 1e-4, and TensorFlow was not needed."""
    own = logits(examined, examined.decisions.switches)
    assert np.abs(own - np.load(FIXTURES / name / "logits.npy")).max() < TOLERANCE
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("switch", ["stride_in", "stem", "pool", "epsilon"])
def test_every_switch_matters(name: str, examined: Examined, switch: str) -> None:
    """With any one switch set wrong the logits are not TensorFlow's."""
    right = examined.decisions.switches
    wrong = {
        "stride_in": ["3x3"],
        "stem": [{"same": "symmetric", "symmetric": "same"}[right.stem]],
        "pool": ["symmetric", "valid"],
        "epsilon": [1e-5 if right.epsilon > 1e-4 else 1e-3],
    }
    reference = np.load(FIXTURES / name / "logits.npy")
    for value in wrong[switch]:
        other = logits(examined, dataclasses.replace(right, **{switch: value}))
        assert np.abs(other - reference).max() > 10 * TOLERANCE


def test_what_it_is_is_said(name: str, examined: Examined) -> None:
    """The container, the family and each switch's source are told."""
    assert examined.contents.container == "TensorFlow checkpoint"
    assert examined.contents.family in ("the original TensorFlow ResNet-50", "TF-slim resnet_v1_50")
    assert examined.decisions.stride_in.value == "1x1"
    assert examined.decisions.stride_in.source == "the family's way"
    assert (examined.class_count, len(examined.contents.weights)) == (1000, 267)


def test_the_original_is_found_under_a_scope_in_a_scope(tmp_path: Path) -> None:
    """Saved by TensorFlow under tower_0/he2015, the original network gives TensorFlow's logits as before."""
    data = unpack("original", tmp_path).with_name("model.ckpt.data-00000-of-00001")
    data.rename(tmp_path / "nested.ckpt.data-00000-of-00001")
    index = tmp_path / "nested.ckpt.index"
    index.write_bytes((FIXTURES / "original" / index.name).read_bytes())
    examined = examine(Settings(), index)
    assert examined.contents.family == "the original TensorFlow ResNet-50"
    own = logits(examined, examined.decisions.switches)
    assert np.abs(own - np.load(FIXTURES / "original" / "logits.npy")).max() < TOLERANCE


@pytest.mark.parametrize("weights", ["model.ckpt", "model.ckpt.index", "."])
def test_a_checkpoint_is_found_by_its_name(weights: str, tmp_path: Path) -> None:
    """The name that TensorFlow gives a checkpoint, its .index and its folder all lead to it."""
    from app.checkpoints import CheckpointFile, locate

    index = unpack("original", tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"')
    (tmp_path / "model.ckpt.meta").write_bytes(b"graph")
    assert locate(str(tmp_path / weights)) == CheckpointFile(index)


def test_damage_is_refused_in_one_line(tmp_path: Path) -> None:
    """A missing, a short and a mutated file are typed refusals of one line, or a load."""
    index = unpack("original", tmp_path)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    whole, table = data.read_bytes(), index.read_bytes()
    data.write_bytes(whole[:1000])
    refuse(index, "lies outside its data file")
    data.unlink()
    refuse(index, "has no model.ckpt.data-00000-of-00001 beside it")
    data.write_bytes(whole)
    generator = np.random.default_rng(0)
    outcomes = [outcome_of(index, mutated(table, generator)) for _ in range(300)]
    assert {"read", "refused"} == set(outcomes)


def mutated(table: bytes, generator: np.random.Generator) -> bytes:
    changed = bytearray(table)
    for position in generator.integers(0, len(changed), 3):
        changed[position] = generator.integers(0, 256)
    return bytes(changed)


def outcome_of(index: Path, table: bytes) -> str:
    """Whether a table is read or refused with one line; anything else fails the test."""
    index.write_bytes(table)
    try:
        read_tensor_bundle(index)
    except CheckpointError as refusal:
        return "refused" if "\n" not in str(refusal) else "more than one line"
    return "read"


def refuse(index: Path, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected) as refusal:
        examine(Settings(), index)
    assert "\n" not in str(refusal.value)
