"""What Keras's files may not do: each refusal is one typed line, nothing in a file runs, and no damage crashes."""

from __future__ import annotations

import base64
import json
import marshal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from app.checkpoints import hdf5, keras_config
from app.checkpoints.keras_file import read_keras_h5, read_keras_zip
from app.checkpoints.readers import read_checkpoint
from app.errors import CheckpointError
from tests.programs import put_program

KERNEL = "model_weights/conv1_conv/conv1_conv/kernel:0"
NUMBERS = np.arange(24, dtype=np.float32).reshape(1, 1, 4, 6)


def refusal(read: Callable[[Path], Any], path: Path) -> str:
    """What a file is refused with, which is one line that names it."""
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def write(path: Path, fill: Callable[[h5py.File], object]) -> Path:
    with h5py.File(path, "w") as file:
        fill(file)
    return path


def layer(kind: str, **options: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": kind.lower(), **options}}


def network(*extra: dict[str, Any]) -> dict[str, Any]:
    """A model of a few layers in a row; tests/test_keras_variants.py has whole ones."""
    layers = [
        layer("InputLayer", batch_shape=[None, 224, 224, 3]),
        layer("Conv2D", kernel_size=[7, 7], strides=[2, 2], padding="valid"),
        *extra,
    ]
    return {"class_name": "Sequential", "config": {"name": "resnet50", "layers": layers}}


def keras_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    """A `.weights.h5` of one layer."""
    path = write(tmp_path / "inner.h5", lambda file: file.create_dataset("layers/conv2d/vars/0", data=NUMBERS))
    return path.read_bytes()


# --- HDF5 that reaches outside the file, or grows beyond it


def _external_link(file: h5py.File) -> None:
    file[KERNEL] = h5py.ExternalLink("other.h5", "/secret")


def _soft_link(file: h5py.File) -> None:
    file["numbers"] = NUMBERS
    file[KERNEL] = h5py.SoftLink("/numbers")


def _external_storage(file: h5py.File) -> None:
    file.create_dataset(KERNEL, (1, 1, 4, 6), "f4", external=[("/etc/passwd", 0, 96)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((1, 1, 4, 6), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (1, 1, 4, 6))
    file.create_virtual_dataset(KERNEL, layout)


def _compressed(file: h5py.File) -> None:
    file.create_dataset(KERNEL, data=np.zeros((1, 1, 1000, 1000), np.float32), compression="gzip")


def _unwritten(file: h5py.File) -> None:
    file.create_dataset(KERNEL, (1, 1, 1 << 20, 1 << 20), "f4")


def _in_a_circle(file: h5py.File) -> None:
    file["model_weights/again"] = file.create_group("model_weights")


def _many(file: h5py.File) -> None:
    for number in range(2_001):
        file[f"layers/conv2d/vars/{number}"] = np.float32(0)


def _counted_twice(file: h5py.File) -> None:
    file["model_weights/a/kernel"] = np.zeros((1, 1, 256, 256), np.float32)
    for number in range(100):
        file[f"model_weights/b{number}/kernel"] = file["model_weights/a/kernel"]


def _integers(file: h5py.File) -> None:
    file[KERNEL] = NUMBERS.astype(np.int8)


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (_external_link, "link to elsewhere"),
        (_soft_link, "link to elsewhere"),
        (_external_storage, "another file"),
        (_virtual, "another file"),
        (_compressed, "h5repack"),
        (_unwritten, "stores fewer values"),
        (_in_a_circle, "in a circle"),
        (_many, "over 2,000 tensors"),
        (_counted_twice, "stores fewer values"),
        (_integers, "is int8"),
    ],
)
def test_hdf5_that_reaches_out_or_grows_is_refused(
    tmp_path: Path, fill: Callable[[h5py.File], object], words: str
) -> None:
    """Links, storage elsewhere, filters and tensors larger than their file are refused before anything is read."""
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = NUMBERS
    assert words in refusal(read_checkpoint, write(tmp_path / "model.h5", fill))


def test_a_file_over_the_limit_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size limit is told with the file's own size."""
    monkeypatch.setattr(hdf5, "MAX_FILE_BYTES", 100)
    path = write(tmp_path / "model.h5", lambda file: file.create_dataset(KERNEL, data=NUMBERS))
    assert "The limit for HDF5 is 100" in refusal(read_checkpoint, path)


def test_without_h5py_the_install_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """h5py is an extra: where it is missing, the error says how to install it."""
    path = write(tmp_path / "model.h5", lambda file: file.create_dataset(KERNEL, data=NUMBERS))
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install 'resnet-serve[keras]'" in refusal(read_checkpoint, path)


# --- configurations


def _lambda(marker: Path) -> dict[str, Any]:
    """A Lambda layer as Keras stores one: marshalled code, that would leave `marker` behind."""
    code = compile(f"open({str(marker)!r}, 'w').write('ran')", "<lambda>", "exec")
    value = base64.b64encode(marshal.dumps(code)).decode()
    function = {"class_name": "__lambda__", "config": {"code": value, "defaults": None, "closure": None}}
    return layer("Lambda", function=function)


@pytest.mark.parametrize("container", ["h5", "keras"])
def test_a_lambda_is_refused_and_does_not_run(tmp_path: Path, weights: bytes, container: str) -> None:
    """A Lambda's code is named and refused; it leaves no trace, and Keras and TensorFlow are never imported."""
    marker = tmp_path / "marker"
    config = json.dumps(network(_lambda(marker)))
    path = tmp_path / f"model.{container}"
    if container == "h5":
        write(path, lambda file: file.attrs.update(model_config=config))
    else:
        keras_zip(path, {"config.json": config.encode(), "model.weights.h5": weights})
    assert "no code in a file is ever run" in refusal(read_checkpoint, path)
    assert not marker.exists()
    assert not {"keras", "tensorflow"} & sys.modules.keys()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"config": 5}', '{"config": [7]}', "[" * 100_000, '{"config": null}']
)
def test_a_config_that_is_none_is_a_typed_error(text: str) -> None:
    """Text that is no configuration, however deep, gives one line."""
    with pytest.raises(CheckpointError, match="cannot be read"):
        keras_config.read_config(text, Path("model.h5"))


# --- names


def test_a_model_in_a_model_gives_its_own_layers(tmp_path: Path) -> None:
    """Of a fine-tuned model, a base inside and any head behind, the base's layers and one classifier are found."""

    def fill(file: h5py.File) -> None:
        for name in ("conv1_conv/kernel:0", "conv1_bn/gamma:0", "conv1_bn/beta:0", "conv1_bn/moving_mean:0"):
            file[f"model_weights/resnet50/{name}"] = np.zeros(2, np.float32)
        file["model_weights/resnet50/conv1_bn/moving_variance:0"] = np.ones(2, np.float32)
        file["model_weights/flowers/sequential/flowers/kernel:0"] = np.zeros((2, 5), np.float32)
        file["optimizer_weights/adam/kernel:0"] = np.zeros((2, 5), np.float32)

    found = read_keras_h5(write(tmp_path / "model.h5", fill)).tensors
    norm = [f"conv1_bn/{leaf}" for leaf in ("gamma", "beta", "moving_mean", "moving_variance")]
    assert sorted(found) == sorted(["conv1_conv/kernel", *norm, "flowers/kernel"])


def test_keras_1_names_are_known(tmp_path: Path) -> None:
    """Weights published with Keras 1 call kernels W and the variance running_std, and number them."""

    def fill(file: h5py.File) -> None:
        file["conv1/conv1_W_1:0"] = NUMBERS
        file["conv1/conv1_b_1:0"] = np.zeros(6, np.float32)
        for leaf in ("gamma", "beta", "running_mean", "running_std"):
            file[f"bn_conv1/bn_conv1_{leaf}_1:0"] = np.ones(6, np.float32)

    found = read_keras_h5(write(tmp_path / "model.h5", fill)).tensors
    norm = [f"bn_conv1/{leaf}" for leaf in ("gamma", "beta", "moving_mean", "moving_variance")]
    assert sorted(found) == sorted(["conv1/kernel", "conv1/bias", *norm])


def test_layers_without_names_must_number_as_a_resnets(tmp_path: Path, weights: bytes) -> None:
    """A bare file of another network is refused with the numbers of its layers."""
    path = tmp_path / "model.weights.h5"
    path.write_bytes(weights)
    assert "has 1 convolutions, 0 normalisations and 0 dense" in refusal(read_checkpoint, path)


# --- zips


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_keras_zip_is_told_from_torchs(tmp_path: Path, weights: bytes, compression: int) -> None:
    """Members named as Keras names them make a `.keras` file, whatever it is called; the config names its layers."""
    config = json.dumps(network()).encode()
    inner = {"config.json": config, "model.weights.h5": weights}
    path = keras_zip(tmp_path / "weights.pth", inner, compression)
    assert read_checkpoint(path).container == "Keras 3 (.keras)"
    assert list(read_keras_zip(path).tensors) == ["conv2d/kernel"]


def test_zips_that_are_no_keras_files_are_refused(tmp_path: Path, weights: bytes) -> None:
    """Names outside the folder, two members with one name, other compressions, cut and claimed sizes: one line each."""
    config = json.dumps(network()).encode()
    inner = {"config.json": config, "model.weights.h5": weights}
    outside = keras_zip(tmp_path / "outside.keras", {**inner, "../x": b""})
    assert "outside its folder" in refusal(read_keras_zip, outside)
    twice = keras_zip(tmp_path / "twice.keras", inner)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("config.json", config)
    assert "one name" in refusal(read_keras_zip, twice)
    packed = keras_zip(tmp_path / "packed.keras", inner, zipfile.ZIP_LZMA)
    assert "unusual compression" in refusal(read_keras_zip, packed)
    bomb = keras_zip(tmp_path / "bomb.keras", {**inner, "config.json": b" " * (17 << 20)}, zipfile.ZIP_DEFLATED)
    assert "The limit is 2,097,152 bytes" in refusal(read_keras_zip, bomb)
    whole = keras_zip(tmp_path / "cut.keras", inner).read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut.keras").write_bytes(whole[:size])
        refusal(read_keras_zip, tmp_path / "cut.keras")


# --- damage


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of some layers with their names and a configuration."""

    def fill(file: h5py.File) -> None:
        file.attrs["model_config"] = json.dumps(network())
        for number in range(12):
            file[f"layers/conv2d_{number}/vars/0"] = NUMBERS
            file[f"layers/conv2d_{number}/vars/1"] = np.zeros(6, np.float32)
            file[f"layers/conv2d_{number}/vars"].attrs["name"] = f"conv2_block{number}_1_conv"

    return write(tmp_path_factory.mktemp("small") / "model.h5", fill)


def test_a_cut_file_is_a_typed_error(small: Path, tmp_path: Path) -> None:
    """A file cut anywhere is damaged, in one line."""
    whole = small.read_bytes()
    path = tmp_path / "cut.h5"
    for size in (8, 64, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "damaged" in refusal(read_keras_h5, path)


def test_flipped_bytes_never_crash_the_reader(small: Path, tmp_path: Path) -> None:
    """Each of 250 files with bytes changed at random loads or is refused; a crash of the library ends its process only.

    They are read by the process's own code in one process, since starting it 250 times would take minutes; where the
    library crashes on one, or comes to no end, the rest go on in a new one.
    """
    program = (
        "import io, random, sys\n"
        "from app.checkpoints import hdf5_process\n"
        "from app.processes.limits import limit\n"
        "limit(memory_bytes=6 << 30, cpu_seconds=5)\n"
        "whole = open(sys.argv[1], 'rb').read()\n"
        "for seed in range(int(sys.argv[2]), 250):\n"
        "    draw = random.Random(seed)\n"
        "    changed = bytearray(whole)\n"
        "    for _ in range(draw.choice((1, 4, 16, 64))):\n"
        "        changed[draw.randrange(len(changed))] = draw.choice((0, 1, 128, 255, draw.randrange(256)))\n"
        "    sys.stdout.write(f'{seed}\\n'); sys.stdout.flush()\n"
        "    try:\n"
        "        hdf5_process.dump(io.BytesIO(changed), len(changed), io.BytesIO())\n"
        "    except Exception:\n"
        "        pass\n"
    )
    first = crashes = 0
    while first < 250:
        command = [sys.executable, "-c", program, str(small), str(first)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        first = int(done.stdout.split()[-1]) + 1
        crashes += done.returncode != 0
    assert crashes < 5  # of the library, and one file that it comes to no end with


def test_a_crash_of_the_library_is_a_typed_error(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies, says nothing or does not end is a damaged file to whoever asked, in one line."""
    for text in (
        "import os; os.kill(os.getpid(), 11)",
        "pass",
        "print('{}')",
        "import threading; threading.Event().wait()",
    ):
        put_program(tmp_path, monkeypatch, f"def main(path): {text}", "app.checkpoints.hdf5_process")
        monkeypatch.setattr(hdf5, "_MAX_SECONDS", 0.5 if "wait" in text else 30.0)
        assert "damaged" in refusal(read_keras_h5, small)


# --- what grows


def _long_names(file: h5py.File) -> None:
    for number in range(40):
        file.create_group(f"layers/{number}").attrs["name"] = "x" * 60_000


def _long_paths(file: h5py.File) -> None:
    file[f"layers/{'x' * 2000}/vars/0"] = NUMBERS


def _links_to_one(file: h5py.File) -> None:
    file["layers/a/vars/0"] = NUMBERS
    for number in range(30_000):
        file[f"layers/{number}"] = file["layers/a/vars"]


@pytest.mark.parametrize(
    ("fill", "words"),
    [(_long_names, "over 1,024 bytes"), (_long_paths, "over 1,024 char"), (_links_to_one, "over 2,000")],
)
def test_names_and_links_are_bounded(tmp_path: Path, fill: Callable[[h5py.File], object], words: str) -> None:
    """Long names, long paths and many links to one group are refused before anything is read."""
    assert words in refusal(read_keras_h5, write(tmp_path / "model.h5", fill))


def test_seeds_and_counters_are_passed_over(tmp_path: Path) -> None:
    """The integers that Dropout and Normalization keep are no weights, and no reason to refuse a file."""

    def fill(file: h5py.File) -> None:
        file["layers/conv2d/vars/0"] = NUMBERS
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
        file["layers/normalization/vars/2"] = np.int64(4)

    (tensor,) = hdf5.read_hdf5(write(tmp_path / "model.h5", fill)).tensors.values()
    assert np.array_equal(tensor, NUMBERS)


def test_a_tensor_larger_than_a_piece_arrives_whole(tmp_path: Path) -> None:
    """A matrix and a float16 vector of more than the 16 MB that are read at a time keep their values and order."""
    values = {"a": np.arange(5_000_000, dtype=np.float32).reshape(1, 5, 1_000_000), "b": np.ones(9_000_000, np.float16)}
    values["b"][-1] = 2
    found = hdf5.read_hdf5(write(tmp_path / "model.h5", lambda file: file.update(values) or None)).tensors
    assert all(np.array_equal(found[name], values[name]) for name in values)


def test_a_member_that_would_grow_beyond_the_file_is_refused(tmp_path: Path, weights: bytes) -> None:
    """Weights that a zip packs to a hundredth of their size are no Keras's."""
    path = keras_zip(
        tmp_path / "bomb.keras",
        {"config.json": b"{}", "model.weights.h5": weights + bytes(110 << 20)},
        zipfile.ZIP_DEFLATED,
    )
    assert "model.weights.h5 has 115,3" in refusal(read_keras_zip, path)


def test_models_that_call_models_are_bounded() -> None:
    """A model of models that call models, each many times, is refused after some thousand calls."""
    inner = {"name": "input", "layers": [layer("InputLayer")], "input_layers": [["inputlayer", 0, 0]]}
    model: dict[str, Any] = {"class_name": "Functional", "config": inner | {"output_layers": [["inputlayer", 0, 0]]}}
    for depth in range(12):
        calls = [[[f"m{depth}" if number else "inputlayer", max(number - 1, 0), 0, {}]] for number in range(30)]
        entry = model | {"inbound_nodes": calls, "config": model["config"] | {"name": f"m{depth}"}}
        config = {
            **{"name": f"m{depth + 1}", "layers": [layer("InputLayer"), entry]},
            **{"input_layers": [["inputlayer", 0, 0]], "output_layers": [[f"m{depth}", 29, 0]]},
        }
        model = {"class_name": "Functional", "config": config}
    with pytest.raises(CheckpointError, match="calls over 2,000 layers"):
        keras_config.read_config(json.dumps(model), Path("model.h5"))
