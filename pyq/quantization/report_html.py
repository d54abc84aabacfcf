"""A `Report` as one HTML page that needs nothing beside itself: styles, plot and images are inside."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from html import escape
from typing import TYPE_CHECKING

from pyq.quantization.report_plot import sqnr_plot
from pyq.quantization.report_style import STYLE
from pyq.quantization.verification import LayerResult

if TYPE_CHECKING:
    from pyq.quantization.report import Figure, Report, Sample

WORST = 12
"""Layers shown at first; the others unfold."""

LAYER_HEADER = ("Layer", "Operator", "SQNR", "Largest error", "Scale", "Zero point", "Kernel = reference")


def render(report: Report) -> str:
    """The page; every text of the report is escaped. ImportError when there are layers, but no matplotlib."""
    sections = [
        _header(report),
        _cards(report.figures),
        _section("Measurements", _figures(report), report.figures),
        _section("Signal to noise, layer by layer", _layers(report), report.layers),
        _section("Samples", _samples(report.samples), report.samples),
        _section("Made with", _facts(report.facts), report.facts),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(report.title)} · pyq report</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _header(report: Report) -> str:
    count = len(report.layers)
    differing = sum(not layer.exact for layer in report.layers)
    verdicts = [(False, problem) for problem in report.problems]
    if differing:
        verdicts.append((False, f"{differing} of {count} int8 layers differ from the integer reference."))
    elif count:
        verdicts.append((True, f"Exact: all {count} int8 layers equal the integer reference, bit for bit."))
    lines = "".join(f'<p class="verdict {"good" if good else "bad"}">{escape(text)}</p>' for good, text in verdicts)
    kicker = '<p class="kicker">pyq · int8 quantization report</p>'
    return f"<header>{kicker}<h1>{escape(report.title)}</h1>{lines}</header>"


def _cards(figures: Sequence[Figure]) -> str:
    cards = "".join(
        f'<div class="card"><h3>{escape(figure.name)}</h3>'
        f'<p class="value">{escape(figure.text(figure.values[figure.subject]))}</p>'
        f'<p><span class="chip {"worse" if figure.worse else "good"}">{escape(figure.change)}</span></p>'
        f'<p class="note">{escape(figure.baseline)}: '
        f"{escape(figure.text(figure.values[figure.baseline]))}</p></div>"
        for figure in figures
    )
    return f'<div class="cards">{cards}</div>' if cards else ""


def _figures(report: Report) -> str:
    runs = report.runs()
    rows = (
        (
            escape(figure.name),
            *(_value(figure, run) for run in runs),
            escape(f"{figure.change} than {figure.baseline}")
            if figure.unit in ("ms", "bytes")
            else escape(f"{figure.change} against {figure.baseline}"),
        )
        for figure in report.figures
    )
    return _table(("", *runs, "int8 against float"), rows)


def _value(figure: Figure, run: str) -> str:
    if run not in figure.values:
        return '<span class="none">&ndash;</span>'
    text = escape(figure.text(figure.values[run]))
    return f"<b>{text}</b>" if run == figure.subject else text


def _layers(report: Report) -> str:
    outputs = ", ".join(f"{escape(name)} {_decibels(value)}" for name, value in report.outputs.items())
    note = f"<p>At the model's output: {outputs}.</p>" if outputs else ""
    rows = [_layer_row(layer) for layer in report.layers]
    table = f"<h3>Worst layers</h3>{_table(LAYER_HEADER, rows[:WORST], 'layers')}"
    if len(rows) > WORST:
        table += f"<details><summary>All {len(rows)} layers</summary>{_table(LAYER_HEADER, rows, 'layers')}</details>"
    return (
        "<p>SQNR is the power of the float signal over the power of the quantization error, in decibels: "
        f"6&nbsp;dB more is half the error. A layer carries the error of all layers before it.</p>{note}"
        f"<figure>{sqnr_plot(report.layers)}</figure>{table}"
    )


def _layer_row(layer: LayerResult) -> tuple[str, ...]:
    exact = "exact" if layer.exact else f"{layer.mismatches} of {layer.elements} differ"
    return (
        f"<code>{escape(layer.output)}</code>",
        escape(layer.op_type),
        _decibels(layer.sqnr),
        "" if layer.max_error is None else f"{layer.max_error:.4g}",
        "" if layer.scale is None else f"{layer.scale:.4g}",
        "" if layer.zero_point is None else str(layer.zero_point),
        f'<span class="chip {"good" if layer.exact else "bad"}">{exact}</span>',
    )


def _decibels(sqnr: float | None) -> str:
    if sqnr is None:
        return '<span class="none">&ndash;</span>'
    return f"{sqnr:.1f} dB" if math.isfinite(sqnr) else f"{'-' if sqnr < 0 else ''}&infin; dB"


def _samples(samples: Sequence[Sample]) -> str:
    runs = list(dict.fromkeys(run for sample in samples for run in sample.texts))
    rows = []
    for sample in samples:
        image = f'<img alt="" src="data:image/png;base64,{b64encode(sample.image).decode()}">' if sample.image else ""
        texts = [_marked(sample.texts[run], sample.label) if run in sample.texts else "" for run in runs]
        rows.append((f'{image}<div class="label">{escape(sample.label)}</div>', *texts))
    return _table(("Input and truth", *runs), rows, "samples")


def _marked(text: str, label: str) -> str:
    """The text with what differs from the label marked; an omission is a mark of its own."""
    parts = []
    for tag, start, stop, *_ in SequenceMatcher(None, text, label, autojunk=False).get_opcodes():
        part = escape(text[start:stop])
        parts.append(part if tag == "equal" else f"<mark>{part or '‸'}</mark>")
    return "".join(parts)


def _facts(facts: dict[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()) + "</dl>"


def _section(title: str, content: str, present: object) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if present else ""


def _table(header: Iterable[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already, under a header of plain text."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'
