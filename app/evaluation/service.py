"""Evaluation of a running service, through `POST /predict`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from .. import outbound
from ..agreement import Probabilities
from ..errors import EvaluationError
from .answers import Progress
from .evaluate import Evaluation, Options, notes_on, truth_of, usable, used_photos
from .matching import match_classes
from .photos import Found, Photo, in_order
from .report import Certainty, entropies, measure_accuracy

CONCURRENCY = 8
_TRIES = 5
_LONGEST_WAIT_SECONDS = 10.0
_TIMEOUT_SECONDS = 60.0
# Refusals that concern one photo, not the next one.
_PHOTO_STATUSES = frozenset({413, 415, 422})
_TOO_MANY = 2**31 - 1


def is_url(path: str) -> bool:
    return path.startswith(("http://", "https://"))


@dataclass
class _Service:
    """The service, and the facts known from its answers."""

    url: str
    client: httpx.AsyncClient
    model: str = ""
    labels: tuple[str, ...] = ()
    skipped: list[tuple[str, str]] = field(default_factory=list)
    open: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENCY))

    async def ask(self, photo: Photo, top_k: int) -> httpx.Response | None:
        """The answer to a photo; None, with a line in `skipped`, if the photo itself is refused."""
        async with self.open:
            try:
                data = await asyncio.to_thread(photo.path.read_bytes)
            except OSError as error:
                self.skipped.append((photo.name, f"It cannot be read: {error.strerror}."))
                return None
            for attempt in range(_TRIES):
                response = await self._post(data, top_k)
                if response.status_code not in (503, 504) or attempt == _TRIES - 1:
                    break
                await asyncio.sleep(min(_wait_of(response, attempt), _LONGEST_WAIT_SECONDS))
        problem = _document(response)
        if response.status_code == 200:
            return response
        if response.status_code in _PHOTO_STATUSES and problem.get("code") != "invalid_parameter":
            self.skipped.append((photo.name, str(problem.get("detail", f"HTTP status {response.status_code}."))))
            return None
        if problem.get("code") == "invalid_parameter":
            return response
        detail = problem.get("detail") or "The answer is not this service's."
        raise EvaluationError(f"{self.url} answers {photo.name} with status {response.status_code}: {detail}")

    async def _post(self, data: bytes, top_k: int) -> httpx.Response:
        try:
            return await self.client.post("/predict", content=data, params={"top_k": top_k})
        except httpx.HTTPError as error:
            raise EvaluationError(
                f"{self.url} does not answer: {str(error) or type(error).__name__}. Is resnet-serve running there?"
            ) from None


def evaluate_service(url: str, found: Found, options: Options, progress: Progress) -> Evaluation:
    """Evaluate the service at `url` on `found`. Blocks for minutes. Raises `EvaluationError`."""
    return asyncio.run(_evaluate(_base_url(url), found, options, progress))


async def _evaluate(url: str, found: Found, options: Options, progress: Progress) -> Evaluation:
    try:
        client = outbound.async_client(url, _TIMEOUT_SECONDS)
    except outbound.OutboundError as error:
        raise EvaluationError(f"{url} cannot be asked: {error}.") from None
    async with client:
        service = _Service(url, client)
        await _learn_labels(service, in_order(found.photos))
        matched = match_classes(found, service.labels) if found.is_labelled else None
        photos = in_order(usable(found, matched), options.most_photos)
        service.skipped.clear()
        done = 0

        async def one(photo: Photo) -> tuple[Photo, list[float]] | None:
            nonlocal done
            response = await service.ask(photo, len(service.labels))
            done += 1
            progress("Photos", done, len(photos))
            return None if response is None else (photo, _row(response, len(service.labels), url))

        answered: list[tuple[Photo, list[float]]] = []
        # In groups, which bounds the number of tasks: each holds a photo.
        for first in range(0, len(photos), 16 * CONCURRENCY):
            group = await asyncio.gather(*[one(photo) for photo in photos[first : first + 16 * CONCURRENCY]])
            answered += [each for each in group if each is not None]
    if not answered:
        raise EvaluationError(f"{url} classifies none of the {len(photos)} photos: {service.skipped[0][1]}")
    probabilities: Probabilities = np.array([row for _, row in answered])
    kept = [photo for photo, _ in answered]
    entropy = float(
        entropies(probabilities, is_exclusive=bool(np.all(np.abs(probabilities.sum(axis=1) - 1) < 1e-3))).mean()
    )
    return Evaluation(
        source=url,
        model=service.model,
        is_of_a_service=True,
        classes=len(service.labels),
        photos=used_photos(found, kept, service.skipped, matched),
        notes=tuple(notes_on(found, matched, len(kept))),
        accuracy=None if matched is None else measure_accuracy(probabilities, truth_of(kept, matched), matched.labels),
        certainty=Certainty(len(kept), float(probabilities.max(axis=1).mean()), entropy),
    )


async def _learn_labels(service: _Service, photos: Sequence[Photo]) -> None:
    """The refusal of too large a `top_k` has the number of classes; an answer with all of them has their names."""
    for photo in photos:
        response = await service.ask(photo, _TOO_MANY)
        if response is None:
            continue
        count = re.search(r"from 1 to (\d+)", str(_document(response).get("detail", "")))
        answer = await service.ask(photo, int(count[1])) if count else response
        if answer is None:
            continue
        document = _document(answer)
        try:
            service.model = str(document["model"]["name"])
            named = {int(each["class_id"]): str(each["label"]) for each in document["predictions"]}
            service.labels = tuple(named[index] for index in range(len(named)))
        except (KeyError, TypeError, ValueError):
            raise EvaluationError(f"{service.url} does not answer as resnet-serve does.") from None
        return
    raise EvaluationError(f"{service.url} classifies none of the {len(photos)} photos: {service.skipped[0][1]}")


def _row(response: httpx.Response, classes: int, url: str) -> list[float]:
    row = [0.0] * classes
    try:
        for each in _document(response)["predictions"]:
            row[int(each["class_id"])] = float(each["probability"])
    except (KeyError, TypeError, ValueError, IndexError):
        raise EvaluationError(f"{url} does not answer as resnet-serve does, or serves another model by now.") from None
    return row


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _wait_of(response: httpx.Response, attempt: int) -> float:
    try:
        return float(response.headers.get("Retry-After", ""))
    except ValueError:
        return 0.5 * float(2**attempt)


def _base_url(url: str) -> str:
    """The service's base address. Raises `EvaluationError`."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise EvaluationError(f"{url} is no address: {error}.") from None
    if not parts.hostname or parts.query or parts.fragment or parts.username is not None:
        raise EvaluationError(f"{url} is no service's address: give it alone, as in http://127.0.0.1:8000.")
    path = parts.path.rstrip("/").removesuffix("/predict")
    return f"{parts.scheme}://{parts.netloc}{path}"
