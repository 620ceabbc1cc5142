"""Vectors of lanes for numba kernels: one value of this type is ``LANES`` float64 of as many independent cases.

numba compiles scalars and leaves vectors to LLVM's guess, which needs proof that arrays do not overlap and gives up
on long loop bodies. Here a kernel says what it means: ``get`` and ``put`` move a whole vector, ``+ - * /`` work on
vectors, and LLVM only picks the instructions (one 512-bit, two 256-bit or four 128-bit registers). Multiplications
and additions may be fused, nothing else is reordered.
"""

import operator
from collections.abc import Callable
from typing import Any, Final, cast

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES: Final = 8
"""Cases that travel together: eight float64 fill the widest registers of current processors."""
_FUSE: Final = ("contract",)
_VECTOR: Final = ir.VectorType(ir.DoubleType(), LANES)
_BITS: Final = ir.VectorType(ir.IntType(64), LANES)
_ALIGN: Final = 8
"""Alignment that may be relied on [bytes]: that of one number."""


class _LanesType(types.Type):
    """numba's name of a vector of lanes."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes{LANES}")


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    """A vector of lanes is an LLVM vector."""

    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _VECTOR)  # type: ignore[no-untyped-call]


_lanes: Final = _LanesType()


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """numba's decorator, with the arguments that callers see: those without the typing context."""
    return cast(Callable[..., Any], intrinsic(function))


def _define(operation: Callable[..., Any], instruction: str) -> None:
    """Give a Python operator its meaning for two vectors."""

    class Template(ConcreteTemplate):
        cases = (signature(_lanes, _lanes, _lanes),)  # type: ignore[no-untyped-call]

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args, flags=_FUSE)

    infer_global(operation)(Template)  # type: ignore[no-untyped-call]
    lower_builtin(operation, _LanesType, _LanesType)(lower)  # type: ignore[no-untyped-call]


_define(operator.add, "fadd")
_define(operator.iadd, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
_define(operator.truediv, "fdiv")


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to the vector that begins at ``index`` of a flat array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


@_intrinsic
def get(typing_context: Any, array: Any, index: Any) -> Any:
    """The vector that begins at ``index`` of a flat float64 array."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, sig.args[0], *args), align=_ALIGN)

    return _lanes(array, types.uintp), generate


@_intrinsic
def put(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a vector from ``index`` of a flat float64 array on."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, sig.args[0], *args[:2]), align=_ALIGN)
        return context.get_dummy_value()

    return types.void(array, types.uintp, _lanes), generate


@_intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """One number in every lane."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), args[0], ir.Constant(ir.IntType(32), 0))
        spread = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), spread)

    return _lanes(types.float64), generate


@_intrinsic
def root(typing_context: Any, value: Any) -> Any:
    """Square root of every lane."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        name = f"llvm.sqrt.v{LANES}f64"
        function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
        return builder.call(function, args)

    return _lanes(_lanes), generate


@_intrinsic
def larger(typing_context: Any, one: Any, other: Any) -> Any:
    """The larger of two vectors of non-negative numbers, lane by lane; NaN counts as larger than infinity.

    Non-negative float64 are ordered as their bits are, and the bits of NaN come last: unlike a comparison of floats,
    one of bits never loses a NaN.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = [builder.bitcast(value, _BITS) for value in args]
        return builder.select(builder.icmp_unsigned(">", *bits), *args)

    return _lanes(_lanes, _lanes), generate


@_intrinsic
def most(typing_context: Any, one: Any, other: Any) -> Any:
    """The larger of two vectors of numbers of either sign, lane by lane; none of them may be NaN."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return _lanes(_lanes, _lanes), generate


@_intrinsic
def pick(typing_context: Any, mask: Any, one: Any, other: Any) -> Any:
    """Lane by lane ``one`` where the mask is not zero, else ``other``."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        chosen = builder.fcmp_unordered("!=", args[0], ir.Constant(_VECTOR, [0.0] * LANES))
        return builder.select(chosen, args[1], args[2])

    return _lanes(_lanes, _lanes, _lanes), generate
