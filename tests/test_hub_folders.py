"""What the Hugging Face hub gives: its cache's links, weights in several files, timm's old form, other heads."""

from __future__ import annotations

import json
import lzma
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from app.checkpoints import CheckpointFile, depends_on, home_of, locate, read_checkpoint
from app.errors import CheckpointError, SettingError
from app.labels import labels_beside
from app.settings import Settings
from tests import torch_made as made
from tests.examined import examine
from tests.lazy import torch, torchvision
from tests.parity.patterns import FIXTURES
from tests.test_directories import CONVNEXT, PRETRAINED, RESNET, TIMM, preprocessing_of, write

REVISION = "34c2154c194f829b11125337b98c8f5f9965ff19"


def in_cache(hub: Path, folder: Path, name: str = "models--microsoft--resnet-50") -> Path:
    """What huggingface_hub makes of the files in `folder`: blobs, and a snapshot that links to them."""
    repository = hub / name
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION, encoding="ascii")
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(repository / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    return repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = write(tmp_path / "made", RESNET | {"downsample_in_bottleneck": True}, CONVNEXT)
    (folder / "labels.txt").write_text("cat\ndog\n", encoding="utf-8")
    return in_cache(tmp_path / "hub", folder)


@pytest.mark.parametrize("inside", ["", f"snapshots/{REVISION}", f"snapshots/{REVISION}/model.safetensors"])
def test_a_repository_of_the_cache_is_its_snapshot(repository: Path, inside: str) -> None:
    """The repository's folder, its snapshot and the link to its weights are the same checkpoint, with all beside it."""
    path = repository / inside
    contents = read_checkpoint(path)
    assert contents.weights["fc.weight"].shape == (2, 2048)
    assert contents.told.stride_in is not None
    assert contents.told.stride_in.value == "1x1"
    assert preprocessing_of(contents).floor_crop
    assert locate(str(path)) == CheckpointFile(path)
    assert labels_beside(home_of(path)) == repository / "snapshots" / REVISION / "labels.txt"
    digests = {Path(name).name: digest for name, digest in depends_on(path) if len(digest) == 64}
    assert digests.keys() == {"model.safetensors", "config.json", "preprocessor_config.json", "labels.txt"}


def test_a_hub_with_one_repository_is_that_one(repository: Path) -> None:
    """A folder of the cache is looked into as any other."""
    assert locate(str(repository.parent)) == CheckpointFile(repository)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json", "labels.txt"])
@pytest.mark.parametrize(
    "target", ["../../../outside", "../../refs/outside", "../../../models--other/blobs/outside", "/dev/zero"]
)
def test_links_to_anything_but_the_repositorys_blobs_are_refused(repository: Path, name: str, target: str) -> None:
    """A link of a snapshot that leads elsewhere, though it be another repository's blobs, is refused by its name."""
    snapshot = repository / "snapshots" / REVISION
    outside = snapshot / target
    if target != "/dev/zero":
        outside.parent.mkdir(parents=True, exist_ok=True)
        outside.write_bytes((snapshot / name).read_bytes())
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(target)
    for path in (repository, snapshot):
        with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is a link that leads out of its folder"):
            read_checkpoint(path)


def test_links_through_blobs_that_are_a_link_are_refused(repository: Path, tmp_path: Path) -> None:
    """A blobs/ that is itself a link is no repository's own, and a blob that links on leads out."""
    (repository / "blobs").rename(tmp_path / "elsewhere")
    (repository / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        read_checkpoint(repository)


@pytest.mark.parametrize(
    ("main", "part"),
    [
        ("deadbeef", "in which refs/main is deadbeef, and its snapshots are 34c2154"),
        ("../../..", "names no revision"),
        ("", "names no revision"),
        (None, "names no revision|leads elsewhere"),
    ],
)
def test_a_repository_without_its_snapshot_says_so(
    repository: Path, tmp_path: Path, main: str | None, part: str
) -> None:
    """A refs/main that names what is not there, or leads out of the cache, is refused in one line."""
    if main is None:
        shutil.move(repository / "snapshots" / REVISION, tmp_path / REVISION)
        (repository / "snapshots" / REVISION).symlink_to(tmp_path / REVISION)
    else:
        (repository / "refs" / "main").write_text(main, encoding="ascii")
    with pytest.raises(CheckpointError, match=part) as refusal:
        read_checkpoint(repository)
    assert "\n" not in str(refusal.value)


def test_without_refs_the_only_snapshot_is_meant(repository: Path) -> None:
    """A repository without refs/main is its one snapshot, and is refused where there are two."""
    shutil.rmtree(repository / "refs")
    assert read_checkpoint(repository).weights["fc.weight"].shape == (2, 2048)
    (repository / "snapshots" / "other").mkdir()
    with pytest.raises(CheckpointError, match=r"there is no refs/main, .*other\. Name the one to serve"):
        read_checkpoint(repository)


def test_a_link_whose_blob_is_missing_is_named(repository: Path) -> None:
    """A snapshot whose weights were not downloaded says which link leads nowhere."""
    weights = repository / "snapshots" / REVISION / "model.safetensors"
    weights.resolve().unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link to a file that is not there"):
        read_checkpoint(repository)


def shard(folder: Path, kind: str = "safetensors", config: dict[str, Any] | None = RESNET) -> Path:
    """A folder whose weights stand in two files, as transformers writes them."""
    write(folder, RESNET, CONVNEXT)
    if config is None:
        (folder / "config.json").unlink()
        (folder / "preprocessor_config.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, suffix = ("model", ".safetensors") if kind == "safetensors" else ("pytorch_model", ".bin")
    weight_map = {}
    for number, (name, values) in enumerate(sorted(tensors.items()), 1):
        file = f"{stem}-{number:05}-of-00002{suffix}"
        weight_map[name] = file
        if kind == "safetensors":
            save_file({name: values}, folder / file, {"format": "pt"})
        else:
            torch.save({name: torch.from_numpy(values)}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("config", [RESNET, None], ids=["with a config", "bare"])
def test_weights_in_several_files_are_one_checkpoint(tmp_path: Path, kind: str, config: dict[str, Any] | None) -> None:
    """A folder of shards is found, read whole by itself or by its index, and depends on all its files."""
    folder = shard(tmp_path / "weights" / "pets", kind, config)
    index = next(folder.glob("*.index.json"))
    contents = read_checkpoint(folder)
    assert contents.weights["fc.weight"].shape == (2, 2048)
    assert contents.weights["conv1.weight"].shape == (64, 3, 7, 7)
    assert "weights in several files" in contents.container
    assert read_checkpoint(index).sha256 == contents.sha256
    for path in (folder, folder.parent, index):
        assert locate(str(path)) == CheckpointFile(index if path == index else folder)
    assert locate(None, folder) == CheckpointFile(folder)
    before = depends_on(folder)
    file = next(folder.glob("*-00002-of-00002.*"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert depends_on(folder) != before
    assert read_checkpoint(folder).sha256 != contents.sha256


def test_a_shard_by_itself_is_refused_with_the_whole(tmp_path: Path) -> None:
    """One file of several is no checkpoint, and the refusal names the index of the whole."""
    folder = shard(tmp_path)
    with pytest.raises(CheckpointError, match=r"one of 2 files .*: .*/model\.safetensors\.index\.json\.$"):
        read_checkpoint(folder / "model-00001-of-00002.safetensors")


def test_shards_are_measured_together(tmp_path: Path) -> None:
    """The limit on a checkpoint's size is on the sum of its files."""
    folder = shard(tmp_path)
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors*")]
    assert read_checkpoint(folder, sum(sizes)).weights
    with pytest.raises(CheckpointError, match="bytes with the files before it, and at most"):
        read_checkpoint(folder, sum(sizes) - 1)
    assert max(sizes) < sum(sizes) - 1


SECOND = "model-00002-of-00002.safetensors"
HEAD = "resnet.embedder.embedder.convolution.weight"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({HEAD: "../x.safetensors"}, "names a file outside its folder"),
        ({HEAD: "/etc/passwd"}, "names a file outside its folder"),
        ({HEAD: "a\\b"}, "names a file outside its folder"),
        ({HEAD: "."}, "names a file outside its folder"),
        ({HEAD: "x" * 300}, "names a file outside its folder"),
        ({HEAD: "other.safetensors"}, "names other.safetensors, which is not there"),
        ({HEAD: "model.safetensors.index.json"}, "and it is weights in several files"),
        ({HEAD: "model-00001-of-00002.safetensors"}, "model-00001-of-00002.safetensors has no such tensor"),
        ({"more": SECOND}, "lists more, and model-00002-of-00002.safetensors has no such tensor"),
        ({HEAD: 3}, "is no index of weights"),
        ({str(number): SECOND for number in range(2001)}, "lists 2,003 tensors, and at most 2,000"),
    ],
)
def test_indexes_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    """An index that names other files, or tensors that are not where it says, is refused in one line."""
    folder = shard(tmp_path)
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text(encoding="utf-8"))
    document["weight_map"] |= change
    index.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(folder)
    assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_tensor_that_the_index_does_not_list_is_refused(tmp_path: Path) -> None:
    """Files of which one has an entry that the index does not know are of two checkpoints."""
    folder = shard(tmp_path)
    save_file({HEAD: np.ones((64, 3, 7, 7), np.float32), "x": np.ones(1, np.float32)}, folder / SECOND)
    with pytest.raises(CheckpointError, match=r"has x, and .* says that no file has it"):
        read_checkpoint(folder)


def test_timms_old_form_is_a_timm_folder(tmp_path: Path) -> None:
    """config.json as timm wrote it until 0.6, all at the top, tells what today's form tells."""
    old = {"architecture": "resnet50", "num_classes": 2, "num_features": 2048, "global_pool": "avg", **PRETRAINED}
    labelled = write(tmp_path / "old", old | {"labels": ["cat", "dog"]})
    contents = read_checkpoint(labelled)
    today = read_checkpoint(write(tmp_path / "new", TIMM | {"label_names": ["cat", "dog"]}))
    assert contents.container == "timm folder (safetensors)"
    assert contents.told == today.told
    unnamed = read_checkpoint(write(tmp_path / "unnamed", old | {"labels": ["LABEL_0", "LABEL_1"]}))
    assert unnamed.told.labels is None
    with pytest.raises(CheckpointError, match="names resnetblur50, an anti-aliased network"):
        read_checkpoint(write(tmp_path / "other", old | {"architecture": "resnetblur50"}))


@pytest.mark.parametrize(
    ("problem", "activation"), [("multi_label_classification", "sigmoid"), ("single_label_classification", "softmax")]
)
def test_problem_type_is_the_activation(tmp_path: Path, problem: str, activation: str) -> None:
    """What config.json calls the problem decides what makes probabilities of the scores."""
    told = read_checkpoint(write(tmp_path, RESNET | {"problem_type": problem}, CONVNEXT)).told
    assert told.activation is not None
    assert (told.activation.value, told.activation.source) == (activation, "config.json, problem_type")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"problem_type": "regression"}, "has problem_type regression: the model's outputs are numbers"),
        ({"problem_type": "ranking"}, 'problem_type is "ranking"'),
        ({"quantization_config": {"bits": 8}}, "has a quantization_config"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu", expected relu. Export the model to ONNX'),
    ],
)
def test_what_a_config_states_and_is_not_served_is_refused(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    """A fact of config.json that is not realised refuses the folder by its name."""
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(write(tmp_path, RESNET | change, CONVNEXT))
    assert part in str(refusal.value)


def test_an_image_processor_without_a_config_is_followed(tmp_path: Path) -> None:
    """preprocessor_config.json tells how images are prepared for whatever weights it lies beside."""
    folder = write(tmp_path, RESNET, CONVNEXT | {"crop_pct": 0.9})
    (folder / "config.json").write_text('{"name": "mine"}', encoding="utf-8")
    contents = read_checkpoint(folder / "model.safetensors")
    assert preprocessing_of(contents).resize_short_side == 248
    assert contents.notes == ("config.json is not used: it is neither transformers' nor timm's.",)


def test_label2id_alone_names_the_classes(tmp_path: Path) -> None:
    """A config.json that has the names only as label2id names the classes by it."""
    told = read_checkpoint(write(tmp_path, RESNET | {"label2id": {"dog": 1, "cat": 0}}, CONVNEXT)).told
    assert told.labels is not None
    assert told.labels.value == ("cat", "dog")
    unnamed = read_checkpoint(write(tmp_path, RESNET | {"label2id": {"LABEL_0": 0, "LABEL_1": 1}}, CONVNEXT)).told
    assert unnamed.labels is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers' own file (make_transformers.py), and its config.json."""
    folder = tmp_path_factory.mktemp("whole")
    with lzma.open(FIXTURES / "hugging-face" / "model.safetensors.xz") as packed:
        (folder / "model.safetensors").write_bytes(packed.read())
    shutil.copy(FIXTURES / "hugging-face" / "config-v1.5.json", folder / "config.json")
    return folder


def test_a_head_of_several_layers_is_served_as_torch_computes_it(whole: Path, tmp_path: Path) -> None:
    """transformers' classifier replaced by Flatten, Linear, ReLU, Dropout, Linear (`classifier.1`, `classifier.4`)."""
    tensors = load_file(whole / "model.safetensors")
    body = torchvision.models.resnet50().eval()
    stored = {name: torch.from_numpy(values) for name, values in read_checkpoint(whole).weights.items()}
    del stored["fc.weight"], stored["fc.bias"]
    assert not body.load_state_dict(stored, strict=False).unexpected_keys
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Sequential(
        *(torch.nn.Flatten(), torch.nn.Linear(2048, 32), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(32, 4))
    ).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    body.fc = head
    own = made.own_logits(body, made.photos()[:1])
    kept = {name: values for name, values in tensors.items() if not name.startswith("classifier.")}
    new = {f"classifier.{name}": tensor.numpy() for name, tensor in head.state_dict().items()}
    save_file({**kept, **new}, tmp_path / "model.safetensors")
    config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    labels = {str(index): f"kind {index}" for index in range(4)}
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"id2label": labels, "problem_type": "multi_label_classification"}), encoding="utf-8"
    )
    examined = examine(Settings(), tmp_path)
    assert examined.class_count == 4
    assert examined.labels.value == tuple(labels.values())
    assert examined.checkpoint.activation == "sigmoid"
    assert any("classifier.1, classifier.4" in line and "assuming ReLU" in line for line in examined.warnings)
    assert made.distance(made.logits_of(examined, made.photos()[:1]), own) <= made.PARITY


def test_one_output_is_a_sigmoid_and_two_labels_fit_it(whole: Path, tmp_path: Path) -> None:
    """A Hugging Face file with one output is a yes or no, which problem_type cannot call a softmax."""
    tensors = load_file(whole / "model.safetensors")
    one = {name: values[:1] if name.startswith("classifier.") else values for name, values in tensors.items()}
    save_file(one, tmp_path / "model.safetensors")
    config = json.loads((whole / "config.json").read_text(encoding="utf-8")) | {"id2label": {"0": "no", "1": "yes"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    examined = examine(Settings(), tmp_path)
    assert (examined.class_count, examined.checkpoint.activation) == (1, "sigmoid")
    assert examined.labels.value == ("no", "yes")
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"problem_type": "single_label_classification"}), encoding="utf-8"
    )
    with pytest.raises(SettingError, match=r"config\.json, problem_type has softmax"):
        examine(Settings(), tmp_path)


def test_labels_of_a_config_win_and_others_are_said(whole: Path, tmp_path: Path) -> None:
    """A label file that says otherwise than config.json is not used, and a note says so."""
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / "classes.txt").write_text("\n".join(f"other {index}" for index in range(7)), encoding="utf-8")
    examined = examine(Settings(), tmp_path / "copy")
    assert examined.labels.source == "config.json"
    assert any("classes.txt is not used: config.json names the classes" in note for note in examined.notes)


def test_tensorflows_safetensors_are_turned_to_torchs_layout(whole: Path, tmp_path: Path) -> None:
    """What transformers' TensorFlow class saved (format tf) has torch's weights once names and axes are torch's."""
    leaves = {"running_mean": "moving_mean", "running_var": "moving_variance"}
    stored = {}
    for name, values in load_file(whole / "model.safetensors").items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        is_norm = module.endswith("normalization")
        leaf = leaves.get(
            leaf, {"weight": "gamma" if is_norm else "kernel", "bias": "beta" if is_norm else "bias"}.get(leaf, leaf)
        )
        # Its layers are called stages.0, layers.0, layer.0 and classifier.1; between layers stands a slash.
        path = re.sub(r"\.(?!\d)", "/", module)
        turned = values.transpose(2, 3, 1, 0) if values.ndim == 4 else values.T if values.ndim == 2 else values
        stored[f"tf_res_net_for_image_classification/{path}/{leaf}:0"] = np.ascontiguousarray(turned)
    save_file(stored, tmp_path / "model.safetensors", {"format": "tf"})
    shutil.copy(whole / "config.json", tmp_path)
    ours, torchs = read_checkpoint(tmp_path).weights, read_checkpoint(whole).weights
    assert ours.keys() == torchs.keys()
    assert all(np.array_equal(ours[name], torchs[name]) for name in ours)
