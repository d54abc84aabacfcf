"""Runs C functions of the extension on an x86 CPU that may have more, or less, than the one of this machine.

Bochs emulates it, within a process. A function sees the memory of that process at its own addresses, but only the
extension, a stack and the arrays that its call names, page by page: whatever else it touches is a page fault, and an
instruction that the CPU lacks an invalid opcode. There is no libc.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from disassembly import functions
from guarded import fatal_signal

from pyq import _core

INVALID_OPCODE, PAGE_FAULT = 6, 14  # vectors
SSE_STATE, AVX_STATE, AVX512_STATE = 0x03, 0x07, 0xE7  # XCR0: what the operating system saves

# bochscpu always takes the same CPU model, and its wheel asks for names of a newer glibc than its tag promises. Both
# are symbols, which a library that was loaded before can define.
SHIM = """
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
void *(*create_model)(void *);
void *_Z23create_corei3_cnl_cpuidP8BX_CPU_C(void *cpu) { return create_model(cpu); }
unsigned long long __isoc23_strtoull(const char *s, char **end, int base) { return strtoull(s, end, base); }
int __isoc23_sscanf(const char *s, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int count = vsscanf(s, format, arguments);
    va_end(arguments);
    return count;
}
"""

ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
STACK_SIZE = 1 << 16
TABLES, FRAMES = 0x100000, 0x10000000  # physical addresses: of the page tables, and of the first page of memory
CODE, DATA = (0x10, 0x209B), (0x18, 0x0C93)  # selector and attributes of the segments
OSFXSR, OSXMMEXCPT, OSXSAVE = 1 << 9, 1 << 10, 1 << 18  # CR4: what the operating system supports


class Fault(Exception):
    """An exception of the emulated CPU; vector: its number."""

    def __init__(self, vector: int, address: int) -> None:
        super().__init__(f"vector {vector} at {address:#x}")
        self.vector = vector


def on_cpu(model: str, work: Callable[[Cpu], object]) -> None:
    """Do `work` in a forked child, with a CPU that Bochs calls `model`; a process has but one. Fails if `work` does."""
    shim()  # compiled once, for all children

    def child() -> None:
        try:
            work(Cpu(model))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os.abort()

    assert fatal_signal(child) == 0, f"on {model}: the traceback is in the captured stderr"


@cache
def shim() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as directory:
        source, library = Path(directory, "shim.c"), Path(directory, "shim.so")
        source.write_text(SHIM)
        # C11: in later standards strtoull is itself __isoc23_strtoull.
        command = [os.environ.get("CC", "cc"), "-std=c11", "-shared", "-fPIC", "-o", library, source]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def extension_regions() -> list[tuple[int, int]]:
    """Start and size of each readable part of the extension in memory; the first starts where it was loaded."""
    pattern = rf"^(\w+)-(\w+) r.* {re.escape(_core.__file__)}$"
    found = re.findall(pattern, Path("/proc/self/maps").read_text(), re.MULTILINE)
    return [(int(start, 16), int(end, 16) - int(start, 16)) for start, end in found]


@cache
def address(function: str) -> int:
    """Of a function of the extension, exported or not."""
    return extension_regions()[0][0] + functions(Path(_core.__file__))[function][0].address


class Cpu:
    """The one of this process, which is from then on good for nothing else; see `on_cpu`."""

    def __init__(self, model: str) -> None:
        loaded = shim()
        import bochscpu.cpu
        import bochscpu.memory

        name = f"create_{model}_cpuid"
        factory = getattr(ctypes.CDLL(bochscpu._bochscpu.__file__), f"_Z{len(name)}{name}P8BX_CPU_C")
        ctypes.c_void_p.in_dll(loaded, "create_model").value = ctypes.cast(factory, ctypes.c_void_p).value
        self._bochs = bochscpu
        self._session = bochscpu.Session()
        self._stack = np.zeros(STACK_SIZE, np.uint8)
        self._return = np.array([0xF4], np.uint8)  # hlt
        self._frames: dict[int, int] = {}

    def call(
        self,
        function: int,
        *arguments: int | np.ndarray,
        reached: tuple[np.ndarray, ...] = (),
        xcr0: int = AVX512_STATE,
    ) -> int:
        """What the C function at this address returns, given up to six integers and addresses of arrays.

        reached: arrays that it may access too, by addresses within the others. Raises Fault.
        """
        arrays = [a for a in (*arguments, *reached, self._stack, self._return) if isinstance(a, np.ndarray)]
        tables = self._bochs.memory.PageMapLevel4Table()  # they exist for as long as this object does
        self._map(tables, extension_regions() + [(a.ctypes.data, a.nbytes) for a in arrays])
        self._session.cpu.state = self._entry(function, arguments, xcr0)
        faults: list[Fault] = []

        def stop_at_fault(session: Any, _: int, vector: Any, error: int) -> None:
            faults.append(Fault(int(vector), session.cpu.rip))
            session.stop()

        hook = self._bochs.Hook()
        hook.exception = stop_at_fault
        hook.hlt = lambda session, _: session.stop()
        self._session.run([hook])
        if faults:
            raise faults[0]
        return int(self._session.cpu.state.rax)

    def _map(self, tables: Any, regions: list[tuple[int, int]]) -> None:
        """Fill page tables with these regions, start and size. A page always is at the same physical address.

        Bochs keeps the instructions that it has decoded, and knows them by their physical addresses.
        """
        size, insert = mmap.PAGESIZE, self._bochs.memory.page_insert
        for page in {page for start, length in regions for page in range(start & -size, start + length, size)}:
            frame = self._frames.setdefault(page, FRAMES + len(self._frames) * size)
            insert(frame, page)
            tables.insert(page, frame, 1)
        for table, frame in tables.commit(TABLES):
            insert(frame, table)

    def _entry(self, function: int, arguments: tuple[int | np.ndarray, ...], xcr0: int) -> Any:
        """The registers in 64-bit mode where a function begins."""

        def segment(selector: int, attributes: int, base: int = 0) -> Any:
            made = self._bochs.Segment()
            made.present, made.selector, made.attr, made.base, made.limit = True, selector, attributes, base, 0xFFFFFFFF
            return made

        state = self._bochs.State()
        self._bochs.cpu.set_long_mode(state)
        state.cr3, state.cr4, state.xcr0 = TABLES, state.cr4 | OSFXSR | OSXMMEXCPT | OSXSAVE, xcr0
        state.mxcsr, state.mxcsr_mask, state.rflags = 0x1F80, 0xFFFF, 2
        state.cs = segment(*CODE)
        state.ds = state.ss = state.es = state.gs = segment(*DATA)
        state.fs = segment(*DATA, self._stack.ctypes.data)  # for the stack protector, whose word is at its bottom
        for register, value in zip(ARGUMENTS[: len(arguments)], arguments, strict=True):
            setattr(state, register, value.ctypes.data if isinstance(value, np.ndarray) else value)
        top = (self._stack.ctypes.data + STACK_SIZE - 64) // 64 * 64 - 8  # aligned as by a call
        ctypes.c_uint64.from_address(top).value = self._return.ctypes.data
        state.rsp, state.rip = top, function
        return state
