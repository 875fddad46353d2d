"""Quantizing: which photos are used, which layers stay in float32, and what the options change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime.quantization
import pytest
from onnx import numpy_helper

from app.agreement import Agreement, compare, probabilities
from app.backends.onnx_sessions import session_options
from app.backends.parts import infer_all
from app.checkpoints import Checkpoint, Graph
from app.errors import QuantizationError
from app.quantization import MIN_PHOTOS, Options, Report
from app.quantization.graphs import float_graph
from app.quantization.photos import split
from app.quantization.search import Candidate, damage, smallest_good, worst_first
from app.resources import int8_features, saturates
from app.settings import Settings
from app.types import Outputs, Pixels, Want
from tests.examined import examine
from tests.lazy import torch, torchvision
from tests.onnx_graphs import Maker
from tests.photos import make_jpeg
from tests.quantized_made import CONVOLUTIONS, OUTLIER_AFTER, colours, grey, made, read, write_network, write_photos


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write_network(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def outlier(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write_network(tmp_path_factory.mktemp("outlier"), outlier=True)


def constants(model: bytes) -> dict[str, Any]:
    graph = onnx.load_model_from_string(model).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(model).graph.node]


# -- photos --


def test_photos_are_found_below_the_folder(tmp_path: Path, plain: Checkpoint) -> None:
    """All formats in all folders are read; hidden files and what is no photo are passed over, in any order of names."""
    write_photos(tmp_path, MIN_PHOTOS)
    (tmp_path / "index.csv").write_text("file,class\n")
    (tmp_path / ".hidden.jpg").write_bytes(make_jpeg(1))
    (tmp_path / ".folder").mkdir()
    (tmp_path / ".folder" / "photo.jpg").write_bytes(make_jpeg(2))
    (tmp_path / "no_ending").write_bytes(make_jpeg(3))
    grey(tmp_path, "grey.png", 128)
    seen: list[tuple[int, int]] = []
    photos = read(tmp_path, plain, progress=lambda done, total: seen.append((done, total)))
    assert len(photos) == MIN_PHOTOS + 2
    assert photos.pixels.shape == (MIN_PHOTOS + 2, 32, 32, 3)
    assert {"no_ending", "grey.png", "odd/photo001.jpg"} <= set(photos.names)
    assert not any("hidden" in name or "folder" in name for name in photos.names)
    assert photos.other_files == 1
    assert photos.skipped == ()
    assert seen[-1] == (MIN_PHOTOS + 2, MIN_PHOTOS + 2)


def test_photos_that_cannot_be_read_are_skipped_and_named(tmp_path: Path, plain: Checkpoint) -> None:
    """Damage, text that is called a photo and a photo that was there already are skipped, each with its reason."""
    write_photos(tmp_path, MIN_PHOTOS)
    whole = make_jpeg(1)
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "text.png").write_text("not a photo")
    first = next((tmp_path / "even").iterdir())
    (tmp_path / "copy.jpg").write_bytes(first.read_bytes())
    photos = read(tmp_path, plain)
    assert len(photos) == MIN_PHOTOS
    reasons = dict(photos.skipped)
    assert "truncated or damaged" in reasons["cut.jpg"]
    assert "not an image in a supported format" in reasons["text.png"]
    (twin,) = reasons.keys() - {"cut.jpg", "text.png"}
    assert "It is the same file as" in reasons[twin]


def test_too_few_photos_are_refused(tmp_path: Path, plain: Checkpoint) -> None:
    """Fewer photos than say anything are an error with their number, the least, and the first that was skipped."""
    write_photos(tmp_path, MIN_PHOTOS - 1)
    (tmp_path / "text.png").write_text("not a photo")
    with pytest.raises(QuantizationError) as caught:
        read(tmp_path, plain)
    text = str(caught.value)
    assert f"has {MIN_PHOTOS - 1} photos that can be read" in text
    assert f"needs {MIN_PHOTOS}" in text
    assert "1 were skipped, text.png first" in text
    assert "\n" not in text
    with pytest.raises(QuantizationError, match="is no folder"):
        read(tmp_path / "nowhere", plain)


def test_more_photos_than_wanted_are_chosen_by_chance(tmp_path: Path, plain: Checkpoint) -> None:
    """Of many photos the same ones are taken each time, and not the first by name."""
    write_photos(tmp_path, 40)
    once, twice = read(tmp_path, plain, most=20), read(tmp_path, plain, most=20)
    assert once.names == twice.names
    assert len(once) == 20
    assert sorted(once.names) != sorted(read(tmp_path, plain).names)[:20]
    assert {name.split("/")[0] for name in once.names} == {"even", "odd"}


@pytest.mark.parametrize(("count", "calibrating", "held_out"), [(16, 8, 8), (17, 8, 9), (1000, 256, 744)])
def test_photos_are_held_out(count: int, calibrating: int, held_out: int) -> None:
    """Half of the photos calibrate, up to a number; all others are held out, and no photo is on both sides."""
    first, second = split(count, 256)
    numbers = list(range(count))
    assert (len(numbers[first]), len(numbers[second])) == (calibrating, held_out)
    assert numbers[first] + numbers[second] == numbers


def test_report_is_on_photos_that_calibration_did_not_see(plain: Checkpoint) -> None:
    """Wild photos on the held-out side change the report and not the network; on the other side, the network."""
    photos = colours(32)
    model, report = made(plain, photos)
    assert (report.record.calibration_images, report.record.agreement.images) == (16, 16)
    wild = photos.pixels.copy()
    wild[16:] = 255 * (wild[16:] > 127)
    held_out_changed, changed_report = made(plain, replace(photos, pixels=wild))
    assert changed_report.record.graph_sha256 == report.record.graph_sha256
    assert changed_report.best != report.best
    assert held_out_changed != model
    wild = photos.pixels.copy()
    wild[:16] = 255 * (wild[:16] > 127)
    _, calibrated_report = made(plain, replace(photos, pixels=wild))
    assert calibrated_report.record.graph_sha256 != report.record.graph_sha256


# -- layers --


def test_a_layer_that_hurts_is_found_and_kept_in_float(outlier: Checkpoint) -> None:
    """Where one channel is thousands of times as large, all in 8 bits fails; the search keeps what touches it."""
    photos = colours(64)
    model, all_int8 = made(outlier, photos, Options(keep_float=0))
    assert all_int8.record.agreement.top1 < 0.8
    assert all_int8.damages == {}
    kept_model, report = made(outlier, photos)
    assert report.record.agreement.top1 >= 0.95
    assert report.record.agreement.mean_difference < 0.05
    kept = {name.partition(":")[2] for name in report.record.kept_float}
    assert kept == {f"conv{OUTLIER_AFTER}", f"conv{OUTLIER_AFTER + 1}"}
    assert report.record.layers == len(report.damages) == CONVOLUTIONS + 1
    worst = worst_first(report.damages)
    assert set(worst[:2]) == set(report.record.kept_float)
    assert report.damages[worst[1]] > 20 * report.damages[worst[2]]
    # What stays in float32 stays as it was, and what does not does not.
    stays = constants(kept_model)
    original = constants(outlier.graph.model if outlier.graph else b"")
    for number in range(CONVOLUTIONS):
        is_kept = number in (OUTLIER_AFTER, OUTLIER_AFTER + 1)
        assert any(np.array_equal(value, original[f"kernel{number}"]) for value in stays.values()) == is_kept
    assert not any(np.array_equal(value, original["kernel2"]) for value in constants(model).values())


def test_a_number_of_layers_is_kept_as_asked(outlier: Checkpoint) -> None:
    """--keep-float N keeps the N that do the most damage alone."""
    _, report = made(outlier, colours(32), Options(keep_float=1))
    assert list(report.record.kept_float) == worst_first(report.damages)[:1]
    _, report = made(outlier, colours(32), Options(keep_float=3))
    assert list(report.record.kept_float) == worst_first(report.damages)[:3]


def test_nothing_is_kept_where_nothing_hurts(plain: Checkpoint) -> None:
    """A network that takes 8 bits well has all its layers in them, and no layer is measured."""
    model, report = made(plain, colours(64))
    assert report.record.kept_float == ()
    assert report.damages == {}
    assert report.record.agreement.top1 >= 0.95
    original = constants(plain.graph.model if plain.graph else b"")
    stored = constants(model)
    for number in range(CONVOLUTIONS):
        assert not any(np.array_equal(value, original[f"kernel{number}"]) for value in stored.values())
    # Scores are not rounded: 256 steps would be ties, and a range that cuts them off cuts the first classes.
    assert operators(model)[-1] == "Gemm"
    # The relus are in the ranges of what is behind them, and normalisation is in front of the graph.
    assert set(operators(model)) == {
        *("QuantizeLinear", "DequantizeLinear", "Conv", "GlobalAveragePool", "Flatten", "Gemm")
    }


def candidate(count: int, top1: float) -> Candidate:
    graph = Graph(b"", "image", "scores", "float32", "nchw", None, None, 2)
    return Candidate(graph, tuple(map(str, range(count))), Agreement(10, top1, 1, 0, 0))


@pytest.mark.parametrize("needed", range(1, 12))
def test_as_few_as_possible_are_kept(needed: int) -> None:
    """However many layers are needed, so many are kept; and far fewer networks are made than there are layers."""
    tried: list[int] = []

    def measure(kept: tuple[str, ...]) -> Candidate:
        assert kept == tuple(map(str, range(len(kept))))
        tried.append(len(kept))
        return candidate(len(kept), 1.0 if len(kept) >= needed else 0.5 + len(kept) / 100)

    found = smallest_good([str(number) for number in range(11)], measure, lambda each: each.is_good(0.95))
    assert len(found.kept_float) == needed
    assert len(tried) <= 7


def test_the_best_is_taken_where_none_is_good() -> None:
    """Where no number of layers reaches the target, the network that agrees the most is the answer."""
    tops = {1: 0.5, 2: 0.8, 4: 0.7, 5: 0.6}
    found = smallest_good(list("abcde"), lambda kept: candidate(len(kept), tops[len(kept)]), lambda each: False)
    assert len(found.kept_float) == 2


# -- options --


@pytest.fixture(scope="module")
def by_default(plain: Checkpoint) -> tuple[bytes, Report]:
    return made(plain, colours(32), Options(keep_float=0))


def weight_scales(model: bytes) -> list[int]:
    """How many scales the weights of each layer have."""
    return [
        int(value.size)
        for name, value in constants(model).items()
        if name.startswith("kernel") and name.endswith("_scale") and "quantized" not in name
    ]


def test_weights_have_a_scale_for_each_channel(plain: Checkpoint, by_default: tuple[bytes, Report]) -> None:
    """Per channel, a layer's weights have as many scales as channels; otherwise one."""
    per_layer, report = made(plain, colours(32), Options(keep_float=0, per_channel=False))
    assert weight_scales(by_default[0]) == [12] * CONVOLUTIONS
    assert weight_scales(per_layer) == [1] * CONVOLUTIONS
    assert by_default[1].record.per_channel
    assert not report.record.per_channel


def test_each_method_finds_other_ranges(plain: Checkpoint, by_default: tuple[bytes, Report]) -> None:
    """Percentile, minmax and entropy give values other scales; minmax, which cuts nothing off, the largest."""
    scales = {}
    for method in ("percentile", "minmax", "entropy"):
        model = by_default[0] if method == "percentile" else made(plain, colours(32), Options(method, keep_float=0))[0]
        scales[method] = {
            name: float(value) for name, value in constants(model).items() if name.startswith("lit") and "scale" in name
        }
        assert len(scales[method]) == CONVOLUTIONS
    assert scales["percentile"] != scales["minmax"] != scales["entropy"] != scales["percentile"]
    for method in ("percentile", "entropy"):
        assert all(scales[method][name] <= scales["minmax"][name] * 1.02 for name in scales["minmax"])


def test_weights_of_seven_bits(plain: Checkpoint, by_default: tuple[bytes, Report]) -> None:
    """With reduce_range weights reach from -64 to 64, so that two products fit into 16 bits; without, to 127."""
    reduced, report = made(plain, colours(32), Options(keep_float=0, reduce_range=True))

    def largest(model: bytes) -> int:
        kernels = [value for name, value in constants(model).items() if name.startswith("kernel")]
        return max(int(np.abs(value.astype(int)).max()) for value in kernels if value.dtype == np.int8)

    assert largest(reduced) <= 64
    assert report.record.reduce_range
    full, _ = made(plain, colours(32), Options(keep_float=0, reduce_range=False))
    assert largest(full) == 127


def test_cpus_that_saturate_are_known(tmp_path: Path) -> None:
    """x86 without VNNI adds products up in 16 bits; with it, and on other machines, they are added up in 32."""
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni ht\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert int8_features(info) == {"avx2", "avx512f", "avx512_vnni"}
    info.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    assert int8_features(info) == {"asimddp", "i8mm"}
    assert int8_features(tmp_path / "nowhere") == frozenset()
    assert saturates("x86_64", {"avx2", "avx512f"})
    assert not saturates("x86_64", {"avx2", "avx_vnni"})
    assert not saturates("aarch64", {"asimddp"})


@pytest.mark.parametrize("maker", [Maker(batch=4, reshape=(2, 2, 8)), Maker(dtype=onnx.TensorProto.FLOAT16)], ids=repr)
def test_graphs_that_cannot_be_quantized_are_refused(tmp_path: Path, maker: Maker) -> None:
    """Graphs in float16 or of one batch size, and what is quantized already, are refused in one line."""
    path = tmp_path / "model.onnx"
    model = maker.model()
    if maker.reshape:
        model.graph.initializer.append(numpy_helper.from_array(np.array([4, 8], np.int64), "back"))
        model.graph.node[3].output[0] = "twos"
        model.graph.node.insert(4, onnx.helper.make_node("Reshape", ["twos", "back"], ["flat"]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(QuantizationError, match="only float32 graphs with a free batch axis"):
        made(examine(Settings(), path).checkpoint, colours(32))


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path, by_default: tuple[bytes, Report]) -> None:
    """What is int8 already is refused, and the refusal says to name what it was made of."""
    path = tmp_path / "again.onnx"
    path.write_bytes(by_default[0])
    with pytest.raises(QuantizationError, match="quantized already"):
        made(examine(Settings(), path).checkpoint, colours(32))


@pytest.mark.parametrize("threads", [1, 3])
def test_calibrating_keeps_to_the_threads(plain: Checkpoint, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is prepared, and the photos are run, on as many threads as were asked for."""
    calibrators: list[Any] = []
    prepared: list[int | None] = []
    create = onnxruntime.quantization.create_calibrator

    def created(*arguments: Any, **others: Any) -> Any:
        calibrators.append(create(*arguments, **others))
        return calibrators[-1]

    def counted(count: int | None) -> Any:
        prepared.append(count)
        return session_options(count)

    monkeypatch.setattr("onnxruntime.quantization.create_calibrator", created)
    monkeypatch.setattr("app.quantization.graphs.session_options", counted)
    made(plain, colours(16), Options(keep_float=0, threads=threads))
    (calibrator,) = calibrators
    assert calibrator.infer_session.get_session_options().intra_op_num_threads == threads
    assert prepared == [threads]


class Numbered:
    """A backend that takes three images at a time and answers each with its first level."""

    max_batch_size = 3

    def infer(self, batch: Pixels, want: Want) -> Outputs:
        assert 1 <= len(batch) <= self.max_batch_size
        return Outputs(batch[:, 0, 0].astype(np.float32), "none")


def test_any_number_of_images_is_run_in_parts() -> None:
    """No part is larger than the backend takes, answers are in the images' order, and each part is told."""
    images = np.arange(8, dtype=np.uint8)[:, None, None, None] + np.zeros((8, 2, 2, 3), np.uint8)
    told: list[int] = []
    outputs = infer_all(Numbered(), images, told.append)  # type: ignore[arg-type]
    assert outputs.activation == "none"
    assert outputs.scores[:, 0].tolist() == list(range(8))
    assert told == [3, 6, 8]


def test_exporting_keeps_to_the_threads(tmp_path: Path) -> None:
    """Where torch exports the network, it runs on as many threads as were asked for too."""
    before = torch.get_num_threads()
    file = tmp_path / "small.pth"
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), file)
    try:
        float_graph(examine(Settings(architecture="squeezenet1_1"), file).checkpoint, 3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# -- figures --


def test_agreement_counts_what_it_says() -> None:
    """Top-1, top-5 and differences of probabilities, computed by hand for three images of six classes."""
    reference = np.array(
        [[0.5, 0.2, 0.1, 0.1, 0.06, 0.04], [0.3, 0.28, 0.2, 0.1, 0.07, 0.05], [0.4, 0.3, 0.1, 0.1, 0.06, 0.04]]
    )
    found = reference.copy()
    found[1] = [0.28, 0.3, 0.2, 0.1, 0.07, 0.05]
    found[2] = [0.4, 0.3, 0.1, 0.1, 0.04, 0.06]
    agreement = compare(reference, found)
    assert agreement.images == 3
    assert agreement.top1 == pytest.approx(2 / 3)
    assert agreement.top5 == pytest.approx((1 + 1 + 0.8) / 3)
    assert agreement.mean_difference == pytest.approx(0.02 / 3)
    assert agreement.worst_difference == pytest.approx(0.02)
    found[0] = np.nan
    broken = compare(reference, found)
    assert (broken.top1, broken.worst_difference) == (pytest.approx(1 / 3), 1.0)


def test_scores_become_probabilities() -> None:
    """Logits go through a softmax that large ones do not overflow; probabilities stay what they are."""
    assert probabilities(np.array([[1000.0, 1000.0]], np.float32), "softmax").tolist() == [[0.5, 0.5]]
    assert probabilities(np.array([[0.25, 0.75]], np.float32), "none").tolist() == [[0.25, 0.75]]


def test_damage_is_of_the_scores_own_deviation() -> None:
    """The error of scores is counted in their deviation, whatever their scale; what is not finite is the worst."""
    scores = np.array([[1.0, -1.0], [-1.0, 1.0]], np.float32)
    assert damage(scores, scores) == 0
    assert damage(scores, scores + 0.5) == pytest.approx(0.5)
    assert damage(100 * scores, 100 * (scores + 0.5)) == pytest.approx(0.5)
    assert damage(scores, np.full_like(scores, np.nan)) == float("inf")
