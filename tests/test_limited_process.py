"""Programs that are run within bounds: what they write comes back, and going over a bound gives nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.processes import start
from app.processes.limited import Ended, Limits, OutOfTime, run_limited
from tests.conftest import REPOSITORY
from tests.programs import PROGRAM, put_program
from tests.running import wait_until

Run = Callable[..., bytes]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the statements given as the `main` of a program; returns what it writes."""

    def run(text: str, *arguments: str, data: bytes = b"", seconds: float = 30.0, head: str = "") -> bytes:
        body = "".join(f"\n    {line}" for line in text.splitlines())
        put_program(tmp_path, monkeypatch, f"import os, sys, threading\n{head}\ndef main(*arguments):{body}\n")
        return run_limited(PROGRAM, arguments, lambda pipe: pipe.read(), Limits(1 << 30, 1, seconds), data=data)

    return run


def test_a_program_gets_its_input_and_arguments_and_is_answered(run: Run) -> None:
    """Its standard output is the answer, also where its input is larger than a pipe holds."""
    text = "print(arguments, len(sys.stdin.read()))"
    assert run(text, "a", "b c", data=b"input") == b"('a', 'b c') 5\n"
    assert run(text, data=b"x" * 1_000_000) == b"() 1000000\n"


def test_a_large_answer_arrives_whole(run: Run) -> None:
    """A program that writes before it has read its input, and more than a pipe holds, is answered."""
    assert run("sys.stdout.write('y' * 1_000_000)", data=b"x" * 1_000_000) == b"y" * 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        "print('before', flush=True); bytearray(2 << 30)",
        "print('before', flush=True)\nwhile True: pass",
        "print('before', flush=True); threading.Event().wait()",
        "print('before', flush=True); raise SystemExit(3)",
    ],
    ids=["memory", "processor time", "time on the clock", "exit status"],
)
def test_over_a_bound_nothing_is_answered(run: Run, text: str) -> None:
    """Half an answer is none: output written before a program goes over memory or time, or fails, is dropped."""
    with pytest.raises(OutOfTime if "wait" in text else Ended):
        run(text, seconds=3.0)


def test_no_file_is_written(run: Run, tmp_path: Path) -> None:
    """A file can be made and stays empty: not one byte is written to it."""
    text = "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nopen(arguments[0], 'w').write('x')"
    assert run(text, str(tmp_path / "mark")) == b""
    assert (tmp_path / "mark").read_bytes() == b""


def test_no_module_beside_a_program_is_taken_for_a_library(run: Run, tmp_path: Path) -> None:
    """A file json.py in the folder is not what `import json` finds."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "json.py").write_text("raise SystemExit(1)", encoding="utf-8")
    assert run("print(json.dumps(1))", head="import json") == b"1\n"


def test_a_program_imports_what_it_names_and_no_package(run: Run, tmp_path: Path) -> None:
    """The `__init__` of this package does not run, and modules beside the program can be imported by their names."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('the package')", encoding="utf-8")
    (tmp_path / "app" / "other.py").write_text("NUMBER = 3", encoding="utf-8")
    assert run("print(NUMBER)", head="from .other import NUMBER") == b"3\n"


def test_a_program_is_in_a_session_of_its_own_and_nothing_that_it_starts_outlives_it(run: Run, tmp_path: Path) -> None:
    """A program over its time is killed with all that it has started."""
    text = (
        "import signal\n"
        "child = os.fork() if os.getsid(0) == os.getpid() else 0\n"
        "if child: os.symlink(str(child), arguments[0])\n"
        "signal.pause()"
    )
    with pytest.raises(OutOfTime):
        run(text, str(tmp_path / "child"), seconds=2.0)
    wait_until(lambda: not is_running(int((tmp_path / "child").readlink().name)))


def test_a_program_dies_with_the_process_that_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its parent is killed and can end nothing, the kernel ends the program."""
    put_program(tmp_path, monkeypatch, "import os, signal\ndef main():\n    os.write(1, b'x')\n    signal.pause()\n")
    program = (
        "import sys\n"
        "from app.processes import start\n"
        "from app.processes.limited import Limits, run_limited\n"
        f"start._FOLDER = {start._FOLDER!r}\n"
        f"run_limited({PROGRAM!r}, (), lambda pipe: pipe.read(), Limits(1 << 30, 60, 60.0))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        wait_until(lambda: "--bare" in "".join(command_of(int(each)) for each in children.read_text().split()))
        (child,) = map(int, children.read_text().split())
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(child))


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
