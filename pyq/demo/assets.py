"""Finds what the demo works on: the model, the fonts and the sentences, each from a package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

MODEL_PACKAGE = "rapidocr-onnxruntime==1.4.4"
MODEL_FILE = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
SENTENCES_PACKAGE = "vaderSentiment==3.3.2"
SENTENCES_FILE = "vaderSentiment-3.3.2.tar.gz"


def find_model() -> Path:
    """Return the text-recognition model PP-OCRv4 rec, as the wheel of rapidocr-onnxruntime ships it.

    Raises FileNotFoundError that says what to install. The package is looked up, never imported.
    """
    name = MODEL_PACKAGE.partition("==")[0]
    try:
        installed = files(name) or []
    except PackageNotFoundError:
        installed = []
    found = [Path(str(file.locate())) for file in installed if str(file) == MODEL_FILE]
    if not found or not found[0].is_file():
        raise FileNotFoundError(
            f"the demo's model comes from the package {name}, which is not installed: "
            f"pip install --no-deps {MODEL_PACKAGE}"
        )
    return found[0]


def find_fonts() -> Path:
    """Return the folder of TrueType fonts that the matplotlib wheel carries."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def find_sentences(folder: Path) -> Path:
    """Return the source distribution of vaderSentiment in `folder`.

    Raises FileNotFoundError that says how to get it.
    """
    path = folder / SENTENCES_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"the demo's sentences come from {path}, which is not there: "
            f"pip download --no-deps --no-binary vaderSentiment --dest {folder} {SENTENCES_PACKAGE}"
        )
    return path
