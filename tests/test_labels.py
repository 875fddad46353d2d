"""Class index → name, from files as people write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.errors import LabelsError
from app.labels import LABEL_FILES, choose_labels, imagenet_labels, labels_beside, labels_not_used


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        "cat\ndog\nbird\n",
        "cat\ndog\nbird",
        "cat\r\ndog\r\nbird\r\n",
        b"\xef\xbb\xbfcat\ndog\nbird\n",
        b"\xef\xbb\xbfcat\r\ndog\r\nbird",
        "cat\ndog\nbird\n\n",
        "cat\r\ndog\r\nbird\r\n  \r\n\r\n",
        "cat\ndog\nbird\n".encode("utf-16"),
        "0 cat\n1 dog\n2 bird\n",
        "1\tcat\n2\tdog\n3\tbird\n",
        "2: bird\n0: cat\n1: dog\n",
        "cat 0\ndog 1\nbird 2\n",
        "bird,2\ncat,0\ndog,1",
    ],
    ids=[
        *("as usual", "no last newline", "from Windows", "with a BOM", "BOM and CRLF"),
        *("a blank last line", "several, from Windows", "UTF-16", "index and name", "from one, by tabs"),
        *("in another order", "name and index", "in another order, by commas"),
    ],
)
def test_a_text_file_has_a_name_a_line(content: str | bytes, tmp_path: Path) -> None:
    """Line n names class n, however the editor ends its lines and begins its file."""
    assert choose_labels(3, written(tmp_path, "labels.txt", content)) == ("cat", "dog", "bird")


def test_names_keep_what_belongs_to_them(tmp_path: Path) -> None:
    """Spaces, commas, other scripts and separators that are no line ends stay in a name."""
    names = ("tiger cat", "black-and-tan coonhound, hound", "кошка", "a\u2028b", "c\x0bd")
    assert choose_labels(5, written(tmp_path, "labels.txt", "\n".join(names))) == names


@pytest.mark.parametrize(
    "document",
    [
        {"0": "cat", "1": "dog", "2": "bird"},
        {"2": "bird", "0": "cat", "1": "dog"},
        {"0": ["n02123045", "cat"], "1": ["n02085936", "dog"], "2": ["n01503061", "bird"]},
        ["cat", "dog", "bird"],
        [["n02123045", "cat"], ["n02085936", "dog"], ["n01503061", "bird"]],
        {"cat": 0, "dog": 1, "bird": 2},
        {"bird": "2", "cat": "0", "dog": "1"},
        {"classes": ["cat", "dog", "bird"], "version": 1},
        {"label2id": {"bird": 2, "cat": 0, "dog": 1}},
    ],
    ids=[
        *("index to name", "in another order", "index to id and name", "list", "list of pairs", "name to index"),
        *("name to index as text", "a member", "a member that is name to index"),
    ],
)
def test_a_json_file_maps_indices_to_names(document: object, tmp_path: Path) -> None:
    """TorchServe's index_to_name.json in both of its shapes, and plain lists, name the classes by their index."""
    assert choose_labels(3, written(tmp_path, "index_to_name.json", json.dumps(document))) == ("cat", "dog", "bird")


def test_a_json_file_may_begin_with_a_bom(tmp_path: Path) -> None:
    """A byte order mark before the JSON is passed over."""
    assert choose_labels(1, written(tmp_path, "index_to_name.json", b'\xef\xbb\xbf{"0": "cat"}')) == ("cat",)


@pytest.mark.parametrize(
    "content",
    [
        '{"0": "cat", "2": "bird"}',
        '{"1": "cat", "2": "dog"}',
        '{"cat": 0, "dog": 2}',
        '{"cat": 1, "dog": 2}',
        '{"cat": 0, "dog": 0}',
        '{"cat": 0, "cat": 1}',
        '{"cat": 0, "dog": 1.5}',
        '{"0": 7}',
        '{"0": []}',
        '{"0": ["n02123045", null]}',
        '"cat"',
        "null",
        "12",
        '{"0": "cat",',
        "",
        "[" * 100_000,
    ],
    ids=[
        "a gap",
        "from one",
        "name to index with a gap",
        "name to index from one",
        "two names of one index",
        "a name twice",
        "name to fraction",
        "number",
        "empty list",
        "no name",
        "text",
        "null",
        "a number alone",
        "cut",
        "empty",
        "nested without end",
    ],
)
def test_json_of_another_shape_is_refused(content: str, tmp_path: Path) -> None:
    """A file that is no label map is refused in one line that shows the shapes that are."""
    path = written(tmp_path, "index_to_name.json", content)
    with pytest.raises(LabelsError, match="is not a label map") as refusal:
        choose_labels(2, path)
    assert str(path) in str(refusal.value)
    assert '{"0": "name", …}' in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("count", "names"), [(1000, 999), (1000, 1001), (7, 1), (2, 3)])
def test_another_number_of_names_is_refused_with_both_numbers(count: int, names: int, tmp_path: Path) -> None:
    """Names that do not number as the classes are refused: served, every answer could be one off."""
    path = written(tmp_path, "labels.txt", "\n".join(map(str, range(names))))
    with pytest.raises(LabelsError, match=f"names {names} classes, but the checkpoint has {count}"):
        choose_labels(count, path)


@pytest.mark.parametrize(("content", "reason"), [(b"caf\xe9\n", "it is not UTF-8 text"), (None, "No such file")])
def test_a_file_that_cannot_be_read_is_refused(content: bytes | None, reason: str, tmp_path: Path) -> None:
    """Text of another encoding and a missing file are refused with the reason."""
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LabelsError, match=reason) as refusal:
        choose_labels(1, path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("name", LABEL_FILES)
def test_a_file_beside_the_checkpoint_is_found(name: str, tmp_path: Path) -> None:
    """Each of the known names is looked for in the checkpoint's folder, and no other."""
    written(tmp_path, "names.txt", "cat")
    written(tmp_path, "config.json", "{}")
    assert labels_beside(tmp_path) is None
    path = written(tmp_path, name, "cat")
    assert labels_beside(tmp_path) == path


def test_two_label_files_that_differ_are_an_error_that_names_both(tmp_path: Path) -> None:
    """Which of two label files is meant is not guessed, in names or in their number; two that agree are one."""
    written(tmp_path, "labels.txt", "cat\ndog\n")
    written(tmp_path, "class_indices.json", '{"0": "cat", "1": "dog"}')
    written(tmp_path, "class_to_idx.json", '{"dog": 1, "cat": 0}')
    assert labels_beside(tmp_path) == tmp_path / "labels.txt"
    for differing in ('{"0": "dog", "1": "cat"}', '{"0": "cat"}'):
        written(tmp_path, "index_to_name.json", differing)
        with pytest.raises(LabelsError, match=r"labels\.txt and index_to_name\.json.*--labels"):
            labels_beside(tmp_path)


def test_classes_that_share_a_name_keep_their_places(tmp_path: Path) -> None:
    """A name that stands twice in a file names two classes."""
    path = written(tmp_path, "labels.txt", "crane\nheron\ncrane\n")
    assert choose_labels(3, path) == ("crane", "heron", "crane")


def test_a_thousand_classes_are_imagenets() -> None:
    """Without a file, 1000 classes have ImageNet's names, which tell the crane that flies from the one that lifts."""
    labels = choose_labels(1000, None)
    assert labels == imagenet_labels()
    assert len(labels) == 1000
    assert labels[281] == "tabby"
    assert (labels[134], labels[517]) == ("crane bird", "crane")
    assert len(set(labels)) == 1000


@pytest.mark.parametrize("count", [1, 2, 999, 1002])
def test_any_other_number_of_classes_goes_by_the_index(count: int) -> None:
    """Without a file, classes that are not ImageNet's are called by their index."""
    labels = choose_labels(count, None)
    assert len(labels) == count
    assert labels[0] == "0"
    assert labels[-1] == str(count - 1)


def test_1001_classes_are_imagenets_with_a_background() -> None:
    """TensorFlow's checkpoints often count a background before ImageNet's classes: index 0 is it."""
    assert choose_labels(1001, None) == ("background", *imagenet_labels())


@pytest.mark.parametrize(
    "lines",
    [
        ("1 euro", "2 euro"),
        ("boeing 737", "airbus 320"),
        ("0 zero", "2 two"),
        ("3d model", "2d drawing"),
        ("7",),
        ("0", "1"),
        ("1 one",),
    ],
)
def test_numbers_that_belong_to_names_stay(lines: tuple[str, ...], tmp_path: Path) -> None:
    """A number is an index only where every line has its own, and the names are different without it."""
    assert choose_labels(len(lines), written(tmp_path, "labels.txt", "\n".join(lines))) == lines


def test_digits_are_names_where_they_are_the_keys_of_indices(tmp_path: Path) -> None:
    """`{"0": 1, "1": 0}` maps names that are digits to indices; `{"0": "1", "1": "0"}` maps indices to names."""
    assert choose_labels(2, written(tmp_path, "labels.json", '{"0": 1, "1": 0}')) == ("1", "0")
    assert choose_labels(2, written(tmp_path, "labels.json", '{"0": "1", "1": "0"}')) == ("1", "0")
    assert choose_labels(2, written(tmp_path, "labels.json", '{"0": 0, "1": 1}')) == ("0", "1")


def test_lists_of_imagenets_categories_are_used_where_they_fit(tmp_path: Path) -> None:
    """A list of ImageNet's classes that lies about in a folder names no five classes, and yields to another file."""
    general = written(tmp_path, "imagenet_classes.txt", "\n".join(f"kind {index}" for index in range(1000)))
    assert labels_beside(tmp_path, 1000) == general
    assert labels_beside(tmp_path, 5) is None
    own = written(tmp_path, "classes.txt", "a\nb\nc\nd\ne")
    assert labels_beside(tmp_path, 5) == own


def test_a_file_that_is_not_used_is_said(tmp_path: Path) -> None:
    """Where something else names the classes, each file that says otherwise is named with the first difference."""
    written(tmp_path, "labels.txt", "cat\ndog\n")
    written(tmp_path, "classes.txt", "cat\nbird\n")
    written(tmp_path, "class_names.txt", "cat\n")
    written(tmp_path, "labels.json", "{")
    notes = list(labels_not_used(tmp_path, ("cat", "dog"), "config.json"))
    assert len(notes) == 3
    assert "classes.txt is not used: config.json names the classes" in notes[0]
    assert "class 1 is 'dog' against 'bird'" in notes[0]
    assert "2 names against 1" in notes[1]
    assert "labels.json is not used" in notes[2]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    """A file without names is not the name of one class."""
    with pytest.raises(LabelsError, match=r"labels\.txt is empty"):
        choose_labels(1, written(tmp_path, "labels.txt", "\n \n"))


def test_a_huge_file_is_refused_at_once(tmp_path: Path) -> None:
    """A label file of over 4 MiB is not read."""
    with pytest.raises(LabelsError, match="has over 4,194,304 bytes"):
        choose_labels(1, written(tmp_path, "labels.txt", b"a\n" * 3_000_000))
