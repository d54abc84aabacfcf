"""The same bytes on every backend and instruction set, and the same as on the day they were first made.

The hashes come from the reference: `python tests/golden.py reference`. Only a deliberate change of the numerics may
change them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from golden import CASES, digest

import pyq
from pyq._core import lib
from pyq.backends import ISA_NAMES

PROGRAM = Path(__file__).with_name("golden.py")

HASHES = {
    "matmul_integer u8 s8": "3f61e896b6de57653282542e36e239c42f36a312c81393b3964113dea630ed1d",
    "matmul_integer s8 u8": "6f4db2ff9e8c4038b5438d48190e30ef4709e9cb7e1227e01de4db9f85f7ef92",
    "matmul_integer proven": "2e471ffb460b3920b5c3288774af5a59fba041202726d959d65a9a2bfffabdbd",
    "matmul to float32": "8bbf82012dc89181ba07f0fc70e43f08857b87cf7527774cc9a02b1bf758a574",
    "matmul to uint8, relu": "92c081bdab27e8110125f78e0d0cc5a017d3af9b5c96e693e65948504d7d14bc",
    "conv 3x3": "1ff65b95eeeba04e6903f02311819881fd15dc4e8dc178ff885da1b5d49bc1cd",
    "conv stem to int8": "4b5b60b642e6ed5d1f48d43d96e5fc4e9649e20b55336ae850691aa04dde67eb",
    "conv grouped": "bc465234e072ee63ac01ff79cb6007a55289a210fb8fb6926251aac2ef4cdf86",
    "conv depthwise": "6ba1ef9a220376257de0b97ea98f016ac52979646bb433d1ce0577c448039539",
    "conv 1-D": "67129e3d97148b3cf634cf2c238228d11513f717d983087b35701733b436ded2",
    "conv 3-D": "2ae6685ff4b992c27457e329e311b3760db21566a789be5034f2967b8bb872cd",
    "conv_transpose 4x4": "559ad29dde630829882a09ae2183a3a4f66ba2c3e0a8dcf49814379e0f43d336",
    "conv_transpose grouped": "a9982995323ea9c6ab61e8b467371f6d23f60c3609e3807ff848e32199f4ae3a",
    "conv_integer dilated": "4acc559f8ea3da107051508e19993147a459d549b585ef3b3660fdc65b20a56e",
    "requantize uint8": "745eee929f8812b2d99c78f965c8d4bc1e59932af18db70f25f5f5526b870334",
    "requantize float32": "5dbab7979171bc334403fa74f74cc9798e6bcbd4e838dc806cbb7f5c2908efee",
    "quantize": "64e3c0540f2506e660bf7d7a585ee669e4706acaffa84ed777daf405d6089c5a",
    "dequantize": "177b55ff3b4be92e579e4b27e5deb0a4d9e864a3d895149effbc35f6b8350bea",
    "add": "71296ea01813e824359dab4956938ac248b6e99aaddf4bde579679d44d3198d1",
    "mul": "6b509dfb4176e14ff1d67bf93317ded730afa3fc477d905bfeab8561fb8ad496",
    "div": "8f28f3232c299e6b13625f6ed98ae2a4eaf94f755f3c6f03058308603cd713f2",
    "hardswish": "2accabd46c926c63a6c11e0d8f91e179df23174edc1639764c6d462c3d451ec2",
    "average pool": "ba66016ac71e6f02e06c7f790ca6098e1752d6470f539b47274a0c737797ed03",
    "softmax": "c1c1cd77132878ab244b543192f7c0eb5057ce59a6aead2c6bc293f47bead9d9",
}


@pytest.fixture(params=range(lib.pyq_isa_detected() + 1), ids=lambda isa: ISA_NAMES[isa])
def isa(request: pytest.FixtureRequest) -> Iterator[int]:
    """Cap the C kernels at each instruction set that this CPU has."""
    before = lib.pyq_get_isa()
    assert lib.pyq_set_isa(request.param) == request.param
    yield request.param
    lib.pyq_set_isa(before)


@pytest.mark.parametrize("name", CASES)
def test_every_backend_gives_the_golden_bytes(name: str, backend: str) -> None:
    assert digest(name) == HASHES[name]


@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set_gives_the_golden_bytes(name: str, isa: int) -> None:
    with pyq.use_backend("c"):
        assert digest(name) == HASHES[name]


@pytest.mark.parametrize("backend_name", ["c", "numba"])
def test_a_process_capped_to_scalar_gives_the_golden_bytes(backend_name: str) -> None:
    environment = {**os.environ, "PYQ_ISA": "scalar"}
    command = [sys.executable, str(PROGRAM), backend_name]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == HASHES


def test_a_hash_tells_bytes_and_types_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for result in (
        np.zeros(4, np.uint8),
        np.zeros(4, np.int8),
        np.zeros((2, 2), np.uint8),
        np.eye(4, 1, dtype=np.uint8),
    ):
        monkeypatch.setitem(CASES, "changed", lambda result=result: result)
        digests.add(digest("changed"))
    assert len(digests) == 4
