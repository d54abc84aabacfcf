"""Depthwise convolutions: the kernels for 3x3, 5x5 and 7x7 called directly, and whole layers beside the reference.

The contract of the kernels is that of csrc/pyq.h; what they must compute is made here from the taps.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from exact import assert_same, conv, corners, full_range
from guarded import fatal_signal, guarded
from hypothesis import given, settings
from hypothesis import strategies as st

import pyq
from pyq import windows
from pyq._core import ffi, lib
from pyq.backends import ConvGeometry, Epilogue, backend
from pyq.c_backend import CBackend, Struct
from pyq.config import Kernel
from pyq.kernels import depthwise, registry
from pyq.kernels.backend import NumbaBackend
from pyq.kernels.host import available_isas
from pyq.lowering import lower_epilogue
from pyq.packing import PackedWeight, pack
from pyq.tensor import QTensor

INT32 = Epilogue(np.dtype(np.int32))

C_ROWS = {ffi.string(lib.pyq_kernels[i].name).decode(): lib.pyq_kernels[i] for i in range(lib.pyq_kernel_count())}
NUMBA_ROWS = {f"numba_{registry.window_name(row)}": number for number, row in enumerate(registry.WINDOWS)}
KERNELS = [
    k
    for k in pyq.kernels_available()
    if k.runnable and (k.name in NUMBA_ROWS or (k.name in C_ROWS and C_ROWS[k.name].window != ffi.NULL))
]
every_backend = pytest.mark.parametrize("name", ["c", "numba"])
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
seeds = st.integers(0, 2**32 - 1)


def packed(rng: np.random.Generator, channels: int, side: int, extreme: bool, quads: bool = False) -> PackedWeight:
    """Weights that reach from -255 to 255 when their zero points are subtracted; bytes, for kernels that take quads."""
    data = (corners if extreme else full_range)(rng, (channels, 1, side, side), "int8")
    zero_points = (corners if extreme else full_range)(rng, (channels,), "int8") * (not quads)
    return pack(QTensor(data, np.ones(channels, np.float32), zero_points.astype(np.int8), 0), group=channels)


def packed_for(kernel: Kernel, rng: np.random.Generator, channels: int, extreme: bool) -> PackedWeight:
    return packed(rng, channels, row(kernel).kernel, extreme, bool(row(kernel).quads))


def run(
    kernel: Kernel,
    x: np.ndarray,
    w: PackedWeight,
    e: Epilogue,
    edge: str | None = None,
    short: str | None = None,
    call: Callable[..., None] | None = None,
) -> np.ndarray:
    """The output pixels, whole tiles [_, C], of the input pixels x [side, width, C].

    edge: put each buffer at a guard page, every input pixel at one of its own. short: the buffer that lacks the last
    element that the kernel needs; not all use the second form of the taps of the last line. call: instead of `run_c`.
    """

    def put(name: str, values: np.ndarray) -> np.ndarray:
        if edge is None:
            return values
        return guarded(
            values.reshape(-1)[: -1 - unused(kernel) if name == "weights" else -1] if name == short else values, edge
        )

    side, width, channels = x.shape
    pixels = [[put("pixels", np.ascontiguousarray(x[r, i])) for i in range(width)] for r in range(side)]
    table = np.zeros(windows.PITCH * side, np.int64)
    for r, line in enumerate(pixels):
        table[r * windows.PITCH :][:width] = [pixel.ctypes.data for pixel in line]
    weights = put("weights", windows.window_quads(w) if row(kernel).quads else windows.window_weights(w))
    out = put("out", np.zeros((outputs(kernel, width), channels), e.dtype))
    call = call or (run_c if kernel.backend == "c" else run_numba)
    call(kernel, table, weights, channels, e, out)
    return out


def unused(kernel: Kernel) -> int:
    """Weights at the end that this kernel does not read: of forms of the last line for other output pixels."""
    side = row(kernel).kernel
    if not row(kernel).quads:
        return (side + 1) // 2 * 2 * windows.NR
    shifts = {p * row(kernel).stride % 4 for p in range(kernel.mr)}
    return (3 - max(shifts)) * 8 * windows.NR if side == 5 else 0


def step(kernel: Kernel) -> int:
    """Input pixels from one output pixel to the next; 1 where the kernel takes any."""
    return max(1, row(kernel).stride)


def outputs(kernel: Kernel, width: int) -> int:
    """Output pixels above `width` input pixels."""
    return (width - row(kernel).kernel) // step(kernel) + 1


def taps_of(kernel: Kernel, weights: np.ndarray, channels: int, e: Epilogue) -> Struct:
    """A `pyq_taps`, beside the epilogue that it points to."""
    finish = CBackend().prepare(e, lower_epilogue(e, channels), channels)
    lowest = int(finish.c.low) + finish.c.zero_point if e.dtype.itemsize == 1 else 0
    pairs, quads = (0, weights.ctypes.data) if row(kernel).quads else (weights.ctypes.data, 0)
    sizes = channels, lowest, step(kernel), channels
    taps = ffi.new("pyq_taps *", (ffi.cast("int16_t *", pairs), finish.c, *sizes, ffi.cast("int8_t *", quads)))
    return Struct(taps, (finish,))


def run_c(kernel: Kernel, table: np.ndarray, weights: np.ndarray, channels: int, e: Epilogue, out: np.ndarray) -> None:
    taps, _owner = taps_of(kernel, weights, channels, e)
    pixels, target = ffi.from_buffer("uint8_t *[]", table), ffi.cast("void *", out.ctypes.data)
    C_ROWS[kernel.name].window(taps, pixels, len(out) // kernel.mr, target)


def run_numba(
    kernel: Kernel, table: np.ndarray, weights: np.ndarray, channels: int, e: Epilogue, out: np.ndarray
) -> None:
    finish = NumbaBackend().prepare(e, lower_epilogue(e, channels), channels)
    flat = np.ndarray(weights.nbytes // 2, np.int16, weights)  # of bytes, an odd number of which may be in reach
    target = out.reshape(-1).view(np.uint8)
    depthwise.window(NUMBA_ROWS[kernel.name], table, flat, channels, channels, finish, target)


def row(kernel: Kernel) -> Any:
    """Of the C kernels: those of Numba have the same."""
    return C_ROWS[kernel.name.removeprefix("numba_")]


def expected(kernel: Kernel, x: np.ndarray, w: PackedWeight) -> np.ndarray:
    """int32 [_, C]."""
    image = np.moveaxis(x, -1, 0)[None]
    return conv(image, w.unpack(), 0, w.zero_point, (1, step(kernel)), group=x.shape[-1])[0, :, 0].T


def random_input(kernel: Kernel, rng: np.random.Generator, channels: int, extreme: bool) -> np.ndarray:
    """The input pixels under two tiles of a C kernel, or under the one that Numba's compute at once."""
    side, pixels = row(kernel).kernel, kernel.mr * (2 if kernel.backend == "c" else 1)
    shape = side, (pixels - 1) * step(kernel) + side, channels
    return (corners if extreme else full_range)(rng, shape, "uint8")


KINDS = ["int32", "float32", "uint8", "int8", "whole uint8", "whole int8", "table"]
"""Of epilogues: integers within bounds of their own, or those of their type."""


def epilogue(rng: np.random.Generator, kind: str, channels: int) -> Epilogue:
    """Of each kind that there is, with all that it can have."""
    bias = rng.integers(-(2**20), 2**20, channels).astype(np.int32)
    if kind == "int32":
        return Epilogue(np.dtype(kind), bias)
    multiplier = np.exp2(rng.uniform(-16, -8, channels)).astype(np.float32)
    if kind == "float32":
        offset = rng.normal(0, 100, channels).astype(np.float32)
        return Epilogue(np.dtype(kind), bias, multiplier, offset, low=-300.5, high=400.25)
    whole, kind = kind.startswith("whole "), kind.removeprefix("whole ")
    limits = np.iinfo("uint8" if kind == "table" else kind)
    low, zero_point, high = sorted(rng.integers(limits.min, limits.max + 1, 3).tolist())
    if whole:
        low, high = limits.min, limits.max
    table = full_range(rng, (256,), "uint8") if kind == "table" else None
    return Epilogue(limits.dtype, bias, multiplier, zero_point=zero_point, low=low, high=high, table=table)


# --- the kernels --------------------------------------------------------------------------------------------


def test_every_instruction_set_has_a_kernel_for_every_pixel() -> None:
    for kind in {(k.backend, k.isa) for k in KERNELS}:
        single = {(row(k).kernel, row(k).stride) for k in KERNELS if (k.backend, k.isa, k.mr) == (*kind, 1)}
        assert single == {(side, 0) for side in windows.KERNELS}  # a last pixel always finds a kernel
    assert {k.operation for k in KERNELS} == {"depthwise"}


def test_numba_has_the_rows_of_c() -> None:
    rows = {b: {k.name for k in KERNELS if k.backend == b} for b in ("c", "numba")}
    assert {f"numba_{name}" for name in rows["c"]} == rows["numba"]
    assert windows.PITCH == lib.PYQ_PITCH
    assert registry.MAX_WINDOW == lib.PYQ_WINDOW


@every_kernel
@given(seeds, st.integers(16, 70), st.booleans())
def test_sums_are_exact(kernel: Kernel, seed: int, channels: int, extreme: bool) -> None:
    rng = np.random.default_rng(seed)
    x, w = random_input(kernel, rng, channels, extreme), packed_for(kernel, rng, channels, extreme)
    assert_same(run(kernel, x, w, INT32), expected(kernel, x, w), kernel.name)


@every_kernel
@pytest.mark.parametrize("activation", [0, 255])
@pytest.mark.parametrize(("weight", "zero_point"), [(127, -128), (-128, 127)])
def test_the_largest_sums(kernel: Kernel, activation: int, weight: int, zero_point: int) -> None:
    side, zero_point = row(kernel).kernel, 0 if row(kernel).quads else zero_point
    data = np.full((20, 1, side, side), weight, np.int8)
    w = pack(QTensor(data, np.float32(1), zero_point), group=20)
    x = np.full((side, (kernel.mr - 1) * row(kernel).stride + side, 20), activation, np.uint8)
    sums = np.full((kernel.mr, 20), side**2 * activation * (weight - zero_point), np.int32)
    assert_same(run(kernel, x, w, INT32), sums, kernel.name)


@every_kernel
@given(seeds, st.sampled_from([kind for kind in KINDS if kind != "table"]), st.integers(16, 50))
def test_results_are_those_of_the_reference(kernel: Kernel, seed: int, kind: str, channels: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = random_input(kernel, rng, channels, False), packed_for(kernel, rng, channels, False)
    e = epilogue(rng, kind, channels)
    result = run(kernel, x, w, e, "end" if seed % 2 else "start")
    assert_same(result, backend("reference").requantize(expected(kernel, x, w), e), kernel.name)


@every_kernel
@pytest.mark.parametrize("edge", ["end", "start"])
@pytest.mark.parametrize("channels", [16, 17, 31, 32, 40])
def test_stays_within_its_buffers(kernel: Kernel, edge: str, channels: int, rng: np.random.Generator) -> None:
    x, w = random_input(kernel, rng, channels, False), packed_for(kernel, rng, channels, False)
    assert_same(run(kernel, x, w, INT32, edge), expected(kernel, x, w), kernel.name)


@pytest.mark.parametrize("short", ["pixels", "weights", "out"])
@every_kernel
def test_the_guard_pages_would_tell(kernel: Kernel, short: str, rng: np.random.Generator) -> None:
    x, w = random_input(kernel, rng, 17, False), packed_for(kernel, rng, 17, False)
    assert fatal_signal(lambda: run(kernel, x, w, INT32, "end", short)) == signal.SIGSEGV


# --- the weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", windows.KERNELS)
def test_each_tap_is_in_one_pair_of_each_form(side: int) -> None:
    pairs = windows.tap_pairs(side)
    last = (side + 1) // 2
    for form in (pairs[:-last], np.delete(pairs, np.s_[-2 * last : -last], axis=0)):
        assert sorted(form[form < side**2]) == list(range(side**2))


@pytest.mark.parametrize("side", windows.KERNELS)
def test_each_tap_is_in_one_quad_of_each_form(side: int) -> None:
    quads = windows.tap_quads(side)
    forms = np.split(quads[-8:], 4) if side == 5 else [quads[:0]]
    for form in forms:
        taps = np.concatenate([quads[:-8] if side == 5 else quads, form]).reshape(-1)
        assert sorted(taps[taps < side**2]) == list(range(side**2))


def test_weights_that_are_not_bytes_have_no_quads(rng: np.random.Generator) -> None:
    data = np.zeros((16, 1, 3, 3), np.int8)
    data[7, 0, 1, 1] = 127
    for zero_point, fits in ((0, True), (-1, False)):
        w = pack(QTensor(data, np.float32(1), zero_point), group=16)
        assert (windows.window_quads(w) is not None) == fits


@pytest.mark.parametrize("channels", [16, 17, 31, 48])
def test_the_last_panel_ends_with_the_last_channel(channels: int, rng: np.random.Generator) -> None:
    w = packed(rng, channels, 3, False)
    taps = (w.unpack().astype(np.int16) - w.zero_point.reshape(-1, 1, 1, 1)).reshape(channels, 9)
    arranged = windows.window_weights(w)
    assert arranged.ctypes.data % 64 == 0
    assert_same(arranged[-1, :3, :, 0].astype(np.int64), taps[-16:, :3].T.astype(np.int64))
    assert_same(arranged[0, :3, :, 1].astype(np.int64), taps[:16, 3:6].T.astype(np.int64))


# --- layers -------------------------------------------------------------------------------------------------


def layer(draw: Any, rng: np.random.Generator) -> tuple[np.ndarray, int, PackedWeight, ConvGeometry] | None:
    """An image, its zero point, weights and geometry, mostly such that the kernels above are used."""
    side, channels = draw(st.sampled_from(windows.KERNELS)), draw(st.integers(2, 50))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pads, size = draw(st.tuples(*[st.integers(0, 4)] * 4)), draw(st.tuples(st.integers(1, 9), st.integers(1, 80)))
    dilations = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2), (3, 3), (1, 7)]))
    if any(size[i] + pads[i] + pads[i + 2] < (side - 1) * dilations[i] + 1 for i in (0, 1)):
        return None
    amax, dtype = draw(st.sampled_from([255, 127])), draw(st.sampled_from(["uint8", "int8"]))
    low = 0 if dtype == "uint8" else -(amax + 1) // 2
    x = rng.integers(low, low + amax + 1, (draw(st.integers(1, 2)), *size, channels)).astype(dtype)
    data, zero_points = full_range(rng, (channels, 1, side, side), "int8"), full_range(rng, (channels,), "int8")
    zero_points *= draw(st.booleans())  # without them weights are bytes
    w = pack(QTensor(data, np.ones(channels, np.float32), zero_points, 0), amax=amax, group=channels)
    return x, int(rng.integers(low, low + amax + 1)), w, ConvGeometry(strides, pads, dilations)


def conv_by(version: tuple[str, int], *case: Any) -> np.ndarray:
    """A layer by one of VERSIONS: a backend, capped at an instruction set."""
    name, isa = version
    if name == "numba":
        numba = NumbaBackend()
        numba.isa = isa
        return numba.conv(*case)
    try:
        lib.pyq_set_isa(isa)
        return backend("c").conv(*case)
    finally:
        lib.pyq_set_isa(lib.pyq_isa_detected())


VERSIONS = [("c", isa) for isa in range(lib.pyq_isa_detected() + 1)] + [("numba", isa) for isa in available_isas()]


@settings(max_examples=150)
@given(st.data(), seeds, st.sampled_from(KINDS), st.sampled_from(VERSIONS))
def test_a_layer_is_that_of_the_reference(data: st.DataObject, seed: int, kind: str, version: tuple[str, int]) -> None:
    rng = np.random.default_rng(seed)
    drawn = layer(data.draw, rng)
    if drawn is None:
        return
    x, zero_point, w, geometry = drawn
    e = epilogue(rng, kind, w.columns)
    result = conv_by(version, x, zero_point, w, geometry, e)
    assert_same(result, backend("reference").conv(x, zero_point, w, geometry, e), str(version))


@pytest.mark.parametrize("side", windows.KERNELS)
@pytest.mark.parametrize("stride", windows.STRIDES)
@pytest.mark.parametrize("edge", ["end", "start"])
@every_backend
def test_the_arrays_of_the_caller_have_no_slack(
    name: str, side: int, stride: int, edge: str, rng: np.random.Generator
) -> None:
    """Widths with whole tiles and without, shorter and longer than a run of tiles."""
    for width, channels, apart in ((1, 16, 1), (7, 17, 1), (33 * stride, 24, 1), (66, 16, 1), (37, 18, 3), (2, 16, 5)):
        dilation = apart if stride == 1 else 1
        w, x = packed(rng, channels, side, False, width % 2 == 0), full_range(rng, (1, 6, width, channels), "uint8")
        pad = side // 2
        geometry = ConvGeometry((1, stride), (pad, pad * dilation) * 2, (1, dilation))
        size = geometry.output_size(x.shape[1:3], (side, side))
        assert windows.fits(w, geometry)
        e = epilogue(rng, "uint8", channels)
        out = guarded(np.zeros((1, *size, channels), np.uint8), edge)
        backend(name).conv(guarded(x, edge), 77, w, geometry, e, out)
        assert_same(out, backend("reference").conv(x, 77, w, geometry, e))


@every_backend
@pytest.mark.parametrize("multiplier", [np.nextafter(np.float32(1), np.float32(0)), 1.0, 1.5, -1.0, -1.5])
@pytest.mark.parametrize("bias", [-(2**31), 2**31 - 1])
def test_sums_too_large_for_the_conversion(name: str, multiplier: float, bias: int, rng: np.random.Generator) -> None:
    """What is beyond int32 when it is multiplied saturates in its own direction."""
    w, x = packed(rng, 20, 3, False), np.zeros((1, 6, 7, 20), np.uint8)
    factors = np.full(20, 0.5, np.float32)
    factors[7] = multiplier
    e = Epilogue(np.dtype("uint8"), np.full(20, bias, np.int32), factors, zero_point=100, low=0, high=255)
    case = x, 0, w, ConvGeometry(), e
    y = backend(name).conv(*case)
    assert_same(y, backend("reference").conv(*case))
    assert y[0, 0, 0, 7] == (255 if (bias > 0) == (multiplier > 0) else 0)


def test_threads_share_the_lines(rng: np.random.Generator) -> None:
    w, x = packed(rng, 96, 3, False), full_range(rng, (2, 60, 112, 96), "uint8")
    before = pyq.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            pyq.set_num_threads(threads)
            results.append(backend("c").conv(x, 3, w, ConvGeometry((1, 1), (1, 1, 1, 1)), INT32))
    finally:
        pyq.set_num_threads(before)
    assert_same(results[0], backend("reference").conv(x, 3, w, ConvGeometry((1, 1), (1, 1, 1, 1)), INT32))
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


@every_backend
def test_no_images_give_no_output(name: str, rng: np.random.Generator) -> None:
    x, w = np.zeros((0, 6, 7, 16), np.uint8), packed(rng, 16, 3, False)
    assert backend(name).conv(x, 0, w, ConvGeometry(), INT32).shape == (0, 4, 5, 16)


@every_backend
def test_an_activation_above_what_was_packed_for_is_refused(name: str, rng: np.random.Generator) -> None:
    w = pack(QTensor(full_range(rng, (16, 1, 3, 3), "int8"), 1.0), amax=127, group=16)
    x = np.zeros((1, 5, 8, 16), np.uint8)
    x[0, 4, 7, 15] = 128
    with pytest.raises(ValueError, match=r"x: got values from 0 to 128"):
        backend(name).conv(x, 0, w, ConvGeometry(), INT32)
