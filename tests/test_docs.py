"""The documentation holds: its examples run, its links and files exist, the doctests of the package pass."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import pyq
from pyq.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted({name for _, name, _ in pkgutil.walk_packages(pyq.__path__, "pyq.")} - {"pyq._core"})
MODEL = """
<ir_version: 8, opset_import: ["": 17]>
model (float[N, 512] input) => (float[N, 10] output) {
    hidden = Gemm(input, first)
    active = Relu(hidden)
    output = Gemm(active, second)
}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the pages name: model.onnx and inputs/."""
    rng = np.random.default_rng(7)
    model = parser.parse_model(MODEL)
    for name, shape in {"first": (512, 64), "second": (64, 10)}.items():
        weights = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weights, name))
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "inputs").mkdir()
    for i in range(2):
        np.save(tmp_path / "inputs" / f"{i}.npy", rng.normal(size=(4, 512)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_in_the_readme(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    shown = re.search(r"relative error (0\.\d+)", capsys.readouterr().out)
    assert len(blocks) == 2 and shown and 0 < float(shown[1]) < 0.02
    assert (folder / "report.html").stat().st_size > 1000
    assert names["outputs"][0].shape == (64, 10)  # type: ignore[index]


def test_commands_in_the_readme(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^    pyq (.*)$", (ROOT / "README.md").read_text(), re.M)
    assert len(commands) >= 3
    for command in commands:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    files = re.findall(r"`((?:pyq|csrc|kernels|tests|bench|examples|docs)/[\w/.]+)`", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [file for file in files if not (ROOT / file).exists()]
    assert not missing


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda script: script.name)
def test_examples_run(script: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", ["pyq", *MODULES])
def test_doctests(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0
