"""The source text of TorchScript's code, parsed within limits to classes and functions by their qualified names."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from .symbolic_values import Unread

# A ResNet-50's code has some 150 kB. Its syntax trees take a hundred times as much memory.
_MAX_CODE = 256 << 10
_MAX_LINES = 20_000
# torch writes no f-strings and not several statements on a line. Parsing them costs more than their length.
_UNUSUAL = re.compile(rb"\b[rR]?[fF][rR]?['\"]|;[^'\"\n]*;")


class Code:
    """The files of the code by module name, each parsed at its first use. The limits are for all of them together."""

    def __init__(self, read: Callable[[str], bytes | None]) -> None:
        self._read = read
        self._left = _MAX_CODE
        self._lines = 0
        self._parsed: dict[str, dict[str, ast.stmt]] = {}

    def find(self, qualified: str) -> ast.stmt | None:
        """The class or function `__torch__.a.b.Name`. Raises `Unread` for a file that is not parsed."""
        module, _, name = qualified.rpartition(".")
        if module not in self._parsed:
            self._parsed[module] = self._parse(self._read(module))
        return self._parsed[module].get(name)

    def _parse(self, content: bytes | None) -> dict[str, ast.stmt]:
        if content is None:
            return {}
        self._left -= len(content)
        self._lines += content.count(b"\n")
        if self._left < 0 or self._lines > _MAX_LINES:
            raise Unread(f"code of over {_MAX_CODE:,} bytes or {_MAX_LINES:,} lines")
        if _UNUSUAL.search(content):
            raise Unread("code that torch would not write")
        try:
            tree = ast.parse(content.decode("utf-8"))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise Unread("code that cannot be parsed") from None
        return {each.name: each for each in tree.body if isinstance(each, ast.ClassDef | ast.FunctionDef)}
