"""TensorFlow's checkpoints: their own data files alone, and none that claims more than it holds."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.checkpoints.object_graph import OBJECT_GRAPH
from app.checkpoints.tensor_bundle import data_files, read_tensor_bundle
from app.errors import CheckpointError
from tests.tensor_bundles_made import Entry, block, field, header, record, table, varint, write_checkpoint, write_index

KEY = "scope/kernel"


def numbers(first: int, count: int = 6) -> np.ndarray:  # type: ignore[type-arg]
    return np.arange(first, first + count, dtype=np.float32)


def refusal(index: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensor_bundle(index)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_reads_its_own_data_files_alone(tmp_path: Path) -> None:
    """Beside model.ckpt-1000 and model.ckpt2 with the same variables, model.ckpt is read from its own file."""
    for first, name in enumerate(("model.ckpt", "model.ckpt-1000", "model.ckpt2", "xmodel.ckpt")):
        write_checkpoint(tmp_path / name, {KEY: numbers(100 * first)})
    for first, name in enumerate(("model.ckpt", "model.ckpt-1000", "model.ckpt2", "xmodel.ckpt")):
        index = tmp_path / f"{name}.index"
        assert data_files(index) == [tmp_path / f"{name}.data-00000-of-00001"]
        assert np.array_equal(read_tensor_bundle(index).tensors[KEY], numbers(100 * first))


def test_all_shards_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    """Of three data files each gives its tensors; where one is missing, it is named, whatever others lie there."""
    tensors = {f"layer{number}": numbers(number) for number in range(7)}
    index = write_checkpoint(tmp_path / "model.ckpt", tensors, shards=3)
    found = read_tensor_bundle(index).tensors
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
    missing = tmp_path / "model.ckpt.data-00001-of-00003"
    missing.rename(tmp_path / "model.ckpt.data-00001-of-00002")
    assert f"has no {missing.name} beside it" in refusal(index)


def test_values_keep_their_axes_and_widths(tmp_path: Path) -> None:
    """float16, float64 and bfloat16 become float32, in the axes in which they are stored."""
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4, 1)
    stored = {
        "a": (19, values.astype("<f2").tobytes()),
        "b": (2, values.astype("<f8").tobytes()),
        "c": (14, (values.view(np.uint32) >> 16).astype("<u2").tobytes()),
    }
    entries, content = {}, b""
    for name, (dtype, data) in stored.items():
        entries[name] = Entry(values.shape, len(data), len(content), dtype=dtype)
        content += data
    (tmp_path / "m.data-00000-of-00001").write_bytes(content)
    found = read_tensor_bundle(write_index(tmp_path / "m.index", entries)).tensors
    for name in stored:
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], values)


# --- claims


def _overlapping() -> bytes:
    entries = {f"v{number:04d}": Entry([250_000], 1_000_000) for number in range(2_000)}
    return table([block(header() + b"".join(record(0, name.encode(), entries[name].encode()) for name in entries))])


def _outside() -> bytes:
    return table([block(header() + record(0, b"v", Entry([1 << 40], 4 << 40).encode()))])


def _multiplying_keys() -> bytes:
    """Each key keeps the megabyte of the one before it, and adds a byte."""
    first = record(0, b"k" * 1_000_000, Entry([1], 4).encode())
    more = [record(1_000_000 + number, b"k", Entry([1], 4).encode()) for number in range(9_000)]
    return table([block(header() + first + b"".join(more))])


def _a_million_dimensions() -> bytes:
    return table([block(header() + record(0, b"v", Entry([1] * 200_000, 4).encode()))])


def _dimensions() -> bytes:
    return table([block(header() + record(0, b"v", Entry([1] * 400, 4).encode()))])


def _one_block_many_times() -> bytes:
    records = b"".join(record(0, b"%05d" % number, Entry([1], 4, 4 * number).encode()) for number in range(9_000))
    return table([block(header() + records)], [0] * 5_000)


def _unsorted() -> bytes:
    records = record(0, b"b", Entry([1], 4).encode()) + record(0, b"a", Entry([1], 4, 4).encode())
    return table([block(header() + records)])


def _many() -> bytes:
    records = b"".join(record(0, b"%05d" % number, Entry([0], 0).encode()) for number in range(10_002))
    return table([block(header() + records)])


def _shards() -> bytes:
    return table([block(header(1 << 40) + record(0, b"v", Entry([1], 4).encode()))])


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "overlapping entries": (_overlapping, "v0001 lies where another tensor does"),
    "entries outside": (_outside, "v lies outside its data file"),
    "keys that multiply": (_multiplying_keys, "longer than a network's"),
    "a million dimensions": (_a_million_dimensions, "longer than a network's"),
    "dimensions": (_dimensions, "over 8 dimensions"),
    "one block many times": (_one_block_many_times, "its blocks overlap"),
    "unsorted keys": (_unsorted, "not sorted"),
    "many tensors": (_many, "lists over 10,000 tensors"),
    "many data files": (_shards, "data files"),
    "a large index": (lambda: bytes(5 << 20), "over 4,194,304 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_an_index_claims_is_bounded_before_anything_is_read(case: str, tmp_path: Path) -> None:
    """Each such index is refused in one line, within a second or two, and within some 10 MB beside it."""
    make, words = HOSTILE[case]
    (tmp_path / "m.index").write_bytes(make())
    (tmp_path / "m.data-00000-of-00001").write_bytes(bytes(1_000_000))
    started = time.process_time()
    tracemalloc.start()
    assert words in refusal(tmp_path / "m.index")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6
    assert time.process_time() - started < 5


def test_a_graph_of_objects_is_read_in_bounded_time(tmp_path: Path) -> None:
    """The largest graph of objects that is read takes seconds; a larger one is refused."""
    node = field(1, field(2, field(1, b"x") * 2) * 8)
    graph = node * ((4 << 20) // len(node) - 1)
    lengths = varint(len(graph)) + bytes(4)

    def write(content: bytes) -> Path:
        (tmp_path / "m.data-00000-of-00001").write_bytes(content)
        return write_index(tmp_path / "m.index", {OBJECT_GRAPH: Entry([], len(content), dtype=7)})

    started = time.process_time()
    assert read_tensor_bundle(write(lengths + graph)).tensors == {}
    assert time.process_time() - started < 20
    assert "no single string of a bearable size" in refusal(write(bytes((4 << 20) + 1)))
