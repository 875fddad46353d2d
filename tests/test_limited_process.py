"""Programs that are run within bounds: what they write comes back, and going over a bound gives nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from app.checkpoints import limited_process
from app.checkpoints.limited_process import run_limited


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `run_limited` finds its programs."""
    monkeypatch.setattr(limited_process, "__file__", shutil.copy(limited_process.__file__, tmp_path))
    return tmp_path


def run(folder: Path, text: str, *arguments: str, data: bytes = b"", seconds: float = 30.0) -> bytes:
    (folder / "program.py").write_text(text, encoding="utf-8")
    return run_limited("program.py", arguments, data=data, memory_bytes=1 << 30, cpu_seconds=1, seconds=seconds)


def test_a_program_gets_its_input_and_arguments_and_is_answered(folder: Path) -> None:
    """It runs as a script does: its own name first, arguments behind it, and its standard output is the answer."""
    text = "import sys\nif __name__ == '__main__': print(sys.argv[1:], sys.stdin.read(), sys.argv[0][-10:])"
    assert run(folder, text, "a", "b c", data=b"input") == b"['a', 'b c'] input program.py\n"


@pytest.mark.parametrize(
    "text",
    [
        "print('before', flush=True); bytearray(2 << 30)",
        "print('before', flush=True)\nwhile True: pass",
        "print('before', flush=True); import threading; threading.Event().wait()",
        "print('before', flush=True); raise SystemExit(3)",
    ],
    ids=["memory", "processor time", "time on the clock", "exit status"],
)
def test_over_a_bound_nothing_is_answered(folder: Path, text: str) -> None:
    """Half an answer is none: whatever a program wrote before it went over memory or time, or failed, is dropped."""
    assert run(folder, text, seconds=3.0) == b""


def test_no_file_is_written(folder: Path) -> None:
    """A file can be made and stays empty: not one byte is written to it."""
    text = "import signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nopen(sys.argv[1], 'w').write('x')"
    assert run(folder, text, str(folder / "mark")) == b""
    assert (folder / "mark").read_bytes() == b""


def test_no_module_beside_a_program_is_taken_for_a_library(folder: Path) -> None:
    """A file json.py in the folder is not what `import json` finds."""
    (folder / "json.py").write_text("raise SystemExit(1)", encoding="utf-8")
    assert run(folder, "import json\nprint(json.dumps(1))") == b"1\n"
