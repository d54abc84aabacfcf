"""Running the steps of a model, with the memory of their outputs planned once per input shapes.

The first run with some input shapes records which memory each step takes and which values lie in it. From
that follows how long each piece is needed, and so a place for it in one *arena*, in which pieces that are
never needed at the same time overlap. Later runs with these shapes take everything from an arena.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pyq.onnx.step import Step

Array = NDArray[Any]
Signature = tuple[Any, ...]

ALIGNMENT = 64
"""Pieces of an arena begin on a cache line."""

MAX_LAYOUTS = 8
"""Sets of input shapes that a plan remembers; a model with dynamic shapes sees many, each with an arena."""

MAY_VIEW = frozenset({
    "Compress", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "If",
    "Loop", "Pad", "Reshape", "Resize", "Scan", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators whose output may view their input in one run and be a copy in another: that depends on values."""


@dataclass
class Piece:
    """Memory that step number `made` took, needed until step `last` has run."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    made: int
    last: int
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes in the arena, up to the next aligned one."""
        size = self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))
        return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(eq=False)
class Layout:
    """Where the pieces of a run lie. nbytes: size of the arena; free: arenas that no run is using."""

    pieces: list[Piece]
    nbytes: int
    free: list[Arena] = field(default_factory=list)


class Plan:
    """The steps of a model in order, ready to run; several threads may run it at the same time.

    outputs: names of the values that `run` returns. These are never in an arena: the caller may keep them.
    """

    def __init__(self, steps: Sequence[Step], outputs: Sequence[str]) -> None:
        self.steps, self.outputs = list(steps), list(outputs)
        last_use = {name: index for index, step in enumerate(self.steps) for name in step.inputs}
        made = {name: index for index, step in enumerate(self.steps) for name in step.outputs if name}
        self._last_use = {name: last_use.get(name, index) for name, index in made.items()} | last_use
        self._dead: list[list[str]] = [[] for _ in self.steps]
        for name, index in self._last_use.items():
            if name not in self.outputs:
                self._dead[index].append(name)
        self._layouts: OrderedDict[Signature, Layout] = OrderedDict()
        self._lock = Lock()

    @property
    def layouts(self) -> list[Layout]:
        """The layouts made so far, the one used last at the end."""
        return list(self._layouts.values())

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run all steps on the values `feeds`; returns the outputs by name (which may be among the feeds)."""
        signature = tuple((x.shape, x.dtype) if isinstance(x, np.ndarray) else type(x) for x in feeds.values())
        with self._lock:
            layout = self._layouts.get(signature)
            if layout is not None:
                self._layouts.move_to_end(signature)
                arena = layout.free.pop() if layout.free else Arena(layout)
        if layout is None:
            recorder = Recorder(self._last_use, self.outputs)
            results = self._execute(feeds, recorder)
            self._remember(signature, recorder.layout())
            return results
        try:
            return self._execute(feeds, arena)
        finally:
            layout.free.append(arena)

    def _execute(self, feeds: Mapping[str, Any], buffers: Recorder | Arena) -> dict[str, Any]:
        values = dict(feeds)
        for index, step in enumerate(self.steps):
            buffers.enter(index)
            results = step.run([values[name] for name in step.inputs], buffers)
            buffers.leave(step, results)
            values.update(zip(step.outputs, results, strict=True))
            for name in self._dead[index]:
                del values[name]
        return {name: values[name] for name in self.outputs}

    def _remember(self, signature: Signature, layout: Layout) -> None:
        with self._lock:
            self._layouts[signature] = layout
            while len(self._layouts) > MAX_LAYOUTS:
                self._layouts.popitem(last=False)


class Recorder:
    """Buffers of a first run: new memory each time, remembered together with the values that lie in it."""

    def __init__(self, last_use: Mapping[str, int], outputs: Sequence[str]) -> None:
        self._last_use, self._outputs = last_use, set(outputs)
        self._pieces: list[Piece] = []
        self._memory: list[Array] = []
        self._kept: set[int] = set()  # numbers of the pieces in which an output lies
        self._lies_in: dict[str, set[int]] = {}  # numbers of the pieces in which a value may lie
        self._index = 0

    def enter(self, index: int) -> None:
        """Step number `index` is about to run."""
        self._index = index

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """See `pyq.onnx.step.Buffers`."""
        memory = np.empty(shape, dtype)
        self._pieces.append(Piece(memory.shape, memory.dtype, self._index, self._index))
        self._memory.append(memory)
        return memory

    def leave(self, step: Step, results: Sequence[Any]) -> None:
        """The step has run: note in which memory its outputs lie."""
        reach = {number for number, piece in enumerate(self._pieces) if piece.made == self._index}
        reach.update(*(self._lies_in.get(name, ()) for name in step.inputs))
        for name, value in zip(step.outputs, results, strict=True):
            numbers = reach
            if isinstance(value, np.ndarray) and step.op_type not in MAY_VIEW:
                numbers = {number for number in reach if np.may_share_memory(value, self._memory[number])}
            self._lies_in[name] = numbers
            if name in self._outputs:
                self._kept |= numbers
            for number in numbers:
                piece = self._pieces[number]
                piece.last = max(piece.last, self._last_use.get(name, self._index))

    def layout(self) -> Layout:
        """The layout for further runs. A piece that holds an output has offset -1: it is not in the arena."""
        for number in self._kept:
            self._pieces[number].offset = -1
        return Layout(self._pieces, arrange([piece for piece in self._pieces if piece.offset >= 0]))


def arrange(pieces: Sequence[Piece]) -> int:
    """Give each piece an offset, so that no two needed at the same time overlap; returns the arena's size.

    The largest first, each at the lowest offset that is free as long as it is needed.
    """
    placed: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: -piece.nbytes):
        rivals = [other for other in placed if other.made <= piece.last and piece.made <= other.last]
        piece.offset = 0
        for other in sorted(rivals, key=lambda other: other.offset):
            if piece.offset + piece.nbytes <= other.offset:
                break
            piece.offset = max(piece.offset, other.offset + other.nbytes)
        placed.append(piece)
    return max((piece.offset + piece.nbytes for piece in placed), default=0)


class Arena:
    """Buffers of a planned run: arrays in one piece of memory, made in advance. One run uses it at a time."""

    def __init__(self, layout: Layout) -> None:
        memory = np.empty(layout.nbytes + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        self._arrays: dict[int, list[Array | None]] = {}
        for piece in layout.pieces:
            array = None
            if piece.offset >= 0:
                size = piece.dtype.itemsize * int(np.prod(piece.shape, dtype=np.int64))
                begin = start + piece.offset
                array = memory[begin : begin + size].view(piece.dtype).reshape(piece.shape)
            self._arrays.setdefault(piece.made, []).append(array)
        self._waiting: list[Array | None] = []

    def enter(self, index: int) -> None:
        """Step number `index` is about to run."""
        self._waiting = self._arrays.get(index, [])[::-1]

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """See `pyq.onnx.step.Buffers`. New memory for outputs, and for shapes that depend on values."""
        array = self._waiting.pop() if self._waiting else None
        if array is None or array.shape != shape or array.dtype != dtype:
            return np.empty(shape, dtype)
        return array

    def leave(self, step: Step, results: Sequence[Any]) -> None:
        """Nothing to note: all is planned."""
