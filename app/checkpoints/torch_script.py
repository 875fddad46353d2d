"""TorchScript: the tensors by their names, and strides and epsilon from the text of its code, which never runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .base import Stored
from .pickled_weights import MAX_PICKLE_BYTES, load_tensors, unpickle
from .torch_file import to_stored
from .zip_file import Archive, open_zip, require_stored

_SOURCE = "the file's TorchScript"
_MAX_CODE_BYTES = 1 << 20
_MAX_CODE_IN_ALL = 16 << 20
_CLASS = re.compile(r"^class (\w+)\(Module\):\n", re.MULTILINE)
_INTS = r"\[(\d+), (\d+)\]"
# torch.jit.script keeps a layer's constants in its class; torch.jit.trace has them in the call.
_CONSTANT = re.compile(r"^  (\w+) : Final\[[^=\n]*\] = (.+)$", re.MULTILINE)
_CONVOLUTION = re.compile(rf"torch\.(?:conv2d|_convolution)\(\w+, \w+, \w+, {_INTS}, {_INTS}, {_INTS}")
_NORMALISATION = re.compile(r"torch\.batch_norm\([^()]*, ([0-9.e+-]+), (?:True|False)\)")
_POOL = re.compile(rf"torch\.max_pool2d\(\w+, {_INTS}, {_INTS}, {_INTS}(?:, {_INTS}(?:, (True|False))?)?\)")


def is_torch_script(names: list[str]) -> bool:
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def read_torch_script(path: Path) -> Stored:
    """Raises `CheckpointError` for a frozen module, whose weights have lost their names."""
    archive = open_zip(path)
    root = archive.root()
    require_stored(archive, but=(f"{root}code/", f"{root}extra/"))
    pickled = unpickle("zip", archive.read(f"{root}data.pkl", MAX_PICKLE_BYTES), path)
    if not pickled.tensors:
        raise CheckpointError(
            f"{path} is TorchScript without named weights: torch.jit.freeze makes constants of them. Save it before "
            f"it is frozen, or save model.state_dict()."
        )
    tensors = load_tensors(pickled.tensors, lambda key: archive.read_stored(f"{root}data/{key}"), path)
    code = _Code(archive, root)
    modules = {name: {**facts, **code.facts(str(facts["class"]))} for name, facts in pickled.modules.items()}
    return replace(to_stored(tensors, path), modules=modules, modules_source=_SOURCE)


class _Code:
    """The text of the classes, read once each and as text."""

    def __init__(self, archive: Archive, root: str) -> None:
        self._archive = archive
        self._root = root
        self._texts: dict[str, dict[str, str]] = {}
        self._bytes_left = _MAX_CODE_IN_ALL

    def facts(self, qualified: str) -> dict[str, Any]:
        """What the class `__torch__.module.Name` says of a layer."""
        module, _, name = qualified.rpartition(".")
        text = self._classes(module).get(name, "")
        facts: dict[str, Any] = {}
        for key, value in _CONSTANT.findall(text):
            facts |= _constant(key, value)
        if call := _CONVOLUTION.search(text):
            one, two, three = (list(map(int, call.group(first, first + 1))) for first in (1, 3, 5))
            facts |= {"stride": one, "padding": two, "dilation": three}
        if call := _NORMALISATION.search(text):
            facts["eps"] = float(call[1])
        if call := _POOL.search(text):
            facts |= {"padding": [int(call[5]), int(call[6])], "ceil_mode": call[9] == "True"}
        return facts

    def _classes(self, module: str) -> dict[str, str]:
        name = f"{self._root}code/{module.replace('.', '/')}.py"
        if name not in self._texts:
            self._texts[name] = {}
            member = self._archive.members.get(name)
            if member is not None and member.file_size <= self._bytes_left:
                self._bytes_left -= member.file_size
                text = self._archive.read(name, _MAX_CODE_BYTES).decode("utf-8", "replace")
                pieces = _CLASS.split(text)
                self._texts[name] = dict(zip(pieces[1::2], pieces[2::2], strict=True))
        return self._texts[name]


def _constant(key: str, value: str) -> dict[str, Any]:
    """One line of a class: an integer, a pair of them, a float or a truth."""
    if match := re.fullmatch(r"\((\d{1,4}), (\d{1,4})\)", value):
        return {key: [int(match[1]), int(match[2])]}
    if value in ("True", "False"):
        return {key: value == "True"}
    if re.fullmatch(r"\d{1,4}", value):
        return {key: int(value)}
    return {key: float(value)} if re.fullmatch(r"\d+(\.\d*)?(e[+-]?\d{1,3})?", value) else {}
