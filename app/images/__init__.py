"""bytes → pixels: what is allowed in, how it is decoded, and the bounded pool that does it."""

from .decode import DecodeLimits, decode
from .pool import DecodePool

__all__ = ["DecodeLimits", "DecodePool", "decode"]
