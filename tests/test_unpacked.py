"""Products of two matrices that are not packed beforehand: batches, types, threads, epilogues, the memory they use."""

from __future__ import annotations

import exact
import numpy as np
import pytest
from exact import assert_same, full_range

import pyq
from pyq.products import ACCUMULATE, make_epilogue
from pyq.unpacked import multiply

pytestmark = pytest.mark.usefixtures("each_isa")

BATCHES = [((), ()), ((12,), (12,)), ((3, 1), (4,)), ((2, 3), (3,)), ((5,), ()), ((1,), (7,)), ((2, 1, 3), (4, 1))]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batches", BATCHES)
def test_batches_broadcast(backend: str, batches: tuple[tuple[int, ...], tuple[int, ...]], threads: int) -> None:
    rng = np.random.default_rng(1)
    before = pyq.get_num_threads()
    pyq.set_num_threads(threads)
    try:
        for m, k, n in ((5, 33, 17), (1, 4, 16), (64, 64, 40)):
            for a_type, b_type in (("uint8", "int8"), ("int8", "uint8"), ("uint8", "uint8")):
                a, b = full_range(rng, (*batches[0], m, k), a_type), full_range(rng, (*batches[1], k, n), b_type)
                middle = np.array(0 if b_type == "int8" else 128)
                for zeros in (full_range(rng, (*batches[1], 1, n), b_type), middle):
                    acc = multiply(a, 3, b, zeros, ACCUMULATE)
                    wanted = exact.matmul(a, b, 3, exact.wide(zeros))
                    assert_same(acc, wanted, f"{backend} {m}x{k}x{n} {a_type} {b_type}")
    finally:
        pyq.set_num_threads(before)


@pytest.mark.parametrize("out", [None, pyq.QParams(0.7, 120, "uint8"), pyq.QParams(0.9, -7, "int8")])
def test_an_epilogue_gives_the_bits_of_packed_weights(backend: str, out: pyq.QParams | None) -> None:
    rng = np.random.default_rng(2)
    bias = rng.normal(0, 5, 35)
    w = pyq.quantize(rng.laplace(size=(60, 35)), "int8", axis=1)
    x = pyq.QTensor(full_range(rng, (4, 9, 60), "uint8"), 0.02, 131)
    epilogue = make_epilogue(x.scale, w.scale, 35, bias, out, "relu")
    y = multiply(x.data, 131, w.data, w.zero_point, epilogue)
    packed = pyq.matmul(x, pyq.pack(w), bias, out, "relu")
    assert len(np.unique(y)) > 20
    assert_same(y, packed if out is None else packed.data, backend)


def test_operands_need_not_be_contiguous(backend: str) -> None:
    rng = np.random.default_rng(4)
    a, b = full_range(rng, (6, 10, 8), "uint8"), full_range(rng, (6, 3, 10), "int8")
    acc = multiply(a.transpose(0, 2, 1), 1, b.transpose(0, 2, 1), np.array(-1), ACCUMULATE)
    assert_same(acc, exact.matmul(a.transpose(0, 2, 1), b.transpose(0, 2, 1), 1, -1), backend)


def test_no_rows_and_no_columns(backend: str) -> None:
    b = np.ones((4, 3), np.int8)
    assert multiply(np.empty((0, 4), np.uint8), 0, b, np.array(0), ACCUMULATE).shape == (0, 3)
    for empty in ((4, 0), (0, 3)):
        with pytest.raises(ValueError, match="b: expected matrices that are not empty"):
            multiply(np.ones((2, empty[0]), np.uint8), 0, np.ones(empty, np.int8), np.array(0), ACCUMULATE)
