"""The sets of shapes that are timed: files, and the layers of trained models."""

from __future__ import annotations

from pathlib import Path

from bench.models import TRAINED
from bench.trained import different
from pyq.workloads import Conv, MatMul, shape_of

FOLDER = Path(__file__).parent / "shapes"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.txt"))}
SETS = (*FILES, *TRAINED)
NOT_INSTALLED = FileNotFoundError, ModuleNotFoundError
"""What `chosen` raises where a trained model, or what reads it, is missing."""


def chosen(name: str, full: bool, only: str = "") -> list[MatMul | Conv]:
    """The shapes of a set: all, or its quick selection; of these, those whose label contains `only`.

    Of a trained model the layers with its weights, each shape once; the three with the most work for a quick run.
    One of `NOT_INSTALLED` where it is missing.
    """
    if name in TRAINED:
        layers = different(TRAINED[name]())
        heaviest = sorted(layers, key=lambda layer: -layer.macs)[:3]
        marked: dict[MatMul | Conv, bool] = {layer: layer in heaviest for layer in layers}
    else:
        marked = read_shapes(FILES[name])
    return [shape for shape, quick in marked.items() if (quick or full or only) and only in shape.label]


def read_shapes(path: Path) -> dict[MatMul | Conv, bool]:
    """The shapes of a file, and whether a quick run takes them; ValueError, with the line, for one it cannot read.

    A line has the form of `pyq bench`, such as "gemm 512 512 512" or "conv 24x160 64 64 3 2x1"; "*" at its end marks
    the quick ones. What follows "#" is a comment.
    """
    shapes: dict[MatMul | Conv, bool] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.partition("#")[0].split()
        quick = words[-1:] == ["*"]
        if words:
            try:
                shapes[shape_of(words[0], words[1 : len(words) - quick])] = quick
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return shapes
