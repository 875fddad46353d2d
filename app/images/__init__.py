"""bytes → pixels: what is allowed in, how it is decoded, and the border that the bounded decoders stand behind.

The decoders themselves are imported by name, from `threads` and `processes`: a decoding process imports this package
and needs neither them nor asyncio, which would be a quarter of what its start costs.
"""

from .base import Decoder
from .decode import DecodeLimits, decode, image_format
from .resample import usable_kernel

__all__ = ["DecodeLimits", "Decoder", "decode", "image_format", "usable_kernel"]
