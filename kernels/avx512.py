"""AVX-512 VNNI microkernels: the 16 columns of a row are one vector of sums. The machinery is `microkernel`'s.

    QUADS32, and the other quads    1 step    for each row vpbroadcastd, vpdpbusd: 64 products
    QUADS32, of two panels          1 step    for each row vpbroadcastd, 2 vpdpbusd: 128 products

and for each step a load of its weights, which all rows share. Zen 4 has one such multiply a cycle, or two of the half
vectors of narrow panels: 64 products a cycle; Intel's servers have two: 128. A sum waits for the one before it for 4
(Zen) to 5 cycles (Intel), so that few rows take several steps at once.

Exact: `vpdpbusd`, the form that does not saturate, adds four products of unsigned and signed bytes in 32 bits, modulo
2^32. Nothing has to be proved about the weights: those packed for this instruction set are all QUADS32; the other quads
are the same bytes, in weights that were packed elsewhere.
"""

from __future__ import annotations

from pyq.panels import GROUP_SIZE, NR, QUADS32

from .llvm import I32X16, load
from .registry import NARROW, PAIR
from .turn import Instructions, Part, Turn

QUAD = Part(
    (0,),
    """
        vpbroadcastd ({row},{offset0}), {quad}
        vpdpbusd {w0}, {quad}, {acc0}""",
)

QUAD_OF_TWO = Part((0, 1), QUAD.text + "\n        vpdpbusd {w1}, {quad}, {acc1}")

CHAINS = {1: 4, 2: 4, 3: 2}


INSTRUCTIONS = Instructions(
    I32X16,
    {
        **{(layout, NR): Turn(1, [QUAD], load, CHAINS) for layout in (QUADS32, *GROUP_SIZE)},
        (QUADS32, NARROW): Turn(1, [QUAD], load),
        (QUADS32, PAIR): Turn(1, [QUAD_OF_TWO], load, {1: 4, 2: 2}),
    },
    lambda _builder: {},
)
