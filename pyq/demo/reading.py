"""Lines read by several runtimes in turn, so that their figures come from the same minutes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import numpy as np

from pyq.demo.lines import Line
from pyq.demo.recognizer import character_error_rate, decode, preprocess
from pyq.timing import milliseconds

Run = Callable[[np.ndarray], np.ndarray]


@dataclass
class Readings:
    """What one runtime read: labels, the texts it gave for them, and the milliseconds each line took."""

    labels: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def error_rate(self) -> float:
        """Character error rate: edits needed per character of the labels."""
        return character_error_rate(zip(self.labels, self.texts, strict=True))

    @property
    def lines_right(self) -> float:
        """Share of the lines read without an error."""
        return sum(map(str.__eq__, self.labels, self.texts)) / len(self.labels)

    @property
    def ms(self) -> float:
        """Milliseconds per line, the median."""
        return median(self.times)


def read_line(
    line: Line, runs: Mapping[str, Run], classes: list[str], rounds: int, readings: Mapping[str, Readings]
) -> None:
    """Read a line with every runtime and add what came of it to its `readings`.

    Each runtime runs once to give its reading and to warm up (plans are made per shape), then `rounds` times,
    in turn with the others, for its time.
    """
    tensor = preprocess(line.image)
    scores = {name: run(tensor) for name, run in runs.items()}
    times = milliseconds({name: partial(run, tensor) for name, run in runs.items()}, rounds)
    for name, reading in readings.items():
        reading.labels.append(line.text)
        reading.texts.append(decode(scores[name], classes))
        reading.times.append(times[name])
