"""Images from NCHW to NHWC and back: copies by transposed tiles, which NumPy makes element by element."""

from __future__ import annotations

import threading

import numpy as np

from pyq.backends import current_backend
from pyq.geometry import channels_first, channels_last

_WORDS = {1: np.uint8, 4: np.uint32}
"""Elements of these sizes have kernels."""


def to_nhwc(x: np.ndarray) -> np.ndarray:
    """Images [N, C, *spatial] of any type as [N, *spatial, C], contiguous; a view where they lie so already.

    ValueError for fewer than 3 dimensions.

    >>> to_nhwc(np.arange(8, dtype=np.uint8).reshape(1, 2, 2, 2))[0, 0]
    array([[0, 4],
           [1, 5]], dtype=uint8)
    """
    return _moved(x, 1)


def borrow_nhwc(x: np.ndarray) -> np.ndarray:
    """As `to_nhwc`, but a copy lies in memory that the next call of this thread uses again.

    For what is done with it before anything else. Memory of its own would go back to the system with the copy, and to
    get each page anew takes longer than to fill it.

    >>> first, second = borrow_nhwc(np.zeros((1, 2, 3), np.uint8)), borrow_nhwc(np.ones((1, 2, 3), np.uint8))
    >>> first[0, 0]
    array([1, 1], dtype=uint8)
    """
    return _moved(x, 1, _kept)


def to_nchw(x: np.ndarray) -> np.ndarray:
    """Images [N, *spatial, C] of any type as [N, C, *spatial], contiguous; otherwise as `to_nhwc`.

    >>> to_nchw(np.arange(8, dtype=np.uint8).reshape(1, 2, 2, 2))[0, 0]
    array([[0, 2],
           [4, 6]], dtype=uint8)
    """
    return _moved(x, -1)


class _Kept(threading.local):
    """Memory of a thread, as much as it needed at once so far."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint8)

    def like(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape with the elements of `x`, uninitialized."""
        if self.memory.nbytes < x.nbytes:
            self.memory = np.empty(x.nbytes, np.uint8)
        return self.memory[: x.nbytes].view(x.dtype).reshape(shape)


_kept = _Kept()


def _moved(x: np.ndarray, source: int, kept: _Kept | None = None) -> np.ndarray:
    if x.ndim < 3:
        raise ValueError(f"x: expected at least 3 dimensions, those of images and their channels, got {x.shape}")
    view = channels_last(x) if source == 1 else channels_first(x)
    word = None if x.dtype.hasobject else _WORDS.get(x.itemsize)
    in_order = x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative
    if view.flags.c_contiguous or not in_order or not x.size or word is None:
        return np.ascontiguousarray(view)
    matrices = x.reshape(len(x), x.shape[1], -1) if source == 1 else x.reshape(len(x), -1, x.shape[-1])
    words = matrices.view(word)
    n, rows, columns = words.shape
    out = np.empty((n, columns, rows), word) if kept is None else kept.like(words, (n, columns, rows))
    current_backend().transpose(words, out)
    return out.view(x.dtype).reshape(view.shape)
