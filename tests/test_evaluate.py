"""evaluate finds each fact that a checkpoint hides, and recommends nothing of a checkpoint that is right."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from app.checkpoints import PRESETS, write_converted
from app.cli.evaluate import evaluate as command
from app.errors import SettingError
from app.evaluation import Evaluation, find_photos
from app.evaluation.alternatives import alternatives, shown_order
from app.evaluation.facts import (
    PREPROCESSING,
    TRIED,
    Facts,
    exist,
    facts_of,
    merged,
    open_decisions,
    settings_between,
)
from app.layers import ResNetSwitches
from app.networks import build_network
from app.settings import Settings
from app.types import Interpolation, Preprocessing
from tests.evaluated import (
    GRAPH_PREPARED,
    GRAPH_SIDE,
    LABELS,
    PREPARED,
    Case,
    graph_case,
    normalised,
    resnet_case,
    write_table,
    write_windows,
)
from tests.examined import examine
from tests.lazy import torch
from tests.test_command_line import run

COUNT = 40
TRYING = ("--try", "stride_in", "--compute-threads", "1")
ONE_THREADED = Settings(compute_threads=1, log_level="warning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluated")


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[Path]:
    return write_windows(folder / "photos", COUNT)


@pytest.fixture(scope="module")
def known(folder: Path, paths: list[Path]) -> Case:
    """A graph that hides nothing."""
    return graph_case(folder / "known", paths, GRAPH_PREPARED)


def found(evaluation: Evaluation) -> dict[str, str]:
    return dict(evaluation.settings)


def right(evaluation: Evaluation) -> tuple[float, float]:
    """Top-1 as assumed, and with what is recommended."""
    assert evaluation.accuracy is not None
    assert evaluation.better is not None
    return evaluation.accuracy.top1.value, evaluation.better.top1.value


@pytest.mark.parametrize(
    ("switches", "only", "settings"),
    [
        (ResNetSwitches(stride_in="1x1"), ("stride_in", "pool"), {"stride_in": "1x1"}),
        (ResNetSwitches(epsilon=1e-3), ("epsilon",), {"epsilon": "0.001"}),
        (ResNetSwitches(stem="same"), ("stem",), {"stem": "same"}),
        (ResNetSwitches(pool="ceil"), ("pool",), {"pool": "ceil"}),
    ],
)
def test_hidden_switches_are_found(
    folder: Path, paths: list[Path], switches: ResNetSwitches, only: tuple[str, ...], settings: dict[str, str]
) -> None:
    """A state dict of a variant that nothing in it tells is recommended as that variant, and then is all right."""
    case = resnet_case(folder / "hidden", paths, switches, PREPARED)
    evaluation = case.evaluate(*only)
    assert found(evaluation) == settings
    assert evaluation.converted is not None
    assert evaluation.converted.switches == switches
    before, after = right(evaluation)
    assert before < 0.9
    assert after == 1


def test_two_mistakes_that_hide_each_other_are_found(folder: Path, paths: list[Path]) -> None:
    """A wrong stride and a wrong mean, neither of which helps alone, are found as a pair."""
    half = replace(PREPARED, mean=(0.5,) * 3, std=(0.5,) * 3)
    case = resnet_case(folder / "two", paths, ResNetSwitches(stride_in="1x1"), half)
    evaluation = case.evaluate("stride_in", "mean")
    assert found(evaluation) == {"stride_in": "1x1", "mean": "0.5", "std": "0.5"}
    assert right(evaluation)[1] == 1


def test_nothing_is_recommended_of_a_right_resnet(folder: Path, paths: list[Path]) -> None:
    """A ResNet-50 that is what it seems keeps every switch."""
    case = resnet_case(folder / "right", paths, ResNetSwitches(), PREPARED)
    evaluation = case.evaluate("stride_in", "pool", "labels", "activation")
    assert found(evaluation) == {}
    assert evaluation.converted is None
    assert len(evaluation.rounds) == 1
    assert all(trial.corrected_p > 0.05 for trial in evaluation.rounds[0].trials)


KERAS = replace(PRESETS["keras"], crop=(GRAPH_SIDE, GRAPH_SIDE))


@pytest.mark.parametrize(
    ("truth", "wanted"),
    [
        (replace(GRAPH_PREPARED, is_bgr=True), {"channels": "bgr"}),
        (replace(GRAPH_PREPARED, mean=(0.5,) * 3, std=(0.5,) * 3), {"mean": "0.5", "std": "0.5"}),
        (KERAS, {"preprocessing": "keras", "crop": str(GRAPH_SIDE)}),
        (replace(GRAPH_PREPARED, resize_short_side=None), {"resize": "squash"}),
        (replace(GRAPH_PREPARED, resize_short_side=GRAPH_SIDE), {"resize": str(GRAPH_SIDE)}),
        (replace(GRAPH_PREPARED, resize_short_side=None, is_bgr=True), {"resize": "squash", "channels": "bgr"}),
    ],
    ids=["channels", "mean", "preset", "squash", "short side", "channels and squash"],
)
def test_hidden_preprocessing_is_found(
    folder: Path, paths: list[Path], truth: Preprocessing, wanted: dict[str, str]
) -> None:
    """A graph whose photos were prepared otherwise is told how, among every preset and every part of one."""
    case = graph_case(folder / "prepared", paths, truth)
    evaluation = case.evaluate()
    assert found(evaluation) == wanted
    assert evaluation.converted is not None
    assert evaluation.converted.preprocessing == truth
    assert right(evaluation)[1] == 1


def test_nothing_is_recommended_of_a_right_graph(known: Case) -> None:
    """Of two dozen alternatives none is recommended where nothing is wrong, and what each scores is told."""
    evaluation = known.evaluate()
    assert found(evaluation) == {}
    assert evaluation.accuracy is not None
    assert evaluation.accuracy.top1.value == 1
    assert len(evaluation.rounds[0].trials) > 20
    document = evaluation.document()
    assert document["recommendation"] is None
    assert {"setting", "value", "photos", "top1", "difference_interval", "p_corrected"} <= set(
        document["rounds"][0]["trials"][0]
    )


@pytest.mark.parametrize(
    ("order", "shown"),
    [
        (sorted(LABELS), "sorted by name"),
        ([*LABELS[1:], LABELS[0]], "shifted by one"),
        (["newt", "robin", "otter", "heron", "adder"], "as the photos show them"),
    ],
)
def test_a_wrong_label_order_is_found(known: Case, tmp_path: Path, order: list[str], shown: str) -> None:
    """Outputs whose labels are in another order are given the right ones, be it a usual order or any."""
    table = write_table(tmp_path, known.paths, [order[at] for at in known.answers])
    evaluation = known.evaluate("labels", table=table)
    assert found(evaluation) == {"labels": "labels.txt"}
    assert evaluation.rounds[0].adopted is not None
    assert evaluation.rounds[0].adopted.alternative.shown == shown
    assert evaluation.converted is not None
    assert list(evaluation.converted.labels) == order
    assert right(evaluation)[1] == 1


def test_probabilities_that_are_taken_for_scores_are_found(folder: Path, paths: list[Path]) -> None:
    """A graph that ends in softmax and is put through another is told that its scores are probabilities."""
    case = graph_case(folder / "softmax", paths, GRAPH_PREPARED, last="Softmax")
    evaluation = case.evaluate("activation", activation="softmax")
    assert found(evaluation) == {"activation": "none"}
    assert any("RESNET_ACTIVATION should be none" in note for note in evaluation.notes)


def test_several_labels_tell_sigmoid_from_softmax(known: Case, tmp_path: Path) -> None:
    """Photos with several labels each show that classes stand alone; top-1 is then a hit of one of them."""
    chances = 1 / (1 + np.exp(-known.logits.astype(np.float64)))
    shown = chances > 0.5
    shown[np.arange(len(shown)), known.answers] = True
    rows = ["|".join(label for label, is_shown in zip(LABELS, row, strict=True) if is_shown) for row in shown]
    assert any("|" in row for row in rows)
    evaluation = known.evaluate("activation", table=write_table(tmp_path, known.paths, rows))
    assert found(evaluation) == {"activation": "sigmoid"}
    assert evaluation.accuracy is not None
    assert evaluation.accuracy.several == sum("|" in row for row in rows)
    assert evaluation.accuracy.top1.value == 1


def test_an_overconfident_network_is_not_taken_for_a_sigmoid(known: Case, tmp_path: Path) -> None:
    """A network that is too sure and often wrong keeps its softmax, though every softer reading loses less."""
    random = np.random.default_rng(1)
    labels = [LABELS[at if random.random() < 0.7 else random.integers(len(LABELS))] for at in known.answers]
    evaluation = known.evaluate("activation", "mean", table=write_table(tmp_path, known.paths, labels))
    assert found(evaluation) == {}


def test_an_order_is_not_proved_by_the_photos_it_was_read_off(known: Case, tmp_path: Path) -> None:
    """Where labels are by chance, an order that fits half of the photos is not recommended, alone or with more."""
    random = np.random.default_rng(5)
    labels = [LABELS[at] for at in random.integers(len(LABELS), size=len(known.answers))]
    evaluation = known.evaluate("labels", "interpolation", "resize", table=write_table(tmp_path, known.paths, labels))
    assert found(evaluation) == {}


def test_unknown_labels_are_the_folders_names(known: Case, tmp_path: Path) -> None:
    """Where no label is known, and there are as many folders as classes, their order by name is tried and told."""
    names = ("ash", "beech", "cedar", "dogwood", "elm")
    table = write_table(tmp_path, known.paths, [names[at] for at in known.answers])
    evaluation = known.evaluate("labels", table=table, labels=("0", "1", "2", "3", "4"))
    assert found(evaluation) == {"labels": "labels.txt"}
    assert evaluation.converted is not None
    assert evaluation.converted.labels == names
    assert any("their order by name is assumed" in note for note in evaluation.notes)


def test_photos_without_labels_give_weaker_evidence(folder: Path, paths: list[Path], known: Case) -> None:
    """Without labels each alternative has a confidence and an entropy, and the document says that this is weak."""
    evaluation = known.evaluate("channels", "mean", "labels", table=paths[0].parent)
    assert evaluation.accuracy is None
    assert evaluation.rounds == ()
    assert evaluation.tried == ("channels", "mean")
    document = evaluation.document()
    assert document["accuracy"] is None
    assert {each["setting"] for each in document["without_labels"]} == {"channels", "mean"}
    assert all(0 < each["certainty"]["confidence"] <= 1 for each in document["without_labels"])
    recommendation = document["recommendation"]
    assert recommendation is None or recommendation["is_weak"]


# -- what is tried --


def test_assumed_decisions_are_tried_and_known_ones_with_all(folder: Path, paths: list[Path], known: Case) -> None:
    """By default what nothing states is tried, and how answers are read; everything that can vary with --all."""
    checkpoint, decisions = known.examined.checkpoint, known.examined.decisions
    assert open_decisions(decisions, checkpoint, everything=True)[-2:] == ("labels", "activation")
    assert "stride_in" not in open_decisions(decisions, checkpoint, everything=True)
    state = resnet_case(folder / "open", paths, ResNetSwitches(), PREPARED).examined
    assert set(open_decisions(state.decisions, state.checkpoint, everything=False)) == set(TRIED)
    told = examine(Settings(stride_in="1x1", preprocessing="keras"), state.path)
    tried = open_decisions(told.decisions, told.checkpoint, everything=False)
    assert set(tried) == {"stem", "pool", "epsilon", "labels", "activation"}
    assert set(open_decisions(told.decisions, told.checkpoint, everything=True)) == set(TRIED)


def test_every_preset_and_every_published_trap_is_tried(folder: Path) -> None:
    """Among the alternatives are each preset, both strides, stems and all pools, and none of them twice."""
    base = Facts(ResNetSwitches(), PRESETS["torchvision-v1"], "softmax")
    checkpoint = replace(facts_checkpoint(), switches=base.switches)
    tried = alternatives(base, checkpoint, TRIED, LABELS)
    facts = [each.facts for each in tried]
    assert len(facts) == len(set(facts))
    assert {each.preprocessing for each in facts} >= {*PRESETS.values()}
    switches = [each.switches for each in facts if each.switches is not None]
    assert {each.stride_in for each in switches} == {"3x3", "1x1"}
    assert {each.stem for each in switches} == {"symmetric", "same"}
    assert {each.pool for each in switches} == {"symmetric", "ceil", "valid"}
    assert {each.epsilon for each in switches} == {1e-5, 1e-3, 1.001e-5}


def facts_checkpoint():  # type: ignore[no-untyped-def]
    from app.backends import null_checkpoint

    return null_checkpoint()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_recommended_by_its_name(name: str) -> None:
    """What equals a preset is set by one setting."""
    base = Facts(None, replace(PRESETS["torchvision-v1"], crop=(96, 96)), "softmax")
    assert settings_between(base, replace(base, preprocessing=PRESETS[name])) == {"preprocessing": name}


@pytest.mark.parametrize("preset", ["torchvision-v1", "keras", "timm-tv2", "huggingface-torchvision"])
def test_recommended_settings_make_the_preprocessing(preset: str) -> None:
    """Every alternative of a preprocessing is what its settings make of the checkpoint, or needs a converted file."""
    base = Facts(None, PRESETS[preset], "softmax")
    settable = 0
    for each in alternatives(base, facts_checkpoint(), PREPROCESSING, LABELS):
        wanted = settings_between(base, each.facts)
        if not exist(wanted):
            continue
        settable += 1
        settings = Settings(**wanted)
        start = PRESETS.get(settings.preprocessing, base.preprocessing)
        made, truth = settings.preprocessing_facts.applied_to(start), each.facts.preprocessing
        close = {"mean": pytest.approx(truth.mean, abs=1e-8), "std": pytest.approx(truth.std, abs=1e-8)}
        assert asdict(made) == asdict(truth) | close, each.shown
    assert settable > 20


def test_changes_are_merged_unless_they_meet() -> None:
    """Two changes of different parts become one set of facts; two of the same part do not."""
    base = Facts(ResNetSwitches(), GRAPH_PREPARED, "softmax")
    strided = replace(base, switches=ResNetSwitches(stride_in="1x1"))
    turned = replace(base, preprocessing=replace(GRAPH_PREPARED, is_bgr=True))
    nearest = replace(base, preprocessing=replace(GRAPH_PREPARED, interpolation=Interpolation.NEAREST))
    both = merged(base, strided, turned)
    assert both == replace(strided, preprocessing=turned.preprocessing)
    within = merged(base, turned, nearest)
    assert within is not None
    assert within.preprocessing == replace(GRAPH_PREPARED, is_bgr=True, interpolation=Interpolation.NEAREST)
    bicubic = replace(base, preprocessing=replace(GRAPH_PREPARED, interpolation=Interpolation.BICUBIC))
    assert merged(base, nearest, bicubic) is None


def test_an_order_that_photos_show_is_a_permutation() -> None:
    """Each output gets a class, those that no photo shows their own where it is free, and no class is given twice."""
    base = Facts(None, GRAPH_PREPARED, "softmax")
    answers, truths = np.array([0, 0, 1, 1, 2]), np.array([1, 1, 0, 0, 2])
    shown = shown_order(base, answers, truths, 5)
    assert shown is not None
    assert shown.facts.order == (1, 0, 2, 3, 4)
    assert shown_order(base, answers, answers, 5) is None
    moved = shown_order(base, np.array([0, 0, 0]), np.array([3, 3, 3]), 4)
    assert moved is not None
    assert sorted(moved.facts.order or ()) == [0, 1, 2, 3]


# -- the command --


@pytest.fixture
def _no_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in this process would change its logging."""
    monkeypatch.setattr("app.cli.evaluate.set_up_logging", lambda level: None)


@pytest.fixture(scope="module")
def hidden_stride(folder: Path, paths: list[Path]) -> Case:
    return resnet_case(folder / "stride", paths, ResNetSwitches(stride_in="1x1"), PREPARED)


def test_the_command_writes_a_file_that_answers_right(hidden_stride: Case, tmp_path: Path) -> None:
    """`--write` writes a checkpoint with what was found, which answers as the truth; JSON and picture are written."""
    source = tmp_path / "source.safetensors"
    write_converted(replace(hidden_stride.examined.checkpoint, preprocessing=PREPARED), source)
    outputs = ("--write", "out.safetensors", "--json", "report.json", "--picture", "report.png")
    done = run("evaluate", str(source), str(hidden_stride.table), *TRYING, *outputs, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "RESNET_STRIDE_IN=1x1" in done.stdout
    assert "--stride-in 1x1" in done.stdout
    written = examine(Settings(), tmp_path / "out.safetensors")
    checkpoint = written.checkpoint
    assert written.warnings == ()
    network = build_network(checkpoint.architecture, checkpoint.weights, checkpoint.switches).eval()
    with torch.inference_mode():
        inputs = torch.from_numpy(normalised(hidden_stride.paths[:8], checkpoint.preprocessing))
        assert np.abs(network(inputs).numpy() - hidden_stride.logits[:8]).max() < 1e-4
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["accuracy"]["top1"]["photos"] == COUNT
    assert report["recommendation"]["environment"] == "RESNET_STRIDE_IN=1x1"
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("_no_logging")
def test_the_command_says_what_it_left_out(known: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Damaged photos are named and counted, and folders that are no class are told; the report is of the others."""
    for path, at in zip(known.paths, known.answers, strict=True):
        target = tmp_path / "photos" / LABELS[at].upper() / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (target.parent / "damaged.jpg").write_bytes(target.read_bytes()[:300])
    (tmp_path / "photos" / "walrus").mkdir()
    (tmp_path / "photos" / "walrus" / "a.jpg").write_bytes(target.read_bytes())
    command(ONE_THREADED, str(known.examined.path), tmp_path / "photos", as_json=tmp_path / "report.json")
    told = capsys.readouterr()
    assert "1 of classes that the model does not have" in told.out
    assert "damaged.jpg: The image is truncated" in told.err
    assert "walrus" in told.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["photos"]["used"] == COUNT
    assert report["photos"]["unmatched"] == {"walrus": 1}
    assert [each["photo"].rpartition("/")[2] for each in report["photos"]["skipped"]] == ["damaged.jpg"]


def refused(*arguments: object, **options: object) -> str:
    """What the command says before it has done anything."""
    with pytest.raises(SettingError) as caught:
        command(ONE_THREADED, *arguments, **options)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.usefixtures("_no_logging")
def test_what_cannot_be_done_is_refused_at_once(known: Case, tmp_path: Path) -> None:
    """What only makes a network surer is not written without --force, a graph never, and no file is replaced."""
    target, model = tmp_path / "o.safetensors", str(known.examined.path)
    assert "needs photos with labels" in refused(model, known.paths[0].parent, write=target)
    assert "cannot write an ONNX graph" in refused(model, known.table, write=target)
    assert "needs the checkpoint itself" in refused("http://127.0.0.1:1", known.table, write=target)
    assert "of a running service" in refused("http://127.0.0.1:1", known.table, everything=True)
    assert "cannot be 'colour'" in refused(model, known.table, only=["colour"])
    assert "cannot be stride_in" in refused(model, known.table, only=["stride_in"])
    target.write_text("")
    assert "o.safetensors exists" in refused(model, known.table, write=target)
    assert not any(tmp_path.glob("*.png"))


def test_a_folder_is_read_as_classes(known: Case) -> None:
    """The photos of a CSV are those of its rows, each with its label."""
    photos = find_photos(known.table).photos
    assert len(photos) == COUNT
    assert [photo.written[0] for photo in photos] == [LABELS[at] for at in known.answers]
    assert facts_of(known.examined.checkpoint).order is None
