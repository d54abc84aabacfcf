"""Reads what the compiler made of a function: its loops, and whether they keep vectors on the stack."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

MULTIPLY_ADD = re.compile(r"v?pmadd|vpdp")
STACK_POINTER = re.compile(r"-?(?:0x[0-9a-f]+)?\(%rsp[,)]")
FRAME_POINTER = re.compile(r"-?(?:0x[0-9a-f]+)?\(%r[sb]p[,)]")
VECTOR = re.compile(r"%[xyz]mm\d")


@dataclass(frozen=True)
class Instruction:
    """address; text: as objdump prints it; target: of a jump within the function, otherwise None."""

    address: int
    text: str
    target: int | None


def functions(binary: Path) -> dict[str, list[Instruction]]:
    """The instructions of every function of an x86 object file or library, by name."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", "--section=.text", str(binary)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[Instruction]] = {}
    for line in listing.splitlines():
        if start := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            name = start[1]
            found[name] = []
        elif code := re.match(r"\s*([0-9a-f]+):\s*(\S.*)", line):
            jump = re.match(rf"j\w+\s+([0-9a-f]+) <{re.escape(name)}[+>]", code[2])
            found[name].append(Instruction(int(code[1], 16), code[2], int(jump[1], 16) if jump else None))
    return {name: _other(code, found) or code for name, code in found.items()}


def _other(code: list[Instruction], found: dict[str, list[Instruction]]) -> list[Instruction] | None:
    """The function that this one jumps to at once: a compiler may store equal functions only once."""
    alias = re.match(r"jmp\s+[0-9a-f]+ <([^+>]+)>", code[0].text) if code else None
    return found.get(alias[1]) if alias else None


def hot_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The innermost loops that multiply and add integer vectors: from the target of a backward jump to the jump."""
    spans = {(i.target, i.address) for i in code if i.target is not None and i.target <= i.address}
    innermost = [
        (first, last)
        for first, last in spans
        if not any((first, last) != (low, high) and first <= low and high <= last for low, high in spans)
    ]
    bodies = [[i for i in code if first <= i.address <= last] for first, last in sorted(innermost)]
    return [body for body in bodies if any(MULTIPLY_ADD.match(i.text) for i in body)]


def spills(code: list[Instruction], loop: list[Instruction]) -> list[str]:
    """The instructions of the loop that move a vector to or from the stack, or use one that lies there."""
    framed = any(re.match(r"mov\s+%rsp,%rbp", i.text) for i in code)  # otherwise %rbp is a register like any other
    stack = FRAME_POINTER if framed else STACK_POINTER
    return [i.text for i in loop if VECTOR.search(i.text) and stack.search(i.text)]
