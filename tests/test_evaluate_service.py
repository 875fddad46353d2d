"""A running service is evaluated by what it answers, and no service is told from a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from app.backends import null_checkpoint
from app.errors import EvaluationError
from app.evaluation import Options, evaluate_service, find_photos, is_url
from app.evaluation import service as service_module
from tests.evaluated import told_nothing, write_table, write_windows
from tests.photos import LIMITS, null_classes
from tests.running import RunningServer

COUNT = 12


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_windows(tmp_path_factory.mktemp("photos"), COUNT)


@pytest.fixture(scope="module")
def table(paths: list[Path]) -> Path:
    """Two thirds of the photos are what the null backend says of them."""
    labels = null_checkpoint().labels
    best = [null_classes(path.read_bytes())[0] for path in paths]
    written = [labels[at] if number % 3 else labels[(at + 1) % 1000] for number, at in enumerate(best)]
    damaged = paths[0].parent / "damaged.jpg"
    damaged.write_bytes(paths[0].read_bytes()[:400])
    return write_table(paths[0].parent, [*paths, damaged], [*written, labels[0]])


def evaluate(url: str, photos: Path) -> Any:
    return evaluate_service(url, find_photos(photos), Options(LIMITS), told_nothing)


@pytest.mark.parametrize("ending", ["", "/", "/predict"])
def test_a_service_is_evaluated_by_its_answers(null_server: RunningServer, table: Path, ending: str) -> None:
    """Top-1 is of what it answers, the photo that it refuses is named, and no alternative is tried."""
    evaluation = evaluate(null_server.address + ending, table)
    assert evaluation.accuracy.top1.count == COUNT
    assert evaluation.accuracy.top1.right == COUNT - len(range(0, COUNT, 3))
    assert evaluation.accuracy.top5.count == COUNT
    assert evaluation.classes == 1000
    assert [name for name, _ in evaluation.photos.skipped] == ["damaged.jpg"]
    assert evaluation.rounds == ()
    assert evaluation.settings == ()
    assert evaluation.source == null_server.address


def test_a_service_without_labels_says_how_sure_it_is(null_server: RunningServer, paths: list[Path]) -> None:
    """Photos alone give the mean probability of the first class."""
    evaluation = evaluate(null_server.address, paths[0].parent)
    assert evaluation.accuracy is None
    assert 0 < evaluation.certainty.confidence <= 1


def test_no_service_is_one_clear_error(table: Path) -> None:
    """An address where nothing listens, and one that is none."""
    with pytest.raises(EvaluationError, match="does not answer"):
        evaluate("http://127.0.0.1:9", table)
    for url in ("http://", "http://127.0.0.1:x", "http://127.0.0.1/?a=b", "http://name:word@127.0.0.1"):
        with pytest.raises(EvaluationError, match=r"no address|no service's address"):
            evaluate(url, table)
    assert is_url("https://example.org")
    assert not is_url("model_weights/resnet50.pth")


class Answers:
    """What a service answers, one after the other, and how often it was asked."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        status, body = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        headers = {"Retry-After": "0"} if status == 503 else {}
        return httpx.Response(status, json=body, headers=headers)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts canned answers in the place of the network."""

    def put(*answers: tuple[int, Any]) -> Answers:
        canned = Answers(*answers)
        client = httpx.AsyncClient
        monkeypatch.setattr(
            service_module.httpx,
            "AsyncClient",
            lambda **options: client(transport=httpx.MockTransport(canned), **options),
        )
        return canned

    return put


TWO = {
    "model": {"name": "m", "version": "0"},
    "predictions": [
        {"class_id": 1, "label": "dog", "probability": 0.75},
        {"class_id": 0, "label": "cat", "probability": 0.25},
    ],
}
TOO_MANY = {"code": "invalid_parameter", "detail": "top_k must be from 1 to 2, the number of classes."}
BUSY = {"code": "overloaded", "detail": "More requests are waiting than this server can answer in time."}


def test_a_busy_service_is_asked_again(answering: Any, tmp_path: Path) -> None:
    """503 with Retry-After is waited for; the answer that then comes counts."""
    paths = write_windows(tmp_path, 2)
    canned = answering((422, TOO_MANY), (200, TWO), (503, BUSY), (200, TWO), (503, BUSY), (200, TWO))
    evaluation = evaluate("http://service", write_table(tmp_path, paths, ["dog", "cat"]))
    assert canned.asked == 6
    assert (evaluation.accuracy.top1.right, evaluation.accuracy.top1.count) == (1, 2)
    assert evaluation.accuracy.truth_probability == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, {"hello": "world"}), "does not answer as resnet-serve does"),
        ((404, {"detail": "There is nothing at this path."}), "status 404: There is nothing"),
        ((500, "words"), "status 500"),
        ((503, BUSY), "status 503: More requests"),
    ],
)
def test_what_is_no_such_service_is_told(answering: Any, tmp_path: Path, answer: tuple[int, Any], said: str) -> None:
    """Foreign answers, errors and a service that stays busy end it in one line."""
    paths = write_windows(tmp_path, 1)
    answering(answer)
    with pytest.raises(EvaluationError, match=said) as caught:
        evaluate("http://service", write_table(tmp_path, paths, ["dog"]))
    assert "\n" not in str(caught.value)
