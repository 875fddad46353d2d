"""Images: encoded bytes → pixels, within limits. The decoders have one interface (`base`).

The decoders themselves are imported by name, from `threads` and `processes`: a decoding process imports this package
and needs neither them nor asyncio, which would be a quarter of what its start costs.
"""

from .base import Decoder
from .decode import DecodeLimits, decode, decode_for_each, image_format
from .folder import photo_files
from .resample import usable_kernel

__all__ = [
    "DecodeLimits",
    "Decoder",
    "decode",
    "decode_for_each",
    "image_format",
    "photo_files",
    "usable_kernel",
]
