"""Scores of photos under several sets of facts: each photo is decoded once, and nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..backends.base import BackendOptions
from ..backends.onnx import OnnxBackend
from ..backends.torch.backend import make_float32_exact
from ..backends.torch.forward import Forward
from ..backends.torch.precision import plan_device
from ..checkpoints import Checkpoint, Graph
from ..errors import EvaluationError, ModelOutputInvalid, ServiceError
from ..images import DecodeLimits, decode_for_each
from ..layers import ResNetSwitches
from ..networks import LOGITS, PLANES, build_network, describe_fitted, is_described, write_graph
from ..resources import cuda_device_count
from ..types import Pixels, Preprocessing, Scores, Want
from .facts import geometry
from .photos import Photo

if TYPE_CHECKING:
    import torch

Run = tuple[ResNetSwitches | None, Preprocessing]
"""The facts that scores depend on."""

# Images in a batch: at 224×224, eight are the fastest on a CPU (24.6 a second; 18.2 in batches of 32). At smaller
# sizes a batch has about as many pixels.
_AT_ONCE, _MOST_AT_ONCE = 8, 32
_PIXEL_BYTES = 256_000_000
_CHUNK = 64


class Progress(Protocol):
    def __call__(self, what: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` of the step `what`; `detail` names the current part of it."""
        ...


class Network(Protocol):
    """A network whose input's normalisation is chosen at each call."""

    def __call__(self, pixels: Pixels, preprocessing: Preprocessing) -> Scores: ...


class Answers:
    """The scores of one evaluation's photos, by the facts they depend on."""

    def __init__(self, checkpoint: Checkpoint, limits: DecodeLimits, threads: int, device: str = "auto") -> None:
        self._checkpoint = checkpoint
        self._limits = limits
        self._threads = threads
        self._device = device
        self._scores: dict[Run, Scores] = {}
        self._network: tuple[ResNetSwitches | None, Network] | None = None
        self.photos: list[Photo] = []
        """The photos that can be decoded, in their order; filled by `read`."""
        self.skipped: list[tuple[str, str]] = []
        """The photos that cannot be used, with the reason."""

    def read(self, photos: Sequence[Photo], run: Run, progress: Progress) -> Scores:
        """The scores `(N, classes)` of all `photos` that can be decoded, under one set of facts."""
        parts = []
        network = self._network_of(run[0])
        at_once = _batch_size(run[1])
        done = 0
        for group, outcomes in self._decoded(photos, [run[1]]):
            good: list[Pixels] = []
            decoded: list[Photo] = []
            for photo, outcome in zip(group, outcomes, strict=True):
                if isinstance(outcome, str):
                    self.skipped.append((photo.name, outcome))
                else:
                    decoded.append(photo)
                    good.append(outcome[0])
            for first in range(0, len(good), at_once):
                scores = network(np.stack(good[first : first + at_once]), run[1])
                are_answered = [bool(np.isfinite(row).all()) for row in scores]
                rows = self._keep(decoded[first : first + at_once], are_answered)
                parts.append(scores[rows])
            done += len(group)
            progress("Photos", done, len(photos))
        if parts:
            self._scores[run] = np.concatenate(parts)
            return self._scores[run]
        return np.empty((0, self._checkpoint.class_count), np.float32)

    def _keep(self, photos: Sequence[Photo], are_answered: Sequence[bool]) -> list[int]:
        """The indices of the photos with finite scores; the others are skipped."""
        for photo, is_answered in zip(photos, are_answered, strict=True):
            if is_answered:
                self.photos.append(photo)
            else:
                self.skipped.append((photo.name, ModelOutputInvalid.default_detail))
        return [place for place, is_answered in enumerate(are_answered) if is_answered]

    def scores(self, run: Run, count: int) -> Scores:
        """The scores of the first `count` photos, which `compute` has computed."""
        return self._scores[run][:count]

    def forget(self, runs: Iterable[Run]) -> None:
        for run in runs:
            self._scores.pop(run, None)

    def count(self, run: Run) -> int:
        """The number of photos whose scores are known."""
        return len(self._scores[run]) if run in self._scores else 0

    def missing(self, runs: Iterable[Run], count: int) -> int:
        """The number of scores that `compute` would compute."""
        return sum(max(0, count - self.count(run)) for run in set(runs))

    def compute(self, runs: dict[Run, str], count: int, progress: Callable[[int, str], None]) -> None:
        """Compute the scores of the first `count` photos for each of `runs`, whose values are names to show.

        `progress` receives the number of scores done so far, and the name of the current run.
        """
        wanted = [run for run in runs if self.count(run) < count]
        begins = {self.count(run) for run in wanted}
        done = 0
        for first in sorted(begins):
            group = [run for run in wanted if self.count(run) == first]
            shapes = list(dict.fromkeys(geometry(run[1]) for run in group))
            bytes_each = sum(3 * shape.crop[0] * shape.crop[1] for shape in shapes)
            size = max(_MOST_AT_ONCE, min(count - first, _PIXEL_BYTES // bytes_each))
            # Grouped by network, then by input size: a change of either may build a network.
            networks = list(dict.fromkeys(run[0] for run in group))
            group.sort(key=lambda run: (networks.index(run[0]), run[1].crop))
            for begin in range(first, count, size):
                photos = self.photos[begin : min(begin + size, count)]
                pixels = self._pixels(photos, shapes)
                for run in group:
                    network = self._network_of(run[0])
                    batch = pixels[geometry(run[1])]
                    at_once = _batch_size(run[1])
                    for part in range(0, len(batch), at_once):
                        progress(done, runs[run])
                        images = batch[part : part + at_once]
                        self._add(run, network(images, run[1]))
                        done += len(images)
                        progress(done, runs[run])

    def _add(self, run: Run, scores: Scores) -> None:
        # An alternative may overflow: its infinite scores count as wrong.
        scores = np.nan_to_num(scores, posinf=0.0, neginf=0.0)
        known = self._scores.get(run)
        self._scores[run] = scores if known is None else np.concatenate([known, scores])

    def _pixels(self, photos: Sequence[Photo], shapes: list[Preprocessing]) -> dict[Preprocessing, Pixels]:
        images: list[list[Pixels]] = [[] for _ in shapes]
        for group, outcomes in self._decoded(photos, shapes):
            for photo, outcome in zip(group, outcomes, strict=True):
                if isinstance(outcome, str):
                    raise EvaluationError(f"{photo.name} could be decoded before, and cannot now: {outcome}")
                for kept, pixels in zip(images, outcome, strict=True):
                    kept.append(pixels)
        return {shape: np.stack(kept) for shape, kept in zip(shapes, images, strict=True)}

    def _decoded(
        self, photos: Sequence[Photo], shapes: Sequence[Preprocessing]
    ) -> Iterator[tuple[Sequence[Photo], list[list[Pixels] | str]]]:
        """Groups of photos, each decoded for every shape or with an error; the next group is decoded meanwhile."""

        def decode(photo: Photo) -> list[Pixels] | str:
            try:
                return decode_for_each(photo.path.read_bytes(), shapes, self._limits)
            except ServiceError as error:
                return error.detail
            except OSError as error:
                return f"It cannot be read: {error.strerror}."

        groups = [photos[first : first + _CHUNK] for first in range(0, len(photos), _CHUNK)]
        with ThreadPoolExecutor(self._threads) as pool:
            begun = [pool.submit(decode, photo) for photo in groups[0]] if groups else []
            for number, group in enumerate(groups):
                outcomes = [each.result() for each in begun]
                if number + 1 < len(groups):
                    begun = [pool.submit(decode, photo) for photo in groups[number + 1]]
                yield group, outcomes

    def _network_of(self, switches: ResNetSwitches | None) -> Network:
        """The network with these switches. Only the last one is kept: two would take 200 MB."""
        if self._network is None or self._network[0] != switches:
            self._network = None
            self._network = switches, _open(self._checkpoint, switches, self._device, self._threads)
        return self._network[1]


def _open(checkpoint: Checkpoint, switches: ResNetSwitches | None, device: str, threads: int) -> Network:
    if checkpoint.graph is not None:
        return _GraphNetwork(checkpoint.graph, checkpoint, threads)
    on_cpu = device == "cpu" or (device == "auto" and cuda_device_count() == 0)
    if on_cpu and is_described(checkpoint.architecture):
        return _DescribedNetwork(replace(checkpoint, switches=switches), threads)
    return _TorchNetwork(replace(checkpoint, switches=switches), device, threads)


class _DescribedNetwork:
    """A network written as an ONNX graph with prepared images as input, for one size at a time."""

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        self._checkpoint = checkpoint
        self._threads = threads
        self._description = describe_fitted(checkpoint.architecture, checkpoint.weights, checkpoint.switches)
        self._network: tuple[tuple[int, int], _GraphNetwork] | None = None

    def __call__(self, pixels: Pixels, preprocessing: Preprocessing) -> Scores:
        size = preprocessing.crop
        if self._network is None or self._network[0] != size:
            # Only the last one is kept: two would take 200 MB.
            self._network = None
            self._network = size, _GraphNetwork(self._graph(size), self._checkpoint, self._threads)
        return self._network[1](pixels, preprocessing)

    def _graph(self, size: tuple[int, int]) -> Graph:
        file = write_graph(self._description, self._checkpoint.weights, size, None)
        return Graph(
            model=b"".join(file.pieces()),
            input_name=PLANES,
            output_name=LOGITS,
            dtype="float32",
            layout="nchw",
            size=size,
            batch_size=None,
            class_count=self._checkpoint.class_count,
        )


class _TorchNetwork:
    """A torch network in float32, not folded: folding would change the last bits."""

    def __init__(self, checkpoint: Checkpoint, device: str, threads: int) -> None:
        import torch

        self._device: torch.device = plan_device(device, "float32").device
        if self._device.type == "cpu":
            torch.set_num_threads(threads)
        else:
            make_float32_exact()
        self._network: torch.nn.Module = build_network(checkpoint.architecture, checkpoint.weights, checkpoint.switches)

    def __call__(self, pixels: Pixels, preprocessing: Preprocessing) -> Scores:
        import torch

        # The first call moves the network to the device; after that, this only makes two small tensors.
        forward = Forward(self._network, preprocessing, self._device, torch.float32)
        with torch.inference_mode():
            scores: Scores = forward(torch.from_numpy(pixels).to(self._device)).cpu().numpy()
        return scores


class _GraphNetwork:
    """A graph run by ONNX Runtime."""

    def __init__(self, graph: Graph, checkpoint: Checkpoint, threads: int) -> None:
        self._backend = OnnxBackend(
            graph, checkpoint.preprocessing, checkpoint.activation, BackendOptions(threads=threads)
        )

    def __call__(self, pixels: Pixels, preprocessing: Preprocessing) -> Scores:
        backend = self._backend.prepared_by(preprocessing)
        size = backend.max_batch_size
        parts = [backend.infer(pixels[first : first + size], Want.SCORES) for first in range(0, len(pixels), size)]
        return np.concatenate([part.scores for part in parts])


def _batch_size(preprocessing: Preprocessing) -> int:
    height, width = preprocessing.crop
    return min(_MOST_AT_ONCE, max(1, _AT_ONCE * 224 * 224 // (height * width)))
