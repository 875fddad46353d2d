"""The bytes of one image as they arrive, which become its `bytes` without a copy."""

from __future__ import annotations

from io import BytesIO

# Growing a block may copy it, with the interpreter's lock held: from here on that would take more than a millisecond.
_LARGE_BYTES = 8 * 1024 * 1024
# glibc keeps blocks over 32 MiB (DEFAULT_MMAP_THRESHOLD_MAX) in mappings of their own, which grow and shrink without a
# copy, and whose pages take memory only once they are written.
_MAPPED_BYTES = 32 * 1024 * 1024 + 65_536


class ImageBuffer:
    """Takes up to tens of megabytes in pieces, none of which takes longer than its own copy."""

    def __init__(self) -> None:
        self._buffer = BytesIO()
        self._size = 0
        self._is_mapped = False

    def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > _LARGE_BYTES and not self._is_mapped:
            # Bytes that nothing else refers to are written in place, and not copied first.
            mapped = BytesIO(bytes(_MAPPED_BYTES))
            mapped.write(self._buffer.getbuffer())
            self._buffer, self._is_mapped = mapped, True
        self._buffer.write(data)

    def value(self) -> bytes:
        """All that was written."""
        self._buffer.truncate(self._size)
        return self._buffer.getvalue()
