"""The arena: host memory that is used again, so that a copy costs a copy and not the first touch of new pages.

Buffers come in classes of sizes (at most an eighth larger than asked for). What is given back is kept up to a bound;
beyond it the memory goes back to the system. Lists are changed by single steps of the interpreter, so threads and
signal handlers share it without a lock.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Buffer = NDArray[np.uint8]

_SMALLEST = 256


class Arena:
    """Reusable buffers."""

    def __init__(self, *, keep: int) -> None:
        self._keep = keep
        self._free: dict[int, list[Buffer]] = {}

    def take(self, nbytes: int) -> Buffer:
        """A buffer of at least `nbytes` bytes, whatever stands in it."""
        size = _class_of(nbytes)
        try:
            return self._free[size].pop()
        except (KeyError, IndexError):
            return np.empty(size, np.uint8)

    def give(self, buffer: Buffer) -> None:
        """The buffer is no longer used by anybody."""
        if self.nbytes + buffer.nbytes <= self._keep:
            self._free.setdefault(buffer.nbytes, []).append(buffer)

    @property
    def nbytes(self) -> int:
        """Bytes kept for reuse."""
        return sum(size * len(buffers) for size, buffers in tuple(self._free.items()))


def _class_of(nbytes: int) -> int:
    if nbytes <= _SMALLEST:
        return _SMALLEST
    step = 1 << ((nbytes - 1).bit_length() - 4)
    return -(-nbytes // step) * step
