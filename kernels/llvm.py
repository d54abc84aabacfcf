"""What kernels made of LLVM instructions share: types, vectors in memory, inline assembly with named operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, TypeAlias

from llvmlite import binding, ir
from numba.core import cgutils

binding.initialize_native_asmparser()

I8, I16, I32, I64, I128 = (ir.IntType(bits) for bits in (8, 16, 32, 64, 128))
I8X16, I16X16, I32X8, I32X16 = (ir.VectorType(t, n) for t, n in ((I8, 16), (I16, 16), (I32, 8), (I32, 16)))

Builder: TypeAlias = ir.IRBuilder
Value: TypeAlias = Any  # an ir.Value; llvmlite has no types

REGISTERS = {I32X8: "x", I32X16: "v"}
"""Where inline assembly has vectors: in the 16 registers of AVX2, the 32 of AVX-512. All else is in general ones."""


class _Operand(int):
    """Number of an operand of inline assembly; `{name:x}` is the lower half of a vector."""

    def __format__(self, modifier: str) -> str:
        return f"${{{int(self)}:{modifier}}}" if modifier else f"${int(self)}"


def assemble(
    builder: Builder,
    text: str,
    changed: Mapping[str, Value],
    inputs: Mapping[str, Value],
    made: Sequence[str] = (),
    vector: ir.Type = I32X8,
) -> list[Value]:
    """The vectors `changed`, as they are after the instructions, and those that these have `made`: of type `vector`.

    Of `inputs` the text may use as many as it likes. What else it names is a temporary: an output that nobody reads.
    """
    names = {name for _, name, _, _ in Formatter().parse(text) if name}
    used = [name for name in inputs if name in names]
    results = [*changed, *made]
    outputs = [*results, *sorted(names - {*results, *used})]
    before = [f"{name} before" for name in changed]
    numbers = {name: _Operand(i) for i, name in enumerate([*outputs, *before, *used])}
    arguments = [*changed.values(), *(inputs[name] for name in used)]
    written = [f"=&{REGISTERS[vector]}"] * len(outputs)
    read = [REGISTERS.get(value.type, "r") for value in arguments[len(changed) :]]
    constraints = ",".join([*written, *map(str, range(len(changed))), *read, "~{memory}"])
    several = len(outputs) > 1  # LLVM has no structures of one
    returned = ir.LiteralStructType([vector] * len(outputs)) if several else vector
    kind = ir.FunctionType(returned, [value.type for value in arguments])
    assembly = ir.InlineAsm(kind, text.format(**numbers).strip(), constraints, side_effect=True)
    after = builder.call(assembly, arguments)
    return [builder.extract_value(after, i) for i in range(len(results))] if several else [after]


def load(builder: Builder, pointer: Value, kind: ir.Type, index: int = 0) -> Value:
    """Vector number `index`, counted from a pointer, at any alignment."""
    vectors = builder.bitcast(pointer, kind.as_pointer())
    return builder.load(builder.gep(vectors, [I64(index)]), align=1)


def store(builder: Builder, vector: Value, pointer: Value) -> None:
    """Store a vector at any alignment."""
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()), align=1)


def splat(builder: Builder, value: Value, count: int) -> Value:
    """A vector of `count` times the same value."""
    undefined = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    single = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(I32, count), [0] * count))


PIECES = (8, 4, 2, 1)
"""Bytes that are moved at once where fewer than 16 are there: what has no masks in AVX2."""


def load_first(builder: Builder, pointer: Value, kind: ir.Type, length: Value) -> Value:
    """A vector of 16, of which only the first `length` (i32, below 16) elements are read."""
    if kind.element != I8:
        arguments = [pointer, I32(1), _first(builder, kind, length), ir.Constant(kind, None)]
        return _masked(builder, "load", kind, kind, arguments)
    bits = cgutils.alloca_once_value(builder, I128(0))
    left = cgutils.alloca_once_value(builder, length)
    for size in reversed(PIECES):
        with _if_part(builder, length, size):
            builder.store(builder.sub(builder.load(left), I32(size)), left)
            piece = _piece(builder, pointer, builder.load(left), size)
            shifted = builder.shl(builder.load(bits), I128(8 * size))
            builder.store(builder.or_(shifted, builder.zext(builder.load(piece, align=1), I128)), bits)
    return builder.bitcast(builder.load(bits), kind)


def store_first(builder: Builder, vector: Value, pointer: Value, length: Value) -> None:
    """Store the first `length` (i32, below 16) elements of a vector of 16, and touch no others."""
    kind = vector.type
    if kind.element != I8:
        _masked(builder, "store", kind, ir.VoidType(), [vector, pointer, I32(1), _first(builder, kind, length)])
        return
    bits = cgutils.alloca_once_value(builder, builder.bitcast(vector, I128))
    done = cgutils.alloca_once_value(builder, I32(0))
    for size in PIECES:
        with _if_part(builder, length, size):
            piece = _piece(builder, pointer, builder.load(done), size)
            builder.store(builder.trunc(builder.load(bits), piece.type.pointee), piece, align=1)
            builder.store(builder.lshr(builder.load(bits), I128(8 * size)), bits)
            builder.store(builder.add(builder.load(done), I32(size)), done)


def _if_part(builder: Builder, length: Value, size: int) -> Any:
    return builder.if_then(builder.icmp_unsigned("!=", builder.and_(length, I32(size)), I32(0)))


def _piece(builder: Builder, pointer: Value, index: Value, size: int) -> Value:
    return builder.bitcast(builder.gep(pointer, [index]), ir.IntType(8 * size).as_pointer())


def _first(builder: Builder, kind: ir.Type, length: Value) -> Value:
    """The mask of the first elements."""
    numbers = ir.Constant(ir.VectorType(I32, kind.count), list(range(kind.count)))
    return builder.icmp_unsigned("<", numbers, splat(builder, length, kind.count))


def _masked(builder: Builder, operation: str, kind: ir.Type, result: ir.Type, arguments: list[Value]) -> Value:
    """Call one of the intrinsics of LLVM for vectors in memory, of elements of 32 bits."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    name = f"llvm.masked.{operation}.v{kind.count}{'i32' if kind.element == I32 else 'f32'}.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)
