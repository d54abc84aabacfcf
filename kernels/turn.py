"""How the file of an instruction set describes its microkernels: by what a turn of their loop does to the sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from llvmlite import ir

from .llvm import Builder, Value


class Part(NamedTuple):
    """Part of a turn of the loop: the weights, as numbers of vectors, kept in registers while `text` goes by all rows.
    For a kernel for two panels they are numbers of panels, of each of which a turn takes one vector.

    text adds the products of one row to its vectors of sums, `acc0` ... It knows `row`, `offset0` ... (of each step),
    `weights` (of the turn), `w0` ... (those kept) and the constants; what else it names is a temporary.
    """

    kept: tuple[int, ...]
    text: str


class Turn(NamedTuple):
    """A turn of the loop: its steps, its parts, and what makes a vector of their weights; see `llvm.load`.

    chains: by the rows of a tile, how many turns are taken at once, each with sums of its own, where one alone would
    wait for the sums of the turn before it; 1 where nothing is said.
    """

    steps: int
    parts: list[Part]
    load: Callable[[Builder, Value, ir.Type, int], Value]
    chains: Mapping[int, int] = {}


class Instructions(NamedTuple):
    """Of an instruction set: the widest vector of sums, the turn of each layout and width of a tile, constants."""

    vector: ir.VectorType
    turns: Mapping[tuple[int, int], Turn]
    constants: Callable[[Builder], dict[str, Value]]
