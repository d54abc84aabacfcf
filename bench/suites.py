"""The task of a shape: who takes part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bench.peers import ort
from bench.processes import Worker
from bench.trained import TrainedConv, TrainedMatMul
from pyq.benchmark import Task
from pyq.workloads import (
    DISTRIBUTIONS,
    Conv,
    MatMul,
    conv_data,
    matmul_data,
    numpy_matmul,
    pyq_conv,
    pyq_matmul,
    task_of,
)


def own_task(shape: MatMul | Conv, seed: int, threads: int) -> Task:
    """float32 by ONNX Runtime and by NumPy, and pyq on weights of each distribution; all in this process."""
    distributions = ["trained"] if isinstance(shape, (TrainedMatMul, TrainedConv)) else DISTRIBUTIONS
    rng = np.random.default_rng(seed)
    if isinstance(shape, MatMul):
        floats = ort.float_matmul(matmul_data(shape, rng, distributions[0]), threads)
    else:
        floats = ort.float_conv(shape, conv_data(shape, rng, distributions[0]), threads)
    task = task_of(shape, seed, distributions)
    return replace(task, contenders=[floats, *task.contenders])


def peer_task(shape: MatMul | Conv, seed: int, distribution: str, workers: Sequence[Worker]) -> Task:
    """float32, pyq, and the libraries of `workers`, on the same data; pyq also on 7-bit activations.

    The wrong outputs of other libraries are counted; pyq and NumPy have to be right.
    """
    rng = np.random.default_rng(seed)
    if isinstance(shape, MatMul):
        data = matmul_data(shape, rng, distribution)
        contenders = [
            numpy_matmul(data),
            pyq_matmul("pyq u8s8", data),
            pyq_matmul("pyq u8s8 7-bit", matmul_data(shape, rng, distribution, amax=127), amax=127),
            pyq_matmul("pyq s8s8", data.signed()),
        ]
        others = [contender for worker in workers for contender in worker.prepare(shape, data)]
    else:
        image = conv_data(shape, rng, distribution)
        contenders = [
            pyq_conv("pyq u8s8", shape, image),
            pyq_conv("pyq u8s8 7-bit", shape, conv_data(shape, rng, distribution, amax=127), amax=127),
        ]
        others = [contender for worker in workers for contender in worker.prepare(shape, image)]
    return Task(shape.label, shape.macs, shape.bytes, seed, [*contenders, *others])
