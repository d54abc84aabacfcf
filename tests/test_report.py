"""Reports: figures in words, JSON that is JSON, and a page that is whole, escaped and self-contained."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from pyq.quantization.report import Figure, Report, Sample, environment
from pyq.quantization.verification import LayerResult

PNG = b"\x89PNG\r\n\x1a\n-not-shown-by-any-test"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """The texts and attributes of a page; fails when tags do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def figure(**values: float) -> Figure:
    return Figure("Time", {"float32": 8.0, "int8": 5.0, **values}, "float32", "int8", "ms")


def report(layers: int = 3) -> Report:
    """A report with hostile texts, infinite SQNR and one layer that is not exact."""
    rows = [
        LayerResult(i, f"n{i}", "Conv" if i % 3 else "MatMul", f"<b>t${i}</b>", 0, 100, 30.0 + i, 0.5, 0.1, i)
        for i in range(layers)
    ]
    rows += [LayerResult(layers, "none", "Add", "x", 0, 100, math.inf, 0.0, 0.1, 0)]
    rows += [LayerResult(layers + 1, "bad", "Mul", "y", 7, 100)]
    return Report(
        "<script>alert(1)</script> & model",
        [figure()],
        rows,
        {"out": 31.5},
        [Sample("cats & <dogs>", {"float32": "cats & <dogs>", "int8": "cots & <dgs>"}, PNG)],
        {"CPU": "a <fast> one"},
        ["the score falls by 0.1 > 0.01"],
    )


# ---- figures


@pytest.mark.parametrize(
    "unit, better, old, new, change, worse",
    [
        ("ms", "lower", 8, 5, "1.60x faster", False),
        ("ms", "lower", 5, 8, "1.60x slower", True),
        ("bytes", "lower", 12e6, 3e6, "4.00x smaller", False),
        ("%", "higher", 0.975, 0.95, "-2.50 %", True),
        ("%", "higher", 0.95, 0.975, "+2.50 %", False),
        ("", "lower", 0.001, 0.006, "+0.005", True),
        ("dB", "higher", 20, 20, "no change", False),
        ("ms", "lower", 0, 1, "+1 ms", True),
    ],
)
def test_change_in_words(unit: str, better: str, old: float, new: float, change: str, worse: bool) -> None:
    made = Figure("name", {"a": old, "b": new}, "a", "b", unit, better)  # type: ignore[arg-type]
    assert (made.change, made.worse) == (change, worse)


@pytest.mark.parametrize(
    "unit, value, text",
    [("bytes", 10_857_958, "10.86 MB"), ("bytes", 2500, "2.5 kB"), ("%", 0.0056, "0.56 %"), ("", 1 / 3, "0.3333")],
)
def test_values_as_text(unit: str, value: float, text: str) -> None:
    assert Figure("name", {"a": value}, "a", "a", unit).text(value) == text


def test_figures_check_their_arguments() -> None:
    with pytest.raises(ValueError, match=r"figure 'n' has the runs \['a'\], not 'b'"):
        Figure("n", {"a": 1}, "a", "b")
    with pytest.raises(ValueError, match="better: got 'more', allowed are 'lower', 'higher'"):
        Figure("n", {"a": 1}, "a", "a", better="more")  # type: ignore[arg-type]


# ---- the report


def test_ok_needs_exact_layers_and_no_problems() -> None:
    exact, differing = LayerResult(0, "n", "Conv", "t", 0, 9), LayerResult(0, "n", "Conv", "t", 1, 9)
    assert Report("m").ok and Report("m", layers=[exact]).ok
    assert not Report("m", layers=[exact, differing]).ok
    assert not Report("m", layers=[exact], problems=["slow"]).ok


def test_json_is_strict_and_complete(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report().to_json(path)
    data = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert data["ok"] is False and data["problems"] == ["the score falls by 0.1 > 0.01"]
    assert data["layers"][3]["sqnr"] == "inf" and data["layers"][4]["sqnr"] is None
    assert [layer["exact"] for layer in data["layers"]] == [True] * 4 + [False]
    assert data["figures"][0]["values"] == {"float32": 8.0, "int8": 5.0}
    assert data["samples"][0]["texts"]["int8"] == "cots & <dgs>"


def test_html_is_whole_and_escaped(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report().to_html(path)
    page = Page(path)
    assert "script" not in page.tags and "b>t" not in page.tags
    shown = ("<script>alert(1)</script> & model", "<b>t$0</b>", "a <fast> one", "1.60x faster", "30.0 dB", "7 of 100")
    for text in shown:
        assert text in page.text
    assert "1 of 5 int8 layers differ" in page.text and "the score falls by 0.1 > 0.01" in page.text


def test_html_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report().to_html(path)
    page = Page(path)
    assert not {"link", "script", "iframe"}.intersection(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset"):
            assert value is not None and value.startswith(("data:", "#")), value
    assert "@import" not in path.read_text() and not re.search(r"url\((?!#)", path.read_text())
    assert page.tags.count("svg") == 1
    (image,) = (value for name, value in page.attributes if name == "src")
    assert image is not None and b64decode(image.partition("base64,")[2]) == PNG


def test_differences_from_the_label_are_marked(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report().to_html(path)
    assert "c<mark>o</mark>ts &amp; &lt;d<mark>\u2038</mark>gs&gt;" in path.read_text(encoding="utf-8")


def test_colours_of_the_plot_come_from_the_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report().to_html(path)
    svg = re.search(r"<svg.*</svg>", path.read_text(encoding="utf-8"), re.DOTALL)
    assert svg is not None and "var(--series-0)" in svg[0] and not re.search(r"#0[0-9]0[0-9]0[0-9]", svg[0])


def test_the_same_report_gives_the_same_page(tmp_path: Path) -> None:
    for name in "ab":
        report(20).to_html(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_all_layers_unfold_only_when_there_are_more_than_shown(tmp_path: Path) -> None:
    for layers in (3, 40):
        report(layers).to_html(tmp_path / f"{layers}")
    assert "details" not in Page(tmp_path / "3").tags
    assert "All 42 layers" in Page(tmp_path / "40").text


def test_an_empty_report_is_a_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    Report("nothing yet").to_html(path)
    page = Page(path)
    assert "nothing yet" in page.text and "section" not in page.tags and "svg" not in page.tags


@pytest.mark.parametrize("write", [Report.to_html, Report.to_json])
def test_a_failed_write_leaves_the_old_file(write: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(report(), path)  # type: ignore[operator]
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "rich.table", None)
    with pytest.raises(ImportError, match=r"matplotlib: pip install 'pyq-int8\[report\]'"):
        report().to_html(tmp_path / "report.html")
    with pytest.raises(ImportError, match=r"rich: pip install 'pyq-int8\[cli\]'"):
        report().table()


def test_table_shows_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    made = report()
    made.figures.append(Figure("Size [kB]", {"int8": 1e3, "other": 2e3}, "other", "int8", "bytes"))
    Console(width=120).print(made.table())
    text = capsys.readouterr().out
    for part in ("float32", "int8", "other", "1.60x faster", "Size [kB]", "2.00x smaller", "<script>"):
        assert part in text


def test_environment_names_the_machine() -> None:
    facts = environment()
    assert facts["CPU"] and facts["Python"].count(".") == 2 and "NumPy" in facts
