"""Child processes: what they are given of the environment, and which package they run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.artifacts import process as export_process
from app.checkpoints import CheckpointFile, Found, pickled_weights
from app.errors import CheckpointError
from app.images.decode import DecodeLimits
from app.images.decoding_children import DecodingChildren
from app.processes import Need, child_environment, command
from app.processes.limited import Limits, NotStarted, run_limited
from app.progress import LogReporter
from app.settings import Settings
from tests.conftest import REPOSITORY
from tests.onnx_graphs import Maker
from tests.programs import PROGRAM, put_program
from tests.running import wait_until
from tests.several_processes import several_processes

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "s3cret-aws",
    "HF_TOKEN": "s3cret-hf",
    "MY_PASSWORD": "s3cret-mine",
    "NVIDIA_API_KEY": "s3cret-ngc",
    "RESNET_API_KEYS": "s3cret-own",
    "DATABASE_URL": "postgres://user:s3cret-db@host/",
}
PROXY = {"HTTPS_PROXY": "http://user:s3cret-proxy@127.0.0.1:9"}
LIMITS = Limits(memory_bytes=1 << 30, cpu_seconds=10, seconds=60.0)
PRINT_ENVIRONMENT = """
import os
def main():
    print("\\n".join(f"{name}={value}" for name, value in os.environ.items()))
"""
NEEDED = {"LD_LIBRARY_PATH": "/opt/lib", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has secrets, and what children need."""
    for name, value in (SECRETS | PROXY | NEEDED).items():
        monkeypatch.setenv(name, value)


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().replace(b"\0", b"\n").decode()


def own_children() -> set[int]:
    tasks = Path("/proc/self/task")
    return {int(word) for each in tasks.glob("*/children") for word in each.read_text().split()}


def environment_of_the_child_of(call: Callable[[], object], named: str) -> str:
    """Of the child that `call` starts, seen from outside while it runs; `named` is in its command line."""
    before = own_children()

    def found() -> list[int]:
        return [pid for pid in own_children() - before if named.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(call)
        wait_until(found)
        seen = environment_of(found()[0])
        running.exception()
    return seen


@pytest.mark.usefixtures("secrets")
def test_the_examiner_of_a_file_gets_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The readers of ONNX and HDF5 files see neither credentials nor proxies, and what they need to run."""
    put_program(tmp_path, monkeypatch, PRINT_ENVIRONMENT)
    seen = run_limited(PROGRAM, (), lambda pipe: pipe.read(), LIMITS).decode()
    assert "s3cret" not in seen
    assert {"LD_LIBRARY_PATH=/opt/lib", "OMP_NUM_THREADS=1", "LC_ALL=C.UTF-8"} <= set(seen.splitlines())


@pytest.mark.usefixtures("secrets")
def test_the_reader_of_pickles_gets_what_its_interpreter_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It sees the loader's variables and nothing else."""
    program = (
        "import os, sys\n"
        "from ..processes.framing import write_document\n"
        "def main(container):\n"
        "    text = '\\n'.join(f'{n}={v}' for n, v in os.environ.items())\n"
        "    write_document(sys.stdout.buffer, {'document': text})\n"
    )
    put_program(tmp_path, monkeypatch, program, "app.checkpoints.inert_unpickler")
    seen = pickled_weights.unpickle("zip", b"", tmp_path / "weights.pth").document
    assert [line for line in seen.splitlines() if not line.startswith("LC_CTYPE")] == ["LD_LIBRARY_PATH=/opt/lib"]


@pytest.mark.usefixtures("secrets")
def test_a_decoding_process_gets_no_secret() -> None:
    """What reads strangers' bytes sees neither credentials nor proxies."""
    limits = DecodeLimits(1_000_000, 1_000_000, 1000, 64, 1000)
    workers = DecodingChildren(limits, "exact", 1 << 30, 1 << 20, 10.0)
    worker = workers.start()
    try:
        assert "s3cret" not in environment_of(worker.id)
        assert "OMP_NUM_THREADS=1" in environment_of(worker.id)
    finally:
        workers.kill_all()
        workers.wait_for_all()


@pytest.mark.usefixtures("secrets")
def test_the_exporting_process_gets_no_secret(tmp_path: Path) -> None:
    """What reads a checkpoint and builds its network sees no credentials, and the thread counts it is to keep."""
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    settings = Settings(weights=str(tmp_path / "bad.pth"), cache_dir=tmp_path)

    def export() -> object:
        return export_process.export_apart(
            settings, Found(CheckpointFile(tmp_path / "bad.pth")), LogReporter(), lambda: False
        )

    seen = environment_of_the_child_of(export, "app.artifacts.worker")
    assert "s3cret" not in seen
    assert "OMP_NUM_THREADS=3" in seen


@pytest.mark.usefixtures("secrets")
def test_front_ends_and_the_engine_get_no_secret(tmp_path: Path) -> None:
    """Front-ends see neither credentials nor proxies; the engine, which downloads weights, sees the proxies alone."""
    with several_processes(tmp_path) as service:
        for pid in service.pids("front-end"):
            assert "s3cret" not in environment_of(pid)
        (engine,) = service.pids("engine")
        seen = environment_of(engine)
        assert "s3cret" not in seen.replace(PROXY["HTTPS_PROXY"], "")
        assert PROXY["HTTPS_PROXY"] in seen
        assert "CUDA_VISIBLE_DEVICES=\n" in seen


def test_names_are_kept_by_what_a_child_does() -> None:
    """Each need adds its own names, and a name that looks like a secret's is never taken for one of a library's."""
    given = {**SECRETS, **PROXY, **NEEDED, "TORCH_HUB_TOKEN": "s3cret", "MKL_NUM_THREADS": "2", "PYTHONSTARTUP": "x"}
    for need, names in (
        (Need.NOTHING, {"LD_LIBRARY_PATH", "LC_ALL"}),
        (Need.COMPUTE, {"LD_LIBRARY_PATH", "LC_ALL", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}),
        (Need.GPU, {"LD_LIBRARY_PATH", "LC_ALL", "CUDA_VISIBLE_DEVICES"}),
        (Need.DOWNLOAD, {"LD_LIBRARY_PATH", "LC_ALL", "HTTPS_PROXY"}),
    ):
        assert set(child_environment(need, of=given)) == names | {"PYTHONPATH"}


# --- which package a child runs


def put_other_app(folder: Path) -> Path:
    """A package `app` of another project's, which must not be taken for this one."""
    (folder / "app").mkdir()
    (folder / "app" / "__init__.py").write_text("raise SystemExit('the app of another project')")
    return folder


@pytest.mark.parametrize("where", ["PYTHONPATH", "current directory"])
def test_a_folder_called_app_hides_no_child(tmp_path: Path, where: str) -> None:
    """A child runs this package, also where another project's `app` comes first on the path."""
    other = put_other_app(tmp_path)
    done = subprocess.run(
        command("app.processes", flags=("-W", "ignore")),
        cwd=other if where == "current directory" else "/",
        env={"PYTHONPATH": f"{other}:{REPOSITORY}" if where == "PYTHONPATH" else "", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # A package without a program of its own: found, and nothing to run.
    assert "No module named app.processes.__main__" in done.stderr
    assert "another project" not in done.stderr


def test_the_command_runs_beside_another_app(tmp_path: Path) -> None:
    """`resnet-serve` starts its own package from the folder of another project, or with it on PYTHONPATH."""
    other = put_other_app(tmp_path)
    program = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from resnet_serve import main; main()"
    for environment in ({"PYTHONPATH": str(other)}, {}):
        # As a console script does: the path is Python's own, then the module that it was installed with.
        entry = program if not environment else program.replace("insert(0,", "insert(len(sys.path),")
        done = subprocess.run(
            [sys.executable, "-c", entry, "--version"],
            cwd=other,
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout.split()[:1]) == (0, ["resnet-serve"]), done.stderr


# --- a process that does not start


@pytest.fixture
def no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python cannot start here: a library of its own is not found, as where LD_LIBRARY_PATH is needed and missing."""
    broken = tmp_path / "python"
    broken.write_text(
        "#!/bin/sh\n"
        "echo 'python: error while loading shared libraries: libpython3.11.so.1.0: cannot open it' >&2\n"
        "exit 127\n"
    )
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))


@pytest.mark.usefixtures("no_interpreter")
def test_an_examiner_that_does_not_start_is_no_verdict_on_the_file(tmp_path: Path) -> None:
    """Where no process can be started, the error says so and why, and calls no file damaged or hostile."""
    path = tmp_path / "weights.pth"
    with pytest.raises(CheckpointError, match=r"could not be examined, because .*libpython3.11.so.1.0") as refusal:
        pickled_weights.unpickle("zip", b"", path)
    assert "no checkpoint to read" not in str(refusal.value)
    with pytest.raises(NotStarted, match="libpython"):
        run_limited("app.checkpoints.onnx_process", (), lambda pipe: pipe.read(), LIMITS)


@pytest.mark.parametrize("name", ["weights.onnx", "weights.h5"])
@pytest.mark.usefixtures("no_interpreter")
def test_readers_say_that_they_could_not_examine(tmp_path: Path, name: str) -> None:
    """ONNX and HDF5 files too are "not examined" where their process cannot start."""
    from app.checkpoints.hdf5 import read_hdf5
    from app.checkpoints.onnx_file import read_onnx

    path = tmp_path / name
    path.write_bytes(Maker().build() if name.endswith("onnx") else b"\x89HDF\r\n\x1a\n")
    with pytest.raises(CheckpointError, match="could not be examined, because"):
        (read_onnx if name.endswith("onnx") else read_hdf5)(path)


def test_an_endless_stderr_holds_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error after a program's start is thrown away, however much it is."""
    text = "import sys\ndef main():\n    sys.stderr.write('x' * 10_000_000)\n    sys.stdout.write('answer')\n"
    put_program(tmp_path, monkeypatch, text)
    assert run_limited(PROGRAM, (), lambda pipe: pipe.read(), LIMITS) == b"answer"
