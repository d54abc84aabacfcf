"""Calibration: observers see all batches, and bad data is refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyq.quantization.calibration import MinMaxObserver, calibrate
from pyq.quantization.graph import Graph, ValueInfo


class Doubling:
    """A model of one input x and one intermediate value y = 2x."""

    graph = Graph([], {}, [ValueInfo("x")], [ValueInfo("y")], opset=17)

    def run_values(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        with np.errstate(over="ignore"):
            values = {"x": feeds["x"], "y": 2 * feeds["x"]}
        return {name: values[name] for name in names}


def batches(*values: list[float]) -> list[dict[str, np.ndarray]]:
    return [{"x": np.array(value, np.float32)} for value in values]


@given(st.lists(hnp.arrays(np.float32, st.integers(0, 5), elements=st.floats(-1e9, 1e9, width=32)), max_size=4))
def test_minmax_is_the_range_of_everything_seen(arrays: list[np.ndarray]) -> None:
    observer = MinMaxObserver()
    for array in arrays:
        observer.observe(array)
    seen = np.concatenate([*arrays, np.zeros(0, np.float32)])
    assert observer.range() == ((seen.min(), seen.max()) if seen.size else (0, 0))


def test_every_batch_and_tensor_counts() -> None:
    ranges = calibrate(Doubling(), batches([1, 2], [-3], [0.5]), ["x", "y"])
    assert ranges == {"x": (-3, 2), "y": (-6, 4)}


def test_a_generator_is_consumed_once_and_one_batch_at_a_time() -> None:
    alive = []

    def generate() -> Any:
        for i in range(3):
            alive.append(i)
            yield {"x": np.array([i], np.float32)}

    seen = []
    calibrate(Doubling(), generate(), ["y"], progress=lambda *step: seen.append((step, len(alive))))
    assert seen == [((i, None, "calibrate"), i) for i in (1, 2, 3)]


def test_progress_knows_the_length_of_a_list() -> None:
    seen: list[Any] = []
    calibrate(Doubling(), batches([1], [2]), ["x"], progress=lambda *step: seen.append(step))
    assert seen == [(1, 2, "calibrate"), (2, 2, "calibrate")]


@pytest.mark.parametrize("bad, word", [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_bad_numbers_are_named_with_input_and_batch(bad: float, word: str) -> None:
    with pytest.raises(ValueError, match=rf"batch 1: input 'x' contains {word}"):
        calibrate(Doubling(), batches([1], [0, bad]), ["y"])


def test_overflow_inside_the_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"batch 0: tensor 'y' contains infinity"):
        calibrate(Doubling(), batches([3e38]), ["y"])


def test_integer_inputs_are_accepted() -> None:
    assert calibrate(Doubling(), [{"x": np.array([3])}], ["y"]) == {"y": (6, 6)}


def test_no_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="no batch"):
        calibrate(Doubling(), [], ["x"])


@pytest.mark.parametrize("feed", [{"z": np.zeros(1)}, {}, {"x": np.zeros(1), "z": np.zeros(1)}])
def test_inputs_must_be_those_of_the_model(feed: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"batch 0: got the inputs .*, the model has \['x'\]"):
        calibrate(Doubling(), [feed], ["x"])


def test_a_batch_is_a_mapping() -> None:
    with pytest.raises(TypeError, match="batch 0: expected a mapping"):
        calibrate(Doubling(), [np.zeros(3)], ["x"])  # type: ignore[list-item]


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="method: got 'median', allowed are minmax"):
        calibrate(Doubling(), batches([1]), ["x"], method="median")
