"""torch.export archives (.pt2): a JSON list of weights and their bytes, read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .base import Stored, Weights
from .families import find_places
from .graph_facts import follow
from .operations import Node, Operations, Unknown, Unread, Weight, now
from .pickled_weights import MAX_RANK, MAX_TENSORS, Place, load_arrays
from .torch_script import refusal, used_alone
from .zip_file import Archive, open_zip, require_stored

_SOURCE = "the file's exported graph"
_WEIGHTS = "data/weights/"
_CONSTANTS = "data/constants/"
# A ResNet-50's has some 500 kB.
_MAX_GRAPH_BYTES = 4 << 20
_MAX_CONFIG_BYTES = 2 << 20
_MAX_NODES = 5_000
_MAX_CONSTANT_VALUES = 1024
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
    arrays: Weights = load_arrays(places, lambda name: archive.read_stored(f"{root}{_WEIGHTS}{name}"), path)
    model = configs[0].removeprefix(root + _WEIGHTS).removesuffix("_weights_config.json")
    networks = find_places(arrays)
    if not networks:
        return Stored(arrays)
    operations = Operations(arrays.get)
    try:
        output = _graph(archive, f"{root}models/{model}.json", f"{root}{_CONSTANTS}", operations)
        followed = follow(output, networks[0], arrays, _SOURCE)
    except Unread as unread:
        raise refusal(path, unread) from None
    arrays, notes = used_alone(arrays, followed, operations.used)
    return Stored(arrays, followed.told, notes=tuple(notes))


def _places(archive: Archive, name: str) -> dict[str, Place]:
    try:
        config = json.loads(archive.read(name, _MAX_CONFIG_BYTES))["config"]
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
    if len(shape) != len(stride) or len(shape) > MAX_RANK:
        raise ValueError
    dtype = _DTYPES.get(meta["dtype"], f"number {meta['dtype']} of torch.export's")
    # A weight's file contains its whole storage, or the weight alone.
    return Place(str(entry["path_name"]), dtype, _count(meta["storage_offset"]), shape, stride)


def _count(number: Mapping[str, Any]) -> int:
    value = number["as_int"]
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError
    return value


def _graph(archive: Archive, name: str, constants: str, operations: Operations) -> Any:
    """The graph's outputs, followed from its input. Raises `Unread`."""
    try:
        module = json.loads(archive.read(name, _MAX_GRAPH_BYTES))["graph_module"]
        values, inputs = _inputs(module["signature"]["input_specs"], archive, constants)
        if inputs != 1:
            raise Unread(f"{inputs} inputs")
        nodes = module["graph"]["nodes"]
        if len(nodes) > _MAX_NODES:
            raise Unread(f"{len(nodes):,} operations")
        for node in nodes:
            named = {each["name"]: _argument(each["arg"], values) for each in node["inputs"]}
            # "torch.ops.aten.conv2d.default": the operation and its overload
            operation = str(node["target"]).removeprefix("torch.ops.").split(".")[1:2]
            given = operations.call(operation[0] if operation else "", (), named, str(node["target"])[:80])
            _assign(node["outputs"], given, values)
        specs = module["signature"]["output_specs"]
        outputs = [each["user_output"]["arg"] for each in specs if "user_output" in each]
        return [now(_argument(each, values)) for each in outputs]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, StopIteration, RecursionError):
        raise Unread("a graph that is not laid out as torch.export.save writes it") from None


def _inputs(specs: list[Any], archive: Archive, constants: str) -> tuple[dict[str, Any], int]:
    """The graph's names → its input, weights and constants; and the number of inputs."""
    values: dict[str, Any] = {}
    inputs = 0
    small = _small_constants(archive, constants)
    for spec in specs:
        kind, entry = next(iter(spec.items()))
        if kind == "user_input":
            inputs += 1
            values[entry["arg"]["as_tensor"]["name"]] = Node("input", label="the input", rank=4)
        elif kind == "parameter":
            values[entry["arg"]["name"]] = Weight(str(entry["parameter_name"]))
        elif kind == "buffer" and entry.get("persistent", True):
            values[entry["arg"]["name"]] = Weight(str(entry["buffer_name"]))
        elif kind in ("buffer", "tensor_constant"):
            name = entry["buffer_name" if kind == "buffer" else "tensor_constant_name"]
            values[entry["arg"]["name"]] = small.get(str(name), Unknown(str(name)))
    return values, inputs


def _small_constants(archive: Archive, folder: str) -> dict[str, Any]:
    names = [name for name in archive.members if name.startswith(folder) and name.endswith("_constants_config.json")]
    if len(names) != 1:
        return {}
    places = {
        name: place
        for name, place in _places(archive, names[0]).items()
        if prod(place.shape) <= _MAX_CONSTANT_VALUES
        and archive.size(f"{folder}{place.storage}") <= 8 * _MAX_CONSTANT_VALUES
    }
    return dict(load_arrays(places, lambda name: archive.read_stored(f"{folder}{name}"), archive.path))


def _argument(value: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    kind, content = next(iter(value.items()))
    if kind == "as_tensor":
        return values.get(content["name"], Unknown(content["name"]))
    if kind == "as_tensors":
        return [values.get(each["name"], Unknown(each["name"])) for each in content]
    if kind == "as_optional_tensors":
        return [_argument(each, values) for each in content]
    if kind in ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_string", "as_scalar_type"):
        return content
    if kind == "as_sym_ints":
        return [each["as_int"] if "as_int" in each else Unknown(str(each)[:40]) for each in content]
    return None if kind == "as_none" else Unknown(kind)


def _assign(outputs: list[Any], given: Any, values: dict[str, Any]) -> None:
    """Set the names of an operation's results in `values`: a single result gets the first name."""
    names = [each["as_tensor"]["name"] for each in outputs if "as_tensor" in each]
    for number, name in enumerate(names):
        if isinstance(given, tuple):
            values[name] = given[number] if number < len(given) else Unknown(name)
        else:
            values[name] = given if number == 0 else Unknown(name)
