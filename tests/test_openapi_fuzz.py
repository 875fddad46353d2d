"""The service against its own OpenAPI document: whatever the document allows, or forbids, is answered as it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import RunningServer

ST = Path(sys.executable).with_name("st")
# `make hostile` asks for more.
EXAMPLES = os.environ.get("HOSTILE_EXAMPLES", "25")


@pytest.mark.timeout(1800)
def test_schemathesis_finds_nothing(null_server: RunningServer, tmp_path: Path) -> None:
    """Requests made from the document, right and wrong ones, get the statuses, headers and bodies that it lists."""
    done = subprocess.run(
        [
            *(str(ST), "--config-file", str(Path(__file__).with_name("schemathesis.toml"))),
            *("run", f"{null_server.address}/openapi.json", "--checks", "all", "--max-examples", EXAMPLES),
            *("--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "Tested: 5" in done.stdout
