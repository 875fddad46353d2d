"""bytes → pixels: what is allowed in, how it is decoded, and the border that the bounded decoders stand behind.

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
