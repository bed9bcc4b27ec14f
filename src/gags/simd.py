"""Sixteen pixels or Gaussians as one value: fixed-width float32 vectors for numba kernels.

Numba leaves vectorising to LLVM's loop vectoriser, which gives up (or gathers) where loops carry several arrays; and it
has no vector exponential. Here a ``Lanes`` value is an LLVM vector: ``a * b + c`` on it is one instruction a register,
whatever surrounds it. LLVM splits the vectors to what the processor has (AVX-512: one register, AVX2: two, NEON and
SSE: four).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils
from numba.extending import models, overload, register_model

# Any: numba's own type hints take an intrinsic's first parameter for an argument of its calls
intrinsic: Any = extending.intrinsic
kernel: Any = njit(cache=True)
"""Decorator: compiled at the first call (seconds); later processes load it from ``__pycache__`` beside the module, or
from ``NUMBA_CACHE_DIR``, or from the user's cache directory where the package is read-only."""
parallel_kernel: Any = njit(cache=True, parallel=True)
"""The same with ``prange`` loops on numba's threads."""

LANES = 16
"""Numbers in a vector. Blocks of 4 x 4 pixels in tiles of 64 x 16, 64 of them, hang on it (``rasterize``, ``range_bits``)."""

TAKERS = 256
"""Tasks that share work by ``take_next``: at least as many as there are threads; those that come late find nothing to do."""

Lanes = Any
"""LANES float32 values (in compiled code only)."""
Mask = Any
"""LANES booleans (in compiled code only)."""

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)
_RELAXED = ("contract", "nsz")
# lets LLVM fuse a * b + c; nothing that would change a result with the surroundings is allowed


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"Lanes{LANES}")


class _MaskType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"Mask{LANES}")


lanes_type = _LanesType()
mask_type = _MaskType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _FLOATS)


@register_model(_MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _BITS)


def _broadcast(builder: Any, value: Any) -> Any:
    vector = builder.insert_element(
        ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined), value, ir.IntType(32)(0)
    )
    return builder.shuffle_vector(
        vector, ir.Constant(vector.type, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    )


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(result, [a.type for a in args]), name
    )
    return builder.call(function, args)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, vector_type: Any = _FLOATS) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector_type.as_pointer())


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """The vector array[index : index + LANES] of a one-dimensional contiguous float32 array; nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], args[0], args[1]), align=4)

    return lanes_type(array, types.intp), generate


@intrinsic
def load_integers(typingctx: Any, array: Any, index: Any) -> Any:
    """The same of an int8 array, as float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], args[0], args[1], ir.VectorType(ir.IntType(8), LANES))
        return builder.sitofp(builder.load(place, align=1), _FLOATS)

    return lanes_type(array, types.intp), generate


@intrinsic
def load_splat(typingctx: Any, array: Any, index: Any) -> Any:
    """The vector with array[index] of a one-dimensional contiguous float32 array in every lane; nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return _broadcast(builder, builder.load(builder.gep(data, [args[1]])))

    return lanes_type(array, types.intp), generate


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index : index + LANES] = value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, signature.args[0], args[0], args[1]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes_type), generate


@intrinsic
def take_next(typingctx: Any, counter: Any) -> Any:
    """The number in an int64 array of one, which is counted up: threads that ask at once get different numbers.

    Work that threads take piece by piece ends at the same time on all of them, whatever the pieces cost and whatever else
    a core is doing; ``prange`` gives each thread its share beforehand.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.IntType(64)(1), "monotonic")

    return types.int64(counter), generate


@intrinsic
def prefetch(typingctx: Any, array: Any, row: Any) -> Any:
    """Ask memory for a row of a two-dimensional array that is read later: for its two ends, so that short rows come whole."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type, number = signature.args[0], ir.IntType(32)
        rows = context.make_array(array_type)(context, builder, args[0])
        last = builder.sub(builder.extract_value(rows.shape, 1), ir.IntType(64)(1))
        for column in (ir.IntType(64)(0), last):
            place = cgutils.get_item_pointer(context, builder, array_type, rows, [args[1], column])
            # to be read, into the fastest cache, as data
            _call(builder, "llvm.prefetch.p0", ir.VoidType(), place, number(0), number(3), number(1))
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def splat(typingctx: Any, value: Any) -> Any:
    """The vector with this float32 in every lane."""
    return lanes_type(types.float32), lambda context, builder, signature, args: _broadcast(builder, args[0])


def constant(*values: float) -> Any:
    """A function that returns the vector of these LANES numbers."""

    @intrinsic
    def function(typingctx: Any) -> Any:
        return lanes_type(), lambda context, builder, signature, args: ir.Constant(_FLOATS, [float(v) for v in values])

    return function


# numba compares an overload's signature with that of what it returns, annotations included: overloads have none
def _arithmetic(operation: Callable[..., Any], method: str) -> None:
    @intrinsic
    def vector_vector(typingctx: Any, a: Any, b: Any) -> Any:
        return lanes_type(lanes_type, lanes_type), lambda context, builder, signature, args: getattr(builder, method)(
            *args, flags=_RELAXED
        )

    @overload(operation)
    def implementation(a, b):  # type: ignore[no-untyped-def]
        if isinstance(a, _LanesType) and isinstance(b, _LanesType):
            return lambda a, b: vector_vector(a, b)  # noqa: PLW0108 (numba compiles Python functions, not intrinsics)
        if isinstance(a, _LanesType) and b == types.float32:
            return lambda a, b: vector_vector(a, splat(b))
        if a == types.float32 and isinstance(b, _LanesType):
            return lambda a, b: vector_vector(splat(a), b)
        return None


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


@intrinsic
def _greater(typingctx: Any, a: Any, b: Any) -> Any:
    return mask_type(lanes_type, lanes_type), lambda context, builder, signature, args: builder.fcmp_ordered(">", *args)


@intrinsic
def _both(typingctx: Any, a: Any, b: Any) -> Any:
    return mask_type(mask_type, mask_type), lambda context, builder, signature, args: builder.and_(*args)


@overload(operator.gt)
def _greater_overload(a, b):  # type: ignore[no-untyped-def]
    if isinstance(a, _LanesType):
        if isinstance(b, _LanesType):
            return lambda a, b: _greater(a, b)  # noqa: PLW0108 (numba compiles Python functions, not intrinsics)
        return lambda a, b: _greater(a, splat(b))
    return None


@overload(operator.and_)
def _both_overload(a, b):  # type: ignore[no-untyped-def]
    if isinstance(a, _MaskType):
        return lambda a, b: _both(a, b)  # noqa: PLW0108 (numba compiles Python functions, not intrinsics)
    return None


@intrinsic
def select(typingctx: Any, mask: Any, a: Any, b: Any) -> Any:
    """Lane by lane: a where the mask is set, else b."""
    return lanes_type(mask_type, lanes_type, lanes_type), lambda context, builder, signature, args: builder.select(
        *args
    )


@intrinsic
def any_lane(typingctx: Any, mask: Any) -> Any:
    """True where some lane of the mask is set."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(mask_type), generate


@intrinsic
def magnitude(typingctx: Any, value: Any) -> Any:
    """Absolute value."""
    return lanes_type(lanes_type), lambda context, builder, signature, args: _call(
        builder, f"llvm.fabs.v{LANES}f32", _FLOATS, *args
    )


@intrinsic
def negative(typingctx: Any, value: Any) -> Any:
    """The value with the other sign."""
    return lanes_type(lanes_type), lambda context, builder, signature, args: builder.fneg(*args)


@intrinsic
def multiply_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c in one instruction where there is one, even where a * b is also needed by itself."""
    return lanes_type(lanes_type, lanes_type, lanes_type), lambda context, builder, signature, args: _call(
        builder, f"llvm.fmuladd.v{LANES}f32", _FLOATS, *args
    )


def _of_one(name: str) -> Any:
    """An instruction on a vector or on one float. (math.floor and math.ceil are calls: around them a kernel puts all its
    vectors to memory.)"""

    @intrinsic
    def function(typingctx: Any, value: Any) -> Any:
        shape = f"v{LANES}f32" if isinstance(value, _LanesType) else f"f{value.bitwidth}"
        return value(value), lambda context, builder, signature, args: _call(
            builder, f"llvm.{name}.{shape}", args[0].type, *args
        )

    return function


square_root, floor, ceiling = _of_one("sqrt"), _of_one("floor"), _of_one("ceil")


@intrinsic
def minimum(typingctx: Any, a: Any, b: Any) -> Any:
    """Lane by lane the smaller of two vectors."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return lanes_type(lanes_type, lanes_type), generate


@intrinsic
def maximum(typingctx: Any, a: Any, b: Any) -> Any:
    """Lane by lane the larger of two vectors."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return lanes_type(lanes_type, lanes_type), generate


def _halves(builder: Any, vector: Any, width: int) -> tuple[Any, Any]:
    """The lower and the upper ``width`` lanes of a vector of twice as many."""
    nothing, indices = ir.Constant(vector.type, ir.Undefined), ir.VectorType(ir.IntType(32), width)
    low, high = (ir.Constant(indices, list(range(first, first + width))) for first in (0, width))
    return builder.shuffle_vector(vector, nothing, low), builder.shuffle_vector(vector, nothing, high)


@intrinsic
def lane_sum(typingctx: Any, value: Any) -> Any:
    """Sum of the lanes, as a tree: always in the same order."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, width = args[0], LANES
        while width > 1:
            width //= 2
            vector = builder.fadd(*_halves(builder, vector, width))
        return builder.extract_element(vector, ir.IntType(32)(0))

    return types.float32(lanes_type), generate


@intrinsic
def range_bits(typingctx: Any, start: Any, stop: Any) -> Any:
    """64 bits, 16 for lanes 0, 4, 8, 12 (the lowest), 16 for lanes 1, 5, 9, 13, and so on: those from ``start`` to before
    ``stop`` of any of the four lanes. The numbers are cut to whole ones in 0..16, stop >= start."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = ir.Constant(_INTEGERS, [1] * LANES)
        low, high = (builder.shl(one, builder.fptosi(value, _INTEGERS)) for value in args)
        bits, width = builder.sub(high, low), LANES
        while width > 4:
            width //= 2
            bits = builder.or_(*_halves(builder, bits, width))
        return builder.bitcast(builder.trunc(bits, ir.VectorType(ir.IntType(16), 4)), ir.IntType(64))

    return types.uint64(lanes_type, lanes_type), generate


@intrinsic
def lowest_bit(typingctx: Any, bits: Any) -> Any:
    """The place of the lowest bit that is set (of some)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "llvm.cttz.i64", ir.IntType(64), args[0], ir.IntType(1)(1))

    return types.int64(types.uint64), generate


def _exp2_polynomial(degree: int) -> list[float]:
    """Coefficients of the polynomial through 2^x at the Chebyshev nodes of [-1/2, 1/2], constant first."""
    fit = np.polynomial.chebyshev.Chebyshev.interpolate(np.exp2, degree, domain=[-0.5, 0.5])
    return [float(np.float32(c)) for c in fit.convert(kind=np.polynomial.Polynomial).coef]


_POLYNOMIAL = _exp2_polynomial(5)
_LOWEST_EXPONENT = -126.0


@intrinsic
def exp2(typingctx: Any, x: Any) -> Any:
    """2^x for x <= 127 with a relative error below 3e-7; below -126 it is 2^-126 or less."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # what is compiled for, as numba's cache has it too
        has_scaling = "+avx512dq" in context.codegen().magic_tuple()[2]
        x = args[0] if has_scaling else _at_least(builder, args[0], _LOWEST_EXPONENT)
        if has_scaling:
            part = _avx512(builder, "reduce", x, ir.IntType(32)(_NEAREST))
            whole = builder.fsub(x, part)
        else:
            whole = _call(builder, f"llvm.rint.v{LANES}f32", _FLOATS, x)
            part = builder.fsub(x, whole)
        power: Any = ir.Constant(_FLOATS, [_POLYNOMIAL[-1]] * LANES)
        for c in _POLYNOMIAL[-2::-1]:
            product = builder.fmul(power, part, flags=_RELAXED)
            power = builder.fadd(product, ir.Constant(_FLOATS, [c] * LANES), flags=_RELAXED)
        return _avx512(builder, "scalef", power, whole) if has_scaling else _scaled(builder, power, whole)

    return lanes_type(lanes_type), generate


_NEAREST = 8
"""Of ``vreduceps``: what is left of the nearest whole number, without exceptions."""


def _avx512(builder: Any, name: str, *args: Any) -> Any:
    """An instruction on all lanes, rounding as usual."""
    lanes, rounding = ir.IntType(LANES)(-1), ir.IntType(32)(4)
    return _call(
        builder,
        f"llvm.x86.avx512.mask.{name}.ps.512",
        _FLOATS,
        *args,
        ir.Constant(_FLOATS, ir.Undefined),
        lanes,
        rounding,
    )


def _at_least(builder: Any, value: Any, bound: float) -> Any:
    bounds = ir.Constant(_FLOATS, [bound] * LANES)
    return builder.select(builder.fcmp_ordered(">", value, bounds), value, bounds)


def _scaled(builder: Any, value: Any, whole: Any) -> Any:
    """value x 2^whole for whole numbers in -126..127: the number as the exponent bits of a float."""
    biased = builder.add(builder.fptosi(whole, _INTEGERS), ir.Constant(_INTEGERS, [127] * LANES))
    return builder.fmul(value, builder.bitcast(builder.shl(biased, ir.Constant(_INTEGERS, [23] * LANES)), _FLOATS))
