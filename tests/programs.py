"""Programs for the tests, run as this package runs its own that read hostile files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from app.processes import start
from tests.conftest import REPOSITORY

PROGRAM = "app.program"


def put_program(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, module: str = PROGRAM) -> None:
    """Have the starter find `text` as `module`, in a package in `folder` that holds nothing else but the starter."""
    package = folder / "app"
    shutil.copytree(REPOSITORY / "app" / "processes", package / "processes", dirs_exist_ok=True)
    file = folder.joinpath(*module.split(".")).with_suffix(".py")
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(start, "_FOLDER", str(package))
