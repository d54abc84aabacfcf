"""The shapes that are timed: matrix products (M, N, K), and convolutions of batch 1."""

from __future__ import annotations

from typing import TypeVar

from pyq.workloads import Conv, MatMul

Shape = TypeVar("Shape", MatMul, Conv)

SQUARES = [MatMul(n, n, n) for n in (64, 128, 256, 512, 1024, 2048)]
TRANSFORMER = [MatMul(m, n, k) for m in (1, 8, 32, 128, 512) for n, k in ((768, 768), (3072, 768), (768, 3072))]
LLM = [MatMul(1, 4096, 4096), MatMul(1, 11008, 4096), MatMul(1, 4096, 11008), MatMul(8, 4096, 4096)]

RESNET50 = [
    Conv(224, 3, 64, 7, 2),
    *(Conv(56, *channels) for channels in ((64, 64, 1), (64, 64, 3), (64, 256, 1), (256, 64, 1), (256, 128, 1))),
    *(Conv(56, *channels) for channels in ((128, 128, 3, 2), (256, 512, 1, 2))),
    *(Conv(28, *channels) for channels in ((128, 512, 1), (512, 128, 1), (128, 128, 3), (512, 256, 1))),
    *(Conv(28, *channels) for channels in ((256, 256, 3, 2), (512, 1024, 1, 2))),
    *(Conv(14, *channels) for channels in ((256, 1024, 1), (1024, 256, 1), (256, 256, 3), (1024, 512, 1))),
    *(Conv(14, *channels) for channels in ((512, 512, 3, 2), (1024, 2048, 1, 2))),
    *(Conv(7, *channels) for channels in ((512, 2048, 1), (2048, 512, 1), (512, 512, 3))),
]
"""Each different convolution of ResNet-50 (v1.5: the 3x3 strides), once."""

POINTWISE = [
    Conv(size, channels, filters, 1)
    for size, channels, filters in (
        (112, 32, 16),
        (112, 16, 96),
        (56, 96, 24),
        (56, 24, 144),
        (28, 144, 32),
        (28, 32, 192),
        (14, 192, 64),
        (14, 64, 384),
        (14, 96, 576),
        (7, 576, 160),
        (7, 160, 960),
        (7, 320, 1280),
    )
]
"""The 1x1 convolutions of MobileNetV2."""

DEPTHWISE = [
    Conv(size, channels, channels, kernel, stride, channels)
    for size, channels, kernel, stride in (
        (112, 32, 3, 1),
        (112, 96, 3, 2),
        (56, 144, 3, 1),
        (56, 144, 3, 2),
        (28, 192, 3, 1),
        (28, 192, 3, 2),
        (14, 384, 3, 1),
        (14, 576, 3, 1),
        (14, 576, 3, 2),
        (7, 960, 3, 1),
        (56, 144, 5, 2),
        (28, 240, 5, 1),
        (14, 480, 5, 1),
        (7, 1152, 5, 1),
    )
]
"""The depthwise convolutions of MobileNetV2 (3x3), and some of EfficientNet (5x5)."""

QUICK = {
    *("64x64x64", "256x256x256", "512x512x512", "1024x1024x1024", "1x4096x4096", "8x768x768"),
    *("128x3072x768", "128x768x3072"),
    *("7x7 s2 3-64 @224", "3x3 64-64 @56", "3x3 128-128 @28", "1x1 64-256 @56", "1x1 1024-256 @14", "3x3 512-512 @7"),
    *("1x1 96-24 @56", "1x1 64-384 @14"),
    *("dw 3x3 32 @112", "dw 3x3 s2 144 @56", "dw 3x3 576 @14", "dw 5x5 240 @28"),
}
"""Labels of the shapes that a quick run takes."""


def chosen(shapes: list[Shape], full: bool, only: str = "") -> list[Shape]:
    """All of `shapes`, or the quick selection; of these, those whose label contains `only`."""
    return [shape for shape in shapes if (full or only or shape.label in QUICK) and only in shape.label]
