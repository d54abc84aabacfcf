"""The tasks of each part of the benchmark: which shapes, and who takes part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from bench import ort
from bench.peers import conv_peers, matmul_peers
from bench.shapes import DEPTHWISE, LLM, POINTWISE, RESNET50, SQUARES, TRANSFORMER, chosen
from pyq.benchmark import Task
from pyq.workloads import DISTRIBUTIONS, Conv, MatMul, conv_data, conv_task, matmul_data, matmul_task

PARTS = ("gemm", "conv", "depthwise")
CONVOLUTIONS = {"conv": [*RESNET50, *POINTWISE], "depthwise": DEPTHWISE}


@dataclass(frozen=True)
class Options:
    """full: every shape, not the quick selection; only: text that the labels contain; distribution: of peers' weights.

    peers: beside other libraries, instead of beside float32 alone with weights of every distribution.
    """

    seed: int = 0
    threads: int = 1
    full: bool = False
    only: str = ""
    peers: bool = False
    distribution: str = DISTRIBUTIONS[0]


def tasks(part: str, options: Options) -> Iterator[Callable[[], Task]]:
    """What makes each task of a part; made one at a time, the data of all of them would fill the memory."""
    if part == "gemm":
        for matrix in chosen([*SQUARES, *TRANSFORMER, *LLM], options.full, options.only):
            yield partial(_matmul, matrix, options)
    else:
        for conv in chosen(CONVOLUTIONS[part], options.full, options.only):
            yield partial(_conv, conv, options)


def _matmul(shape: MatMul, options: Options) -> Task:
    if options.peers:
        return matmul_peers(shape, options.seed, options.distribution)
    data = matmul_data(shape, np.random.default_rng(options.seed), options.distribution)
    task = matmul_task(shape, options.seed)
    return replace(task, contenders=[ort.float_matmul(data, options.threads), *task.contenders])


def _conv(shape: Conv, options: Options) -> Task:
    if options.peers:
        return conv_peers(shape, options.seed, options.distribution)
    data = conv_data(shape, np.random.default_rng(options.seed), options.distribution)
    task = conv_task(shape, options.seed)
    return replace(task, contenders=[ort.float_conv(shape, data, options.threads), *task.contenders])
