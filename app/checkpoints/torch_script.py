"""TorchScript archives: tensors by name, and facts from the text of the code, which never runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .base import Stored, Told, Weights
from .families import find_places
from .graph_facts import Followed, follow
from .labels_inside import find_labels
from .operations import Operations, Unread
from .pickled_document import Located, entries_of, is_tensor, locate_weights
from .pickled_weights import MAX_PICKLE_BYTES, check_claims, load_arrays, place_of, unpickle
from .script_code import Code, Interpreter, Module
from .torch_file import is_big_endian
from .zip_file import Archive, open_zip, require_stored

_SOURCE = "the file's TorchScript"
_MAX_CODE_BYTES = 256 << 10
_MAX_CONSTANT_VALUES = 1024
_LIBRARY = ("__torch__.torch.nn.", "__torch__.torchvision.", "__torch__.timm.", "__torch__.transformers.")


def is_torch_script(names: list[str]) -> bool:
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def read_torch_script(path: Path) -> Stored:
    """The tensors and facts of an archive. Raises `CheckpointError` for a frozen module and for other networks.

    Weights of a frozen module have lost their names.
    """
    archive = open_zip(path)
    root = archive.root()
    require_stored(archive, but=(f"{root}code/", f"{root}extra/"))
    document = unpickle("zip", archive.read(f"{root}data.pkl", MAX_PICKLE_BYTES), path).document
    located = locate_weights(document, path)
    if not located.tensors:
        raise CheckpointError(
            f"{path} is TorchScript without named weights: torch.jit.freeze makes constants of them. Save it before "
            f"it is frozen, or save model.state_dict()."
        )
    big_endian = is_big_endian(archive, root)
    arrays: Weights = load_arrays(
        located.tensors, lambda key: archive.read_stored(f"{root}data/{key}"), path, big_endian
    )
    labels, note = find_labels(located.levels, "the file")
    told, notes, warnings = Told(labels=labels), [note] if note else [], _warnings(located, path)
    places = find_places(arrays)
    if places:
        operations = Operations(arrays.get)
        try:
            constants = _constants(archive, root, path, big_endian)
            interpreter = Interpreter(_code(archive, root), constants, operations)
            module = Module("", str(document["o"]), entries_of(document.get("s")) or {})
            followed = follow(interpreter.output_of(module), places[0], arrays, _SOURCE)
        except Unread as unread:
            raise refusal(path, unread) from None
        arrays, more = used_alone(arrays, followed, operations.used)
        # Its code has been followed completely, so that custom classes need no warning.
        told, notes, warnings = followed.told.then(told), [*notes, *more], ()
    return Stored(arrays, told, warnings, notes=tuple(notes))


def refusal(path: Path, unread: Unread) -> CheckpointError:
    return CheckpointError(
        f"{path}: its code has {unread}, which a ResNet-50 that is served does not have there. Export the model to "
        f"ONNX (torch.onnx.export) and serve that."
    )


def used_alone(arrays: Weights, followed: Followed, read: set[str]) -> tuple[Weights, list[str]]:
    """The tensors that the network computes with, and a note about the others, except counters."""
    used = followed.used | read
    left = [name for name in arrays if name not in used and not name.endswith("num_batches_tracked")]
    shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
    notes = [f"{shown}: left out, its code never uses {'it' if len(left) == 1 else 'them'}."] if left else []
    return {name: values for name, values in arrays.items() if name in followed.used}, notes


def _code(archive: Archive, root: str) -> Code:
    def read(module: str) -> bytes | None:
        name = f"{root}code/{module.replace('.', '/')}.py"
        return archive.read(name, _MAX_CODE_BYTES) if name in archive.members else None

    return Code(read)


def _constants(archive: Archive, root: str, path: Path, big_endian: bool) -> list[Any]:
    """The code's constants in order, with the values of small tensors."""
    name = f"{root}constants.pkl"
    if name not in archive.members:
        return []
    document = unpickle("zip", archive.read(name, MAX_PICKLE_BYTES), path).document
    items = document.get("l", []) if isinstance(document, dict) else []
    places = {str(number): place_of(item["t"]) for number, item in enumerate(items) if is_tensor(item)}
    check_claims(places, path)
    small = {
        key: place
        for key, place in places.items()
        if place.storage and archive.size(f"{root}constants/{place.storage}") <= 8 * _MAX_CONSTANT_VALUES
    }
    arrays = load_arrays(small, lambda key: archive.read_stored(f"{root}constants/{key}"), path, big_endian)
    return [arrays.get(str(number), item) for number, item in enumerate(items)]


def _warnings(located: Located, path: Path) -> tuple[str, ...]:
    """A sentence if there is a custom class, whose code was not followed."""
    kinds = [re.sub(r"___torch_mangle_\d+\.", "", str(facts["class"])) for facts in located.modules.values()]
    own = [kind for kind in kinds if not kind.startswith(_LIBRARY)]
    if not own:
        return ()
    return (
        f"{path.name} is TorchScript of {own[0].removeprefix('__torch__.')}, whose own code never runs here: it is "
        f"served as the network that its layers make up.",
    )
