"""Symbolic interpreter of TorchScript's code: from a module's `forward` to the graph of its operations.

The code is parsed and never run. The interpreter follows the code that torch writes: calls, assignments and branches on
a known condition. Of a branch on the input's values or sizes it follows the side that does not only raise an error.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .pickled_document import Entries, entries_of, is_tensor
from .script_builtins import NoBuiltin, Sizes, call_builtin, convert
from .script_source import Code
from .symbolic_values import Node, Size, Unknown, Unread, Weight, now
from .torch_operations import Operations

_MAX_STEPS = 50_000
_MAX_CALLS = 60
_WORDS = {"True": True, "False": False, "None": None}


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the file. `name` is the prefix of its tensors' names, `kind` its class."""

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
    """A return statement was reached."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Interpreter:
    """Follows one call of a module's `forward`."""

    def __init__(self, code: Code, constants: Sequence[Any], operations: Operations) -> None:
        self._code = code
        self._constants = constants
        self._operations = operations
        self._steps = 0
        self._calls = 0

    def output_of(self, module: Module) -> Any:
        """The result of `forward` for one image tensor. Raises `Unread`."""
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
            # The network is served in inference mode, whatever mode it was saved in.
            return False
        if name in owner.attributes:
            return self._stored(owner, name, owner.attributes[name])
        definition = self._code.find(owner.kind)
        for each in definition.body if isinstance(definition, ast.ClassDef) else []:
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.target.id == name:
                return Unknown(name) if each.value is None else self._value(each.value, {})
        return Method(owner, name)

    def _stored(self, owner: Module, name: str, value: Any) -> Any:
        """The value of an attribute that the file stores."""
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
        if isinstance(owner, Sizes) and isinstance(key, int):
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
            return convert(function.text, arguments[0])
        if function.text.startswith("__torch__."):
            definition = self._code.find(function.text)
            if isinstance(definition, ast.FunctionDef):
                return self._call(definition, arguments, named)
            raise Unread(f"{function.text}, which has no code in the file")
        try:
            return call_builtin(function.text, arguments)
        except NoBuiltin:
            pass
        return self._operations.call(function.text.rpartition(".")[2], arguments, named, function.text)


def _only_raises(body: Sequence[ast.stmt]) -> bool:
    """Whether a branch ends in an error."""
    last = body[-1] if body else None
    if not isinstance(last, ast.Expr) or not isinstance(last.value, ast.Call):
        return False
    function = last.value.func
    return isinstance(function, ast.Attribute) and function.attr == "RaiseException"
