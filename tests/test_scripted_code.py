"""What a script's and a graph's own code does to input and output is read, or the file is refused by the operation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.checkpoints.script_interpreter import Interpreter, Module
from app.checkpoints.script_source import Code
from app.checkpoints.symbolic_values import Unread
from app.checkpoints.torch_operations import Operations
from app.errors import CheckpointError
from tests import torch_made as made
from tests.lazy import Lazy, functional, nn, torch, torchvision
from tests.torch_made import PARITY

# torch itself deprecates TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore")

Forward = Callable[[Any, Any], Any]
own_modules = Lazy("tests.own_modules")
MEAN, STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return made.thin()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """From 0 to 1, as `ToTensor` gives them."""
    photo = made.photos()[:1, :, :96, :96].contiguous()
    return (photo - photo.min()) / (photo.max() - photo.min())


def save(network: nn.Module, forward: Forward, image: torch.Tensor, path: Path) -> torch.Tensor:
    """Trace the class; returns what it answers for the image."""
    own = own_modules.Around(network, forward).eval()
    torch.jit.trace(own, image, strict=False, check_trace=False).save(str(path))
    with torch.inference_mode():
        answer = own(image)
    return answer[0] if isinstance(answer, tuple) else answer


def served(path: Path, pixels: torch.Tensor, **settings: Any) -> np.ndarray:
    """What is served for an image of `pixels`, its resize and crop left out."""
    examined = made.opened_thin(path, **settings)
    preprocessing = examined.decisions.preprocessing.value
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    image = ((pixels.flip(1) if preprocessing.is_bgr else pixels) - mean) / std
    scores = torch.from_numpy(examined.logits(image.float()))
    activation = examined.decisions.activation.value
    return {"softmax": scores.softmax(1), "sigmoid": scores.sigmoid(), "none": scores}[activation].numpy()


FOLLOWED: dict[str, tuple[Forward, float]] = {
    "buffers": (lambda own, x: functional.softmax(own.net((x - own.mean) / own.std), dim=-1), 1),
    "levels, in place": (
        lambda own, x: torch.sigmoid(own.net(x.clone().div_(255.0).sub_(own.mean).div_(own.std))),
        255,
    ),
    "constants": (lambda own, x: (own.net((x / 127.5) - 1).sigmoid(),), 255),
    "blue first": (
        lambda own, x: own.net(x[:, [2, 1, 0]] - torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)).softmax(1),
        255,
    ),
    "torchvision's normalize": (
        lambda own, x: own.net(torchvision.transforms.Normalize(MEAN, STD)(x)).softmax(dim=1),
        1,
    ),
}


@pytest.mark.parametrize("name", sorted(FOLLOWED))
def test_a_classs_own_forward_is_followed(name: str, network: nn.Module, pixels: torch.Tensor, tmp_path: Path) -> None:
    """Normalisation before the network and the activation behind it become decisions, and the answer is torch's own."""
    forward, scale = FOLLOWED[name]
    own = save(network, forward, pixels * scale, tmp_path / "m.pt")
    assert made.distance(served(tmp_path / "m.pt", pixels), own.numpy()) <= PARITY
    examined = made.opened_thin(tmp_path / "m.pt")
    assert examined.decisions.preprocessing.source.startswith("the file's TorchScript, which takes images from 0 to")
    assert not [warning for warning in examined.contents.warnings if "own code" in warning]


def test_a_change_of_an_unknown_input_needs_the_setting(
    network: nn.Module, pixels: torch.Tensor, tmp_path: Path
) -> None:
    """Where the input that a forward changes is not to be seen, the setting says it, and the change comes behind."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
    forward: Forward = lambda own, x: torch.sigmoid(own.net((x * 2 - 1) / 0.5))  # noqa: E731
    own = save(network, forward, (pixels - mean) / std, tmp_path / "m.pt")
    with pytest.raises(
        CheckpointError, match=r"TorchScript changes its input before the network \(input × 4/4/4 \+ -2"
    ):
        made.opened_thin(tmp_path / "m.pt")
    answer = served(tmp_path / "m.pt", pixels, preprocessing="torchvision-v1")
    assert made.distance(answer, own.numpy()) <= PARITY


def body(own: Any, x: torch.Tensor) -> torch.Tensor:
    net = own.net
    x = functional.max_pool2d(functional.relu(net.bn1(net.conv1(x))), 3, 2, 1)
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))


def test_a_forward_without_the_modules_own_is_followed(
    network: nn.Module, pixels: torch.Tensor, tmp_path: Path
) -> None:
    """Functions in the place of modules are the same layers: pool, activation, mean over the points, view."""
    forward: Forward = lambda own, x: own.net.fc(body(own, x).mean([2, 3]).view(x.size(0), -1)).sigmoid()  # noqa: E731
    own = save(network, forward, pixels, tmp_path / "m.pt")
    examined = made.opened_thin(tmp_path / "m.pt", preprocessing="torchvision-v1")
    answer = torch.from_numpy(examined.logits(pixels)).sigmoid()
    assert made.distance(answer.numpy(), own.numpy()) <= PARITY
    assert examined.decisions.altered.value == ()


REFUSED: dict[str, tuple[Forward, str]] = {
    "a resize": (lambda own, x: own.net(functional.interpolate(x, size=(64, 64))), "upsample_nearest2d before the net"),
    "a temperature": (lambda own, x: own.net(x) / 2.5, "torch.div where the classifier was expected"),
    "two views": (lambda own, x: own.net(x) + own.net(x.flip(3)), "torch.add where the classifier was expected"),
    "two outputs": (lambda own, x: (own.net(x), x), "an output of 2 tensors"),
    "an inversion": (lambda own, x: own.net(1 - x), "turns it over"),
    "a scale between": (
        lambda own, x: own.net.fc(own.net.avgpool(body(own, x) * 2).flatten(1)),
        "torch.mul where the sum of layer4.2",
    ),
    "a block left out": (
        lambda own, x: own.net.fc(own.net.layer4[:2](own.net.layer3(own.net.layer2(own.net.layer1(
            own.net.maxpool(own.net.relu(own.net.bn1(own.net.conv1(x))))
        )))).mean([2, 3])),
        "where layer4.2.bn3 was expected",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_other_operations_are_refused_by_name(name: str, tmp_path: Path) -> None:
    """An operation that a ResNet-50 does not have in its way is named, and ONNX is the way out."""
    forward, expected = REFUSED[name]
    save(made.thin(), forward, torch.zeros(1, 3, 32, 32), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=expected) as refusal:
        made.opened_thin(tmp_path / "m.pt")
    assert "Export the model to ONNX" in str(refusal.value)


def test_a_trace_of_a_network_in_training_is_refused(tmp_path: Path) -> None:
    """A trace with the batch's own statistics in it is refused with the call that was forgotten."""
    images = torch.zeros(2, 3, 64, 64)
    torch.jit.trace(made.thin().train(), images, check_trace=False).save(str(tmp_path / "m.pt"))
    with pytest.raises(CheckpointError, match=r"in training mode, .* \(call model\.eval\(\) before\)"):
        made.opened_thin(tmp_path / "m.pt")


def test_a_graph_of_a_classs_own_forward_is_followed(network: nn.Module, pixels: torch.Tensor, tmp_path: Path) -> None:
    """torch.export's graphs are followed in the same way, their constants and buffers too."""
    own = own_modules.Around(
        network, lambda own, x: torch.softmax(own.net((x.flip(1) * 1.0 - own.mean) / own.std), 1)
    ).eval()
    torch.export.save(torch.export.export(own, (pixels.repeat(2, 1, 1, 1),)), tmp_path / "m.pt2")
    with torch.inference_mode():
        answer = own(pixels)
    assert made.distance(served(tmp_path / "m.pt2", pixels), answer.numpy()) <= PARITY


def follow(text: str) -> Any:
    code = Code(lambda module: text.encode())
    return Interpreter(code, (), Operations(lambda name: None)).output_of(Module("", "__torch__.M", {}))


def forward(*lines: str) -> str:
    return "class M(Module):\n  def forward(self, x):\n" + "".join(f"    {line}\n" for line in lines)


HOSTILE = {
    "itself": forward("return (self).forward(x, )"),
    "twice itself": forward("y = (self).other(x, )", "return y")
    + "".join(f"  def other{n or ''}(self, x):\n    y = (self).other{n + 1}(x, )\n    return (self).other{n + 1}(y, )\n"
              for n in range(40)),
    "a loop": forward("for i in range(1000000000):", "  x = torch.relu(x)", "return x"),
    "while": forward("while True:", "  pass", "return x"),
    "deep parentheses": forward("return " + "(" * 90_000 + "x" + ")" * 90_000),
    "deep minus": forward("return " + "-" * 200_000 + "1"),
    "deep attributes": forward("return x" + ".a" * 100_000),
    "f-strings": forward("return f'" + "{x}" * 60_000 + "'"),
    "many statements": forward("x = x; " * 30_000),
    "many lines": forward(*["x"] * 60_000),
    "too long": forward("return [" + "1, " * 200_000 + "]"),
    "an import": "import os\nos.system('touch marker')\n" + forward("return __import__('os').system('touch marker')"),
    "no code": "",
    "no text": "\0",
    "an error": forward("ops.prim.RaiseException('no')"),
    "a power": forward("return torch.mul(9 ** 9 ** 9 ** 9, x)"),
    "a huge text": forward("return torch.mul('a', 1000000000000)"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_code_is_refused_in_no_time(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code made to run, to hang or to fill memory ends in `Unread`, or in a value that is no network."""
    monkeypatch.chdir(tmp_path)
    try:
        assert not hasattr(follow(HOSTILE[name]), "layer")
    except Unread as unread:
        assert "\n" not in str(unread)  # noqa: PT017 - one of two right ends
    assert not (tmp_path / "marker").exists()
