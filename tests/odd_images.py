"""Image files as they are found: whole pictures with damage or excess beside their pixels, and odd layouts."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from tests import images_made as made
from tests.photos import encode

SIZE = (200, 120)


def picture() -> Image.Image:
    return made.photo().resize(SIZE)


# --- PNG


def png_chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    right = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", right if checksum is None else checksum)


def wrong_chunk(kind: bytes, body: bytes) -> bytes:
    return png_chunk(kind, body, zlib.crc32(kind + body) ^ 1)


def png_with(*chunks: bytes, of: bytes | None = None, behind: bytes = b"IHDR") -> bytes:
    """A PNG with `chunks` behind one of its own."""
    whole = of or encode(picture(), "PNG")
    at = whole.index(behind) - 4
    end = at + 12 + int.from_bytes(whole[at : at + 4], "big")
    return whole[:end] + b"".join(chunks) + whole[end:]


def _exif(orientation: int) -> bytes:
    return made.exif_orientation(orientation).removeprefix(b"Exif\0\0")


def png_files() -> dict[str, bytes]:
    photo = picture()
    whole = encode(photo, "PNG")
    palette = photo.quantize(64)
    paletted = encode(palette, "PNG")
    deep = np.asarray(photo).astype(">u2") * 257
    rows = [row.tobytes() for row in deep.astype(">u2")]
    hidden = deep[60, 100]
    noise = random.Random(0).randbytes(1_500_000)
    text = b"Comment\0" + bytes(2_000_000)
    pixels = zlib.compress(np.pad(np.asarray(photo).reshape(SIZE[1], -1), ((0, 0), (1, 0))).tobytes())
    header = struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, 0, 0)

    def of(*chunks: bytes, ends: bool = True) -> bytes:
        head = made.PNG_SIGNATURE + png_chunk(b"IHDR", header)
        return head + b"".join(chunks) + (png_chunk(b"IEND", b"") if ends else b"")

    first = png_chunk(b"IDAT", pixels)
    short_palette = made.chunks_of_png(paletted)
    short_palette = [(kind, body[: 3 * 8] if kind == b"PLTE" else body) for kind, body in short_palette]
    return {
        "png, iCCP of 1.5 MB": png_with(png_chunk(b"iCCP", b"x\0\0" + zlib.compress(noise))),
        "png, iCCP that inflates to 50 MB": png_with(png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50_000_000)))),
        "png, zTXt of 2 MB": png_with(png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2_000_000)))),
        "png, iTXt of 2 MB": png_with(png_chunk(b"iTXt", b"x\0\1\0\0\0" + zlib.compress(bytes(2_000_000)))),
        "png, tEXt of 2 MB": png_with(png_chunk(b"tEXt", text)),
        **{
            f"png, wrong checksum of {kind.decode()}": png_with(wrong_chunk(kind, body))
            for kind, body in {
                b"pHYs": b"\0\0\x0b\x13\0\0\x0b\x13\1",
                b"tEXt": b"Comment\0text",
                b"iCCP": b"x\0\0" + zlib.compress(bytes(500)),
                b"bKGD": bytes(6),
                b"tIME": bytes(7),
                b"gAMA": struct.pack(">I", 45455),
                b"sRGB": b"\0",
                b"cHRM": bytes(32),
                b"eXIf": _exif(6),
                b"acTL": struct.pack(">II", 2, 0),
            }.items()
        },
        **{
            f"png, short {kind.decode()}": png_with(png_chunk(kind, body))
            for kind, body in {
                b"gAMA": b"\0\0",
                b"pHYs": b"\0",
                b"sRGB": b"",
                b"cHRM": bytes(9),
                b"tRNS": b"\0",
            }.items()
        },
        "png, tRNS of a palette with too many entries": png_with(
            png_chunk(b"tRNS", bytes(100)), of=paletted, behind=b"PLTE"
        ),
        "png, tRNS of a palette with a few entries": png_with(
            png_chunk(b"tRNS", bytes([0, 128])), of=paletted, behind=b"PLTE"
        ),
        "png, tRNS with a wrong checksum": png_with(
            wrong_chunk(b"tRNS", struct.pack(">HHH", *np.asarray(photo)[9, 9]))
        ),
        "png, tRNS with alpha": png_with(png_chunk(b"tRNS", bytes(6)), of=encode(photo.convert("RGBA"), "PNG")),
        "png, two tRNS": png_with(
            png_chunk(b"tRNS", struct.pack(">HHH", *np.asarray(photo)[9, 9])),
            png_chunk(b"tRNS", struct.pack(">HHH", *np.asarray(photo)[60, 60])),
        ),
        "png, a palette shorter than its pixels ask for": made.png_of_chunks(short_palette),
        "png, a palette beside RGB": png_with(png_chunk(b"PLTE", bytes(30))),
        "png, 16 bits with tRNS": made.png(
            *SIZE, 16, made.RGB, rows, [(b"tRNS", struct.pack(">HHH", *(int(level) for level in hidden)))]
        ),
        "png, 16 bits with tRNS that only the upper bits match": made.png(
            *SIZE, 16, made.RGB, rows, [(b"tRNS", struct.pack(">HHH", *(int(level) ^ 1 for level in hidden)))]
        ),
        "png, 16-bit grey with tRNS": made.png(
            *SIZE, 16, made.GREY, [row[:, 0].astype(">u2").tobytes() for row in deep], [(b"tRNS", rows[60][600:602])]
        ),
        "png, interlaced": _interlaced(photo),
        "png, without IEND": of(first, ends=False),
        "png, cut in its last checksum": whole[: whole.index(b"IEND") - 6],
        "png, text behind IEND": whole + b"Some text, and a <html>.",
        "png, unknown chunks": png_with(png_chunk(b"prVt", b"x" * 99), png_chunk(b"abCd", b"")),
        "png, a chunk for each byte of its pixels": of(*(png_chunk(b"IDAT", bytes([byte])) for byte in pixels)),
        "png, its pixels in chunks of all sizes": of(
            *(
                png_chunk(b"IDAT", pixels[at * (at - 1) // 2 : at * (at + 1) // 2])
                for at in range(len(pixels))
                if at * at < 2 * len(pixels) + 2 * at
            )
        ),
        "png, 200,000 chunks": png_with(png_chunk(b"prVt", b"ab") * 200_000),
        "png, 20,000 empty chunks": png_with(png_chunk(b"prVt", b"") * 20_000),
        "png, pixels in chunks of 7 bytes": of(
            *(png_chunk(b"IDAT", pixels[at : at + 7]) for at in range(0, len(pixels), 7))
        ),
        "png, empty IDAT": of(png_chunk(b"IDAT", b""), first, png_chunk(b"IDAT", b"")),
        "png, eXIf": png_with(png_chunk(b"eXIf", _exif(6))),
        "png, eXIf behind the pixels": whole[:-12] + png_chunk(b"eXIf", _exif(6)) + whole[-12:],
        "png, cut-off eXIf": png_with(png_chunk(b"eXIf", _exif(6)[:14])),
        "png, XMP that says 6": png_with(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + _XMP)),
        "png, animated": encode(photo, "PNG", save_all=True, append_images=[photo.rotate(90)]),
        "png, animated, another first frame": _animated_png(photo, photo.rotate(180)),
        "png, animated, a small first frame": _animated_png(photo, photo.crop((20, 30, 100, 90)), (20, 30)),
        "png, animated, damaged fcTL": png_with(png_chunk(b"acTL", struct.pack(">II", 1, 0)), png_chunk(b"fcTL", b"")),
    }


def _interlaced(photo: Image.Image) -> bytes:
    """Adam7, row by row of each pass."""
    levels = np.asarray(photo)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = [b"\0" + row.tobytes() for x, y, dx, dy in passes for row in levels[y::dy, x::dx]]
    header = struct.pack(">IIBBBBB", *photo.size, 8, 2, 0, 0, 1)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return made.png_of_chunks(chunks)


def _animated_png(still: Image.Image, first: Image.Image, offset: tuple[int, int] = (0, 0)) -> bytes:
    """A still picture for those who know no animations, and a frame that it is not part of."""
    chunks = made.chunks_of_png(encode(still, "PNG"))
    pixels = b"".join(body for kind, body in made.chunks_of_png(encode(first, "PNG")) if kind == b"IDAT")
    control = struct.pack(">IIIIIHHBB", 0, *first.size, *offset, 1, 10, 0, 0)
    animation = [(b"acTL", struct.pack(">II", 1, 0))]
    frame = [(b"fcTL", control), (b"fdAT", struct.pack(">I", 1) + pixels)]
    return made.png_of_chunks([chunks[0], *animation, *chunks[1:-1], *frame, chunks[-1]])


_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


# --- JPEG


def segment(code: int, body: bytes) -> bytes:
    return bytes([0xFF, code]) + (len(body) + 2).to_bytes(2, "big") + body


def jpeg_with(*segments: bytes, of: bytes | None = None, keeps_jfif: bool = True) -> bytes:
    """A JPEG with `segments` at its beginning."""
    whole = of or encode(picture(), quality=90)
    rest = whole[2:] if keeps_jfif else whole[20:]
    return whole[:2] + b"".join(segments) + rest


def jpeg_files() -> dict[str, bytes]:
    photo = picture()
    whole = encode(photo, quality=90)
    progressive = encode(photo, quality=90, progressive=True)
    turned = made.exif_orientation(6)
    adobe = b"Adobe\0\x64\0\0\0\0"
    cut_photoshop = segment(0xED, b"Photoshop 3.0\x008BIM\4\4")
    files = {
        "jpeg, without its end": whole[:-2],
        "jpeg, without its last byte": whole[:-1],
        "jpeg, fill bytes for an end": whole[:-2] + b"\xff" * 99,
        "jpeg, progressive without its end": progressive[:-2],
        "jpeg, progressive without its last byte": progressive[:-1],
        "jpeg, with restarts without its end": encode(photo, restart_marker_rows=1)[:-2],
        "jpeg, grey without its end": encode(photo.convert("L"))[:-2],
        "jpeg, text behind its end": whole + b"Some text",
        "jpeg, cut-off 8BIM": jpeg_with(cut_photoshop),
        "jpeg, cut-off JFIF": jpeg_with(segment(0xE0, b"JFIF\0\1"), keeps_jfif=False),
        "jpeg, empty APP0": jpeg_with(segment(0xE0, b""), keeps_jfif=False),
        "jpeg, JFIF of density 0": jpeg_with(segment(0xE0, b"JFIF\0\1\1\1\0\0\0\0\0\0"), keeps_jfif=False),
        "jpeg, JFIF whose thumbnail is cut off": jpeg_with(
            segment(0xE0, b"JFIF\0\1\1\1\0\1\0\1\x60\x60"), keeps_jfif=False
        ),
        "jpeg, cut-off Adobe": jpeg_with(segment(0xEE, b"Adobe\0")),
        "jpeg, cut-off Adobe without JFIF": jpeg_with(segment(0xEE, b"Adobe\0\x64\0"), keeps_jfif=False),
        "jpeg, cut-off ICC_PROFILE": jpeg_with(segment(0xE2, b"ICC_PROFILE\0")),
        "jpeg, cut-off ICC_PROFILE, numbered": jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\2")),
        "jpeg, damaged ICC_PROFILE": jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(range(200)))),
        "jpeg, cut-off MPF": jpeg_with(segment(0xE2, b"MPF\0II*\0\x08\0\0\0\x03")),
        "jpeg, MPF that names no picture": jpeg_with(segment(0xE2, b"MPF\0" + bytes(90))),
        "jpeg, cut-off EXIF": jpeg_with(segment(0xE1, turned[:20])),
        "jpeg, EXIF": jpeg_with(segment(0xE1, turned)),
        "jpeg, two EXIFs": jpeg_with(segment(0xE1, turned), segment(0xE1, made.exif_orientation(3))),
        "jpeg, damaged EXIF and a good one": jpeg_with(segment(0xE1, turned[:12]), segment(0xE1, turned)),
        "jpeg, EXIF of the other order": jpeg_with(
            segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0")
        ),
        "jpeg, EXIF behind its tables": whole[: whole.index(b"\xff\xda")]
        + segment(0xE1, turned)
        + whole[whole.index(b"\xff\xda") :],
        "jpeg, XMP that says 6": jpeg_with(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + _XMP)),
        "jpeg, bytes between its segments": jpeg_with(segment(0xFE, b"a") + b"\0\1\2junk"),
        "jpeg, fill bytes between its segments": jpeg_with(b"\xff" * 5000),
        "jpeg, 300 comments": jpeg_with(segment(0xFE, b"c" * 5000) * 300),
        "jpeg, CMYK": encode(photo.convert("CMYK"), quality=90),
        "jpeg, Adobe RGB components": jpeg_with(
            segment(0xEE, adobe + b"\0"), of=encode(photo, quality=90), keeps_jfif=False
        ),
        "jpeg, components called R, G and B": _named(whole, b"RGB"),
        "jpeg, components numbered from 0": _named(whole, b"\0\1\2"),
        "jpeg, sampled 1×2": _sampled(),
        "jpeg, a scan for each component": _scan_for_each(photo),
        "jpeg, restarts": encode(photo, restart_marker_blocks=1),
        "jpeg, optimised": encode(photo, optimize=True),
        "jpeg, four components of which Adobe says YCCK": _ycck(photo),
        "jpeg, two pictures": encode(photo, "MPO", save_all=True, append_images=[photo.rotate(90)]),
    }
    return files


def _named(whole: bytes, names: bytes) -> bytes:
    """The components' names in the frame and the scan, without the segments that say what they are."""
    data = bytearray(whole[:2] + whole[20:])
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for number, name in enumerate(names):
        data[frame + 10 + 3 * number] = name
        data[scan + 5 + 2 * number] = name
    return bytes(data)


def _sampled() -> bytes:
    target = io.BytesIO()
    picture().save(target, "JPEG", quality=90, subsampling="4:2:2")
    return target.getvalue()


def _scan_for_each(photo: Image.Image) -> bytes:
    """A sequential file of three grey scans under one frame."""
    y, cb, cr = (encode(part, quality=90) for part in photo.convert("YCbCr").split())
    head = y[: y.index(b"\xff\xc0")]
    frame = segment(0xC0, struct.pack(">BHHB", 8, SIZE[1], SIZE[0], 3) + b"\1\x11\0\2\x11\0\3\x11\0")
    tables = y[y.index(b"\xff\xc4") : y.index(b"\xff\xda")]
    scans = []
    for number, part in enumerate((y, cb, cr), start=1):
        begin = part.index(b"\xff\xda")
        scans.append(segment(0xDA, bytes([1, number, 0, 0, 63, 0])) + part[begin + 10 : -2])
    return head + frame + tables + b"".join(scans) + b"\xff\xd9"


def _ycck(photo: Image.Image) -> bytes:
    """A printer's file, whose colours are stored as YCbCr of their negative."""
    black = np.full((SIZE[1], SIZE[0]), 255, np.uint8)
    parts = [*photo.convert("YCbCr").split(), Image.fromarray(black)]
    whole = encode(Image.merge("CMYK", [part.point(lambda level: 255 - level) for part in parts]), quality=95)
    at = whole.index(b"Adobe")
    return whole[: at + 11] + b"\2" + whole[at + 12 :]


# --- GIF


def gif_parts(image: Image.Image) -> tuple[bytes, bytes, bytes]:
    """Of an encoded GIF: its screen with the palette, the frame's data, and the palette alone."""
    whole = encode(image, "GIF")
    size = 6 << (whole[10] & 7)
    at = whole.index(b",\0\0\0\0", 13 + size)
    return whole[:13] + whole[13 : 13 + size], whole[at + 10 : -1], whole[13 : 13 + size]


def gif_of(
    screen: tuple[int, int],
    offset: tuple[int, int],
    frame: Image.Image,
    *,
    front: bytes = b"",
    behind: bytes = b";",
    background: int = 0,
    own_palette: bool = False,
) -> bytes:
    head, data, palette = gif_parts(frame)
    flags = head[10] & 7
    global_flags = flags | (0 if own_palette else 0x80)
    begin = struct.pack("<6sHHBBB", b"GIF89a", *screen, global_flags, background, 0)
    descriptor = struct.pack("<BHHHHB", 0x2C, *offset, *frame.size, (0x80 | flags) if own_palette else 0)
    local = palette if own_palette else b""
    return begin + (b"" if own_palette else palette) + front + descriptor + local + data + behind


def gif_files() -> dict[str, bytes]:
    photo = picture().quantize(64)
    part = picture().crop((0, 0, 90, 60)).quantize(64)
    whole = encode(photo, "GIF")
    later = {"save_all": True, "append_images": [picture().rotate(90).quantize(64)]}
    animated = encode(photo, "GIF", **later)
    control = b"\x21\xf9\4\1\0\0\3\0"
    return {
        "gif, a frame on a part of its screen": gif_of(SIZE, (30, 20), part),
        "gif, a frame on a part, its own palette": gif_of(SIZE, (30, 20), part, own_palette=True),
        "gif, a frame on a part, background 5": gif_of(SIZE, (30, 20), part, background=5),
        "gif, a frame on a part, transparent entry": gif_of(SIZE, (30, 20), part, front=control),
        "gif, transparent entry": gif_of(SIZE, (0, 0), photo, front=control),
        "gif, two controls": gif_of(SIZE, (0, 0), photo, front=control + b"\x21\xf9\4\0\0\0\0\0"),
        "gif, without its trailer": whole[:-1],
        "gif, cut behind its first frame": animated[: animated.rindex(b"\x21\xf9") + 5],
        "gif, text behind its trailer": whole + b"some text",
        "gif, comment": gif_of(SIZE, (0, 0), photo, front=b"\x21\xfe\4abcd\0"),
        "gif, comment of 5 MB": gif_of(
            SIZE, (0, 0), photo, front=b"\x21\xfe" + (b"\xff" + b"c" * 255) * 20_000 + b"\0"
        ),
        "gif, comment of a million blocks": gif_of(
            SIZE, (0, 0), photo, front=b"\x21\xfe" + b"\2ab" * 1_000_000 + b"\0"
        ),
        "gif, comment of blocks of all sizes": gif_of(
            SIZE, (0, 0), photo, front=b"\x21\xfe" + b"\1a\2bc\3def" * 150_000 + b"\0"
        ),
        "gif, damaged control": gif_of(SIZE, (0, 0), photo, front=b"\x21\xf9\2\1\0\0"),
        "gif, unknown extension": gif_of(SIZE, (0, 0), photo, front=b"\x21\x99\3abc\0"),
        "gif, cut-off application": gif_of(SIZE, (0, 0), photo, front=b"\x21\xff\4NETS\0"),
        "gif, animated": animated,
        "gif, 87a": b"GIF87a" + gif_of(SIZE, (0, 0), photo)[6:],
        "gif, a screen of 0": gif_of((0, 0), (0, 0), photo),
    }


# --- WebP


def webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def webp_of(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_files() -> dict[str, bytes]:
    photo = picture()
    lossy = encode(photo, "WEBP", quality=90)
    pixels = lossy[12:]
    alpha = photo.convert("RGBA")
    alpha.putalpha(photo.convert("L"))

    def extended(flags: int) -> bytes:
        size = (SIZE[0] - 1).to_bytes(3, "little") + (SIZE[1] - 1).to_bytes(3, "little")
        return webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size)

    turned = _exif(6)
    small = photo.crop((0, 0, 80, 60))
    return {
        "webp": lossy,
        "webp, alpha": encode(alpha, "WEBP", quality=90),
        "webp, lossless alpha": encode(alpha, "WEBP", lossless=True),
        "webp, damaged ICCP": webp_of(extended(0x20), webp_chunk(b"ICCP", b"no profile"), pixels),
        "webp, damaged EXIF": webp_of(extended(8), pixels, webp_chunk(b"EXIF", b"no directories")),
        "webp, damaged XMP": webp_of(extended(4), pixels, webp_chunk(b"XMP ", b"\xff\xfe")),
        "webp, EXIF": webp_of(extended(8), pixels, webp_chunk(b"EXIF", turned)),
        "webp, EXIF with a JPEG's prefix": webp_of(extended(8), pixels, webp_chunk(b"EXIF", b"Exif\0\0" + turned)),
        "webp, EXIF that the header does not name": webp_of(extended(0), pixels, webp_chunk(b"EXIF", turned)),
        "webp, XMP that says 6": webp_of(extended(4), pixels, webp_chunk(b"XMP ", _XMP)),
        "webp, unknown chunk": webp_of(extended(0), webp_chunk(b"abcd", b"x"), pixels),
        "webp, cut-off metadata": webp_of(extended(8), pixels, b"EXIF\x64\0\0\0II")[:-2],
        "webp, text behind it": lossy + b"some text.",
        "webp, animated": encode(photo, "WEBP", save_all=True, append_images=[photo.rotate(90)], quality=90),
        "webp, animated, a small first frame": webp_of(
            extended(0x02),
            webp_chunk(b"ANIM", b"\xff\0\0\xff\0\0"),
            webp_chunk(
                b"ANMF",
                b"".join(each.to_bytes(3, "little") for each in (20, 10, 79, 59, 100))
                + b"\0"
                + encode(small, "WEBP", quality=90)[12:],
            ),
        ),
        "webp, an odd size without its padding": _unpadded_webp(),
    }


def _unpadded_webp() -> bytes:
    """A file that ends with the last byte of pixels whose number is odd."""
    for size in range(60, 90):
        data = encode(picture().crop((0, 0, size, size)), "WEBP", lossless=True)
        if int.from_bytes(data[16:20], "little") % 2:
            return data[:-1]
    raise AssertionError


# --- BMP


def bmp_of(
    depth: int,
    rows: bytes,
    *,
    size: tuple[int, int] = SIZE,
    compression: int = 0,
    masks: Sequence[int] = (),
    palette: bytes = b"",
    colours: int = 0,
    header_bytes: int = 40,
    top_down: bool = False,
    gap: bytes = b"",
) -> bytes:
    """A BMP made by hand."""
    height = -size[1] if top_down else size[1]
    head = struct.pack(
        "<IiiHHIIiiII", header_bytes, size[0], height, 1, depth, compression, len(rows), 0, 0, colours, 0
    )
    if header_bytes > 40:
        inside = b"".join(struct.pack("<I", mask) for mask in masks)
        head += inside.ljust(header_bytes - 40, b"\0")
    else:
        head += b"".join(struct.pack("<I", mask) for mask in masks)
    begin = 14 + len(head) + len(palette) + len(gap)
    return struct.pack("<2sIHHI", b"BM", begin + len(rows), 0, 0, begin) + head + palette + gap + rows


def packed(levels: np.ndarray, masks: Sequence[int], depth: int) -> bytes:
    """Rows from the bottom up, each channel's upper bits under its mask."""
    words = np.zeros(levels.shape[:2], np.uint64)
    for channel, mask in enumerate(masks):
        if mask and channel < levels.shape[2]:
            shift = (mask & -mask).bit_length() - 1
            bits = (mask >> shift).bit_length()
            scaled = np.round(levels[..., channel].astype(float) / 255 * ((1 << bits) - 1)).astype(np.uint64)
            words |= scaled << np.uint64(shift)
    rows = words.astype("<u2" if depth == 16 else "<u4")[::-1]
    filling = -rows.shape[1] * depth // 8 % 4
    return b"".join(row.tobytes() + bytes(filling) for row in rows)


def _indices(image: Image.Image) -> tuple[np.ndarray, bytes]:
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    entries = np.zeros((len(palette), 4), np.uint8)
    entries[:, :3] = palette[:, ::-1]
    return np.asarray(image), entries.tobytes()


def bmp_files() -> dict[str, bytes]:
    photo = picture()
    levels = np.asarray(photo)
    alpha = np.dstack([levels, np.asarray(photo.convert("L"))])
    plain = levels[::-1, :, ::-1].tobytes()
    indices, entries = _indices(photo.quantize(200))
    few, few_entries = _indices(photo.quantize(16))
    rgbx = (0xFF000000, 0xFF0000, 0xFF00)
    ten = (0x3FF00000, 0xFFC00, 0x3FF)
    four = (0xF00, 0xF0, 0xF)
    bgra = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    runs_8 = b"".join(_runs_8(row) for row in indices[::-1]) + b"\0\1"
    runs_4 = b"".join(_runs_4(row) for row in few[::-1]) + b"\0\1"
    nibbles = ((few[:, 0::2] << 4) | few[:, 1::2]).astype(np.uint8)[::-1].tobytes()
    os2_palette = b"".join(entries[at : at + 3] for at in range(0, len(entries), 4)).ljust(768, b"\0")
    os2_head = struct.pack("<IHHHH", 12, *SIZE, 1, 8)
    os2_begin = 14 + 12 + 768
    bits = (np.asarray(photo.convert("L")) > 99).astype(np.uint8)
    one_bit = b"".join(np.packbits(row).tobytes().ljust(28, b"\0") for row in bits[::-1])
    return {
        "bmp, RGBX masks": bmp_of(32, packed(levels, rgbx, 32), compression=3, masks=rgbx),
        "bmp, 10-10-10 masks": bmp_of(32, packed(levels, ten, 32), compression=3, masks=ten),
        "bmp, 4-4-4 masks": bmp_of(16, packed(levels, four, 16), compression=3, masks=four),
        "bmp, 4-4-4-4 masks": bmp_of(
            16, packed(alpha, (*four, 0xF000), 16), compression=3, masks=(*four, 0xF000), header_bytes=108
        ),
        "bmp, 5-6-5 masks": bmp_of(
            16, packed(levels, (0xF800, 0x7E0, 0x1F), 16), compression=3, masks=(0xF800, 0x7E0, 0x1F)
        ),
        "bmp, 5-5-5": bmp_of(16, packed(levels, (0x7C00, 0x3E0, 0x1F), 16)),
        "bmp, 5-5-5-1 masks": bmp_of(
            16,
            packed(alpha, (0x7C00, 0x3E0, 0x1F, 0x8000), 16),
            compression=3,
            masks=(0x7C00, 0x3E0, 0x1F, 0x8000),
            header_bytes=56,
        ),
        "bmp, 32 bits": bmp_of(32, packed(alpha, bgra, 32)),
        "bmp, 32 bits, version 4 with alpha": bmp_of(
            32, packed(alpha, bgra, 32), compression=3, masks=bgra, header_bytes=108
        ),
        "bmp, 32 bits, version 5 with alpha": bmp_of(
            32, packed(alpha, bgra, 32), compression=3, masks=bgra, header_bytes=124
        ),
        "bmp, alpha of 0 everywhere": bmp_of(32, packed(levels, bgra, 32), compression=3, masks=bgra, header_bytes=124),
        "bmp, version 3 with an alpha mask": bmp_of(
            32, packed(alpha, bgra, 32), compression=3, masks=bgra, header_bytes=56
        ),
        "bmp, version 5 with a cut-off profile": bmp_of(24, plain, header_bytes=124),
        "bmp, top down": bmp_of(24, levels[:, :, ::-1].tobytes(), top_down=True),
        "bmp, a palette of 300": bmp_of(8, indices[::-1].tobytes(), palette=entries.ljust(1200, b"\7"), colours=300),
        "bmp, a palette of 20": bmp_of(8, indices[::-1].tobytes(), palette=entries[:80], colours=20),
        "bmp, a gap in front of its pixels": bmp_of(24, plain, gap=b"gap." * 9),
        "bmp, 4 bits": bmp_of(4, nibbles, palette=few_entries, colours=16),
        "bmp, 1 bit": bmp_of(1, one_bit, palette=b"\xff\0\0\0\0\xff\0\0", colours=2),
        "bmp, runs of 8 bits": bmp_of(8, runs_8, compression=1, palette=entries, colours=200),
        "bmp, runs of 4 bits": bmp_of(4, runs_4, compression=2, palette=few_entries, colours=16),
        "bmp, runs with jumps": bmp_of(
            8,
            b"\0\2\x0a\x05" + bytes([40, 7]) + b"\0\0" + bytes([9, 5]) + b"\0\1",
            compression=1,
            palette=entries,
            colours=200,
        ),
        "bmp, OS/2": struct.pack("<2sIHHI", b"BM", 0, 0, 0, os2_begin)
        + os2_head
        + os2_palette
        + indices[::-1].tobytes(),
        "bmp, OS/2 version 2": bmp_of(24, plain, header_bytes=64),
        "bmp, reserved bytes": b"BM" + bytes(4) + b"made" + bmp_of(24, plain)[10:],
        "bmp, a wrong file size": b"BM" + b"\1\0\0\0" + bmp_of(24, plain)[6:],
        "bmp, text behind it": bmp_of(24, plain) + b"some text",
    }


def _runs_8(row: np.ndarray) -> bytes:
    """A row in runs, with some pixels one by one at its beginning."""
    single = row[:7].tobytes()
    coded = b"\0\7" + single + b"\0"
    return coded + b"".join(bytes([1, index]) for index in row[7:].tolist()) + b"\0\0"


def _runs_4(row: np.ndarray) -> bytes:
    indices = row.tolist()
    single = bytes((indices[at] << 4) | indices[at + 1] for at in (0, 2))
    coded = b"\0\4" + single
    return (
        coded + b"".join(bytes([2, (a << 4) | b]) for a, b in zip(indices[4::2], indices[5::2], strict=True)) + b"\0\0"
    )


@cache
def odd_files() -> dict[str, bytes]:
    """Name → file; every name begins with its format."""
    return {**jpeg_files(), **png_files(), **gif_files(), **webp_files(), **bmp_files()}
