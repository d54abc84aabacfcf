"""Model inputs from files: .npy and .npz arrays become the feeds that a session runs."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyq.errors import FormatError

if TYPE_CHECKING:
    from pyq.onnx.session import NodeArg

Feed = dict[str, np.ndarray]


def read_feeds(path: str | Path, inputs: Sequence[NodeArg]) -> list[Feed]:
    """Read model inputs from a file, or from every .npy and .npz file of a folder in name order.

    A .npz file holds one array per model input, by name; a .npy file is enough for a model with one input. An
    array may hold more samples along its first axis than the model takes at a time: where the model fixes its
    first dimension, the file is cut into as many feeds; otherwise it is one feed.

    Raises FormatError when a file is not what its name says, FileNotFoundError when there is none, and
    ValueError when arrays and inputs do not match.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".npy", ".npz"))
        if not files:
            raise FileNotFoundError(f"{path}: no .npy or .npz file in this folder")
    else:
        files = [path]
    return [feed for file in files for feed in _split(_read(file, inputs), inputs, file)]


def _read(file: Path, inputs: Sequence[NodeArg]) -> Feed:
    names = [value.name for value in inputs]
    if file.suffix not in (".npy", ".npz"):
        raise FormatError(f"{file}: expected a .npy or .npz file")
    try:
        loaded = np.load(file, allow_pickle=False)
        arrays = loaded if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(f"{file}: not a readable {file.suffix} file ({error})") from error
    if isinstance(arrays, np.ndarray):
        if len(names) != 1:
            raise ValueError(f"{file}: one array, but the model has the inputs {names}; use a .npz file")
        return {names[0]: arrays}
    if set(arrays) != set(names):
        raise ValueError(f"{file}: holds the arrays {sorted(arrays)}, but the model has the inputs {names}")
    return arrays


def _split(feed: Feed, inputs: Sequence[NodeArg], file: Path) -> list[Feed]:
    """Cut a feed along its first axis where the model fixes that axis to a smaller number."""
    counts = {_batches(feed[value.name], value, file) for value in inputs}
    if len(counts) > 1:
        raise ValueError(f"{file}: the arrays do not hold the same number of samples")
    (count,) = counts
    if count == 1:
        return [feed]
    parts = {name: np.split(array, count) for name, array in feed.items()}
    return [{name: arrays[i] for name, arrays in parts.items()} for i in range(count)]


def _batches(array: np.ndarray, value: NodeArg, file: Path) -> int:
    fixed = value.shape[0] if value.shape else None
    if not isinstance(fixed, int) or array.ndim == 0:
        return 1
    if fixed < 1 or array.shape[0] == 0 or array.shape[0] % fixed:
        samples = f"{value.name!r} holds {array.shape[0]} samples"
        raise ValueError(f"{file}: {samples}, but the model takes {fixed} at a time")
    return array.shape[0] // fixed
