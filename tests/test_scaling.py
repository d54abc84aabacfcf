"""The benchmark of threads: what it makes of given rounds, and that its command runs. No times."""

from __future__ import annotations

import numpy as np
import pytest

import pyq
from bench.scaling import Rounds, geometric_mean, main
from pyq.benchmark import WrongResult
from pyq.c_backend import CBackend

ROUNDS = Rounds("a", np.array([4.0, 4.0, 6.0, 9.0]), np.array([2.0, 2.5, 5.0, 9.0]), np.array([2.0, 1.9, 1.5, 1.0]))


def test_ratios_are_of_medians() -> None:
    assert ROUNDS.ratio() == 5 / 3.75
    assert ROUNDS.free(2).tolist() == [True, True, False, False]
    assert ROUNDS.ratio(ROUNDS.free(2)) == 4 / 2.25
    assert np.isnan(ROUNDS.ratio(np.zeros(4, bool)))


def test_shapes_without_free_rounds_do_not_count() -> None:
    assert geometric_mean([2, float("nan"), 8]) == pytest.approx(4)
    assert np.isnan(geometric_mean([float("nan")]))


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    before = pyq.get_num_threads()
    assert main(["squares", "resnet50", "--only", "64", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "64x64x64" in printed and "3x3 64-64 @56" in printed and "geometric mean" in printed
    assert pyq.get_num_threads() == before


def test_a_wrong_result_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    right = CBackend.matmul
    monkeypatch.setattr(CBackend, "matmul", lambda *arguments, **named: right(*arguments, **named) + 1)
    with pytest.raises(WrongResult, match="64x64x64, seed 5"):
        main(["squares", "--only", "64x64x64", "--seed", "5"])
