"""The key of an artifact: a digest of all that decides what is in it, computed without reading or deciding.

Decisions follow from the bytes of the checkpoint and of the files beside it, from the settings that decide, and from
the code that reads and decides. Files and settings are in the key by content; for the code, `SCHEMA_VERSION` and the
release are in it. Two starts with one key would make the same artifact, so the second one opens that of the first.
"""

from __future__ import annotations

import hashlib
import json

from .. import __version__
from ..checkpoints import CheckpointFile, Found, depends_on, offline_demo_file
from ..settings import ModelSettings

SCHEMA_VERSION = 2
"""To be raised with every change of what is written for the same checkpoint: graph, record or decisions."""


def key_of(settings: ModelSettings, found: Found) -> str:
    """The key of the artifact of `found`. Reads the checkpoint's bytes; imports no torch.

    Raises `CheckpointError` as reading the checkpoint would, and `OSError`.
    """
    path = found.source.path if isinstance(found.source, CheckpointFile) else offline_demo_file()
    parts = {
        "schema": SCHEMA_VERSION,
        "release": __version__,
        "files": depends_on(path, settings.labels, settings.max_checkpoint_bytes),
        "fallback": found.fallback_warning,
        "settings": settings.export_settings(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
