"""What the documents say is so: README's commands are run, and the lists are held against the code."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import errors
from app.errors import ServiceError
from tests.running import clean_environment, service_process

CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README = Path(__file__).parent.parent / "README.md"


def commands() -> list[tuple[str, str]]:
    """README's commands, each with the output that it shows."""
    found: list[tuple[str, str]] = []
    for block in CONSOLE.findall(README.read_text(encoding="utf-8")):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


@pytest.fixture(scope="module")
def demo_address(repository: Path) -> Iterator[str]:
    """The service as README's outputs were made with: the offline demo."""
    with service_process("--weights", "offline-demo", folder=repository) as service:
        match = re.search(r"http://[0-9.]+:\d+", service.wait_for("Ready:"))
        assert match
        yield match[0]
        assert service.stop() == 0


@pytest.mark.parametrize(("command", "output"), [each for each in commands() if "127.0.0.1:8000" in each[0]])
def test_readme_requests_give_the_shown_answers(repository: Path, demo_address: str, command: str, output: str) -> None:
    """Each request in README is answered as README shows, but for its request id and the last digits."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = command.replace("http://127.0.0.1:8000", demo_address)
    run = subprocess.run(command, shell=True, cwd=repository, capture_output=True, text=True, timeout=60, check=True)
    assert rounded(json.loads(run.stdout)) == rounded(json.loads(output))


def test_readme_classify_prints_what_is_shown(repository: Path) -> None:
    """`resnet-serve classify` in README prints README's table."""
    ((command, output),) = [each for each in commands() if each[0].startswith("resnet-serve classify")]
    run = subprocess.run(
        [sys.executable, "-m", "app", *shlex.split(command)[1:]],
        cwd=repository,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert run.stdout == output


def test_readme_make_commands_exist(repository: Path) -> None:
    """Every `make` in README is a verb of the Makefile, and both of the first two are there."""
    verbs = set(re.findall(r"^([a-z]+):", (repository / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"\bmake ([a-z]+)\b", README.read_text(encoding="utf-8")))
    assert {"serve", "test"} <= used <= verbs


def test_documents_link_to_files_that_exist(repository: Path) -> None:
    """Every relative link in a document leads to a file."""
    documents = [*repository.glob("*.md"), *repository.glob("docs/*.md"), repository / "model_weights" / "README.md"]
    assert len(documents) > 5
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), (document.name, target)


def service_errors(kind: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    yield kind
    for sub in kind.__subclasses__():
        yield from service_errors(sub)


def test_every_code_is_documented(repository: Path) -> None:
    """docs/errors.md lists each code of the errors with its status, and no other."""
    text = (repository / "docs" / "errors.md").read_text(encoding="utf-8")
    listed = {(int(status), code) for status, code in re.findall(r"^\| (\d{3}) \| `(\w+)` \|", text, re.MULTILINE)}
    raised = {(kind.status, kind.code) for kind in service_errors() if kind.__module__.startswith(errors.__name__)}
    assert listed == raised


def test_every_dependency_has_its_reason(repository: Path) -> None:
    """docs/dependencies.md has a line for each package that pyproject.toml names, and no other; each is pinned."""
    project: dict[str, Any] = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["offline-demo"],
        *[each for group in project["dependency-groups"].values() for each in group if isinstance(each, str)],
        *project["build-system"]["requires"],
    ]
    names = {normal(re.split(r"[\[<>=~! ]", requirement)[0]) for requirement in wanted}
    text = (repository / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = [re.sub(r"\[.*?\]", "", row) for row in re.findall(r"^\| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE)]
    listed = {normal(name) for row in rows for name in row.split(", ")} - {"package", "-"}
    assert listed == names
    pins = (repository / "constraints.txt").read_text(encoding="utf-8")
    pinned = {normal(name) for name in re.findall(r"^([A-Za-z0-9_.-]+)==", pins, re.MULTILINE)}
    assert names <= pinned


def test_every_room_is_in_the_architecture(repository: Path) -> None:
    """docs/architecture.md has a line for each room of app/."""
    text = (repository / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in (repository / "app").iterdir():
        if path.name.startswith("__") or path.name in ("data", "py.typed"):
            continue
        assert f"`{path.name}/`" in text if path.is_dir() else f"`{path.name}`" in text, path.name


def normal(name: str) -> str:
    """A package's normal name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def rounded(document: Any) -> Any:
    """A JSON document without what differs from run to run: request ids, and all but three digits of numbers."""
    if isinstance(document, dict):
        return {name: rounded(value) for name, value in document.items() if name != "request_id"}
    if isinstance(document, list):
        return [rounded(value) for value in document]
    return round(document, 3) if isinstance(document, float) else document
