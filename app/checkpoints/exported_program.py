"""torch.export's archives (.pt2): a JSON list of weights and their bytes, read without torch.export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .base import Stored
from .pickled_weights import MAX_PICKLE_BYTES, MAX_TENSORS, Place, load_tensors
from .torch_file import to_stored
from .zip_file import Archive, open_zip, require_stored

_SOURCE = "the file's exported graph"
_WEIGHTS = "data/weights/"
_MAX_GRAPH_BYTES = 64 << 20
# torch/_export/serde/schema.py, ScalarType
_DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
    13: "bfloat16",
}


def is_exported_program(names: list[str]) -> bool:
    return any(name.endswith("archive_format") for name in names) and any(
        "models/" in name and name.endswith(".json") for name in names
    )


def read_exported_program(path: Path) -> Stored:
    archive = open_zip(path)
    require_stored(archive)
    root = archive.root()
    configs = [n for n in archive.members if n.startswith(root + _WEIGHTS) and n.endswith("_weights_config.json")]
    if len(configs) != 1:
        raise CheckpointError(
            f"{path} is an archive of torch.export with {len(configs)} lists of weights. Expected one model with its "
            f"weights, as torch.export.save writes it."
        )
    places = _places(archive, configs[0])
    tensors = load_tensors(places, lambda name: archive.read_stored(f"{root}{_WEIGHTS}{name}"), path)
    model = configs[0].removeprefix(root + _WEIGHTS).removesuffix("_weights_config.json")
    modules = _modules(archive, f"{root}models/{model}.json", places)
    return replace(to_stored(tensors, path), modules=modules, modules_source=_SOURCE)


def _places(archive: Archive, name: str) -> dict[str, Place]:
    try:
        config = json.loads(archive.read(name, MAX_PICKLE_BYTES))["config"]
        if len(config) > MAX_TENSORS:
            raise CheckpointError(
                f"{archive.path} has {len(config):,} tensors, and at most {MAX_TENSORS:,} are read. Export one network."
            )
        return {str(key): _place(entry) for key, entry in config.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{archive.path}: {name} is not a list of weights as torch.export.save writes it. Copy or download it "
            f"again."
        ) from None


def _place(entry: Mapping[str, Any]) -> Place:
    meta = entry["tensor_meta"]
    if entry["use_pickle"] is not False:
        raise ValueError
    shape, stride = (tuple(_count(each) for each in meta[key]) for key in ("sizes", "strides"))
    if len(shape) != len(stride) or len(shape) > 8:
        raise ValueError
    dtype = _DTYPES.get(meta["dtype"], f"number {meta['dtype']} of torch.export's")
    # A weight's file holds what its storage holds, or the weight alone.
    return Place(str(entry["path_name"]), dtype, _count(meta["storage_offset"]), shape, stride)


def _count(number: Mapping[str, Any]) -> int:
    value = number["as_int"]
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError
    return value


def _modules(archive: Archive, name: str, places: Mapping[str, Place]) -> dict[str, dict[str, Any]]:
    """The layers by name, from the graph's calls; none where it is not laid out as it is today."""
    # The graph calls a weight by its name with underscores for points.
    layers = {f"p_{key.replace('.', '_')}": key.removesuffix(".weight") for key in places if key.endswith(".weight")}
    modules: dict[str, dict[str, Any]] = {}
    try:
        nodes = json.loads(archive.read(name, _MAX_GRAPH_BYTES))["graph_module"]["graph"]["nodes"]
        for node in nodes:
            given = {each["name"]: next(iter(each["arg"].values())) for each in node["inputs"]}
            weight = given.get("weight")
            layer = layers.get(weight["name"]) if isinstance(weight, dict) and "name" in weight else None
            if ".max_pool2d" in node["target"]:
                layer, given = "maxpool", {"padding": 0, "ceil_mode": False} | given
            if ".conv" in node["target"]:
                given = {"stride": 1, "padding": 0, "dilation": 1} | given
            if layer:
                keys = ("stride", "padding", "dilation", "eps", "ceil_mode")
                modules[layer] = {key: given[key] for key in keys if key in given}
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
        return {}
    return modules
