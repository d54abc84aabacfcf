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

    Raises FileNotFoundError that says what to install.
    """
    return find_packaged(MODEL_FILE, MODEL_PACKAGE, "the demo's model")


def find_packaged(file: str, package: str, what: str) -> Path:
    """Return a file that is in the wheel of `package`, a name with "==" and a version.

    Raises FileNotFoundError that says what to install; it calls the file `what`. The package is looked up, never
    imported.
    """
    name = package.partition("==")[0]
    try:
        installed = files(name) or []
    except PackageNotFoundError:
        installed = []
    found = [Path(str(each.locate())) for each in installed if str(each) == file]
    if not found or not found[0].is_file():
        raise FileNotFoundError(
            f"{what} comes from the package {name}, which is not installed: pip install --no-deps {package}"
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
