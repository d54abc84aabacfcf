"""Memory plans: planned runs equal the first one, pieces overlap in memory only when they may, outputs never do."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import MODELS, feeds

import pyq
from pyq.onnx import Session
from pyq.onnx.plan import ALIGNMENT, MAX_LAYOUTS, Piece, Plan, arrange
from pyq.onnx.step import Buffers


class Chain:
    """A step that takes memory and adds `number` to its only input; with `view`, a Reshape that flattens it."""

    def __init__(self, source: str, target: str, number: int = 1, view: bool = False) -> None:
        self.name = self.op_type = "Reshape" if view else "Increment"
        self.inputs, self.outputs = [source], [target]
        self.number, self.view = number, view

    def run(self, inputs: list[Any], out: Buffers) -> list[Any]:
        [x] = inputs
        if self.view:
            return [x.reshape(-1)]
        y = out.take(x.shape, x.dtype)
        np.add(x, self.number, out=y)
        return [y]


def layout_of(plan: Plan) -> Any:
    return plan.layouts[-1]


def assert_no_conflict(pieces: list[Piece]) -> None:
    """No two pieces that are needed at the same time share a byte."""
    for i, one in enumerate(pieces):
        for other in pieces[:i]:
            together = one.made <= other.last and other.made <= one.last
            apart = one.offset + one.nbytes <= other.offset or other.offset + other.nbytes <= one.offset
            assert not together or apart


pieces = st.builds(
    lambda size, made, length: Piece((size,), np.dtype(np.uint8), made, made + length),
    st.integers(0, 500),
    st.integers(0, 12),
    st.integers(0, 6),
)


@given(st.lists(pieces, max_size=25))
def test_arrange_keeps_live_pieces_apart(pieces: list[Piece]) -> None:
    size = arrange(pieces)
    assert_no_conflict(pieces)
    assert all(piece.offset % ALIGNMENT == 0 and piece.offset + piece.nbytes <= size for piece in pieces)
    steps = range(20)
    needed = [sum(piece.nbytes for piece in pieces if piece.made <= step <= piece.last) for step in steps]
    assert max(needed) <= size <= sum(piece.nbytes for piece in pieces)


def test_a_chain_needs_two_pieces_at_a_time() -> None:
    names = [f"v{i}" for i in range(8)]
    plan = Plan([Chain(a, b) for a, b in pairwise(names)], ["v7"])
    x = np.arange(1000, dtype=np.int32)
    for _ in range(3):
        np.testing.assert_array_equal(plan.run({"v0": x})["v7"], x + 7)
    layout = layout_of(plan)
    assert len(layout.pieces) == 7
    assert layout.nbytes == 2 * layout.pieces[0].nbytes  # and the seventh is an output, outside


def test_a_view_keeps_what_it_views() -> None:
    """`a` is flattened to `f`, which is read after two more steps have taken memory."""
    steps = [Chain("x", "a"), Chain("a", "f", view=True), Chain("x", "b"), Chain("b", "c", 10), Chain("f", "y")]
    plan = Plan(steps, ["y", "c"])
    x = np.arange(12).reshape(3, 4)
    for _ in range(3):
        results = plan.run({"x": x})
        np.testing.assert_array_equal(results["y"], np.arange(12) + 2)
        np.testing.assert_array_equal(results["c"], x + 11)
    first, second = layout_of(plan).pieces[:2]
    assert (first.made, first.last) == (0, 4)
    assert first.offset != second.offset


def test_outputs_are_the_callers() -> None:
    """Also one that views what a step made, and one that another step reads."""
    plan = Plan([Chain("x", "a"), Chain("a", "flat", view=True), Chain("a", "b"), Chain("b", "c")], ["flat", "b"])
    plan.run({"x": np.zeros((2, 3))})
    kept = plan.run({"x": np.zeros((2, 3))})
    plan.run({"x": np.full((2, 3), 9.0)})
    np.testing.assert_array_equal(kept["flat"], np.ones(6))
    np.testing.assert_array_equal(kept["b"], np.full((2, 3), 2.0))


def test_feeds_may_be_outputs() -> None:
    x = np.zeros(3)
    assert Plan([Chain("x", "y")], ["x", "y"]).run({"x": x})["x"] is x


class Repeat:
    """Takes memory for `count` copies of the first value: its shape depends on a value."""

    name = op_type = "Repeat"
    inputs, outputs = ["x", "count"], ["y"]

    def run(self, inputs: list[Any], out: Buffers) -> list[Any]:
        x, count = inputs
        y = out.take((int(count),), x.dtype)
        y[:] = x[0]
        return [y]


def test_shapes_that_depend_on_values_get_new_memory() -> None:
    plan = Plan([Repeat(), Chain("y", "z"), Chain("z", "w")], ["w"])
    x = np.array([5])
    for count in (3, 3, 7, 2, 3):
        np.testing.assert_array_equal(plan.run({"x": x, "count": np.array(count)})["w"], np.full(count, 7))
    assert len(plan.layouts) == 1


def test_layouts_are_kept_by_shape_and_type_and_limited() -> None:
    plan = Plan([Chain("x", "y"), Chain("y", "z")], ["z"])
    for size in [*range(1, MAX_LAYOUTS + 4), 2, 2]:
        np.testing.assert_array_equal(plan.run({"x": np.zeros(size)})["z"], np.full(size, 2.0))
    plan.run({"x": np.zeros(2, np.int8)})
    assert len(plan.layouts) == MAX_LAYOUTS
    assert [layout.pieces[0].dtype for layout in plan.layouts[-2:]] == [np.float64, np.int8]


class Fails(Chain):
    """Raises when its input is negative."""

    def run(self, inputs: list[Any], out: Buffers) -> list[Any]:
        if inputs[0].min() < 0:
            raise ValueError("negative")
        return super().run(inputs, out)


def test_an_error_leaves_the_plan_usable() -> None:
    plan = Plan([Chain("x", "a"), Fails("a", "b"), Chain("b", "y")], ["y"])
    for value, fails in ((-5, True), (0, False), (-5, True), (1, False)):
        if fails:
            with pytest.raises(ValueError, match="negative"):
                plan.run({"x": np.full(4, value)})
        else:
            np.testing.assert_array_equal(plan.run({"x": np.full(4, value)})["y"], np.full(4, value + 3))
    assert len(layout_of(plan).free) == 1  # the arena came back from the run that failed


@pytest.fixture(scope="module", params=MODELS)
def quantized(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    model = MODELS[request.param]()
    inputs = feeds(model, 6)
    return pyq.quantize_model(model, calibration=inputs).model, inputs


def test_planned_runs_of_a_model_equal_unplanned_ones(quantized: Any) -> None:
    model, inputs = quantized
    session = Session(model)
    wanted = [Session(model).run(None, feed) for feed in inputs]  # the first run of a session has no plan
    for _ in range(2):
        for feed, arrays in zip(inputs, wanted, strict=True):
            for y, array in zip(session.run(None, feed), arrays, strict=True):
                np.testing.assert_array_equal(y, array)


def test_arena_of_a_model_is_smaller_than_its_values(quantized: Any) -> None:
    model, inputs = quantized
    steps = Session(model).steps
    graph_outputs = [value.name for value in Session(model).get_outputs()]
    plan = Plan(steps, graph_outputs)
    plan.run(inputs[0])
    layout = layout_of(plan)
    planned = [piece for piece in layout.pieces if piece.offset >= 0]
    assert len(planned) >= 3
    assert_no_conflict(planned)
    assert layout.nbytes < sum(piece.nbytes for piece in planned)


def test_threads_share_a_session(quantized: Any) -> None:
    model, inputs = quantized
    session = Session(model)
    wanted = [session.run(None, feed) for feed in inputs]
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(30):
            index = (number + turn) % len(inputs)
            for y, array in zip(session.run(None, inputs[index]), wanted[index], strict=True):
                if not np.array_equal(y, array):
                    wrong.append(f"thread {number}, run {turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
