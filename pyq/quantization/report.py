"""The report that comes with a quantized model: what was measured, float against int8.

A `Report` is plain data that is filled step by step. It shows itself as HTML (`to_html`), JSON (`to_json`)
and as a table for the terminal (`table`).
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyq.files import write_file
from pyq.quantization.verification import LayerResult

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One quantity, measured on several runs of a model.

    values: by the name of the run, such as "pyq float32" or "pyq int8". baseline, subject: the runs to
    compare. unit: "" for a plain number, "%" for a fraction of 1, "bytes", "ms", "dB". better: which way is
    good.

    >>> Figure("Time", {"float32": 8.0, "int8": 5.0}, "float32", "int8", unit="ms").change
    '1.60x faster'
    """

    name: str
    values: Mapping[str, float]
    baseline: str
    subject: str
    unit: str = ""
    better: Literal["lower", "higher"] = "lower"

    def __post_init__(self) -> None:
        for run in (self.baseline, self.subject):
            if run not in self.values:
                raise ValueError(f"values: figure {self.name!r} has the runs {list(self.values)}, not {run!r}")
        if self.better not in ("lower", "higher"):
            raise ValueError(f"better: got {self.better!r}, allowed are 'lower', 'higher'")

    @property
    def worse(self) -> bool:
        """Whether the subject is worse than the baseline."""
        gain = self.values[self.subject] - self.values[self.baseline]
        return gain > 0 if self.better == "lower" else gain < 0

    @property
    def change(self) -> str:
        """The subject against the baseline, in words: a ratio for time and size, else the difference."""
        old, new = self.values[self.baseline], self.values[self.subject]
        words = {"ms": ("faster", "slower"), "bytes": ("smaller", "larger")}.get(self.unit)
        if words and old > 0 and new > 0:
            return f"{max(old, new) / min(old, new):.2f}x {words[new > old]}"
        return "no change" if old == new else ("+" if new > old else "-") + self.text(abs(new - old))

    def text(self, value: float) -> str:
        """A value of this figure with its unit."""
        if self.unit == "bytes":
            return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"
        if self.unit == "%":
            return f"{100 * value:.2f} %"
        return f"{value:.4g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Sample:
    """One input, and what the runs made of it.

    label: the truth. texts: what each run answered, by the run's name. image: the input as a PNG file's
    bytes.
    """

    label: str
    texts: Mapping[str, str]
    image: bytes | None = None


@dataclass
class Report:
    """Everything known about a quantized model; append to the lists to add to it.

    title: name of the model. figures: accuracy, speed, size. layers: of `verification.verify`, worst first.
    outputs: SQNR in dB of each model output. samples: inputs with their results. facts: what was measured
    where and how. problems: sentences on what did not hold, such as a drop of accuracy beyond what was
    allowed.
    """

    title: str
    figures: list[Figure] = field(default_factory=list)
    layers: list[LayerResult] = field(default_factory=list)
    outputs: dict[str, float] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether every int8 layer gave the bytes of the integer reference."""
        return all(layer.exact for layer in self.layers)

    @property
    def ok(self) -> bool:
        """Whether every layer is exact and no problem was noted."""
        return self.exact and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-like data without the images; an infinite SQNR is the string "inf" or "-inf"."""
        return {
            "title": self.title,
            "ok": self.ok,
            "problems": self.problems,
            "figures": [{**asdict(figure), "change": figure.change} for figure in self.figures],
            "outputs": {name: _finite(value) for name, value in self.outputs.items()},
            "layers": [
                {**{key: _finite(value) for key, value in asdict(layer).items()}, "exact": layer.exact}
                for layer in self.layers
            ],
            "samples": [{"label": sample.label, "texts": dict(sample.texts)} for sample in self.samples],
            "facts": self.facts,
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict()` as a JSON file; `path` is replaced in one step."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        write_file(path, text.encode())

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained HTML file; `path` is replaced in one step. Needs matplotlib."""
        from pyq.quantization.report_html import render

        write_file(path, render(self).encode())

    def table(self) -> Table:
        """The figures as a table for `rich.console.Console().print`; ImportError without rich."""
        try:
            from rich.table import Table
            from rich.text import Text
        except ImportError as error:
            raise ImportError("a table needs rich: pip install 'pyq-int8[cli]'", name="rich") from error
        runs = self.runs()
        table = Table(title=Text(self.title))
        table.add_column("")
        for run in runs:
            table.add_column(Text(run), justify="right")
        table.add_column("change", justify="right")
        for figure in self.figures:
            cells = [figure.text(figure.values[run]) if run in figure.values else "" for run in runs]
            style = "yellow" if figure.worse else "green"
            table.add_row(Text(figure.name), *map(Text, cells), Text(figure.change, style=style))
        return table

    def runs(self) -> list[str]:
        """The names of all runs, in the order in which the figures have them."""
        return list(dict.fromkeys(run for figure in self.figures for run in figure.values))


def environment() -> dict[str, str]:
    """What a measurement depends on: CPU, operating system, and the versions of Python, pyq and NumPy."""
    facts = {"CPU": _cpu_name(), "System": f"{platform.system()} {platform.machine()}"}
    facts["Python"] = platform.python_version()
    for name, distribution in (("pyq", "pyq-int8"), ("NumPy", "numpy")):
        try:
            facts[name] = version(distribution)
        except PackageNotFoundError:  # run from a source tree that is not installed
            continue
    return facts


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and math.isinf(value) else value
