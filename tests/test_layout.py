"""Images from one memory order to the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from exact import assert_same

from pyq.backends import current_backend
from pyq.layout import borrow_nhwc, to_nchw, to_nhwc

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32", "int32", "float16", "float64", "complex64", "bool"])
@pytest.mark.parametrize("shape", [(2, 3, 20, 30), (1, 16, 7), (2, 5, 3, 4, 6), (1, 1, 9, 9), (3, 8, 1, 1), (0, 3, 4)])
def test_both_ways(shape: tuple[int, ...], dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    last = to_nhwc(x)
    assert last.flags.c_contiguous
    assert_same(last, np.moveaxis(x, 1, -1).copy())
    first = to_nchw(last)
    assert first.flags.c_contiguous
    assert_same(first, x)


def test_borrowed_memory_is_used_again() -> None:
    x = np.random.default_rng(2).integers(0, 256, (2, 5, 6, 7), np.uint8)
    borrowed = borrow_nhwc(x)
    assert_same(borrowed, to_nhwc(x))
    again = borrow_nhwc(x[:1].view(np.int8))
    assert np.shares_memory(again, borrowed)
    assert_same(again, to_nhwc(x[:1].view(np.int8)))
    assert np.shares_memory(borrow_nhwc(np.moveaxis(x, -1, 1)), x)
    with ThreadPoolExecutor(1) as other:
        assert not np.shares_memory(other.submit(borrow_nhwc, x).result(), borrowed)


def test_what_lies_so_already_is_not_copied() -> None:
    x = np.zeros((2, 3, 4, 5), np.uint8)
    assert np.shares_memory(to_nchw(np.moveaxis(x, 1, -1)), x)
    assert np.shares_memory(to_nhwc(np.moveaxis(x, -1, 1)), x)


def test_read_only_arrays_go_through_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a QTensor are read-only."""
    x = np.arange(3 * 40 * 40).astype(np.uint8).reshape(1, 3, 40, 40)
    x.flags.writeable = False
    backend, calls = current_backend(), []
    transpose = backend.transpose
    monkeypatch.setattr(backend, "transpose", lambda *arrays: calls.append(1) or transpose(*arrays))
    assert_same(to_nhwc(x), np.moveaxis(x, 1, -1).copy())
    assert calls == [1]


def test_gaps_and_byte_orders() -> None:
    x = np.random.default_rng(1).normal(0, 1, (2, 6, 8, 10)).astype(np.float32)
    for view in (x[:, ::2], x[..., 1:], x[::-1], x.astype(">f4")):
        assert_same(to_nhwc(view), np.moveaxis(view, 1, -1).copy())
    flat = np.zeros(x.nbytes + 1, np.uint8)
    unaligned = flat[1:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    assert_same(to_nhwc(unaligned), to_nhwc(x))


def test_fewer_dimensions() -> None:
    for move in (to_nhwc, to_nchw):
        with pytest.raises(ValueError, match=r"x: expected at least 3 dimensions.*got \(2, 3\)"):
            move(np.zeros((2, 3)))
