"""inspect and convert: what a checkpoint is, and a file that leaves nothing to guess."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from app.errors import CheckpointError
from app.networks import build_network
from app.settings import Settings
from tests.examined import Examined, examine
from tests.test_command_line import run
from tests.trained import stem_statistics


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("original") / "weights.pth"
    state = torchvision.models.resnet50(num_classes=7).state_dict()
    # As after training: statistics that are not those it was made with, and a stem's that its inputs gave.
    state = {name: value + 0.001 if "running_mean" in name else value for name, value in state.items()}
    state["bn1.running_mean"], state["bn1.running_var"] = stem_statistics(state["conv1.weight"])
    torch.save(state, path)
    (path.parent / "labels.txt").write_text("\n".join("abcdefg"))
    return path


def logits(examined: Examined) -> np.ndarray:
    checkpoint = examined.checkpoint
    network = build_network(checkpoint.architecture, checkpoint.weights, checkpoint.switches).eval()
    with torch.inference_mode():
        return np.asarray(network(torch.rand((1, 3, 224, 224), generator=torch.manual_seed(1))).numpy())


def test_converting_keeps_every_decision_and_every_bit(original: Path, tmp_path: Path) -> None:
    """The converted file has the settings' decisions in it, needs no guess, and gives the same logits bit for bit."""
    flags = ("--stride-in", "1x1", "--epsilon", "0.001", "--preprocessing", "timm")
    target = tmp_path / "converted.safetensors"
    done = run("convert", str(original), str(target), *flags, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    before = examine(Settings(stride_in="1x1", epsilon=0.001, preprocessing="timm"), original)
    after = examine(Settings(), target)
    assert after.decisions.switches == before.decisions.switches
    assert after.decisions.preprocessing.value == before.decisions.preprocessing.value
    assert after.labels.value == tuple("abcdefg")
    assert after.warnings == ()
    assert (logits(after) == logits(before)).all()
    assert np.abs(logits(examine(Settings(), original)) - logits(after)).max() > 1e-3


def test_a_setting_still_goes_before_the_file(original: Path, tmp_path: Path) -> None:
    """What a converted file says can be overridden."""
    from app.checkpoints import write_converted

    target = tmp_path / "converted.safetensors"
    write_converted(examine(Settings(), original).checkpoint, target)
    chosen = examine(Settings(pool="valid"), target).decisions.pool
    assert (chosen.value, chosen.source) == ("valid", "RESNET_POOL")


def test_damaged_decisions_are_refused(tmp_path: Path) -> None:
    """Decisions that cannot be read are not ignored."""
    from safetensors.numpy import save_file

    path = tmp_path / "weights.safetensors"
    save_file({"fc.bias": np.zeros(3, np.float32)}, path, {"resnet_serve": "{}"})
    with pytest.raises(CheckpointError, match="damaged decisions"):
        examine(Settings(), path)


def test_inspect_shows_each_decision_with_its_source(original: Path, tmp_path: Path) -> None:
    """inspect prints a table for a person and JSON for a program: decisions, sources, assumptions, warnings."""
    shown = run("inspect", str(original), "--stem", "same", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for part in ("torch zip", "torchvision", "23,522,375", "RESNET_STEM", "labels.txt"):
        assert part in shown.stdout
    assert "assuming IMAGENET1K_V1's way" in shown.stderr
    document = json.loads(run("inspect", str(original), "--json", folder=tmp_path).stdout)
    assert document["classes"] == 7
    assert document["decisions"]["preprocessing"]["assumed"] is True
    assert document["decisions"]["stride_in"] == {
        "value": "3x3", "shown": "3x3", "source": "the usual way (v1.5)", "assumed": True
    }  # fmt: skip
    assert len(document["warnings"]) == 2


def test_inspect_refuses_in_one_line(tmp_path: Path) -> None:
    """What is no checkpoint is refused in one line with status 1."""
    (tmp_path / "text.pth").write_text("no checkpoint")
    refused = run("inspect", "text.pth", folder=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
