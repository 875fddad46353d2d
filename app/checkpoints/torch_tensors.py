"""torch's operations that copy, reshape, pad, slice or reverse the channels of a tensor."""

from __future__ import annotations

from typing import Any

from .symbolic_values import Node, Size, now
from .torch_calls import Call, Handler
from .torch_signatures import COPIES, SAME

_FLOAT32, _FLOAT64 = 6, 7  # c10/core/ScalarType.h
_FAR = 1 << 31


def _same(call: Call) -> Node:
    return call.given


def _copy(call: Call) -> Node | None:
    """A copy in float32 or float64. In other number formats the network computes other values."""
    values = [*call.rest, *call.arguments.values()]
    kinds = [each for each in values if isinstance(each, int) and not isinstance(each, bool)]
    return call.node("same", rank=call.given.rank) if set(kinds) <= {_FLOAT32, _FLOAT64} else None


def _flatten(call: Call) -> Node | None:
    start, end = call.arguments.get("start_dim", 0), call.arguments.get("end_dim", -1)
    if start not in (1, -3) or end not in (-1, 3):
        return None
    return call.node("shape", rank=2)


def _view(call: Call) -> Node | None:
    size = call.arguments["size"]
    is_flat = isinstance(size, list) and len(size) == 2 and (size[1] == -1 or isinstance(size[1], int | Size))
    return call.node("shape", data=size[1], rank=2) if is_flat else None


def _squeeze(call: Call) -> Node | None:
    # The sizes of these axes are not known here. The width of the linear layer behind shows that they are 1.
    axes = call.arguments.get("dim")
    axes = axes if isinstance(axes, list) else [axes]
    is_spatial = all(axis in (2, 3, -1, -2) for axis in axes)
    rank = call.given.rank - len(axes) if call.given.rank else None
    return call.node("shape", rank=rank) if is_spatial else None


def _flip(call: Call) -> Node | None:
    return call.node("reversed", rank=call.given.rank) if call.arguments["dims"] in ([1], [-3]) else None


def _index(call: Call) -> Node | None:
    indices = list(call.arguments["indices"])
    is_of_channels = indices[1:2] and indices[0] is None and all(each is None for each in indices[2:])
    return _channels(call, indices[1]) if is_of_channels else None


def _index_select(call: Call) -> Node | None:
    return _channels(call, call.arguments["index"]) if call.arguments["dim"] in (1, -3) else None


def _channels(call: Call, order: Any) -> Node | None:
    """The three channels in their order or reversed."""
    values = call.tensors.constant(now(order))
    wanted = None if values is None else values.tolist()
    if wanted == [0, 1, 2]:
        return call.given
    return call.node("reversed", rank=call.given.rank) if wanted == [2, 1, 0] else None


def _slice(call: Call) -> Node | None:
    """A slice of the whole axis, as in `x[:, …]`."""
    start, end, step = (call.arguments.get(name) for name in ("start", "end", "step"))
    is_whole = start in (None, 0) and (end is None or end > _FAR) and step in (None, 1)
    return call.given if is_whole else None


def _pad(call: Call) -> Node | None:
    if call.arguments.get("mode", "constant") != "constant":
        return None
    value = call.arguments.get("value")
    return call.node("pad", data=(list(call.arguments["pad"]), 0.0 if value is None else value), rank=4)


TENSORS: dict[str, Handler] = {
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(COPIES, _copy),
    "flatten": _flatten,
    **dict.fromkeys(("view", "reshape"), _view),
    "squeeze": _squeeze,
    "flip": _flip,
    "index": _index,
    "index_select": _index_select,
    "slice": _slice,
    **dict.fromkeys(("constant_pad_nd", "pad"), _pad),
}
