"""Every Numba microkernel by itself, against exact integers, and the epilogue against the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyq.kernels import registry
from pyq.kernels.backend import NumbaBackend
from pyq.kernels.host import AVX2, ISA_NAMES, available_isas
from pyq.kernels.tile import tiles

from pyq import reference
from pyq.backends import Epilogue
from pyq.config import Kernel, kernels_available
from pyq.panels import LAYOUT_NAMES, NR, STEP_BYTES

KERNELS = [Kernel(**record) for record in registry.kernels() if record["runnable"]]
NO_BYTES, NO_WORDS = np.empty(0, np.uint8), np.empty(0, np.int16)
CORNERS = [(a, w) for a in (0, 255) for w in (-255, 255)]


@pytest.fixture(params=KERNELS, ids=[k.name for k in KERNELS], scope="module")
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return request.param


def packed(layout: str, w: np.ndarray) -> np.ndarray:
    """A panel of weights [steps, 4, NR] ([steps, 1, NR] for taps16), as the bytes that pyq/panels.py describes."""
    steps = len(w)
    if layout == "quads8":
        panel = w.astype(np.int8).transpose(0, 2, 1)
    elif layout == "pairs16":
        panel = w.astype(np.int16).reshape(steps, 2, 2, NR).transpose(0, 1, 3, 2)
    else:
        panel = w.astype(np.int16).reshape(steps // 2, 2, NR).transpose(0, 2, 1)
    flat = np.ascontiguousarray(panel).reshape(-1).view(np.uint8)
    assert len(flat) == steps * STEP_BYTES[LAYOUT_NAMES.index(layout)]
    return flat


def run(kernel: Kernel, data: np.ndarray, rows: np.ndarray, offsets: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The tile of one microkernel, after checking that it writes its own rows only."""
    acc = np.full((len(rows) + 1, NR), 12345, np.int32)
    words = kernel.layout == "pairs16"
    tiles(
        ISA_NAMES.index(kernel.isa),
        LAYOUT_NAMES.index(kernel.layout),
        NO_BYTES if words else data,
        data.astype(np.int16) if words else NO_WORDS,
        rows,
        offsets,
        packed(kernel.layout, w),
        acc,
    )
    assert (acc[-1] == 12345).all()
    return acc[:-1]


def exact(kernel: Kernel, data: np.ndarray, rows: np.ndarray, offsets: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The same tile in int64, reduced modulo 2**32."""
    width = NR if kernel.layout == "taps16" else 4
    read = data[rows[:, None, None] + offsets[:, None] + np.arange(width)].astype(np.int64)  # [rows, steps, width]
    if kernel.layout == "taps16":
        return np.einsum("rsc,sc->rc", read, w[:, 0]).astype(np.int32)
    return np.einsum("rsk,skc->rc", read, w).astype(np.int32)


def weights(kernel: Kernel, rng: np.random.Generator, steps: int) -> np.ndarray:
    """Random weights of the full range that the layout may hold: for quads8, within what the pack certifies."""
    if kernel.layout == "taps16":
        return rng.integers(-255, 256, (steps, 1, NR))
    if kernel.layout == "pairs16":
        return rng.integers(-255, 256, (steps, 4, NR))
    # Two bytes of two steps meet in a 16-bit sum: 255 * (128 - 1) <= 32767 for each sign, shared by the lane's four.
    w = np.zeros((steps, 4, NR), np.int64)
    for lane in (slice(0, 2), slice(2, 4)):
        for sign, bound in ((1, 127), (-1, 128)):
            step = rng.integers(0, 2, (steps // 2, NR))
            byte = rng.integers(lane.start, lane.stop, (steps // 2, NR))
            pairs, columns = np.ogrid[: steps // 2, :NR]
            w[2 * pairs + step, byte, columns] = sign * rng.integers(0, bound + 1, step.shape)
    return w


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 2**32 - 1), st.booleans())
def test_random_positions(kernel: Kernel, turns: int, seed: int, overlapping: bool) -> None:
    rng = np.random.default_rng(seed)
    steps = 2 * turns if kernel.layout != "pairs16" else turns
    data = rng.integers(0, 256, 600).astype(np.uint8)
    rows = rng.integers(0, 3 if overlapping else 300, kernel.mr)
    offsets = rng.integers(0, 600 - 300 - NR, steps).astype(np.int32)
    case = data, rows, offsets, weights(kernel, rng, steps)
    np.testing.assert_array_equal(run(kernel, *case), exact(kernel, *case))


@pytest.mark.parametrize("fill", ["all", "alternating", "one column", "one byte"])
@pytest.mark.parametrize(("activation", "weight"), CORNERS)
def test_corners(kernel: Kernel, activation: int, weight: int, fill: str) -> None:
    width = 1 if kernel.layout == "taps16" else 4
    w = np.full((20, width, NR), weight)
    if kernel.layout == "quads8":  # what 255 and 16 bits allow: the four weights of a lane add up to -128 or 127
        w = np.full((20, 4, NR), 32 if weight > 0 else -32)
        w[::2, ::2] -= weight > 0
    if fill == "alternating":
        w[:, :, ::2] *= -1
    elif fill == "one column":
        w[:, :, : NR - 1] = 0
    elif fill == "one byte":
        w[:, 1:] = 0
    case = np.full(200, activation, np.uint8), np.arange(kernel.mr), np.arange(0, 80, 4, dtype=np.int32), w
    np.testing.assert_array_equal(run(kernel, *case), exact(kernel, *case))


def test_sums_wrap_modulo_two_to_the_32(kernel: Kernel) -> None:
    width, size = (1, 255) if kernel.layout == "taps16" else (4, 31 if kernel.layout == "quads8" else 255)
    steps = 2**32 // (255 * size * width) // 2 * 2 + 2
    case = (
        np.full(64, 255, np.uint8),
        np.zeros(kernel.mr, np.int64),
        np.zeros(steps, np.int32),
        np.broadcast_to(np.int64(size), (steps, width, NR)),
    )
    assert steps * width * 255 * size >= 2**32
    np.testing.assert_array_equal(run(kernel, *case), exact(kernel, *case))


@pytest.mark.skipif(AVX2 not in available_isas(), reason="the 16-bit sums are those of vpmaddubsw")
def test_the_certificate_is_needed() -> None:
    """One more than the bound does overflow: what holds in `test_corners` holds because of it."""
    kernel = next(k for k in KERNELS if k.layout == "quads8" and k.isa == "avx2")
    w = np.zeros((2, 4, NR), np.int64)
    w[0, 0], w[1, 0] = 65, 64  # 255 * 129 > 32767 >= 255 * 128
    case = np.full(64, 255, np.uint8), np.zeros(kernel.mr, np.int64), np.zeros(2, np.int32), w
    assert (run(kernel, *case) != exact(kernel, *case)).all()


def test_registry_lists_them() -> None:
    listed = [k for k in kernels_available() if k.backend == "numba"]
    assert [k for k in listed if k.runnable] == KERNELS
    assert len({k.name for k in listed}) == len(listed)


def test_a_target_without_avx2_gets_plain_loops() -> None:
    """An intrinsic that the target lacks would abort the process."""
    code = "from pyq.kernels import host, tile; print(host.available_isas(), host.default_isa())"
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(0,) 0\n"), done.stderr


# --- the epilogue -------------------------------------------------------------------------------------------


def assert_same_epilogue(acc: np.ndarray, epilogue: Epilogue) -> None:
    expected, y = reference.requantize(acc, epilogue), NumbaBackend().requantize(acc, epilogue)
    assert (y.dtype, y.shape, y.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("multiplier", [0.5, 0.25, 1.5, 1e-3])
def test_ties_and_clamps(dtype: str, multiplier: float) -> None:
    acc = np.arange(-1300, 1300, dtype=np.int32)[:, None]
    scale = np.array([multiplier], np.float32)
    for zero_point in (np.iinfo(dtype).min, 0, 5, np.iinfo(dtype).max):
        for low, high in ((None, None), (0, 100), (zero_point, 127)):
            assert_same_epilogue(acc, Epilogue(np.dtype(dtype), None, scale, None, zero_point, low, high))


def test_int32_to_float32_rounds_to_even() -> None:
    near = np.arange(-40, 40)
    acc = np.concatenate([sign * 2**power + near for power in (24, 25, 30) for sign in (1, -1)]).astype(np.int32)
    for dtype in ("uint8", "int8", "float32"):
        scale = np.array([2.0**-18, 1e-7], np.float32)
        assert_same_epilogue(np.stack([acc, acc], 1), Epilogue(np.dtype(dtype), None, scale))


def test_multiply_and_add_are_not_contracted() -> None:
    rng = np.random.default_rng(0)
    acc = rng.integers(-(2**24), 2**24, (400, 37)).astype(np.int32)
    scale = rng.uniform(0.1, 1, 37).astype(np.float32)
    offset = (-acc[0].astype(np.float64) * scale).astype(np.float32)  # cancels in row 0: a fused product shows there
    fused = (acc[0].astype(np.float64) * scale + offset).astype(np.float32)
    epilogue = Epilogue(np.dtype(np.float32), None, scale, offset)
    assert not np.array_equal(fused, reference.requantize(acc, epilogue)[0])
    assert_same_epilogue(acc, epilogue)


@pytest.mark.parametrize("dtype", ["int32", "float32", "uint8", "int8"])
@pytest.mark.parametrize("columns", [1, 7, 16, 17, 100])
@pytest.mark.parametrize("leading", [(), (3,), (2, 5), (0,)])
def test_all_parts_together(dtype: str, columns: int, leading: tuple[int, ...]) -> None:
    rng = np.random.default_rng(columns)
    acc = rng.integers(-(2**31), 2**31, (*leading, columns)).astype(np.int32)
    parts: dict[str, Any] = {"bias": rng.integers(-(2**31), 2**31, columns).astype(np.int32)}
    if dtype != "int32":
        parts["multiplier"] = rng.uniform(1e-8, 1e-7, columns).astype(np.float32)
    if dtype == "float32":
        parts |= {"offset": rng.standard_normal(columns).astype(np.float32), "low": 0.0, "high": 6.0}
    if dtype in ("uint8", "int8"):
        parts |= {"zero_point": 3, "table": rng.permutation(256).astype(np.uint8)}
    with np.errstate(over="ignore"):
        assert_same_epilogue(acc, Epilogue(np.dtype(dtype), **parts))
