"""Benchmarks: ``make bench``, or ``python -m bench --help``."""

import os

# OpenBLAS reads this when NumPy is imported: its idle threads then sleep at once (after 2**4 cycles) instead of
# spinning on the cores that the next contender needs.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
