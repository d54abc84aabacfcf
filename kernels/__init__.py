"""Numba kernels: the same panels, sums and bytes as the C kernels, compiled at run time.

`registry` lists the microkernels; `tile`, `gemm`, `depthwise` and others compile when imported (about fifteen
seconds once, then loaded from Numba's cache); `backend` is the door (`pyq.use_backend("numba")`).
"""
