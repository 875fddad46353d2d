"""Files that would hang a reader or fill its memory are refused before they can, whatever place they stand in."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import socket
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from app.checkpoints import depends_on, locate, read_checkpoint
from app.errors import CheckpointError, LabelsError, SettingError, StartError
from app.files import NotRegularError, TooLargeError, open_regular, read_bounded
from app.labels import choose_labels, labels_beside, read_labels
from app.settings import Settings
from tests.examined import examine
from tests.test_directories import CONVNEXT, RESNET, write

MEGABYTE = 1 << 20


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    """A socket, bound from its folder: its whole path would be too long for one."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


KINDS: list[tuple[Callable[[Path], None], str]] = [(pipe, "a pipe"), (endless, "a device"), (listening, "a socket")]
kinds = pytest.mark.parametrize(("make", "what"), KINDS, ids=[what for _, what in KINDS])


@kinds
def test_a_checkpoint_that_is_no_regular_file_is_refused(
    make: Callable[[Path], None], what: str, tmp_path: Path
) -> None:
    """A pipe, a device or a socket in a checkpoint's place is refused at once, by what it is."""
    make(tmp_path / "w.pth")
    for path in (tmp_path / "w.pth", tmp_path):
        found = locate(str(path))
        with pytest.raises(CheckpointError, match=f"it is {what} and no regular file"):
            read_checkpoint(found.path)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_pipe_in_a_checkpoints_folder_is_refused(name: str, tmp_path: Path) -> None:
    """Each file of a folder that is read is a regular one."""
    folder = write(tmp_path / "pets", RESNET, CONVNEXT)
    (folder / name).unlink()
    pipe(folder / name)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: it is a pipe and no regular file"):
        read_checkpoint(folder)


@kinds
def test_a_label_file_that_is_no_regular_file_is_refused(
    make: Callable[[Path], None], what: str, tmp_path: Path
) -> None:
    """Labels are read from regular files, beside the weights or named by the setting."""
    make(tmp_path / "labels.txt")
    with pytest.raises(LabelsError, match=f"it is {what} and no regular file"):
        choose_labels(2, labels_beside(tmp_path))


def test_data_files_are_regular(tmp_path: Path) -> None:
    """The numbers of a TensorFlow checkpoint and the files that an index names are looked at before they are read."""
    (tmp_path / "m.index").write_bytes(bytes(100) + bytes.fromhex("57fb808b247547db"))
    pipe(tmp_path / "m.data-00000-of-00001")
    with pytest.raises(CheckpointError, match=r"m\.data-00000-of-00001: it is a pipe"):
        read_checkpoint(tmp_path / "m.index")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "a.safetensors"}}', encoding="ascii")
    pipe(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: it is a pipe"):
        read_checkpoint(index)


def test_a_file_that_claims_a_terabyte_is_not_read(tmp_path: Path) -> None:
    """A sparse file over the limit is refused before its digest, which would take an hour; so is a label file."""
    (tmp_path / "w.pth").write_bytes(b"PK\x03\x04")
    os.truncate(tmp_path / "w.pth", 1 << 40)
    for read in (read_checkpoint, depends_on):
        with pytest.raises(CheckpointError, match="1,099,511,627,776 bytes, and at most"):
            read(tmp_path / "w.pth")
    save_file({"fc.weight": np.ones((2, 2), np.float32)}, tmp_path / "w.safetensors")
    (tmp_path / "labels.txt").touch()
    os.truncate(tmp_path / "labels.txt", 1 << 40)
    assert (str(tmp_path / "labels.txt"), "too large") in depends_on(tmp_path / "w.safetensors")
    with pytest.raises(LabelsError, match="has over 4,194,304 bytes"):
        choose_labels(2, labels_beside(tmp_path))


def test_opening_tells_kinds_apart(tmp_path: Path) -> None:
    """`open_regular` opens a file, refuses a pipe and a folder, and `read_bounded` reads no more than its bound."""
    (tmp_path / "file").write_bytes(b"12345")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"12345"
    pipe(tmp_path / "pipe")
    with pytest.raises(NotRegularError):
        open_regular(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    assert read_bounded(tmp_path / "file", 5) == b"12345"
    with pytest.raises(TooLargeError):
        read_bounded(tmp_path / "file", 4)


@pytest.mark.parametrize("make", [write, lambda folder, *_: folder / "w.pth"], ids=["folder", "file"])
def test_control_characters_of_a_name_do_not_reach_the_terminal(make: Callable[..., Path], tmp_path: Path) -> None:
    """A path with a line's end and a terminal's command in it is shown escaped, on one line."""
    folder = tmp_path / "a\n\x1b[31mred\u202e\udcff"
    folder.mkdir()
    path = make(folder, RESNET | {"model_type": "vit\x1b[0m\n"}, CONVNEXT)
    if not path.exists():
        path.write_bytes(b"nothing\x1b[1m known")
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(path)
    line = str(refusal.value)
    assert line.isprintable()
    assert "a\\n\\x1b[31mred\\u202e\\udcff" in line


def test_every_start_error_is_printable() -> None:
    """What a person is told has no control characters; only several wrong settings stand on lines of their own."""
    assert str(CheckpointError("a\nb\x1b[0m\t…×")) == "a\\nb\\x1b[0m\\t…×"
    assert str(LabelsError("a\r")) == "a\\r"
    assert str(StartError("a\x00")) == "a\\x00"
    assert str(SettingError("one\ntwo\x07")) == "one\ntwo\\x07"


def test_warnings_and_notes_are_printable(tmp_path: Path) -> None:
    """A name in a warning is escaped as in an error."""
    from torchvision.models import squeezenet1_1

    path = tmp_path / "a\x1b[31m.pth"
    torch.save(squeezenet1_1(num_classes=2).state_dict(), path)
    examined = examine(Settings(architecture="squeezenet1_1"), path)
    assert any("a\\x1b[31m.pth" in warning for warning in examined.warnings)
    assert all(line.isprintable() for line in (*examined.warnings, *examined.notes))


def spent(path: Path) -> tuple[float, float, str]:
    """Seconds and megabytes that a refusal takes, and its line."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(path)
    seconds = time.monotonic() - began
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"model_type": "resnet", "a": [' + "{}," * 5_000_000 + "1]}",
        '{"model_type": "resnet", "depths": [' + "{}," * 1_300_000 + "1]}",
        '{"a": ' * 600_000,
        '{"model_type": "resnet", "depths": 1' + "0" * 4_000_000 + "}",
        '{"model_type": "' + "x" * 4_000_000 + '"}',
        "[" * 4_000_000,
    ],
    ids=["15 MB of objects", "4 MB of objects", "deep", "a long number", "a long text", "brackets"],
)
def test_a_hostile_config_is_refused_soon(text: str, tmp_path: Path) -> None:
    """Whatever config.json holds, it is refused in seconds and within 200 MB, in a short line."""
    folder = write(tmp_path, RESNET | {"depths": [1]})
    (folder / "config.json").write_text(text, encoding="ascii")
    seconds, megabytes, line = spent(folder)
    assert seconds < 10
    assert megabytes < 200
    assert len(line) < 1000


def safetensors(path: Path, header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(content) if length is None else length).to_bytes(8, "little") + content + data)
    return path


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


DAMAGED: dict[str, tuple[bytes | dict[str, Any], bytes, str]] = {
    "a million tensors": (
        b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[],"data_offsets":[0,0]}' % n for n in range(1_000_000)) + b"}",
        b"",
        "has a header of",
    ),
    "many tensors": ({f"t{number}": entry(0, 0) for number in range(2001)}, b"", "has 2,001 tensors, and at most"),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "share bytes with those of b"),
    "the same bytes": ({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8), "share bytes"),
    "a gap": ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), "have a gap before those of b"),
    "outside": ({"a": entry(0, 1 << 40)}, bytes(12), "it ends early"),
    "backwards": ({"a": entry(8, 0, [2])}, bytes(12), "does not have the bytes that its shape needs"),
    "below zero": ({"a": entry(-4, 0)}, bytes(12), "has no shape or place of a tensor"),
    "a shape too large": ({"a": entry(0, 8, [1 << 40])}, bytes(8), "does not have the bytes"),
    "a shape that overflows": ({"a": entry(0, 8, [1 << 62, 1 << 62])}, bytes(8), "does not have the bytes"),
    "a million dimensions": ({"a": entry(0, 4, [1] * 1_000_000)}, bytes(4), "has no shape or place of a tensor"),
    "a fraction": ({"a": entry(0, 4, [1.0])}, bytes(4), "has no shape or place of a tensor"),
    "true": ({"a": entry(0, 4, [True])}, bytes(4), "has no shape or place of a tensor"),
    "no entry": ({"a": 3}, b"", "lacks its type, shape or place"),
    "float8": ({"a": entry(0, 4, [4], "F8_E4M3")}, bytes(4), "is of a number format that does not fit (F8_E4M3)"),
    "complex": ({"a": entry(0, 8, [1], "C64")}, bytes(8), "is of a number format that does not fit (C64)"),
    "more bytes": ({"a": entry(0, 4)}, bytes(8), "4 bytes at its end are of no tensor"),
    "a name twice": (b'{"a":' + json.dumps(entry(0, 0)).encode() + b',"a":3}', b"", "its header has 'a' twice"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "__metadata__ is no map of texts"),
    "no JSON": (b"{nothing}", b"", "its header is no JSON"),
    "written by MLX": ({"__metadata__": {"format": "mlx"}, "a": entry(0, 4)}, bytes(4), "was written by mlx"),
    "written by Flax": ({"__metadata__": {"format": "flax"}, "a": entry(0, 4)}, bytes(4), "was written by flax"),
}


@pytest.mark.parametrize("name", sorted(DAMAGED))
def test_a_hostile_safetensors_file_is_refused_before_it_is_read(name: str, tmp_path: Path) -> None:
    """A header that claims too much, or what does not fit, costs a second and twice its own size at most."""
    header, data, part = DAMAGED[name]
    path = safetensors(tmp_path / "w", header, data)
    seconds, megabytes, line = spent(path)
    assert part in line
    assert "\n" not in line
    assert seconds < 5
    assert megabytes < 2 * path.stat().st_size / MEGABYTE + 200


def test_a_header_that_claims_more_than_the_file_ends_early(tmp_path: Path) -> None:
    """A length of 100 MB before a few bytes is an end that came too early."""
    path = safetensors(tmp_path / "w", b"{}", length=99_000_000)
    assert "it ends early" in spent(path)[2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_each_float_is_read_as_the_package_reads_it(dtype: torch.dtype, tmp_path: Path) -> None:
    """Halves, bfloat16 and doubles become float32 as torch converts them; integers stay."""
    from safetensors.torch import save_file as save_torch

    values = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensors = {"fc.weight": values, "fc.bias": torch.zeros(64, dtype=dtype), "b.total": torch.tensor([7])}
    save_torch(tensors, tmp_path / "w", {"format": "pt"})
    weights = read_checkpoint(tmp_path / "w").weights
    assert weights["fc.weight"].dtype == np.float32
    assert np.array_equal(weights["fc.weight"], values.float().numpy())
    assert weights["b.total"].tolist() == [7]


def mar(path: Path, member: Callable[[zipfile.ZipFile], None], **model: Any) -> Path:
    """A TorchServe archive whose model `member` writes as model.pth."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        member(archive)
        manifest = {"model": {"modelName": "m", "serializedFile": "model.pth"} | model}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
    return path


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, empty."""
    import tempfile

    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_an_archive_that_unpacks_to_far_more_is_refused_unwritten(tmp_path: Path, temporary: Path) -> None:
    """A .mar of some hundred kilobytes that claims 300 MB writes nothing."""

    def bomb(archive: zipfile.ZipFile) -> None:
        with archive.open("model.pth", "w") as file:
            for _ in range(300):
                file.write(bytes(MEGABYTE))

    path = mar(tmp_path / "m.mar", bomb)
    seconds, megabytes, line = spent(path)
    assert "model.pth unpacks to 314,572,800 bytes, and from an archive of this size at most" in line
    assert (seconds < 5, megabytes < 100) == (True, True)
    assert not list(temporary.iterdir())


def test_an_archive_that_lies_about_its_size_is_cut(tmp_path: Path, temporary: Path) -> None:
    """A member that says it is small is unpacked no further than that, and nothing of it stays."""
    path = mar(tmp_path / "m.mar", lambda archive: archive.writestr("model.pth", bytes(100 * MEGABYTE)))
    data = bytearray(path.read_bytes())
    size = (100 * MEGABYTE).to_bytes(4, "little")
    while size in data:
        at = data.index(size)
        data[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    assert spent(path)[1] < 100
    assert not list(temporary.iterdir())


def test_an_archive_in_an_archive_is_refused(tmp_path: Path, temporary: Path) -> None:
    """A .mar that holds a .mar, perhaps itself, is not unpacked again."""
    inner = mar(tmp_path / "inner.mar", lambda archive: archive.writestr("model.pth", b"x"))
    path = mar(tmp_path / "m.mar", lambda archive: archive.write(inner, "model.pth"))
    assert "m.mar (model.pth) is an archive in an archive" in spent(path)[2]
    assert not list(temporary.iterdir())


def test_torchserves_own_handler_tells_the_preprocessing(tmp_path: Path, temporary: Path) -> None:
    """The handler image_classifier is torchvision's usual way and a softmax; programs of one's own are warned of."""
    save_file({"fc.weight": np.ones((2, 2048), np.float32)}, tmp_path / "w")
    path = mar(
        tmp_path / "m.mar", lambda archive: archive.write(tmp_path / "w", "model.pth"), handler="image_classifier"
    )
    contents = read_checkpoint(path)
    assert contents.told.preprocessing is not None
    assert contents.told.preprocessing.value.resize_short_side == 256
    assert contents.told.activation is not None
    assert contents.told.activation.value == "softmax"
    assert contents.warnings == ()
    own = mar(
        tmp_path / "own.mar",
        lambda archive: archive.write(tmp_path / "w", "model.pth"),
        handler="handler.py",
        modelFile="model.py",
    )
    handler, model = read_checkpoint(own).warnings
    assert "has a handler of its own (handler.py), which is not run" in handler
    assert "has a class of its own (model.py), which is not run" in model
    assert not list(temporary.iterdir())


def small_files(folder: Path) -> dict[str, Path]:
    """One of each file that stands in a checkpoint's folder, by its kind."""
    from tests.test_hub_folders import in_cache, shard

    tiny = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.ones(2, np.float16)}
    save_file(tiny, folder / "w.safetensors", {"format": "pt"})
    hugging_face = write(folder / "pets", RESNET | {"id2label": {"0": "cat", "1": "dog"}}, CONVNEXT)
    repository = in_cache(folder / "hub", write(folder / "made", RESNET, CONVNEXT))
    shards = shard(folder / "shards")
    archive = mar(folder / "m.mar", lambda archive: archive.write(folder / "w.safetensors", "model.pth"))
    return {
        "safetensors": folder / "w.safetensors",
        "mar": archive,
        "config": hugging_face / "config.json",
        "processor": hugging_face / "preprocessor_config.json",
        "index": shards / "model.safetensors.index.json",
        "main": repository / "refs" / "main",
    }


@pytest.mark.parametrize("name", ["safetensors", "mar", "config", "processor", "index", "main"])
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path, temporary: Path) -> None:
    """Whatever bytes of whatever file are damaged, reading ends in weights or in one line, and leaves no file."""
    file = small_files(tmp_path)[name]
    path = file if name in ("safetensors", "mar") else file.parent.parent if name == "main" else file.parent
    original = file.read_bytes()
    chance = random.Random(0)
    refused = 0
    for round_ in range(60):
        damaged = bytearray(original)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 1, 34, 44, 48, 57, 91, 123, 255))
        file.write_bytes(damaged[: chance.randrange(len(damaged))] if round_ % 6 == 0 else damaged)
        try:
            read_checkpoint(path)
        except StartError as refusal:
            refused += 1
            assert str(refusal).isprintable()  # noqa: PT017 - the refusal is one of two right ends
    assert refused > 10
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("name", ["labels.txt", "labels.json"])
def test_damaged_label_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    """Whatever stands in a label file, it is names or a refusal in one line."""
    original = b"0 cat\n1 dog\n" if name == "labels.txt" else b'{"classes": {"cat": 0, "dog": [1, "x"]}}'
    chance = random.Random(0)
    for _ in range(150):
        damaged = bytearray(original)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 10, 32, 34, 44, 48, 49, 91, 123, 255))
        (tmp_path / name).write_bytes(damaged)
        try:
            assert all(isinstance(label, str) for label in read_labels(tmp_path / name))
        except LabelsError as refusal:
            assert str(refusal).isprintable()  # noqa: PT017 - the refusal is one of two right ends
