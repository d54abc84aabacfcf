"""Every microkernel of the registry, called directly: exact sums, corner inputs, wrap-around, memory bounds.

The contract is that of csrc/pyq.h. Weights and sums are made here from its text, not with pyq's own packing.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from exact import assert_same, full_range, wrapped
from guarded import fatal_signal, guarded
from hypothesis import given
from hypothesis import strategies as st

import pyq
from pyq._core import ffi, lib
from pyq.backends import ISA_NAMES
from pyq.config import Kernel
from pyq.kernels.tile import tiles
from pyq.panels import GROUP_SIZE, LAYOUT_NAMES, WORDS

NR = 16
READ_AHEAD = 15  # elements behind the last one needed that a kernel may read
LIMITS = {"pairs16": (-255, 255), "taps16": (-255, 255)}  # of weights; those of the other layouts are int8
IN_16_BITS = {LAYOUT_NAMES[layout]: group for layout, group in GROUP_SIZE.items()}  # quads that share a sum
CANARY = 0x5A5A5A5A

C_ROWS = {ffi.string(lib.pyq_kernels[i].name).decode(): lib.pyq_kernels[i] for i in range(lib.pyq_kernel_count())}
KERNELS = [k for k in pyq.kernels_available() if k.layout and k.runnable]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
seeds = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Case:
    """base: activations; rows: first element of each; offsets: one a step; weights [steps, 4 (taps16: 1), columns]."""

    base: np.ndarray
    rows: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray


def read_width(kernel: Kernel) -> int:
    """Elements of a row that one step reads."""
    return NR if kernel.layout == "taps16" else 4


def columns(kernel: Kernel) -> int:
    """Columns of the tile: of a panel, even if the kernel computes half of them, or of two."""
    return max(kernel.nr, NR)


def exact_sums(kernel: Kernel, case: Case) -> np.ndarray:
    """The columns of the tile that the kernel computes, from int64."""
    places = case.rows[:, None, None] + case.offsets[:, None] + np.arange(read_width(kernel))
    read = case.base[places].astype(np.int64)
    terms = "rsc,skc->rc" if kernel.layout == "taps16" else "rsk,skc->rc"
    return wrapped(np.einsum(terms, read, case.weights))[:, : kernel.nr]


def wide(kernel: Kernel) -> bool:
    """Whether the kernel reads activations as int16."""
    return LAYOUT_NAMES.index(kernel.layout) in WORDS


def limits(kernel: Kernel) -> tuple[int, int]:
    """The smallest and the largest weight that the layout can hold."""
    return LIMITS.get(kernel.layout, (-128, 127))


def whole_turns(kernel: Kernel, steps: int) -> int:
    """`steps`, and as many more as the layout asks for: whole groups of quads, pairs of taps."""
    together = 2 if kernel.layout == "taps16" else IN_16_BITS.get(kernel.layout, 1)
    return steps + -steps % together


def encoded(kernel: Kernel, weights: np.ndarray) -> np.ndarray:
    """The panels, one behind the other, as int16 whatever they hold."""
    steps = len(weights)
    if weights.shape[2] > NR:
        panels = np.split(weights, weights.shape[2] // NR, axis=2)
        return np.concatenate([encoded(kernel, panel) for panel in panels])
    if kernel.layout.startswith("quads"):  # [steps][NR][4]
        panel = weights.transpose(0, 2, 1)
    elif kernel.layout != "taps16":  # [steps][2][NR][2]
        panel = weights.reshape(steps, 2, 2, NR).transpose(0, 1, 3, 2)
    else:  # [steps / 2][NR][2]
        panel = weights.reshape(steps // 2, 2, NR).transpose(0, 2, 1)
    return np.ascontiguousarray(panel, np.int16 if kernel.layout in LIMITS else np.int8).reshape(-1).view(np.int16)


def call_c(kernel: Kernel, case: Case, accumulate: bool, *buffers: np.ndarray, flags: int = 0) -> None:
    """Call the C kernel; buffers: tile, base, offsets, weights. Rows and the number of steps are the case's."""
    tile, base, offsets, weights = buffers
    starts = [ffi.cast("uint8_t *", base.ctypes.data + int(row) * base.itemsize) for row in case.rows]

    def call(tile: np.ndarray, more: int, stride: int) -> None:
        C_ROWS[kernel.name].gemm(
            ffi.cast("int32_t *", tile.ctypes.data),
            ffi.new("uint8_t *[]", starts),
            ffi.cast("int32_t *", offsets.ctypes.data),
            ffi.cast("void *", weights.ctypes.data),
            len(case.offsets),
            accumulate * lib.PYQ_ADD_TO_TILE + flags + more + lib.PYQ_STRIDE * stride,
        )

    width = tile.shape[1]
    apart, below, before = with_rows_apart(tile), with_panels_below(tile), tile.copy()
    call(tile, 0, width)
    for other in (before, apart):  # none of these changes a result
        call(other, lib.PYQ_FETCH_AHEAD, other.shape[1])
        np.testing.assert_array_equal(other[:, :width], tile)
    assert (apart[:, width:] == CANARY).all()
    call(below, lib.PYQ_FETCH_AHEAD, NR)
    np.testing.assert_array_equal(np.hstack(list(below[:, : kernel.mr])), tile)
    assert (below[:, kernel.mr :] == CANARY).all()


def with_rows_apart(tile: np.ndarray) -> np.ndarray:
    """A copy of the tile, as it may lie in an output with more columns."""
    return np.pad(tile, ((0, 0), (0, 5)), constant_values=CANARY)


def with_panels_below(tile: np.ndarray) -> np.ndarray:
    """A copy [panels, PYQ_TILE_ROWS, NR], as kernels for two panels write them where the stride is NR."""
    panels = np.stack(np.split(tile, tile.shape[1] // NR, axis=1))
    return np.pad(panels, ((0, 0), (0, lib.PYQ_TILE_ROWS - len(tile)), (0, 0)), constant_values=CANARY)


def run(
    kernel: Kernel,
    case: Case,
    edge: str | None = None,
    short: str | None = None,
    before: np.ndarray | None = None,
    call: Callable[..., None] = call_c,
) -> np.ndarray:
    """What the kernel computes of the tile: all, or the first half of its columns; the others stay as they are.

    edge: put each buffer at a guard page, see `guarded`. short: the buffer that lacks its last element. before: the
    tile to add to; without it, a C kernel overwrites whatever is there; one of Numba, which always adds, gets zeros.
    call: calls a C kernel.
    """

    def put(name: str, values: np.ndarray, slack: int = 0) -> np.ndarray:
        if edge is None:
            return values
        return guarded(values[:-1], edge) if name == short else guarded(values, edge, slack)

    base = put("base", case.base.astype(np.int16 if wide(kernel) else np.uint8), READ_AHEAD)
    offsets = put("offsets", case.offsets.astype(np.int32))
    weights = put("weights", encoded(kernel, case.weights))
    fresh = np.full((kernel.mr, columns(kernel)), CANARY if kernel.backend == "c" else 0, np.int32)
    tile = put("tile", fresh if before is None else before.copy())
    if kernel.backend == "c":
        call(kernel, case, before is not None, tile, base, offsets, weights)
    else:
        data, words = (np.empty(0, np.uint8), base) if wide(kernel) else (base, np.empty(0, np.int16))
        isa, layout = ISA_NAMES.index(kernel.isa), LAYOUT_NAMES.index(kernel.layout)
        tiles(isa, layout, kernel.nr, data, words, case.rows, offsets, weights.view(np.uint8), tile)
    assert (tile[:, kernel.nr :] == (fresh if before is None else before)[:, kernel.nr :]).all()
    return tile[:, : kernel.nr]


def certified(kernel: Kernel, weights: np.ndarray, amax: int) -> np.ndarray:
    """Weights moved towards zero, as little as needed, so that every 16-bit sum fits.

    Two bytes of each quad of a group meet in a sum: amax * (their positive weights) and amax * (their |negative| ones)
    stay within 32767. Weights of full range end up exactly at that bound.
    """
    group = IN_16_BITS.get(kernel.layout)
    if group is None:
        return weights
    lanes = weights.reshape(-1, group, 2, 2, NR).transpose(0, 2, 4, 1, 3).reshape(-1, 2, NR, 2 * group)
    kept = np.zeros_like(lanes)  # [group, lane, column, weights that share a sum]
    for sign in (1, -1):
        reached = np.minimum(np.cumsum(np.maximum(sign * lanes, 0), axis=-1), 32767 // amax)
        kept += sign * np.diff(reached, prepend=0)
    return kept.reshape(-1, 2, NR, group, 2).transpose(0, 3, 1, 4, 2).reshape(weights.shape)


def allowed_weights(kernel: Kernel, rng: np.random.Generator, steps: int, amax: int, extreme: bool) -> np.ndarray:
    """Weights over everything that the layout can hold; extreme: only the smallest and the largest."""
    low, high = limits(kernel)
    shape = (steps, 1 if kernel.layout == "taps16" else 4, columns(kernel))
    weights = rng.choice([low, high], shape) if extreme else rng.integers(low, high + 1, shape)
    return certified(kernel, weights, amax)


def random_case(kernel: Kernel, rng: np.random.Generator, steps: int, repeat: bool, amax: int, extreme: bool) -> Case:
    """Rows that overlap, offsets permuted or repeated, and a base that ends with the last element needed."""
    steps = whole_turns(kernel, steps)
    width = read_width(kernel)
    offsets = rng.integers(0, 50, steps) if repeat else width * rng.permutation(steps)
    rows = rng.integers(0, 100, kernel.mr)
    size = int(rows.max() + offsets.max()) + width
    base = rng.choice([0, amax], size) if extreme else rng.integers(0, amax + 1, size)
    return Case(base, rows, offsets, allowed_weights(kernel, rng, steps, amax, extreme))


@every_kernel
@given(seeds, st.integers(1, 60), st.booleans(), st.sampled_from([255, 254, 127, 64, 1]), st.booleans())
def test_sums_are_exact(kernel: Kernel, seed: int, steps: int, repeat: bool, amax: int, extreme: bool) -> None:
    case = random_case(kernel, np.random.default_rng(seed), steps, repeat, amax, extreme)
    assert_same(run(kernel, case), exact_sums(kernel, case), kernel.name)


def c_kernels(keep: Callable[[Kernel], bool]) -> pytest.MarkDecorator:
    """The tests of C's kernels that satisfy this."""
    kernels = [kernel for kernel in KERNELS if kernel.backend == "c" and keep(kernel)]
    return pytest.mark.parametrize("kernel", kernels, ids=lambda kernel: kernel.name)


def case_at(kernel: Kernel, rng: np.random.Generator, offsets: np.ndarray) -> Case:
    """One of full range, with these offsets."""
    case = random_case(kernel, rng, len(offsets), True, 255, False)
    base = full_range(rng, (int(case.rows.max() + offsets.max()) + 4,), "uint8").astype(np.int64)
    return Case(base, case.rows, offsets, case.weights)


@c_kernels(lambda kernel: kernel.layout == "quads32")
@given(seeds, st.integers(1, 60))
def test_offsets_that_follow_each_other_may_be_left_unread(kernel: Kernel, seed: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    case = case_at(kernel, rng, int(rng.integers(0, 20)) + 4 * np.arange(steps))

    def call(kernel: Kernel, case: Case, accumulate: bool, *buffers: np.ndarray) -> None:
        call_c(kernel, case, accumulate, *buffers, flags=lib.PYQ_READS_ON)

    assert_same(run(kernel, case, call=call), exact_sums(kernel, case), kernel.name)


@c_kernels(lambda kernel: kernel.layout == "quads8" and kernel.isa == "avx2" and (kernel.mr, kernel.nr) == (1, NR))
@given(seeds, st.integers(1, 60))
def test_offsets_may_be_numbers_of_quads(kernel: Kernel, seed: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    case = case_at(kernel, rng, 4 * rng.integers(0, 60, steps))

    def call(kernel: Kernel, case: Case, accumulate: bool, *buffers: np.ndarray) -> None:
        tile, base, offsets, weights = buffers
        call_c(kernel, case, accumulate, tile, base, (offsets // 4).astype(np.uint16), weights, flags=lib.PYQ_IN_QUADS)

    assert_same(run(kernel, case, call=call), exact_sums(kernel, case), kernel.name)


@every_kernel
@given(seeds, st.integers(0, 20))
def test_sums_are_added_to_those_before(kernel: Kernel, seed: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    case = random_case(kernel, rng, max(steps, 1), True, 255, False)
    if steps == 0:
        case = Case(case.base, case.rows, case.offsets[:0], case.weights[:0])
    before = full_range(rng, (kernel.mr, columns(kernel)), np.int32)
    expected = wrapped(before[:, : kernel.nr].astype(np.int64) + exact_sums(kernel, case))
    assert_same(run(kernel, case, before=before), expected, kernel.name)


@every_kernel
@pytest.mark.parametrize("amax", [255, 127])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_are_exact_where_all_products_have_one_sign(
    kernel: Kernel, amax: int, sign: int, rng: np.random.Generator
) -> None:
    """Row r holds amax exactly where column c has weights of one sign: the largest sums that exist for c."""
    steps, width = 24, read_width(kernel)
    weights = allowed_weights(kernel, rng, steps, amax, extreme=True)
    offsets = width * rng.permutation(steps)
    for first in range(0, columns(kernel), kernel.mr):
        base = np.zeros((kernel.mr, steps * width), np.int64)
        for r in range(kernel.mr):
            hits = weights[:, 0] if kernel.layout == "taps16" else weights[:, :, (first + r) % columns(kernel)]
            base[r, offsets[:, None] + np.arange(width)] = amax * (sign * hits > 0)
        case = Case(base.reshape(-1), np.arange(kernel.mr) * steps * width, offsets, weights)
        assert_same(run(kernel, case), exact_sums(kernel, case), f"{kernel.name}, columns from {first}")


@every_kernel
@pytest.mark.parametrize("activation", [0, 255])
@pytest.mark.parametrize("smallest", [True, False])
def test_constant_corners(kernel: Kernel, activation: int, smallest: bool) -> None:
    shape = 32, 1 if kernel.layout == "taps16" else 4, columns(kernel)
    weights = np.full(shape, limits(kernel)[0 if smallest else 1])
    weights = certified(kernel, weights, 255)
    case = Case(np.full(200, activation), np.arange(kernel.mr), np.arange(32) * 4, weights)
    assert_same(run(kernel, case), exact_sums(kernel, case), kernel.name)


@every_kernel
def test_sums_wrap_modulo_2_to_the_32(kernel: Kernel) -> None:
    """Columns that pass 2**31, and their negatives."""
    turn = np.full((4, 1 if kernel.layout == "taps16" else 4, columns(kernel)), limits(kernel)[1])
    turn = certified(kernel, turn, 255)
    turns = 2**31 // (255 * int(turn[:, :, 0].sum())) + 1
    weights = np.tile(turn, (turns, 1, 1))
    steps = len(weights)
    weights[:, :, ::2] *= -1
    case = Case(np.full(64, 255), np.zeros(kernel.mr, np.int64), np.zeros(steps, np.int64), weights)
    sums = exact_sums(kernel, case)
    assert (sums[:, 1] < 0).all() and (sums[:, 0] > 0).all()  # both have wrapped
    assert_same(run(kernel, case), sums, kernel.name)


@every_kernel
@pytest.mark.parametrize("edge", ["end", "start"])
@pytest.mark.parametrize("steps", [1, 14])
def test_stays_within_its_buffers(kernel: Kernel, edge: str, steps: int, rng: np.random.Generator) -> None:
    """Rows end READ_AHEAD elements before a guard page; weights, offsets and tile end at one, or all begin at one."""
    case = random_case(kernel, rng, steps, False, 255, False)
    case = Case(case.base, case.rows - case.rows.min(), case.offsets, case.weights)
    if edge == "end":
        needed = int(case.rows.max() + case.offsets.max()) + read_width(kernel)
        case = Case(case.base[:needed], case.rows, case.offsets, case.weights)
    assert_same(run(kernel, case, edge), exact_sums(kernel, case), kernel.name)


@pytest.mark.parametrize(
    ("kernel", "short"),
    # Numba's kernels count their steps by the offsets: these cannot be too short. Of weights and of a tile a kernel for
    # narrow panels leaves the last columns alone, so that nothing happens when one of them is missing.
    [
        (k, buffer)
        for k in KERNELS
        for buffer in ("base", "weights", "offsets", "tile")
        if (k.backend, buffer) != ("numba", "offsets") and (k.nr >= NR or buffer in ("base", "offsets"))
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_the_guard_pages_would_tell(kernel: Kernel, short: str, rng: np.random.Generator) -> None:
    """The twin of the test above: with one element less in a buffer the same call is killed."""
    case = random_case(kernel, rng, 1, False, 255, False)
    case = Case(case.base, np.full(kernel.mr, case.rows.max()), case.offsets, case.weights)
    assert fatal_signal(lambda: run(kernel, case, "end", short)) == signal.SIGSEGV


def test_the_certificate_is_what_keeps_16_bits_exact() -> None:
    """Weights beyond the bound do overflow in a kernel that adds in 16 bits, so the tests above can fail."""
    adding = [k for k in KERNELS if k.layout in IN_16_BITS and k.isa == "avx2"]
    assert adding or {k.isa for k in KERNELS} == {"scalar"}
    for kernel in adding:
        steps = whole_turns(kernel, 1)
        weights = np.full((steps, 4, NR), 127)
        case = Case(np.full(64, 255), np.zeros(kernel.mr, np.int64), np.zeros(steps, np.int64), weights)
        assert (run(kernel, case) != exact_sums(kernel, case)).all()


def test_the_registry_names_each_kernel_once_and_covers_every_layout() -> None:
    """But for instruction sets that are there for quads alone."""
    rows = pyq.kernels_available()
    assert len({k.name for k in rows}) == len(rows)
    assert {k.backend for k in rows} == {"c", "numba"}
    for isa in {k.isa for k in KERNELS}:
        for backend in ("c", "numba"):
            present = {k.layout for k in KERNELS if (k.isa, k.backend) == (isa, backend)}
            covered = {name for name in LAYOUT_NAMES if isa in ("scalar", "avx2") or name.startswith("quads")}
            assert present == covered
            single = {k.layout for k in KERNELS if (k.isa, k.backend, k.mr) == (isa, backend, 1)}
            assert single == covered  # a last row always finds a kernel


def test_numba_has_the_rows_of_c() -> None:
    """But for scalar tiles of several rows, which compilers make of one row's loop as well, and the tiles of eight rows
    of two panels that C takes while it asks for their weights ahead: Numba does not ask."""
    rows = {b: {k.name for k in KERNELS if k.backend == b and (k.isa, k.mr) != ("scalar", 4)} for b in ("c", "numba")}
    rows["c"] -= {"avx512vnni_quads32_8x32"}
    assert {f"numba_{name}" for name in rows["c"]} == rows["numba"]
