"""The readers of bodies, piece by piece: the same verdict and bytes as parsers that are given a body whole."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import re
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictInt, StrictStr, ValidationError

from app.api.carried import BodyReader, Images
from app.api.native.form_body import FormBody
from app.api.native.json_body import JsonBody
from app.errors import ServiceError

MAX_IMAGES = 4
DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]+)*;base64,", re.IGNORECASE)


WholeNumber = Annotated[
    StrictInt, BeforeValidator(lambda sent: int(sent) if isinstance(sent, float) and sent.is_integer() else sent)
]


class One(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image: StrictStr
    top_k: WholeNumber | None = None


class Many(BaseModel):
    model_config = ConfigDict(extra="forbid")
    images: list[StrictStr]
    top_k: WholeNumber | None = None


def whole_base64(text: str) -> bytes | str:
    """A whole base64 text or data: URL, decoded by the standard library, or the code of what is wrong with it."""
    head = DATA_URL.match(text)
    try:
        data = base64.b64decode(re.sub("[ \t\r\n]+", "", text[head.end() :] if head else text), validate=True)
    except (binascii.Error, ValueError):
        return "invalid_base64"
    return data or "malformed_request"


def whole_json(body: bytes, is_many: bool) -> Any:
    """What pydantic makes of a whole body: images and top_k, or a code."""
    try:
        document: Any = (Many if is_many else One).model_validate_json(body)
    except ValidationError as error:
        faults = {fault["loc"]: fault["type"] for fault in error.errors()}
        is_number = list(faults) == [("top_k",)] and "json_invalid" not in faults.values()
        return "invalid_parameter" if is_number else "malformed_request"
    if is_many and not document.images:
        return "malformed_request"
    if is_many and len(document.images) > MAX_IMAGES:
        return "too_many_images"
    texts = document.images if is_many else [document.image]
    images = [whole_base64(text) for text in texts]
    if not is_many and images[0] == "invalid_base64":
        return "invalid_base64"
    return images, document.top_k


def read(reader: Callable[[], BodyReader], body: bytes, cuts: list[int]) -> Any:
    """What a reader makes of the body, fed in the pieces that `cuts` makes: images and top_k, or a code."""
    try:
        feeding = reader()
        places = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
        for begin, end in itertools.pairwise(places):
            feeding.feed(body[begin:end])
        images: Images = feeding.finish()
    except ServiceError as error:
        return error.code
    codes = [each.code if isinstance(each, ServiceError) else each or "malformed_request" for each in images.images]
    return codes, images.top_k


ESCAPES = [
    r"\/",
    r"\n",
    r"\r\n",
    r"\u0041",
    r"\u002f",
    r"\u003D",
    r"\"",
    r"\\",
    r"\ud83d\ude00",
    r"\ud83d",
    r"\x",
    "\\",
]
BASE64_TEXT = st.binary(max_size=300).map(lambda data: base64.b64encode(data).decode())
TEXT = st.one_of(
    BASE64_TEXT,
    BASE64_TEXT.map(lambda text: "data:image/png;base64," + text),
    BASE64_TEXT.map(lambda text: re.sub("(.{7})", r"\1\\n", text)),
    BASE64_TEXT.map(lambda text: text.replace("/", r"\/").replace("A", r"\u0041")),
    st.lists(st.sampled_from([*ESCAPES, "QUJD", "=", "A", " ", "é", "漢", "😀", "data:", ";base64,"]), max_size=60).map(
        "".join
    ),
    st.text(alphabet='ABab+/= \t"\\é', max_size=100),
)
STRING = TEXT.map(lambda text: f'"{text}"')
SCALAR = st.sampled_from(["5", "0", "-1", "5.5", "1e2", '"5"', "null", "true", "NaN", "[]", "{}", "", "01", "9" * 30])
VALUE = st.one_of(
    STRING,
    SCALAR,
    st.lists(STRING, max_size=6).map(lambda strings: "[" + ", ".join(strings) + "]"),
)
SPACE = st.text(alphabet=" \t\r\n", max_size=80)
KEY = st.sampled_from(['"image"', '"images"', '"top_k"', r'"im\u0061ge"', '"topk"', '"' + "x" * 70 + '"', "image"])
MEMBER = st.tuples(SPACE, KEY, SPACE, VALUE).map(lambda parts: f"{parts[0]}{parts[1]}{parts[2]}:{parts[3]}")
DOCUMENT = st.one_of(
    st.lists(MEMBER, max_size=4).map(lambda members: "{" + ",".join(members) + "}"),
    st.builds(lambda text, top_k: f'{{"image": "{text}", "top_k": {top_k}}}', TEXT, SCALAR),
    st.builds(
        lambda strings, top_k: f'{{"images": [{",".join(strings)}], "top_k": {top_k}}}',
        st.lists(STRING, max_size=6),
        SCALAR,
    ),
    VALUE,
)
BODY = st.one_of(
    DOCUMENT.map(str.encode),
    st.builds(
        lambda document, at, noise: document.encode()[: at % 400] + noise + document.encode()[at % 400 :],
        DOCUMENT,
        st.integers(0, 399),
        st.binary(max_size=3) | st.sampled_from([b"\\", b'"', b"\xff", b"\xf0\x9f", b"\x0b", b"\0", b"}", b"\n"]),
    ),
)
CUTS = st.lists(st.integers(0, 100_000), max_size=20)


@settings(max_examples=1000, deadline=None)
@given(body=BODY, cuts=CUTS, is_many=st.booleans())
@example(body=b'{"image": "' + b"QUJD" * 30 + b'", "image": "\\x' + b"A" * 80 + b'"}', cuts=[], is_many=False)
@example(body=b'{"image": "' + b"QUJD" * 30 + b'\\ud83d\\ude00"}', cuts=[137, 138, 141], is_many=False)
def test_json_in_pieces_is_json_as_a_whole(body: bytes, cuts: list[int], is_many: bool) -> None:
    """Whatever a body is and wherever it is cut, its images, top_k and code are those of pydantic and base64."""
    expected = whole_json(body, is_many)
    assert read(lambda: JsonBody(MAX_IMAGES if is_many else None), body, cuts) == expected


ODD_TEXTS = {
    "pairs of surrogates": r"\ud83d\ude00",
    "escaped backslashes and quotes": r"\\\"\\\\\"",
    "characters of two, three and four bytes": "é漢😀",
    "escaped slashes": r"QU\/D",
    "line breaks": r"QUJD\r\n",
    "letters by their numbers": r"\u0051\u0055\u004a\u0044",
}


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_no_cut_changes_a_string(name: str) -> None:
    """An escape, a pair of surrogates or a character that two pieces share is read as one."""
    text = ODD_TEXTS[name] * 12
    body = f'{{"image": "{"QUJD" * 20}{text}", "top_k": 3}}'.encode()
    expected = whole_json(body, is_many=False)
    for cut in range(len(body)):
        assert read(lambda: JsonBody(None), body, [cut]) == expected
    assert read(lambda: JsonBody(None), body, list(range(len(body)))) == expected


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_no_window_changes_a_string(name: str) -> None:
    """A string with escapes is looked through in windows; where one ends makes no difference."""
    for before in range(14):
        body = f'{{"images": ["\\n{"A" * before}{ODD_TEXTS[name] * 9000}", "QUJD"]}}'.encode()
        assert read(lambda: JsonBody(MAX_IMAGES), body, []) == whole_json(body, is_many=True)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"image": "A"' + b" " * 3_000_000 + b"}", "invalid_base64"),
        (b'{"image": "QUJD"' + b" \n" * 100_000 + b"}", None),
        (b'{"image": "QUJD"' + b" \x0b" * 100_000 + b"}", "malformed_request"),
        (b'{"image": "QUJD", "top_k": ' + b"9" * 1_000_000 + b"}", "malformed_request"),
        (b"[" * 1_000_000, "malformed_request"),
        (b'{"a":' * 60, "malformed_request"),
        (b'{"image": ' + b'{"a":' * 100_000, "malformed_request"),
        (b'{"images": [' + b'"", ' * 1_000_000, "malformed_request"),
        (b"\xef\xbb\xbf" + b'{"image": "QUJD"}', None),
        (b"\xef\xbb", "malformed_request"),
        (b"", "malformed_request"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
def test_json_that_is_long_and_carries_little(body: bytes, code: str | None) -> None:
    """Space, depth, digits and empty strings without end are answered as JSON of the wrong kind, and space is free."""
    assert read(lambda: JsonBody(None), body, [1, 2, len(body) // 2]) == (code or ([b"ABC"], None))


def test_a_list_past_its_limit_is_told_as_one() -> None:
    """What is read no further is judged by what was read: too many images, or a member that it cannot have."""
    many = b'{"top_k": 1, "images": [' + b'"QUJD", ' * 1000
    assert read(lambda: JsonBody(MAX_IMAGES), many, []) == "too_many_images"
    reader = JsonBody(None)
    with pytest.raises(ServiceError, match="/predict/batch"):
        reader.feed(many)


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("data:image/png;base64,QUJD", b"ABC"),
        ("DATA:;BASE64,QUJD", b"ABC"),
        ("data:image/png;base64,%51UJ%44", b"ABC"),
        ("data:image/png;base64,Pj8%2B%0d%0aPw%3D%3D", b">?>?"),
        ("data%3Aimage%2Fpng%3Bbase64%2CPj8%2BPw%3D%3D", b">?>?"),
        ("data:image/png;base64,QUJD%4", "invalid_base64"),
        ("data:image/png;base64,QUJD%zz", "invalid_base64"),
        ("data:image/png,%89PNG", "invalid_base64"),
        ("data:" + "a" * 100_000, "invalid_base64"),
        ("data:" + ";a" * 100_000, "invalid_base64"),
        ("QUJD%3D", "invalid_base64"),
    ],
)
def test_data_urls_may_be_percent_encoded(text: str, image: bytes | str) -> None:
    """The payload of a data: URL, or all of it, may be percent-encoded; bare base64 may not."""
    body = json.dumps({"images": [text]}).encode()
    for cuts in ([], list(range(len(body))) if len(body) < 200 else [1000]):
        assert read(lambda: JsonBody(1), body, cuts) == ([image], None)


# --- forms


def part(content: bytes, *headers: str) -> bytes:
    return b"--b\r\n" + "".join(line + "\r\n" for line in headers).encode() + b"\r\n" + content + b"\r\n"


def named(name: str, *more: str) -> str:
    return "; ".join(["Content-Disposition: form-data", f'name="{name}"', *more])


END = b"--b--\r\n"
JPEG = b"\xff\xd8\xff\xe0" + b"\0\x10JFIF" * 40
PHOTO = part(JPEG, named("image", 'filename="a.jpg"'), "Content-Type: image/jpeg")
FORMS: dict[str, tuple[bytes, Any]] = {
    "a file": (PHOTO + END, ([JPEG], None)),
    "a file without a file name": (part(JPEG, named("image"), "Content-Type: image/jpeg") + END, ([JPEG], None)),
    "bytes alone": (part(JPEG, named("x")) + END, ([JPEG], None)),
    "bytes of no name and no image": (
        part(b"\0\1\2\3", named("x"), "Content-Type: application/octet-stream") + END,
        ([b"\0\1\2\3"], None),
    ),
    "bytes of a usual name": (part(b"\0\1\2\3", named("file[]")) + END, ([b"\0\1\2\3"], None)),
    "a name in other letters": (part(JPEG, named("image", "filename*=UTF-8''f%c3%bc.jpg")) + END, ([JPEG], None)),
    "names in both": (part(JPEG, named("i", 'filename="u.jpg"', "filename*=UTF-8''f.jpg")) + END, ([JPEG], None)),
    "a token for a name": (part(JPEG, "Content-Disposition: form-data; name=i; filename=u.jpg") + END, ([JPEG], None)),
    "headers in small letters": (
        part(JPEG, 'content-disposition:form-data;name="i";filename="u"') + END,
        ([JPEG], None),
    ),
    "a second input left empty": (
        PHOTO + part(b"", named("other", 'filename=""'), "Content-Type: application/octet-stream") + END,
        ([JPEG], None),
    ),
    "an input left empty": (part(b"", named("image", 'filename=""')) + END, "malformed_request"),
    "an empty file": (part(b"", named("image", 'filename="a.jpg"')) + END, (["malformed_request"], None)),
    "text before the first boundary": (b"This is a message in MIME format.\r\n" + PHOTO + END, ([JPEG], None)),
    "line breaks before the first boundary": (b"\r\n\r\n" + PHOTO + END, ([JPEG], None)),
    "text behind the last boundary": (PHOTO + END + b"--b\r\n\r\nmore", ([JPEG], None)),
    "no line break at the end": (PHOTO + b"--b--", ([JPEG], None)),
    "space behind a boundary": (PHOTO.replace(b"--b\r\n", b"--b \t\r\n") + END, ([JPEG], None)),
    "base64": (
        part(base64.encodebytes(JPEG), named("i", 'filename="a"'), "Content-Transfer-Encoding: BASE64") + END,
        ([JPEG], None),
    ),
    "base64 that is none": (
        part(b"!!!!", named("i", 'filename="a"'), "Content-Transfer-Encoding: base64") + END,
        (["invalid_base64"], None),
    ),
    "quoted-printable": (
        part(
            binascii.b2a_qp(JPEG, istext=False),
            named("i", 'filename="a"'),
            "Content-Transfer-Encoding: quoted-printable",
        )
        + END,
        ([JPEG], None),
    ),
    "binary": (part(JPEG, named("i", 'filename="a"'), "Content-Transfer-Encoding: binary") + END, ([JPEG], None)),
    "another encoding": (
        part(JPEG, named("i", 'filename="a"'), "Content-Transfer-Encoding: x-uuencode") + END,
        "malformed_request",
    ),
    "top_k": (PHOTO + part(b"3", named("top_k")) + END, ([JPEG], 3)),
    "top_k first, as a fraction": (part(b" 3.0 ", named("top_k")) + PHOTO + END, ([JPEG], 3)),
    "top_k that is a word": (PHOTO + part(b"many", named("top_k")) + END, "invalid_parameter"),
    "top_k of many digits": (PHOTO + part(b"9" * 5000, named("top_k")) + END, "invalid_parameter"),
    "top_k twice": (PHOTO + part(b"3", named("top_k")) + part(b"4", named("top_k")) + END, "invalid_parameter"),
    "top_k left empty": (PHOTO + part(b"", named("top_k")) + END, ([JPEG], None)),
    "an unknown field": (PHOTO + part(b"3", named("topk")) + END, "malformed_request"),
    "an unknown field left empty": (PHOTO + part(b"", named("comment")) + END, ([JPEG], None)),
    "a browser's own field": (PHOTO + part(b"UTF-8", named("_charset_")) + END, ([JPEG], None)),
    "text alone": (part(b"text", named("image")) + END, "malformed_request"),
    "nothing": (END, "malformed_request"),
    "no end": (PHOTO, "malformed_request"),
    "no boundary": (b"text", "malformed_request"),
    "a line like the boundary": (
        part(JPEG + b"\r\n--bb\r\n--b-" + JPEG, named("i", 'filename="a"')) + END,
        ([JPEG + b"\r\n--bb\r\n--b-" + JPEG], None),
    ),
    "lines like the boundary without end": (
        part(b"\r\n--bx" * 5000, named("i", 'filename="a"')) + END,
        "malformed_request",
    ),
    "a header without a colon": (part(JPEG, named("i", 'filename="a"'), "x") + END, "malformed_request"),
    "a header without an end": (b"--b\r\nX: " + b"a" * 100_000, "malformed_request"),
    "many headers": (part(JPEG, *["X: y"] * 1000) + END, "malformed_request"),
    "many parts": (part(b"", named("x")) * 1000 + END, "malformed_request"),
    "many files": (PHOTO * 5 + END, "too_many_images"),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_as_clients_send_them(name: str) -> None:
    """Each form gives its files and its top_k, or the code of what is wrong, wherever it is cut."""
    body, expected = FORMS[name]
    reader = lambda: FormBody(b"b", MAX_IMAGES)  # noqa: E731
    assert read(reader, body, []) == expected
    for cut in range(min(len(body), 900)):
        assert read(reader, body, [cut]) == expected
    if len(body) < 2000:
        assert read(reader, body, list(range(len(body)))) == expected


@settings(max_examples=200, deadline=None)
@given(
    contents=st.lists(st.binary(max_size=200) | st.sampled_from([b"\r\n--", b"\r\n", b"--b", b"\r\n--bo"]), max_size=4),
    cuts=CUTS,
)
def test_any_content_comes_back(contents: list[bytes], cuts: list[int]) -> None:
    """A file's bytes are those between its headers and its boundary."""
    files = [content for content in contents if b"\r\n--boundary" not in content]
    body = b"".join(
        b'--boundary\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n' + content + b"\r\n"
        for content in files
    )
    expected = ([content or "malformed_request" for content in files], None) if files else "malformed_request"
    assert read(lambda: FormBody(b"boundary", MAX_IMAGES), body + b"--boundary--\r\n", cuts) == expected


@pytest.mark.parametrize(
    ("field", "said"),
    [("topk", '"topk"'), ('a"b<script>\r\nX: y', "?"), ("é" * 100, "?" * 40)],
)
def test_a_field_that_is_not_known_is_named(field: str, said: str) -> None:
    """The error repeats the field's name, short and in plain characters."""
    escaped = field.replace('"', '\\"').replace("\r\n", " ")
    reader = FormBody(b"b", 1)
    reader.feed(PHOTO + part(b"3", named(escaped)) + END)
    with pytest.raises(ServiceError) as raised:
        reader.finish()
    assert said in raised.value.detail
    assert re.fullmatch(r'[A-Za-z0-9_."?:\[\] -]+', raised.value.detail)
