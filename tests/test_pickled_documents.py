"""What lies around the weights in a pickle: wrappers, class names, means, and the marks of older Pythons."""

from __future__ import annotations

import pickletools
import resource
import struct
import time
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from app.checkpoints import Contents, read_checkpoint
from app.checkpoints import zip_file as zips
from app.errors import CheckpointError
from tests import torch_made as made
from tests.checkpoints_made import named_like_resnet50, same_weights
from tests.lazy import torch, torchvision

# torch warns of what it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore")

State: TypeAlias = "dict[str, torch.Tensor]"


@pytest.fixture(scope="module")
def state() -> State:
    return named_like_resnet50()


def read(document: Any, path: Path, **options: Any) -> Contents:
    torch.save(document, path, **options)
    return read_checkpoint(path)


def shifted(state: State) -> State:
    return {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def parts(state: State) -> dict[str, State]:
    """A body and its head in mappings of their own."""
    head = {name.removeprefix("fc."): tensor for name, tensor in state.items() if name.startswith("fc.")}
    return {"encoder": {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}, "top": head}


def optimizer() -> dict[str, Any]:
    return {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize("new_container", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("has_objects", [False, True], ids=["plain", "with objects"])
@pytest.mark.parametrize("case", ["any key", "deep", "beside tensors", "averaged", "averages of a part", "a word"])
def test_the_one_mapping_of_tensors_is_found(
    case: str, has_objects: bool, new_container: bool, state: State, tmp_path: Path
) -> None:
    """Whatever key it lies under, with an optimizer, counters or objects beside it; averaged weights first."""
    document: dict[str, Any] = {
        "any key": {"whatever": state, "optimizer": optimizer()},
        "deep": {"epoch": 3, "a": {"b": {"c": state}}, "optim_state_dict": optimizer()},
        "beside tensors": {"best": torch.tensor(0.9), "step": torch.tensor(7), "final": state},
        "averaged": {"model": shifted(state), "model_ema": state},
        "averages of a part": {"model": state, "ema": {"fc.weight": torch.zeros(1)}},
        "a word": {"model": "resnet50", "weights": {"name": "x"}, "trained": state},
    }[case]
    if has_objects:
        document["script"] = Namespace(out=Path("out"), best=np.float64(0.5))
    contents = read(document, tmp_path / "m.pth", _use_new_zipfile_serialization=new_container)
    assert same_weights(contents.weights, state)


def test_two_mappings_are_refused_by_their_keys_unless_they_are_one(state: State, tmp_path: Path) -> None:
    """Two networks under keys that nobody lists are refused by both keys; equal ones, and parts of one, are read."""
    with pytest.raises(
        CheckpointError, match="under 'student' and under 'teacher', and which one to serve is not said"
    ):
        read({"student": state, "teacher": shifted(state)}, tmp_path / "m.pth")
    contents = read({"one": state, "two": {name: tensor.clone() for name, tensor in state.items()}}, tmp_path / "m.pth")
    assert same_weights(contents.weights, state)
    assert contents.notes[0] == "The tensors under 'two' equal those under 'one', which are read."
    network = made.thin()
    divided = read(parts(network.state_dict()), tmp_path / "m.pth").weights
    assert divided["conv1.weight"].shape == (4, 3, 7, 7)
    with pytest.raises(CheckpointError, match="'g' and 'd', and which one to serve is not said"):
        read({"g": network, "d": torch.nn.Linear(1, 1)}, tmp_path / "m.pth")


NAMES = tuple(f"class {number}" for number in range(4))
HELD: dict[str, tuple[dict[str, Any], str]] = {
    "class_to_idx": ({"class_to_idx": {name: number for number, name in enumerate(NAMES)}}, "class_to_idx"),
    "idx_to_class": ({"idx_to_class": {number: NAMES[number] for number in (3, 1, 0, 2)}}, "idx_to_class"),
    "numpy's indices": ({"idx_to_class": {np.int64(n): np.str_(name) for n, name in enumerate(NAMES)}}, "idx_to_class"),
    "indices as texts": ({"id2label": {str(number): name for number, name in enumerate(NAMES)}}, "id2label"),
    "a tuple": ({"classes": NAMES}, "classes"),
    "an array": ({"class_names": np.array(NAMES)}, "class_names"),
    "an array of objects": ({"names": np.array(NAMES, dtype=object)}, "names"),
    "mmpretrain's": ({"meta": {"CLASSES": list(NAMES)}}, "meta.CLASSES"),
    "newer mmpretrain's": ({"meta": {"dataset_meta": {"classes": NAMES}}}, "meta.dataset_meta.classes"),
    "Lightning's": ({"hyper_parameters": {"label_names": list(NAMES)}}, "hyper_parameters.label_names"),
    "a script's arguments": ({"args": Namespace(classes=list(NAMES), names="run 1")}, "args.classes"),
}


@pytest.mark.parametrize("new_container", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", sorted(HELD))
def test_class_names_inside_are_read(name: str, new_container: bool, tmp_path: Path) -> None:
    """Lists, mappings in either direction and arrays of names, beside the weights or in what a script kept there."""
    beside, where = HELD[name]
    document = {"state_dict": {"fc.weight": torch.zeros(4, 2)}, **beside}
    labels = read(document, tmp_path / "m.pth", _use_new_zipfile_serialization=new_container).told.labels
    assert labels is not None
    assert labels.value == NAMES
    assert labels.source == f"the file's {where}"


def test_a_whole_modules_own_names_are_read(tmp_path: Path) -> None:
    """The attribute that courses set on a model is read, in a wrapper too."""
    network = torch.nn.Linear(2, 4)
    network.class_to_idx = {name: number for number, name in enumerate(NAMES)}  # type: ignore[assignment]
    for module in (network, torch.nn.DataParallel(network)):
        labels = read(module, tmp_path / "m.pth").told.labels
        assert labels is not None
        assert labels.value == NAMES


@pytest.mark.parametrize(
    "beside",
    [
        {"class_to_idx": {"a": 0, "b": 2}},
        {"classes": ["a", 1]},
        {"names": {"a": "b"}},
        {"idx_to_class": {0: "a", "0": "b"}},
        {"classes": [f"{number}" * 300 for number in range(5000)]},
        {"labels": [Namespace(a=1)]},
    ],
    ids=["a gap", "a number", "texts", "an index twice", "too long", "objects"],
)
def test_names_that_are_none_are_noted(beside: dict[str, Any], tmp_path: Path) -> None:
    """What is found under such a name and is no name for each class is not used, and that is said."""
    contents = read({"state_dict": {"fc.weight": torch.zeros(2, 2)}, **beside}, tmp_path / "m.pth")
    assert contents.told.labels is None
    key = next(iter(beside))
    assert contents.notes == (f"{key}: found in the file, and no name for each class: not used.",)


def test_a_count_or_a_word_is_no_name(tmp_path: Path) -> None:
    """`classes: 5` and `names: run` are said nothing of."""
    assert read({"state_dict": {"a": torch.zeros(1)}, "classes": 5, "names": "run"}, tmp_path / "m.pth").notes == ()


@pytest.mark.parametrize("count", [10, 9])
def test_names_of_ones_own_win_over_imagenets(count: int, tmp_path: Path) -> None:
    """Names inside are used where there is one for each class; else a warning says that they are not."""
    state = torchvision.models.resnet50(num_classes=10).state_dict()
    torch.save({"state_dict": state, "classes": [f"mine {number}" for number in range(count)]}, tmp_path / "m.pth")
    examined = made.opened(tmp_path / "m.pth")
    said = [warning for warning in examined.warnings if "names 9 classes (the file's classes) and has 10" in warning]
    assert (examined.labels.value[0], len(said)) == (("mine 0", 0) if count == 10 else ("0", 1))


@pytest.mark.parametrize(
    "beside",
    [
        lambda: {"mean": [0.4, 0.5, 0.6], "std": (0.2, 0.2, 0.3)},
        lambda: {"args": Namespace(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.2, 0.3])},
        lambda: {"mean": torch.tensor([0.4, 0.5, 0.6]), "std": torch.tensor([0.2, 0.2, 0.3]).view(3, 1, 1)},
        lambda: {"normalize": {"mean": [102.0, 127.5, 153.0], "std": [51.0, 51.0, 76.5]}},
    ],
    ids=["lists", "arguments", "tensors", "levels"],
)
def test_a_mean_beside_the_weights_is_preprocessing(
    beside: Callable[[], dict[str, Any]], state: State, tmp_path: Path
) -> None:
    """Three means and three deviations that a script kept are what the images are normalised with."""
    preprocessing = read({"state_dict": state, **beside()}, tmp_path / "m.pth").told.preprocessing
    assert preprocessing is not None
    assert preprocessing.value.mean == pytest.approx((0.4, 0.5, 0.6))
    assert preprocessing.value.std == pytest.approx((0.2, 0.2, 0.3))


def test_files_of_python_2_are_read(tmp_path: Path) -> None:
    """Texts that are bytes in latin-1, as Python 2 pickled them, name tensors and stand beside them."""
    tensors = {"fc.weight": torch.randn(3, 2), "fc.bias": torch.randn(3)}
    torch.save({"arch": "caf?", "state_dict": tensors}, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    content = bytearray((tmp_path / "m.pth").read_bytes())
    at = 0
    for _ in range(5):
        # Protocol 2's text with four bytes of length → Python 2's, which differs in its opcode alone.
        for opcode, _, position in pickletools.genops(bytes(content[at:])):
            if opcode.name == "BINUNICODE":
                content[at + position] = ord("T")
            if opcode.name == "STOP":
                at += position + 1
                break
    content = content.replace(b"caf?", "café".encode("latin-1"))
    (tmp_path / "m.pth").write_bytes(content)
    weights = read_checkpoint(tmp_path / "m.pth").weights
    assert {name: values.tolist() for name, values in weights.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


def test_a_file_of_a_big_endian_machine_is_read(tmp_path: Path) -> None:
    """Values whose bytes stand in the other order are turned."""
    values = torch.arange(6.0).reshape(2, 3)
    turned = torch.from_numpy(values.numpy().astype(">f4").view("<f4"))
    torch.save({"fc.weight": turned, "script": Namespace(a=1)}, tmp_path / "m.pth")
    with zipfile.ZipFile(tmp_path / "m.pth") as old, zipfile.ZipFile(tmp_path / "n.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    assert np.array_equal(read_checkpoint(tmp_path / "n.pth").weights["fc.weight"], values.numpy())


@pytest.mark.parametrize("new_container", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ["sparse", "quantized", "float8", "complex", "meta", "nested"])
def test_tensors_that_are_no_dense_floats_are_refused(kind: str, new_container: bool, tmp_path: Path) -> None:
    """Beside objects and alone, each is refused by its entry's name, and never left out."""
    tensor = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
        "float8": lambda: torch.ones(2).to(torch.float8_e4m3fn),
        "complex": lambda: torch.ones(2, dtype=torch.complex64),
        "meta": lambda: torch.ones(2, device="meta"),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }[kind]()
    with pytest.raises(CheckpointError, match=r"odd (?:is sparse, quantized, without data|claims shape)"):
        read(
            {"fc.weight": torch.ones(2, 2), "odd": tensor}, tmp_path / "m", _use_new_zipfile_serialization=new_container
        )


# --- hostile files


def overlapping(path: Path, count: int) -> None:
    """A state dict whose storages are all the same bytes of the file: its directory has each of them there."""
    shared = torch.zeros(1)
    torch.save({f"w{number}": shared.clone() for number in range(count)}, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        offset = next(member.header_offset for member in members if member.filename.endswith("data/0"))
    start = struct.unpack("<I", content[-6:-2])[0]
    if start == 0xFFFFFFFF:
        at = content.rfind(b"PK\x06\x06")
        start = struct.unpack("<Q", content[at + 48 : at + 56])[0]
    changed = bytearray(content)
    at = start
    while changed[at : at + 4] == b"PK\x01\x02":
        name, extra, comment = struct.unpack("<HHH", changed[at + 28 : at + 34])
        if b"/data/" in changed[at + 46 : at + 46 + name]:
            changed[at + 42 : at + 46] = struct.pack("<I", offset)
        at += 46 + name + extra + comment
    path.write_bytes(changed)


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_storages_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """A zip whose hundred storages lie on one region is refused before any of them is read."""
    overlapping(tmp_path / "m.pth", 100)
    with pytest.raises(CheckpointError, match="share bytes of the file"):
        read_checkpoint(tmp_path / "m.pth")


def test_a_member_that_reaches_into_the_next_is_refused(tmp_path: Path) -> None:
    """A local header that moves a member's bytes into its neighbour's is refused too."""
    torch.save({"a": torch.zeros(16), "b": torch.ones(16)}, tmp_path / "m.pth")
    content = bytearray((tmp_path / "m.pth").read_bytes())
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        at = archive.getinfo("m/data/0").header_offset
    length = struct.unpack("<H", content[at + 28 : at + 30])[0]
    content[at + 28 : at + 30] = struct.pack("<H", length + 64)
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="is cut off"):
        read_checkpoint(tmp_path / "m.pth")


def many_parts() -> dict[str, bytes]:
    """Pickles that are small and stand for much: shared lists of lists, and mappings of them."""
    shared = b"]" + b"".join(
        b"q" + bytes([n]) + b"]" + b"(" + (b"h" + bytes([n])) * 10 + b"e" for n in range(12)
    )  # 10**12 lists
    return {
        "lists of lists": b"\x80\x02}X\x01\x00\x00\x00a" + shared + b"s.",
        "a million texts": b"\x80\x02}X\x01\x00\x00\x00a](" + b"X\x01\x00\x00\x00b" * 1_000_000 + b"es.",
        "a million lists": b"\x80\x02}X\x01\x00\x00\x00a](" + b"]" * 1_000_000 + b"es.",
        "a long text again": b"\x80\x02}X\x01\x00\x00\x00a](X\x00\x00\x10\x00"
        + b"t" * (1 << 20)
        + b"q\x00"
        + b"h\x00" * 3000
        + b"es.",
    }


@pytest.mark.parametrize("name", sorted(many_parts()))
def test_pickles_that_stand_for_much_end_in_one_line(name: str, tmp_path: Path) -> None:
    """What a small pickle stands for is described within bounds, in bounded time and memory."""
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        archive.writestr("m/data.pkl", many_parts()[name])
        archive.writestr("m/version", b"3\n")
    before, began = peak_kilobytes(), time.process_time()
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(tmp_path / "m.pth")
    assert "\n" not in str(refusal.value)
    assert time.process_time() - began < 25
    assert peak_kilobytes() - before < 200_000


def test_a_packed_member_that_is_larger_than_it_claims_is_refused(tmp_path: Path) -> None:
    """A member is unpacked piece by piece, and no further than the directory says."""
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/code.py", bytes(50_000_000))
    content = bytearray((tmp_path / "m.zip").read_bytes())
    at = content.rfind(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 1000)
    (tmp_path / "m.zip").write_bytes(content)
    before = peak_kilobytes()
    archive = zips.open_zip(tmp_path / "m.zip")
    with pytest.raises(CheckpointError, match="has not the size that it claims"):
        archive.read("a/code.py", 1 << 20)
    assert peak_kilobytes() - before < 20_000


def test_reading_takes_no_second_copy(tmp_path: Path) -> None:
    """The arrays of a file in float32 are views of what was read, one storage at a time for other formats."""
    tensors = {f"w{number}": torch.ones(1 << 20) for number in range(24)}
    torch.save({"state_dict": tensors, "script": Namespace(a=1)}, tmp_path / "m.pth")
    size = (tmp_path / "m.pth").stat().st_size // 1024
    del tensors
    before = peak_kilobytes()
    weights = read_checkpoint(tmp_path / "m.pth").weights
    assert len(weights) == 24
    assert peak_kilobytes() - before < 2 * size + 30_000
