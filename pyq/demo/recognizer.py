"""What surrounds the text-recognition network: image to tensor, scores to text, and how well it read."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

HEIGHT = 48
WIDTH_STEP = 64
SMALLEST_WIDTH = 320


def preprocess(image: np.ndarray) -> np.ndarray:
    """Turn an RGB image, uint8 [h, w, 3], into the network's input: float32 [1, 3, 48, width], BGR, -1 to 1.

    As PaddleOCR does it: height 48, aspect ratio kept, padded on the right with 0. The width is a multiple of
    64, so that lines of about the same length share one shape, and with it one plan.

    >>> preprocess(np.full((24, 170, 3), 255, np.uint8)).shape
    (1, 3, 48, 384)
    """
    height, width = image.shape[:2]
    scaled = max(1, round(width * HEIGHT / height))
    resized = Image.fromarray(image).resize((scaled, HEIGHT), Image.Resampling.BILINEAR)
    padded = max(SMALLEST_WIDTH, -(-scaled // WIDTH_STEP) * WIDTH_STEP)
    tensor = np.zeros((1, 3, HEIGHT, padded), np.float32)
    bgr = np.asarray(resized, np.float32)[:, :, ::-1].transpose(2, 0, 1)
    tensor[0, :, :, :scaled] = (bgr / 255 - 0.5) / 0.5
    return tensor


def alphabet(character: str) -> list[str]:
    """Return the text of every class, from the model's metadata `character`: blank first, space last.

    >>> alphabet("a\\nb")
    ['', 'a', 'b', ' ']
    """
    return ["", *character.split("\n"), " "]


def decode(scores: np.ndarray, classes: list[str]) -> str:
    """Greedy CTC decoding of scores [1, time, class]: best class per step, repeats merged, blanks dropped.

    Spaces read in the margins are not part of the text.

    Graves et al., Connectionist Temporal Classification, ICML 2006, section 3.2 (best path decoding).

    >>> decode(np.eye(3)[[[1, 1, 0, 1, 2]]], ["", "a", "b"])
    'aab'
    """
    best = scores[0].argmax(axis=-1)
    starts = np.flatnonzero(np.diff(best, prepend=-1))
    return "".join(classes[index] for index in best[starts]).strip()


def edit_distance(a: str, b: str) -> int:
    """Return the Levenshtein distance: fewest insertions, deletions and substitutions from `a` to `b`.

    >>> edit_distance("kitten", "sitting")
    3
    """
    previous = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        current = [i]
        for j, right in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (left != right)))
        previous = current
    return previous[-1]


def character_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Return the edits needed over all (label, text read) pairs, per character of the labels.

    >>> character_error_rate([("abcd", "abed"), ("efgh", "efgh")])
    0.125
    """
    pairs = list(pairs)
    return sum(edit_distance(label, read) for label, read in pairs) / sum(len(label) for label, _ in pairs)
