"""A row of pixels as one value: fixed-width float32 vectors for numba kernels.

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
"""Pixels in a vector."""

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


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _FLOATS.as_pointer())


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """The vector array[index : index + LANES] of a one-dimensional contiguous float32 array; nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], args[0], args[1]), align=4)

    return lanes_type(array, types.intp), generate


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index : index + LANES] = value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, signature.args[0], args[0], args[1]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes_type), generate


@intrinsic
def store_integers(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index : index + LANES] = value, of a contiguous int32 array, for whole numbers that int32 holds."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), _INTEGERS.as_pointer())
        builder.store(builder.fptosi(args[2], _INTEGERS), pointer, align=4)
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


@intrinsic
def ramp(typingctx: Any) -> Any:
    """The vector 0, 1, 2, ..."""
    return lanes_type(), lambda context, builder, signature, args: ir.Constant(
        _FLOATS, [float(i) for i in range(LANES)]
    )


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


@intrinsic
def lane_sum(typingctx: Any, value: Any) -> Any:
    """Sum of the lanes, as a tree: always in the same order."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, width = args[0], LANES
        while width > 1:
            width //= 2
            indices = ir.VectorType(ir.IntType(32), width)
            nothing = ir.Constant(vector.type, ir.Undefined)
            low = builder.shuffle_vector(vector, nothing, ir.Constant(indices, list(range(width))))
            high = builder.shuffle_vector(vector, nothing, ir.Constant(indices, list(range(width, 2 * width))))
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, ir.IntType(32)(0))

    return types.float32(lanes_type), generate


@intrinsic
def _round(typingctx: Any, value: Any) -> Any:
    return lanes_type(lanes_type), lambda context, builder, signature, args: _call(
        builder, f"llvm.rint.v{LANES}f32", _FLOATS, *args
    )


@intrinsic
def _power_of_two(typingctx: Any, whole: Any) -> Any:
    """2^whole for whole numbers in -126..127: the number as the exponent bits of a float."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integers = builder.fptosi(args[0], _INTEGERS)
        biased = builder.add(integers, ir.Constant(_INTEGERS, [127] * LANES))
        return builder.bitcast(builder.shl(biased, ir.Constant(_INTEGERS, [23] * LANES)), _FLOATS)

    return lanes_type(lanes_type), generate


def _exp2_polynomial(degree: int) -> tuple[np.float32, ...]:
    """Coefficients of the polynomial through 2^x at the Chebyshev nodes of [-1/2, 1/2], constant first."""
    fit = np.polynomial.chebyshev.Chebyshev.interpolate(np.exp2, degree, domain=[-0.5, 0.5])
    return tuple(np.float32(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef)


_P0, _P1, _P2, _P3, _P4, _P5 = _exp2_polynomial(5)


_LOWEST_EXPONENT = np.float32(-126.0)


@kernel
def exp2(x: Lanes) -> Lanes:
    """2^x for x <= 127 with a relative error below 3e-7; below -126 it stays at 2^-126."""
    x = maximum(x, splat(_LOWEST_EXPONENT))
    whole = _round(x)
    part = x - whole
    polynomial = ((((_P5 * part + _P4) * part + _P3) * part + _P2) * part + _P1) * part + _P0
    return polynomial * _power_of_two(whole)
