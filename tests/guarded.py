"""Memory between two guard pages: one element beyond its edge, and the process gets SIGSEGV."""

from __future__ import annotations

import ctypes
import faulthandler
import math
import mmap
import os
import resource
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

PROT_NONE = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded(values: npt.ArrayLike, edge: str = "end", slack: int = 0) -> np.ndarray[Any, Any]:
    """A copy of `values` that ends `slack` elements before a guard page, or with edge="start" starts behind one.

    The bytes between the copy and the other guard page, and those of the slack, are 0xA5.
    """
    source = np.asarray(values)
    size = source.nbytes
    page = mmap.PAGESIZE
    pages = math.ceil((size + slack * source.itemsize) / page) + 2
    memory = mmap.mmap(-1, pages * page)
    whole = np.frombuffer(memory, np.uint8)
    whole[page:-page] = 0xA5
    start = page if edge == "start" else (pages - 1) * page - size - slack * source.itemsize
    copy = whole[start : start + size].view(source.dtype).reshape(source.shape)
    copy[...] = source
    for guard in (0, (pages - 1) * page):
        if _libc.mprotect(whole.ctypes.data + guard, page, PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    return copy  # it keeps the mapping alive


def fatal_signal(call: Callable[[], object]) -> int:
    """The signal that kills a forked child when it makes `call`; 0 when it survives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a child that only computes cannot deadlock
        child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()
        try:
            call()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
