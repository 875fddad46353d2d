"""Small JSON files beside weights, read within bounds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import NotRegularError, TooLargeError, read_bounded

# The names of 22,000 classes, twice, take 2 MB. At worst 4 MB become 120 MB of objects, in half a second.
MAX_JSON_BYTES = 4 << 20


class TwiceError(ValueError):
    """An object has a duplicate name, which is the message."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file. Raises `CheckpointError` for any other content."""
    try:
        document = parse_json(read_bounded(path, MAX_JSON_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except TooLargeError:
        raise CheckpointError(
            f"{path} is over {MAX_JSON_BYTES:,} bytes, which no model's configuration is. Download it again."
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
    except TwiceError as error:
        raise CheckpointError(
            f"{path} has {error} twice in one object, and which one counts is not clear. Leave one there."
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not JSON. Copy or download it again.") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is not a JSON object, as a model's configuration is. Copy or download it again.")
    return document


def parse_json(data: bytes) -> Any:
    """A JSON document. Raises `ValueError`, of which `TwiceError` is one, and `RecursionError`."""
    return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise TwiceError(repr(twice[:60]))
    return found


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error for a file of a checkpoint that cannot be read, with its cause and a remedy."""
    if isinstance(error, NotRegularError):
        return CheckpointError(f"Cannot read {path}: {error.strerror}. Put the file itself there.")
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"Cannot read {path}: there is no such file. Copy or download it again.")
    return CheckpointError(
        f"Cannot read {path}: {error.strerror or error}. Make it readable for the user that runs the service."
    )
