"""Import this to let threadpoolctl see and limit pyq's threads, as it does those of BLAS and OpenMP.

Needs threadpoolctl, which pyq itself does not.

>>> import threadpoolctl
>>> with threadpoolctl.threadpool_limits({"pyq": 1}):
...     get_num_threads()
1
"""

from __future__ import annotations

import importlib

from threadpoolctl import LibController, register

from pyq.backends import available_backends
from pyq.config import get_num_threads, set_num_threads


class PyqController(LibController):
    """The thread pool of the extension ``pyq._core`` (csrc/threads.c)."""

    user_api = "pyq"
    internal_api = "pyq"
    filename_prefixes = ("_core.abi3",)
    check_symbols = ("pyq_get_num_threads", "pyq_set_num_threads")

    def get_num_threads(self) -> int:
        """Threads that a kernel may use."""
        return get_num_threads()

    def set_num_threads(self, num_threads: int) -> None:
        """Limit them."""
        set_num_threads(num_threads)

    def get_version(self) -> str:
        """The version of pyq."""
        from pyq import __version__

        return __version__


register(PyqController)
if "c" in available_backends():
    importlib.import_module("pyq._core")  # threadpoolctl looks for libraries that are loaded
