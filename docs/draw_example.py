"""Draws app/data/example.jpg, the picture that the examples send: a wall clock at ten past ten.

    python docs/draw_example.py

It is drawn and not photographed, so that the project can give it away; a classifier knows it for a clock all the same.
"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

TARGET = Path(__file__).parent.parent / "app" / "data" / "example.jpg"
WIDTH, HEIGHT = 640, 480
SCALE = 4  # drawn larger and shrunk, which smooths the edges
CENTRE = (WIDTH * SCALE / 2, HEIGHT * SCALE / 2)
RADIUS = 200 * SCALE


def main() -> None:
    image = wall()
    shadow = Image.new("L", image.size, 0)
    ImageDraw.Draw(shadow).ellipse(circle(RADIUS, 14 * SCALE, 18 * SCALE), fill=150)
    image.paste((60, 50, 40), mask=shadow.filter(ImageFilter.GaussianBlur(12 * SCALE)))
    draw = ImageDraw.Draw(image)
    for inset in range(22 * SCALE):  # a rounded wooden frame: brightest in its middle
        shade = math.sin(math.pi * inset / (22 * SCALE))
        draw.ellipse(circle(RADIUS - inset), fill=(int(70 + 80 * shade), int(40 + 45 * shade), int(22 + 25 * shade)))
    draw.ellipse(circle(RADIUS - 22 * SCALE), fill=(247, 244, 235))
    for minute in range(60):
        long = minute % 5 == 0
        line(
            draw,
            minute,
            (150 if long else 160) * SCALE,
            168 * SCALE,
            (6 if long else 2) * SCALE,
            (30, 30, 30),
        )
    for hour in range(1, 13):
        x, y = at(hour * 5, 128 * SCALE)
        draw.text((x, y), str(hour), fill=(25, 25, 25), anchor="mm", font_size=34 * SCALE)
    line(draw, 51, -20 * SCALE, 92 * SCALE, 10 * SCALE, (20, 20, 20))
    line(draw, 10, -24 * SCALE, 140 * SCALE, 7 * SCALE, (20, 20, 20))
    line(draw, 35, -30 * SCALE, 150 * SCALE, 2 * SCALE, (180, 30, 30))
    draw.ellipse(circle(9 * SCALE), fill=(20, 20, 20))
    image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(TARGET, quality=82, optimize=True)


def wall() -> Image.Image:
    """A papered wall that is lighter at the top left."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE))
    draw = ImageDraw.Draw(image)
    for x in range(0, image.width, SCALE):
        stripe = 6 if (x // (40 * SCALE)) % 2 else 0
        for y in range(0, image.height, 4 * SCALE):
            light = 1 - (x / image.width + y / image.height) / 5
            colour = (int((196 - stripe) * light), int((176 - stripe) * light), int((140 - stripe) * light))
            draw.rectangle((x, y, x + SCALE, y + 4 * SCALE), fill=colour)
    return image


def circle(radius: float, right: float = 0, down: float = 0) -> tuple[float, float, float, float]:
    x, y = CENTRE[0] + right, CENTRE[1] + down
    return x - radius, y - radius, x + radius, y + radius


def at(minute: float, distance: float) -> tuple[float, float]:
    angle = math.radians(minute * 6)
    return CENTRE[0] + distance * math.sin(angle), CENTRE[1] - distance * math.cos(angle)


def line(
    draw: ImageDraw.ImageDraw,
    minute: float,
    start: float,
    end: float,
    width: int,
    colour: tuple[int, int, int],
) -> None:
    draw.line((*at(minute, start), *at(minute, end)), fill=colour, width=width)


if __name__ == "__main__":
    main()
