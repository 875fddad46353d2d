"""Fast mode: resize from an image that is decoded smaller. Close to `geometry`'s pixels, not equal to them.

- A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, by a smaller inverse transform of each of its blocks, where that is
  still at least twice as large as what it is then resized to. At 1/4 and 1/8, the scans of a progressive one that
  bring its details' last bits are left out (`jpeg_scans.without_refinements`).
- Only what the crop shows is resized, in one step from the stored pixels, as Pillow resizes a `box`. Its corners are
  single-precision numbers, so that the filter's weights differ from the reference's in the last bit. (A JPEG of which
  nothing is decoded smaller does not come here where `resample` has its kernel.)
- A large image of another format is first averaged over whole blocks, also to no less than twice the final size.
- The image is turned upright last, when it is small.
"""

from __future__ import annotations

from PIL import Image, ImageFile

from ..types import Interpolation, Preprocessing
from .colour import to_rgb
from .geometry import FILTERS, Size, Window, in_source, resized_and_crop_box, visible_part, within
from .orientation import stored_window, turn_upright, turned_size
from .picture import Picture
from .resample import resized_window

# How many times the final size an image has, at the least, before the filter of the model's preprocessing makes it
# small. Below about two, what was done before shows.
_GAP = 2
# From this divisor on a progressive JPEG's last bits are left out. At 1/2 they are still to be seen: without them, the
# largest change of a probability over 48 photos was 0.09 to 0.11 instead of 0.02.
REFINED_BELOW = 4


def may_shrink(preprocessing: Preprocessing) -> bool:
    """Whether fewer pixels on the way give nearly the same: not where the resize picks single pixels of a large image,
    which averaging before it would change, and only in Pillow's resize, whose weights are asked of it here.
    """
    return preprocessing.resizer == "pillow" and preprocessing.interpolation is not Interpolation.NEAREST


def shrink_jpeg(image: ImageFile.ImageFile, orientation: int, preprocessing: Preprocessing) -> int:
    """Have a JPEG that is not loaded yet decoded at 1/1, 1/2, 1/4 or 1/8 of its size; the divisor.

    `image.size` becomes smaller, where it cannot be divided rounded up.
    """
    resized, _ = resized_and_crop_box(turned_size(image.size, orientation), preprocessing)
    least_width, least_height = turned_size(resized, orientation)
    # Pillow takes the largest divisor whose result is not smaller than this.
    stored_width = image.width
    drafted = image.draft(None, (_GAP * least_width, _GAP * least_height))
    return 1 if drafted is None else round(stored_width / drafted[1][2])


def upright_crop(image: Image.Image, picture: Picture, divisor: int, preprocessing: Preprocessing) -> Image.Image:
    """The centre crop, upright and in RGB, of a picture that was loaded at 1/`divisor` of its size."""
    orientation = picture.orientation
    upright = turned_size(picture.size, orientation)
    resized, box = resized_and_crop_box(upright, preprocessing)
    visible = visible_part(box, resized)
    left, top, right, bottom = in_source(visible, resized, upright)
    # 224 * (246 / 224) is 246.00000000000003, and Pillow refuses a window that is outside by so little.
    inside = left, top, min(right, upright[0]), min(bottom, upright[1])
    window = stored_window(inside, upright, orientation)
    size = turned_size((visible[2] - visible[0], visible[3] - visible[1]), orientation)
    left, top, right, bottom = (edge / divisor for edge in window)
    small = _resize(to_rgb(image), size, (left, top, right, bottom), preprocessing)
    return within(turn_upright(small, orientation), visible, box)


def _resize(image: Image.Image, size: Size, window: Window, preprocessing: Preprocessing) -> Image.Image:
    left, top = round(window[0]), round(window[1])
    pixels = (left, top, left + size[0], top + size[1])
    if window == pixels:
        return image.crop(pixels)
    resampling = FILTERS[preprocessing.interpolation]
    # Of an image that is shrunk by less than twice the gap Pillow averages no blocks.
    if window[2] - window[0] < 2 * _GAP * size[0] and window[3] - window[1] < 2 * _GAP * size[1]:
        resized = resized_window(image, size, window, resampling)
        if resized is not None:
            return Image.fromarray(resized)
    return image.resize(size, resampling, box=window, reducing_gap=_GAP)
