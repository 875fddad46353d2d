"""A buffer for the bytes of one image as they arrive; its result is `bytes` without a copy."""

from __future__ import annotations

from io import BytesIO

# Growing a block may copy it while the interpreter's lock is held: above this size that takes over a millisecond.
_LARGE_BYTES = 8 * 1024 * 1024
# glibc keeps blocks over 32 MiB (DEFAULT_MMAP_THRESHOLD_MAX) in separate mappings, which grow and shrink without a
# copy, and whose pages take memory only when they are written.
_MAPPED_BYTES = 32 * 1024 * 1024 + 65_536


class ImageBuffer:
    """Collects up to tens of megabytes in pieces; no call takes longer than copying its piece."""

    def __init__(self) -> None:
        self._buffer = BytesIO()
        self._size = 0
        self._is_mapped = False

    def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > _LARGE_BYTES and not self._is_mapped:
            # `bytes` without another reference are written in place instead of copied first.
            mapped = BytesIO(bytes(_MAPPED_BYTES))
            mapped.write(self._buffer.getbuffer())
            self._buffer, self._is_mapped = mapped, True
        self._buffer.write(data)

    def value(self) -> bytes:
        """All bytes written so far."""
        self._buffer.truncate(self._size)
        return self._buffer.getvalue()
