"""Every row of the kernel registry, called directly on data that stays in the L1 cache: what each could reach at most.

The rate is that of a long call less a short one, so that the cost of a call from Python does not count, and of the
fastest tenth of many repetitions, since it is meant as a ceiling.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import pyq
from pyq import windows
from pyq.backends import ISA_NAMES, Epilogue, backend
from pyq.benchmark import WrongResult
from pyq.config import Kernel
from pyq.lowering import SLACK, lower_epilogue
from pyq.panels import LAYOUT_NAMES, NR, WORDS

STEPS = {  # of the short and of the long call
    **dict.fromkeys(("pairs16", "pairs8w", "quads32"), (16, 112)),
    **dict.fromkeys(("quads8", "quads8p2", "quads8p4"), (16, 208)),
    "taps16": (16, 256),
}
ROWS = (16, 256)  # the same for epilogues, in rows of NR sums
CHANNELS = (32, 192)  # and for the depthwise kernels of whole windows
REPETITIONS = 100


@dataclass(frozen=True)
class Rate:
    """A kernel, and the billions of multiply-accumulates (an epilogue's: of outputs) that it does in a second."""

    kernel: Kernel
    giga: float


def rates(seed: int) -> list[Rate]:
    """Of every kernel that this CPU can run. WrongResult when one does not compute the exact sums."""
    return [Rate(kernel, rate(kernel, seed)) for kernel in pyq.kernels_available() if kernel.runnable]


def works(kernel: Kernel, seed: int) -> list[Work]:
    """A short and a long call of a kernel; both are right, else WrongResult."""
    rng = np.random.default_rng(seed)
    made: list[Work]
    if kernel.layout:
        made = [Tile.random(kernel, steps, rng) for steps in STEPS[kernel.layout]]
    elif kernel.operation.startswith("gemm_"):
        made = [Pair(kernel, steps, rng) for steps in STEPS["quads32"]]
    elif kernel.operation == "depthwise":
        made = [Window(kernel, channels, rng) for channels in CHANNELS]
    else:
        made = [Finish(kernel, rows, rng) for rows in ROWS]
    for work in made:
        work.check(seed)
    return made


def rate(kernel: Kernel, seed: int) -> float:
    """Billions of multiply-accumulates, or outputs, a second."""
    short, long = works(kernel, seed)
    return (long.size - short.size) / difference(short.call, long.call) / 1e9


def difference(short: Callable[[], object], long: Callable[[], object]) -> float:
    """Seconds that a call of `long` takes more than one of `short`, measured in turn."""
    number = max(1, int(3e-4 / (timeit.timeit(long, number=20) / 20)))
    times = [[timeit.timeit(call, number=number) / number for call in (short, long)] for _ in range(REPETITIONS)]
    fast = np.percentile(times, 10, axis=0)  # the very fastest of both may have met different clocks
    return float(fast[1] - fast[0])


class Work(Protocol):
    """One call of a kernel."""

    size: int
    """Multiply-accumulates, or outputs of an epilogue."""

    @property
    def call(self) -> Callable[[], object]: ...

    def check(self, seed: int) -> None:
        """WrongResult when the call does not give what it should."""


class Tile:
    """One call of a microkernel: a tile of `kernel.mr` rows by the columns of one panel, or of two."""

    def __init__(self, kernel: Kernel, rows: NDArray[np.uint8], weights: NDArray[np.int16]) -> None:
        """rows [mr, steps, 4 (taps: NR)]; weights [steps, 4 (taps: 1), columns]."""
        self.kernel = kernel
        terms = "rsc,skc->rc" if kernel.layout == "taps16" else "rsk,skc->rc"
        self.expected = np.einsum(terms, rows.astype(np.int32), weights.astype(np.int32))[:, : kernel.nr]
        self.size = kernel.mr * weights.size * kernel.nr // weights.shape[2]
        self.tile = np.zeros((kernel.mr, weights.shape[2]), np.int32)
        element = np.int16 if LAYOUT_NAMES.index(kernel.layout) in WORDS else np.uint8
        base = np.concatenate([rows.reshape(-1), np.zeros(SLACK, np.uint8)]).astype(element)
        _, steps, depth = rows.shape
        starts, offsets = np.arange(kernel.mr) * (steps * depth), np.arange(steps, dtype=np.int32) * depth
        run = _c_tile if kernel.backend == "c" else _numba_tile
        self.call = run(kernel, base, starts, offsets, _panel(kernel.layout, weights), self.tile)

    @classmethod
    def random(cls, kernel: Kernel, steps: int, rng: np.random.Generator) -> Tile:
        """Full-range activations, and weights so small that the 16-bit sums of four quads cannot overflow."""
        read, used = (NR, 1) if kernel.layout == "taps16" else (4, 4)
        rows = rng.integers(0, 256, (kernel.mr, steps, read), np.uint8)
        return cls(kernel, rows, rng.integers(-16, 17, (steps, used, max(kernel.nr, NR)), np.int16))

    def check(self, seed: int) -> None:
        """WrongResult when the sums are not exact."""
        self.tile[:] = 0
        self.call()
        _compare(self.kernel, self.tile[:, : self.kernel.nr], self.expected, seed)


def _panel(layout: str, weights: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Weights [steps, 4 (taps: 1), columns] as csrc/pyq.h lays them out, panel by panel."""
    steps = len(weights)
    if weights.shape[2] > NR:
        return np.concatenate([_panel(layout, panel) for panel in np.split(weights, weights.shape[2] // NR, axis=2)])
    if layout == "taps16":
        panel: NDArray[np.int16] = weights.reshape(steps // 2, 2, NR).transpose(0, 2, 1)
    elif layout.startswith("pairs"):
        panel = weights.reshape(steps, 2, 2, NR).transpose(0, 1, 3, 2)
    else:
        panel = weights.transpose(0, 2, 1)
    element = np.int16 if layout in ("pairs16", "taps16") else np.int8
    return np.ascontiguousarray(panel, element).reshape(-1).view(np.uint8)


def _c_tile(
    kernel: Kernel,
    base: NDArray[Any],
    starts: NDArray[np.int64],
    offsets: NDArray[np.int32],
    weights: NDArray[np.uint8],
    tile: NDArray[np.int32],
) -> Callable[[], None]:
    from pyq._core import ffi, lib

    function, how = _c_row(kernel.name).gemm, lib.PYQ_STRIDE * tile.shape[1]
    first = int(base.ctypes.data)
    rows = ffi.new("uint8_t *[]", [ffi.cast("uint8_t *", first + int(start) * base.itemsize) for start in starts])
    target = ffi.from_buffer("int32_t[]", tile, require_writable=True)
    steps, panel = ffi.from_buffer("int32_t[]", offsets), ffi.from_buffer(weights)

    def call(owner: object = base) -> None:  # the addresses in `rows` do not keep `base` alive
        function(target, rows, steps, panel, len(offsets), how)

    return call


def _c_row(name: str) -> Any:
    from pyq._core import ffi, lib

    table = (lib.pyq_kernels[index] for index in range(lib.pyq_kernel_count()))
    return next(row for row in table if ffi.string(row.name).decode() == name)


def _numba_tile(
    kernel: Kernel,
    base: NDArray[Any],
    starts: NDArray[np.int64],
    offsets: NDArray[np.int32],
    weights: NDArray[np.uint8],
    tile: NDArray[np.int32],
) -> Callable[[], None]:
    from pyq.kernels.tile import tiles

    words = base if base.dtype == np.int16 else np.empty(0, np.int16)
    data = base if base.dtype == np.uint8 else np.empty(0, np.uint8)
    chosen = ISA_NAMES.index(kernel.isa), LAYOUT_NAMES.index(kernel.layout)
    return lambda: tiles(*chosen, kernel.nr, data, words, starts, offsets, weights, tile)


class Window:
    """One call of a depthwise kernel that takes a whole window: some neighbouring pixels, requantized to uint8."""

    def __init__(self, kernel: Kernel, channels: int, rng: np.random.Generator) -> None:
        row = _c_row(kernel.name.removeprefix("numba_"))
        self.kernel, side = kernel, row.kernel
        width = (kernel.mr - 1) * row.stride + side
        self.size = kernel.mr * channels * side**2
        x = rng.integers(0, 256, (side, width, channels), np.uint8)
        w = pyq.pack(pyq.quantize(rng.normal(size=(channels, 1, side, side)), "int8", axis=0), group=channels)
        epilogue = _random_epilogue(channels, rng)
        covered = np.lib.stride_tricks.sliding_window_view(x, (side, side), (0, 1))[0, :: max(1, row.stride)]
        sums = np.einsum("pcrk,crk->pc", covered.astype(np.int32), w.unpack()[:, 0].astype(np.int32))
        self.expected = backend("reference").requantize(sums, epilogue)
        self.out = np.empty((kernel.mr, channels), np.uint8)
        pixels = np.zeros(windows.PITCH * side, np.int64)
        for r, i in np.ndindex(side, width):
            pixels[r * windows.PITCH + i] = x[r, i].ctypes.data
        self.x = x  # its addresses do not keep it alive
        run = _c_window if kernel.backend == "c" else _numba_window
        weights = windows.window_quads(w) if row.quads else windows.window_weights(w)
        assert weights is not None  # they are bytes
        self.call = run(kernel, pixels, weights, epilogue, self.out)

    def check(self, seed: int) -> None:
        """WrongResult when an output differs from the reference's."""
        self.call()
        _compare(self.kernel, self.out, self.expected, seed)


def _c_window(
    kernel: Kernel, pixels: NDArray[np.int64], weights: NDArray[Any], epilogue: Epilogue, out: NDArray[np.uint8]
) -> Callable[[], None]:
    from pyq._core import ffi

    row, channels = _c_row(kernel.name), out.shape[1]
    function, prepared = row.window, _prepared(epilogue, channels)
    pairs = ffi.NULL if row.quads else ffi.from_buffer("int16_t[]", weights)
    quads = ffi.from_buffer("int8_t[]", weights) if row.quads else ffi.NULL
    taps = ffi.new("pyq_taps *", (pairs, prepared.c, channels, 0, 1, channels, quads))
    table, target = ffi.from_buffer("uint8_t *[]", pixels), ffi.from_buffer(out, require_writable=True)

    def call(owners: object = (weights, prepared)) -> None:  # a struct does not keep alive what it points to
        function(taps, table, 1, target)

    return call


def _numba_window(
    kernel: Kernel, pixels: NDArray[np.int64], weights: NDArray[Any], epilogue: Epilogue, out: NDArray[np.uint8]
) -> Callable[[], None]:
    from pyq.kernels.backend import NumbaBackend
    from pyq.kernels.depthwise import window
    from pyq.kernels.registry import WINDOWS, window_name

    [row] = [number for number, row in enumerate(WINDOWS) if f"numba_{window_name(row)}" == kernel.name]
    channels = out.shape[1]
    prepared = NumbaBackend().prepare(epilogue, lower_epilogue(epilogue, channels), channels)
    taps, target = weights.reshape(-1).view(np.int16), out.reshape(-1)
    return lambda: window(row, pixels, taps, channels, channels, prepared, target)


class Pair:
    """One call of a kernel that finishes what it multiplies, to uint8 or int32: ROWS[0] rows by two panels."""

    def __init__(self, kernel: Kernel, steps: int, rng: np.random.Generator) -> None:
        from pyq._core import ffi

        self.kernel, rows, columns = kernel, ROWS[0], 2 * NR
        self.size = rows * steps * 4 * columns
        x = rng.integers(0, 256, (rows, steps, 4), np.uint8)
        w = rng.integers(-128, 128, (steps, 4, columns), np.int16)
        epilogue = _random_epilogue(columns, rng)
        if kernel.operation == "gemm_sums":
            epilogue = Epilogue(np.dtype(np.int32), epilogue.bias)
        sums = np.einsum("rsk,skc->rc", x.astype(np.int32), w.astype(np.int32))
        self.expected = backend("reference").requantize(sums, epilogue)
        self.out = np.empty((rows, columns), epilogue.dtype)
        prepared, offsets = _prepared(epilogue, columns), np.arange(0, 4 * steps, 4, dtype=np.int32)
        panels = _panel("quads32", w).view(np.int8)
        places = ffi.from_buffer("int32_t[]", offsets), ffi.from_buffer("int8_t[]", panels)
        pair = ffi.new("pyq_panels *", (prepared.c, *places, steps, 0, columns, columns))
        starts = ffi.new("uint8_t *[]", [ffi.cast("uint8_t *", x[r].ctypes.data) for r in range(rows)])
        target = ffi.from_buffer("uint8_t[]", self.out, require_writable=True)
        function = _c_row(kernel.name).panels

        def call(owners: object = (x, prepared, places)) -> None:  # neither struct nor addresses keep these alive
            function(pair, starts, rows, 0, target)

        self.call = call

    def check(self, seed: int) -> None:
        """WrongResult when an output differs from the reference's."""
        self.call()
        _compare(self.kernel, self.out, self.expected, seed)


def _random_epilogue(columns: int, rng: np.random.Generator) -> Epilogue:
    bias = rng.integers(-(2**16), 2**16, columns, np.int32)
    multiplier = rng.uniform(1e-4, 4e-4, columns).astype(np.float32)
    return Epilogue(np.dtype(np.uint8), bias, multiplier, zero_point=128, low=0, high=255)


def _prepared(epilogue: Epilogue, columns: int) -> Any:
    from pyq.c_backend import CBackend

    return CBackend().prepare(epilogue, lower_epilogue(epilogue, columns), columns)


class Finish:
    """One call of an epilogue: int32 sums of NR columns to uint8."""

    def __init__(self, kernel: Kernel, rows: int, rng: np.random.Generator) -> None:
        self.kernel = kernel
        self.size = rows * NR
        sums = rng.integers(-(2**20), 2**20, (rows, NR), np.int32)
        epilogue = _random_epilogue(NR, rng)
        self.expected = backend("reference").requantize(sums, epilogue)
        self.out = np.empty((rows, NR), np.uint8)
        self.call = (_c_finish if kernel.backend == "c" else _numba_finish)(kernel, sums, epilogue, self.out)

    def check(self, seed: int) -> None:
        """WrongResult when an output differs from the reference's."""
        self.call()
        _compare(self.kernel, self.out, self.expected, seed)


def _c_finish(
    kernel: Kernel, sums: NDArray[np.int32], epilogue: Epilogue, out: NDArray[np.uint8]
) -> Callable[[], None]:
    from pyq._core import ffi

    function, prepared = _c_row(kernel.name).epilogue, _prepared(epilogue, NR)
    source, target = ffi.from_buffer("int32_t[]", sums), ffi.from_buffer(out, require_writable=True)
    return lambda: function(source, len(sums), prepared.c, 0, ffi.NULL, target, NR)


def _numba_finish(
    kernel: Kernel, sums: NDArray[np.int32], epilogue: Epilogue, out: NDArray[np.uint8]
) -> Callable[[], object]:
    numba = backend("numba")
    return lambda: numba.requantize(sums, epilogue, out)


def _compare(kernel: Kernel, result: NDArray[Any], expected: NDArray[Any], seed: int) -> None:
    wrong = int(np.count_nonzero(result != expected))
    if wrong:
        raise WrongResult(f"{kernel.name}, seed {seed}: {wrong} of {expected.size} outputs are wrong")
