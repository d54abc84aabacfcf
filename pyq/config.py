"""What runs here: kernels, instruction set, threads."""

from __future__ import annotations

import importlib.util
import os
from typing import Any, NamedTuple

import numpy as np

from pyq.backends import ISA_NAMES, available_backends, current_backend
from pyq.panels import LAYOUT_NAMES

OPERATION_NAMES = ("gemm", "depthwise", "requantize", "gemm_requantize", "gemm_sums")


class Kernel(NamedTuple):
    """One row of the registry (csrc/kernels.def, or its twin in kernels/).

    name, operation ("gemm", "depthwise", "requantize", or the first and the last at once: "gemm_requantize", and
    "gemm_sums" for int32 and float32), backend ("c" or "numba"), isa; layout of its weights ("" where there is but one,
    or none); mr x nr the tile; p how many quads share one 16-bit sum; runnable whether this CPU can run it.
    """

    name: str
    operation: str
    backend: str
    isa: str
    layout: str
    mr: int
    nr: int
    p: int
    runnable: bool


def _c_kernels() -> list[Kernel]:
    from pyq._core import ffi, lib

    rows = []
    for index in range(lib.pyq_kernel_count()):
        k = lib.pyq_kernels[index]
        layout = LAYOUT_NAMES[k.layout] if k.layout >= 0 else ""
        runnable = bool(lib.pyq_can_run(ffi.addressof(k)))
        name, operation = ffi.string(k.name).decode(), OPERATION_NAMES[k.operation]
        rows.append(Kernel(name, operation, "c", ISA_NAMES[k.isa], layout, k.mr, k.nr, k.p, runnable))
    return rows


def kernels_available() -> list[Kernel]:
    """Every kernel of the registry, C rows first, then Numba's if Numba is installed.

    >>> import pyq
    >>> any(k.operation == "gemm" for k in pyq.kernels_available()) or "c" not in pyq.available_backends()
    True
    """
    found = available_backends()
    rows = _c_kernels() if "c" in found else []
    if "numba" in found:
        from pyq.kernels.registry import kernels

        rows += [Kernel(**record) for record in kernels()]
    return rows


def isa() -> str:
    """The instruction set that the current backend uses: the best one detected, or lower if PYQ_ISA caps it."""
    name = current_backend().name
    if name == "c":
        from pyq._core import lib

        return ISA_NAMES[lib.pyq_get_isa()]
    if name == "numba":
        from pyq.kernels.host import default_isa

        return ISA_NAMES[default_isa()]
    return ISA_NAMES[0]


def get_num_threads() -> int:
    """Threads that a C kernel may use: :func:`set_num_threads`, else PYQ_NUM_THREADS, else the CPUs of this process."""
    if "c" not in available_backends():
        return 1
    from pyq._core import lib

    return int(lib.pyq_get_num_threads())


def set_num_threads(n: int) -> None:
    """Use up to ``n`` threads, 1 to 256, from now on, process-wide. Results never depend on it.

    Raises TypeError when ``n`` is not an integer and ValueError when it is out of range.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"n: expected an integer, got {type(n).__name__}")
    if not 1 <= n <= 256:
        raise ValueError(f"n: got {n}, expected 1 to 256 threads")
    if "c" in available_backends():
        from pyq._core import lib

        lib.pyq_set_num_threads(int(n))


def config() -> dict[str, Any]:
    """What :func:`show_config` prints, as a dictionary."""
    from pyq import __version__

    return {
        "pyq": __version__,
        "numpy": np.__version__,
        "backend": current_backend().name,
        "backends": list(available_backends()),
        "isa": isa(),
        "threads": get_num_threads(),
        "optional": {
            name: importlib.util.find_spec(name) is not None
            for name in ("numba", "onnx", "torch", "matplotlib", "rich")
        },
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("PYQ_")},
        "kernels": [k.name for k in _chosen_kernels()],
    }


def _chosen_kernels() -> list[Kernel]:
    """The rows that dispatch takes: of each layout, those of the best instruction set in force."""
    rows = [k for k in kernels_available() if k.backend == current_backend().name and k.runnable]
    limit = ISA_NAMES.index(isa())
    rows = [k for k in rows if ISA_NAMES.index(k.isa) <= limit]
    best = {
        (k.operation, k.layout): max(ISA_NAMES.index(r.isa) for r in rows if r[1] == k[1] and r[4] == k[4])
        for k in rows
    }
    return [k for k in rows if ISA_NAMES.index(k.isa) == best[k.operation, k.layout]]


def show_config() -> None:
    """Print version, backends, instruction set, threads and the kernels that dispatch takes here."""
    for key, value in config().items():
        if isinstance(value, dict):
            value = ", ".join(f"{k}={v}" for k, v in value.items()) or "none"
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        print(f"{key:12} {value}")
