"""TorchScript's code as text, followed from a module's `forward` to the sequence of its operations.

The text is parsed and never run. What is followed is what torch writes: calls, assignments and branches whose condition
is known. What depends on the input's values or sizes is followed past checks that would only raise an error.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .pickled_document import Entries, entries_of, is_tensor
from .symbolic_values import Node, Size, Unknown, Unread, Weight, now
from .torch_operations import Operations

# A ResNet-50's has some 150 kB. The trees that it is parsed to take a hundred times as much.
_MAX_CODE = 256 << 10
_MAX_LINES = 20_000
# What torch does not write, and what costs more than its length: f-strings, and several statements on a line.
_UNUSUAL = re.compile(rb"\b[rR]?[fF][rR]?['\"]|;[^'\"\n]*;")
_MAX_STEPS = 50_000
_MAX_CALLS = 60
_MAX_NUMBER = 1 << 62
_WORDS = {"True": True, "False": False, "None": None}


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the file, by the name that its tensors have."""

    name: str
    kind: str
    attributes: Entries


@dataclass(frozen=True, slots=True)
class Name:
    """A dotted name: a class, a function or a namespace."""

    text: str


@dataclass(frozen=True, slots=True)
class Method:
    module: Module
    name: str


class Returned(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


class Code:
    """The files of the code by their modules' names, parsed when they are asked for."""

    def __init__(self, read: Callable[[str], bytes | None]) -> None:
        self._read = read
        self._left = _MAX_CODE
        self._lines = 0
        self._parsed: dict[str, dict[str, ast.stmt]] = {}

    def find(self, qualified: str) -> ast.stmt | None:
        """The class or function `__torch__.a.b.Name`."""
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


class Interpreter:
    """Follows one call of a module's forward."""

    def __init__(self, code: Code, constants: Sequence[Any], operations: Operations) -> None:
        self._code = code
        self._constants = constants
        self._operations = operations
        self._steps = 0
        self._calls = 0

    def output_of(self, module: Module) -> Any:
        """What forward gives for one image tensor. Raises `Unread`."""
        try:
            return self._call_method(module, "forward", [Node("input", label="the input", rank=4)], {})
        except RecursionError:
            raise Unread("code that is nested too deeply") from None

    def _call_method(self, module: Module, name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        definition = self._code.find(module.kind)
        functions = definition.body if isinstance(definition, ast.ClassDef) else []
        for function in functions:
            if isinstance(function, ast.FunctionDef) and function.name == name:
                return self._call(function, [module, *arguments], named)
        raise Unread(f"{module.kind}.{name}, which has no code in the file")

    def _call(self, function: ast.FunctionDef, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        self._calls += 1
        if self._calls > _MAX_CALLS:
            raise Unread("calls that are nested too deeply")
        names = [each.arg for each in function.args.args]
        defaults = function.args.defaults
        variables: dict[str, Any] = {}
        for default, name in zip(reversed(defaults), reversed(names), strict=False):
            variables[name] = self._value(default, {})
        variables |= dict(zip(names, arguments, strict=False)) | dict(named)
        if not variables.keys() >= set(names) or len(arguments) > len(names):
            raise Unread(f"a forward that takes {len(names) - 1} inputs")
        try:
            self._run(function.body, variables)
        except Returned as returned:
            return now(returned.value)
        finally:
            self._calls -= 1
        return None

    def _run(self, body: Sequence[ast.stmt], variables: dict[str, Any]) -> None:
        for statement in body:
            self._steps += 1
            if self._steps > _MAX_STEPS:
                raise Unread("more steps than a ResNet-50 has")
            if isinstance(statement, ast.Return):
                raise Returned(None if statement.value is None else self._value(statement.value, variables))
            if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                self._assign(statement.targets[0], self._value(statement.value, variables), variables)
            elif isinstance(statement, ast.Expr):
                self._value(statement.value, variables)
            elif isinstance(statement, ast.If):
                self._branch(statement, variables)
            elif not isinstance(statement, ast.Pass):
                raise Unread(f"a {type(statement).__name__.lower()} in its code")

    def _assign(self, target: ast.expr, value: Any, variables: dict[str, Any]) -> None:
        if isinstance(target, ast.Name):
            variables[target.id] = value
        elif isinstance(target, ast.Tuple):
            values = list(value) if isinstance(value, list | tuple) else []
            if len(values) != len(target.elts):
                raise Unread("an assignment of several values in its code")
            for each, part in zip(target.elts, values, strict=True):
                self._assign(each, part, variables)
        else:
            raise Unread("an assignment to an attribute in its code")

    def _branch(self, statement: ast.If, variables: dict[str, Any]) -> None:
        condition = now(self._value(statement.test, variables))
        if isinstance(condition, bool):
            self._run(statement.body if condition else statement.orelse, variables)
        elif _only_raises(statement.body):
            self._run(statement.orelse, variables)
        elif _only_raises(statement.orelse):
            self._run(statement.body, variables)
        else:
            raise Unread("code that depends on the input's values or sizes")

    def _value(self, expression: ast.expr, variables: Mapping[str, Any]) -> Any:
        self._steps += 1
        if self._steps > 20 * _MAX_STEPS:
            raise Unread("more steps than a ResNet-50 has")
        match expression:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                if name in variables:
                    return now(variables[name])
                return _WORDS[name] if name in _WORDS else Name(name)
            case ast.Attribute(value=inner, attr=name):
                return self._attribute(self._value(inner, variables), name)
            case ast.List(elts=items):
                return [self._value(item, variables) for item in items]
            case ast.Tuple(elts=items):
                return tuple(self._value(item, variables) for item in items)
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                return {self._value(key, variables): self._value(each, variables) for key, each in pairs if key}
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                number = self._value(operand, variables)
                return -number if isinstance(number, int | float) else Unknown("-")
            case ast.Subscript(value=inner, slice=index):
                return self._item(self._value(inner, variables), index, variables)
            case ast.Call():
                return self._called(expression, variables)
            case ast.IfExp(test=test, body=body, orelse=other):
                condition = self._value(test, variables)
                if not isinstance(condition, bool):
                    raise Unread("code that depends on the input's values or sizes")
                return self._value(body if condition else other, variables)
        raise Unread(f"a {type(expression).__name__.lower()} in its code")

    def _attribute(self, owner: Any, name: str) -> Any:
        if isinstance(owner, Name):
            if owner.text == "CONSTANTS" and name.startswith("c") and name[1:].isdigit():
                number = int(name[1:])
                return self._constants[number] if number < len(self._constants) else Unknown(name)
            return Name(f"{owner.text}.{name}")
        if not isinstance(owner, Module):
            return Unknown(name)
        if name == "training":
            # Served is what the network computes at inference.
            return False
        if name in owner.attributes:
            return self._stored(owner, name, owner.attributes[name])
        definition = self._code.find(owner.kind)
        for each in definition.body if isinstance(definition, ast.ClassDef) else []:
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.target.id == name:
                return Unknown(name) if each.value is None else self._value(each.value, {})
        return Method(owner, name)

    def _stored(self, owner: Module, name: str, value: Any) -> Any:
        """An attribute as the file has it."""
        full = f"{owner.name}.{name}" if owner.name else name
        if is_tensor(value):
            return Weight(full)
        if isinstance(value, dict) and str(value.get("o", "")).startswith("__torch__."):
            return Module(full, str(value["o"]), entries_of(value.get("s")) or {})
        if isinstance(value, dict) and "l" in value:
            return [self._stored(owner, f"{name}.{number}", each) for number, each in enumerate(value["l"])]
        return Unknown(name) if isinstance(value, dict) else value

    def _item(self, owner: Any, index: ast.expr, variables: Mapping[str, Any]) -> Any:
        key = self._value(index, variables)
        if isinstance(owner, _Sizes) and isinstance(key, int):
            return Size(owner.node, key)
        try:
            return now(owner[key])
        except (KeyError, IndexError, TypeError):
            return Unknown("an item")

    def _called(self, call: ast.Call, variables: Mapping[str, Any]) -> Any:
        function = self._value(call.func, variables)
        arguments = [self._value(each, variables) for each in call.args]
        named = {each.arg: self._value(each.value, variables) for each in call.keywords if each.arg}
        if isinstance(function, Method):
            return self._call_method(function.module, function.name, arguments, named)
        if not isinstance(function, Name):
            raise Unread("a call of what is no function in its code")
        if function.text in ("annotate", "unchecked_cast"):
            return arguments[1]
        if function.text == "getattr":
            return self._attribute(arguments[0], str(arguments[1]))
        if function.text in ("int", "float", "bool"):
            return _converted(function.text, arguments[0])
        if function.text.startswith("__torch__."):
            definition = self._code.find(function.text)
            if isinstance(definition, ast.FunctionDef):
                return self._call(definition, arguments, named)
            raise Unread(f"{function.text}, which has no code in the file")
        return self._operation(function.text, arguments, named)

    def _operation(self, full: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        name = full.rpartition(".")[2]
        first = now(arguments[0]) if arguments else None
        if name == "RaiseException":
            raise Unread("an error that its code raises")
        if name in _ON_VALUES and all(_is_plain(now(each)) for each in arguments):
            return _ON_VALUES[name](*[now(each) for each in arguments])
        if name in ("__is__", "__isnot__") and arguments[1] is None:
            return (first is None) == (name == "__is__")
        if name == "dim" and isinstance(first, Node | np.ndarray):
            rank = first.rank if isinstance(first, Node) else first.ndim
            return Unknown(full) if rank is None else rank
        if name == "size" and isinstance(first, Node):
            return Size(first, arguments[1]) if len(arguments) > 1 else _Sizes(first)
        if name == "len" and isinstance(first, _Sizes):
            return Unknown(full) if first.node.rank is None else first.node.rank
        if name in ("NumToTensor", "ScalarImplicit", "Int", "data"):
            return first
        if name in ("tensor", "as_tensor", "scalar_tensor") and _is_numbers(first):
            return np.array(first)
        return self._operations.call(name, arguments, named, full)


@dataclass(frozen=True, slots=True)
class _Sizes:
    node: Node


def _only_raises(body: Sequence[ast.stmt]) -> bool:
    """Whether a branch ends in an error."""
    last = body[-1] if body else None
    if not isinstance(last, ast.Expr) or not isinstance(last.value, ast.Call):
        return False
    function = last.value.func
    return isinstance(function, ast.Attribute) and function.attr == "RaiseException"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= 64 and all(isinstance(each, bool | int | float) for each in value)
    return isinstance(value, int | float)


def _converted(kind: str, value: Any) -> Any:
    value = now(value)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, int | float):
        return {"int": int, "float": float, "bool": bool}[kind](value)
    return value if isinstance(value, Size) else Unknown(kind)


def _compared(function: Callable[..., Any]) -> Callable[..., Any]:
    def compute(*values: Any) -> Any:
        try:
            return function(*values)
        except TypeError:
            return Unknown("a truth")

    return compute


def _number(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of numbers alone, and no larger than torch's: a text times a number, or a power of powers, would fill memory."""

    def compute(*values: Any) -> Any:
        if not all(isinstance(value, int | float) and abs(value) < _MAX_NUMBER for value in values):
            return Unknown("a number")
        try:
            return function(*values)
        except ArithmeticError:
            return Unknown("a number")

    return compute


_ON_VALUES: dict[str, Callable[..., Any]] = {
    "__not__": _compared(lambda a: not a),
    "eq": _compared(lambda a, b: a == b),
    "ne": _compared(lambda a, b: a != b),
    "lt": _compared(lambda a, b: a < b),
    "le": _compared(lambda a, b: a <= b),
    "gt": _compared(lambda a, b: a > b),
    "ge": _compared(lambda a, b: a >= b),
    "add": _number(lambda a, b: a + b),
    "sub": _number(lambda a, b: a - b),
    "mul": _number(lambda a, b: a * b),
    "div": _number(lambda a, b: a / b),
    "neg": _number(lambda a: -a),
    "__and__": _compared(lambda a, b: a and b),
    "__or__": _compared(lambda a, b: a or b),
}
