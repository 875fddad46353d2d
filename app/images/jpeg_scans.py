"""The scans of a JPEG, found from its markers: how many there are, and which ones a smaller picture needs.

A progressive JPEG is decoded by going over the whole picture once for each scan, and a scan that changes nothing is
smaller than 200 bytes: what a file of this kind costs is its area times its scans, and no pixel limit sees it.
"""

from __future__ import annotations

from .jpeg_markers import FRAMES, SOS, MarkerSearch, segments

_PROGRESSIVE_HUFFMAN = 0xC2
# Baseline, extended and arithmetic.
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
_LAST_COEFFICIENT = 63


def count_scans(data: bytes, most: int) -> int:
    """The scans of the JPEG that `data` begins with; of an MPO file, those of its first picture.

    Counts no further than `most + 1`, and no further than 1 where a sequential frame's first scan has all of its
    components: libjpeg decodes such a scan by itself and gives the file up where another one follows (jdinput.c,
    `has_multiple_scans`). That is the usual photo, of which only the head is looked at. Raises `ImageTooComplex` for a
    file of too many segments. Bytes that are no JPEG have no scans, or some; what reads them next will tell.
    """
    scans = frames = components = 0
    for code, _, body, _ in segments(data):
        if code in FRAMES:
            frames += 1
            components = data[body + 5] if code in _SEQUENTIAL and frames == 1 and body + 5 < len(data) else 0
        elif code == SOS:
            scans += 1
            is_whole = scans == 1 and components and data[body : body + 1] == bytes([components])
            if scans > most or is_whole:
                break
    return scans


def has_all_scans(data: bytes) -> bool:
    """Whether the scans bring every coefficient of every component to its last bit. Raises as `count_scans` does.

    Of a file without an end, that is the one sign that no scan is missing.
    """
    is_progressive = False
    components: set[int] = set()
    # Of each component's coefficients, the bits that are still to come.
    missing: dict[int, list[int]] = {}
    for code, _, body, end in segments(data):
        head = data[body:end]
        if code in FRAMES and len(head) >= 6:
            is_progressive = code not in _SEQUENTIAL
            components = set(head[6::3])
        if code != SOS or not head or len(head) < 4 + 2 * head[0]:
            continue
        first, last, bits = head[1 + 2 * head[0] : 4 + 2 * head[0]]
        if not is_progressive:
            first, last, bits = 0, _LAST_COEFFICIENT, 0
        for component in head[1 : 1 + 2 * head[0] : 2]:
            left = missing.setdefault(component, [1] * (_LAST_COEFFICIENT + 1))
            for coefficient in range(first, min(last, _LAST_COEFFICIENT) + 1):
                left[coefficient] = bits & 0x0F
    return bool(components) and all(not any(missing.get(component, [1])) for component in components)


def without_refinements(data: bytes, begin: int = 0) -> list[memoryview]:
    """A JPEG that `count_scans` lets in, from `begin` on, without what makes its details more precise than a smaller
    picture shows.

    A progressive JPEG (Huffman coded, SOF2) first gives each coefficient without its last bits, and then scan by scan
    the bits. Of the scans that bring the last and the last but one bit of the coefficients behind a block's mean, the
    data is left out: up to 3 steps of the quantisation table. A scan whose data ends early libjpeg takes as one that
    changes nothing.

    What libjpeg refuses of the whole file it refuses of this too: it gives a file up for its markers, its segments and
    a missing end, never for the Huffman codes in a scan's data. So the heads stay, a last scan that has no end stays,
    and a file with an invalid marker in what would go stays as it is. Damaged Huffman codes it
    takes for other pixels: with their scan left out, these do not show.
    """
    view, search = memoryview(data), MarkerSearch(data)
    kept: list[memoryview] = []
    is_progressive = False
    end_of_head: int | None = None
    whole, at = [view[begin:]], begin
    for code, marker, body, end in segments(data):
        if end_of_head is not None:
            if search.has_invalid(end_of_head, marker):
                return whole
            kept.append(view[at:end_of_head])
            at, end_of_head = marker, None
        is_progressive |= code == _PROGRESSIVE_HUFFMAN
        if is_progressive and code == SOS and _brings_last_bits(data[body:end]):
            end_of_head = end
    return [*kept, view[at:]]


def _brings_last_bits(head: bytes) -> bool:
    """Of a scan's head behind its length: the components, then Ss, Se, and Ah and Al in a byte (ITU T.81, B.2.3)."""
    if len(head) != 6:  # one component, which all such scans have
        return False
    first_coefficient, bits_before = head[3], head[5] >> 4
    return first_coefficient > 0 and bits_before in (1, 2)
