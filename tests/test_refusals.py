"""Checkpoints that are taken for a ResNet-50's are refused in one line that says what they are and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.checkpoints import locate, read_checkpoint
from app.errors import CheckpointError
from app.networks import count_classes
from tests import torch_made as made
from tests.lazy import torch, torchvision

Shapes = dict[str, np.ndarray]


def shaped(network: torch.nn.Module) -> Shapes:
    """Zeros in the shapes of a network's entries, taking no memory."""
    return {
        name: np.broadcast_to(np.float32(0), tuple(tensor.shape))
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def torchvisions(architecture: str) -> Shapes:
    with torch.device("meta"):
        return shaped(torchvision.models.get_model(architecture, weights=None))


def timms(architecture: str) -> Shapes:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        return shaped(timm.create_model(architecture))


def resnet50(**changed: tuple[int, ...] | None) -> Shapes:
    shapes = torchvisions("resnet50")
    for name, shape in changed.items():
        del shapes[name.replace("__", ".")]
        if shape is not None:
            shapes[name.replace("__", ".")] = np.zeros(shape, np.float32)
    return shapes


def fastai() -> Shapes:
    """A learner's model: the body in 0, the head in 1 (fastai/vision/learner.py)."""
    places = {"conv1": "0.0", "bn1": "0.1", "layer1": "0.4", "layer2": "0.5", "layer3": "0.6", "layer4": "0.7"}
    body = {
        name.replace(name.split(".")[0], places[name.split(".")[0]], 1): values
        for name, values in torchvisions("resnet50").items()
        if not name.startswith("fc.")
    }
    return {**body, "1.4.weight": np.zeros((512, 4096)), "1.8.weight": np.zeros((10, 512))}


def projector() -> Shapes:
    shapes = resnet50(fc__weight=None, fc__bias=None)
    return {**shapes, "projector.0.weight": np.zeros((2048, 2048)), "projector.2.weight": np.zeros((128, 2048))}


def unchained() -> Shapes:
    """A head that the pooled features do not fit."""
    return {**resnet50(fc__weight=None, fc__bias=None), "head.0.weight": np.zeros((64, 4096))}


CASES: dict[str, tuple[Any, str]] = {
    "resnext50": (lambda: torchvisions("resnext50_32x4d"), "It is a ResNeXt or a wide ResNet: name it with"),
    "wide resnet50": (lambda: torchvisions("wide_resnet50_2"), "It is a ResNeXt or a wide ResNet: name it with"),
    "resnet18": (lambda: torchvisions("resnet18"), "two convolutions a block: name it with --architecture resnet18"),
    "resnet34": (lambda: torchvisions("resnet34"), "two convolutions a block"),
    "resnet101": (lambda: torchvisions("resnet101"), "It is a deeper ResNet: name it with --architecture resnet101"),
    "resnet152": (lambda: torchvisions("resnet152"), "It is a deeper ResNet"),
    "SE": (lambda: timms("seresnet50"), "It has squeeze-and-excitation or attention"),
    "GroupNorm": (lambda: timms("resnet50_gn"), "It has no running_mean"),
    "BiT": (lambda: timms("resnetv2_50x1_bit"), "It has no running_mean"),
    "backbone": (lambda: resnet50(fc__weight=None, fc__bias=None), "It is a backbone without a classifier"),
    "projector": (projector, "It ends in a projector of self-supervised training"),
    "other head": (unchained, "Its dense layers do not lead from a ResNet-50's 2048 features to classes"),
    "narrow head": (lambda: resnet50(fc__weight=(1000, 512)), "does not take a ResNet-50's 2048 features"),
    "head of rank 4": (lambda: resnet50(fc__weight=(1000, 2048, 1, 1)), "does not take a ResNet-50's 2048 features"),
    "fastai": (fastai, "It is fastai's, whose head is no ResNet-50's"),
    "deep stem": (lambda: {"conv1.0.weight": np.zeros((16, 3, 3, 3))}, "Its deep stem is none of timm's"),
    "something else": (lambda: {"a": np.zeros(1)}, "If it is of another network, name that with --architecture"),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_each_other_network_is_refused_by_its_own_line(name: str) -> None:
    """What is no ResNet-50 is refused by what it is, where it differs, and what to do."""
    weights, expected = CASES[name]
    with pytest.raises(CheckpointError) as refusal:
        count_classes("resnet50", weights())
    line = str(refusal.value)
    assert line.startswith("The checkpoint does not fit resnet50: ")
    assert expected in line
    assert "--architecture" in line or name == "fastai"
    assert "\n" not in line
    assert line.endswith(".")


def test_the_lines_are_all_different() -> None:
    """Each kind has its own advice: the eleven of them are eleven sentences."""
    assert len({expected.split(":")[0] for _, expected in CASES.values()}) >= 11


@pytest.mark.parametrize("scope", ["module.encoder_q.", "base_encoder."])
def test_a_self_supervised_networks_projector_is_no_classifier(scope: str, tmp_path: Path) -> None:
    """MoCo's projector has a classifier's names (`fc.0`, `fc.2`): its scope says what it is."""
    state = {"layer4.2.conv3.weight": (4, 4), "fc.0.weight": (8, 2048), "fc.2.weight": (4, 8)}
    torch.save({f"{scope}{name}": torch.zeros(shape) for name, shape in state.items()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"under '{scope[:-1]}', as self-supervised .* are a projector"):
        read_checkpoint(tmp_path / "w.pth")


def test_a_deeper_deep_stem_is_refused_as_deeper(tmp_path: Path) -> None:
    """A resnet101d, whose stem is a resnet50d's, is refused as the deeper network that it is."""
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("resnet101d").state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"does not fit resnet50d: .* It is a deeper ResNet"):
        made.opened(tmp_path / "w.pth")


def caffe(first_field: bytes) -> bytes:
    """The beginning of a NetParameter: its name, then a layer."""
    return b"\x0a\x09ResNet-50" + first_field + b"\x04data" + bytes(200)


@pytest.mark.parametrize("content", [caffe(b"\xa2\x06"), caffe(b"\x12")], ids=["layer", "old layers"])
def test_a_caffe_model_is_refused(content: bytes, tmp_path: Path) -> None:
    """A .caffemodel is known by its first bytes, whatever its name."""
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is a Caffe model \(\.caffemodel\), which is not read\. Convert it"):
        read_checkpoint(tmp_path / "weights")


@pytest.mark.parametrize("content", [b"\n# ResNet-50\nnotes", b"\n", b"\n\x05ab"])
def test_text_is_no_caffe_model(content: bytes, tmp_path: Path) -> None:
    """A text that begins with an empty line is no Caffe model."""
    (tmp_path / "notes").write_bytes(content)
    with pytest.raises(CheckpointError, match="is no checkpoint that can be read here"):
        read_checkpoint(tmp_path / "notes")


@pytest.mark.filterwarnings("ignore")
def test_a_sharded_checkpoint_names_torchs_converter(tmp_path: Path) -> None:
    """A folder of torch.distributed.checkpoint, and one of its shards, are refused with torch's own converter."""
    import torch.distributed.checkpoint as dcp

    folder = tmp_path / "sharded"
    dcp.save({"model": {"fc.weight": torch.ones(2, 2)}}, checkpoint_id=folder, no_dist=True)
    shard = next(folder.glob("*.distcp"))
    for refused in (lambda: read_checkpoint(folder), lambda: locate(str(folder)), lambda: read_checkpoint(shard)):
        with pytest.raises(CheckpointError, match=r"torch\.distributed\.checkpoint\.format_utils dcp_to_torch"):
            refused()


def test_a_pointer_of_git_lfs_is_refused(tmp_path: Path) -> None:
    """A file that Git LFS has not fetched is refused with the command that fetches it."""
    (tmp_path / "w.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read_checkpoint(tmp_path / "w.pth")
