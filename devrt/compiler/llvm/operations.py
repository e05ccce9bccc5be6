"""LIR's arithmetic as LLVM IR: one line an operation.

Each entry takes (emitter, dtype, LLVM type, uniform, operands) and returns the name of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType

if TYPE_CHECKING:
    from devrt.compiler.llvm.emit import Emitter

Emit = Callable[..., str]


def _plain(name: str) -> Emit:
    return lambda e, d, t, u, *a: e.op(f"{name} {t} {', '.join(a)}")


def _compare(predicate: str) -> Emit:
    return lambda e, d, t, u, a, b: e.op(f"fcmp {predicate} {t} {a}, {b}" if d.is_float else
                                         f"icmp {_signed(predicate, d)} {t} {a}, {b}")


def _signed(predicate: str, d: DType) -> str:
    return predicate if predicate in ("eq", "ne") else ("s" if d.kind == "int" else "u") + predicate


def _canon(e: Emitter, d: DType, t: str, u: bool, a: str) -> str:
    """On the bits: to LLVM every NaN is as good as another, and as floats it drops a select between sqrt(x) and NaN."""
    i = dt.unsigned_of(d.bits)
    it = e.type(i, u)
    infinity = ((1 << d.exponent) - 1) << d.mantissa
    bits = e.op(f"bitcast {t} {a} to {it}")
    magnitude = e.op(f"and {it} {bits}, {e.const(i, u, (1 << (d.bits - 1)) - 1)}")
    nan = e.op(f"icmp ugt {it} {magnitude}, {e.const(i, u, infinity)}")
    quiet = e.const(i, u, infinity | 1 << (d.mantissa - 1))
    chosen = e.op(f"select {'i1' if u else e.vec('i1')} {nan}, {it} {quiet}, {it} {bits}")
    return e.op(f"bitcast {it} {chosen} to {t}")


def _divide(name: str) -> Emit:
    """LIR's total division: LLVM's is undefined for x/0 and MIN/-1, so those lanes divide by 1 and are patched."""
    def emit(e: Emitter, d: DType, t: str, u: bool, a: str, b: str) -> str:
        c = "i1" if u else e.vec("i1")
        op = ("s" if d.kind == "int" else "u") + name
        if u and b.isdigit() and int(b) > 0:
            return e.op(f"{op} {t} {a}, {b}")
        zero, one = e.const(d, u, 0), e.const(d, u, 1)
        nought = e.op(f"icmp eq {t} {b}, {zero}")
        risky = nought
        if d.kind == "int":
            least = e.op(f"icmp eq {t} {a}, {e.const(d, u, d.min)}")
            minus = e.op(f"icmp eq {t} {b}, {e.const(d, u, -1)}")
            risky = e.op(f"or {c} {nought}, {e.op(f'and {c} {least}, {minus}')}")
        safe = e.op(f"select {c} {risky}, {t} {one}, {t} {b}")
        q = e.op(f"{op} {t} {a}, {safe}")  # MIN / 1 is MIN and MIN rem 1 is 0: as LIR wants
        return e.op(f"select {c} {nought}, {t} {zero if name == 'div' else a}, {t} {q}")
    return emit


def _shift(name: str) -> Emit:
    def emit(e: Emitter, d: DType, t: str, u: bool, a: str, b: str) -> str:
        arithmetic = name == "shr" and d.kind == "int"
        op = "shl" if name == "shl" else "ashr" if arithmetic else "lshr"
        number = b if b.isdigit() else b[b.index(" ", 7) + 1:-1] if b.startswith("splat") else ""
        if number.isdigit() and int(number) < d.bits:
            return e.op(f"{op} {t} {a}, {b}")
        c = "i1" if u else e.vec("i1")
        fits = e.op(f"icmp ult {t} {b}, {e.const(d, u, d.bits)}")
        if arithmetic:
            return e.op(f"ashr {t} {a}, {e.op(f'select {c} {fits}, {t} {b}, {t} {e.const(d, u, d.bits - 1)}')}")
        safe = e.op(f"select {c} {fits}, {t} {b}, {t} {e.const(d, u, 0)}")
        return e.op(f"select {c} {fits}, {t} {e.op(f'{op} {t} {a}, {safe}')}, {t} {e.const(d, u, 0)}")
    return emit


def _mulhi(e: Emitter, d: DType, t: str, u: bool, a: str, b: str) -> str:
    wide = f"i{2 * d.bits}" if u else e.vec(f"i{2 * d.bits}")
    ext = "sext" if d.kind == "int" else "zext"
    product = e.op(f"mul {wide} {e.op(f'{ext} {t} {a} to {wide}')}, {e.op(f'{ext} {t} {b} to {wide}')}")
    bits = str(d.bits) if u else f"splat (i{2 * d.bits} {d.bits})"
    return e.op(f"trunc {wide} {e.op(f'lshr {wide} {product}, {bits}')} to {t}")


def _extreme(name: str) -> Emit:
    def emit(e: Emitter, d: DType, t: str, u: bool, a: str, b: str) -> str:
        if d.kind == "bool":
            return e.op(f"{'or' if name == 'max' else 'and'} {t} {a}, {b}")
        return e.intrinsic(("s" if d.kind == "int" else "u") + name, d, u, a, b)
    return emit


def _call(name: str) -> Emit:
    return lambda e, d, t, u, *a: e.intrinsic(name, d, u, *a)


FLOAT: dict[str, Emit] = {
    "add": _plain("fadd"), "sub": _plain("fsub"), "mul": _plain("fmul"), "div": _plain("fdiv"), "neg": _plain("fneg"),
    "fma": _call("fma"), "sqrt": _call("sqrt"), "abs": _call("fabs"), "floor": _call("floor"),
    "max": _call("maximum"), "min": _call("minimum"), "canon": _canon,
    "lt": _compare("olt"), "le": _compare("ole"), "eq": _compare("oeq"), "ne": _compare("une"),
}
INT: dict[str, Emit] = {
    "add": _plain("add"), "sub": _plain("sub"), "mul": _plain("mul"), "mulhi": _mulhi,
    "and": _plain("and"), "or": _plain("or"), "xor": _plain("xor"), "shl": _shift("shl"), "shr": _shift("shr"),
    "div": _divide("div"), "rem": _divide("rem"), "max": _extreme("max"), "min": _extreme("min"),
    "neg": lambda e, d, t, u, a: e.op(f"sub {t} {e.const(d, u, 0)}, {a}"),
    "not": lambda e, d, t, u, a: e.op(f"xor {t} {a}, {e.const(d, u, -1 if d.kind == 'int' else d.max)}"),
    "abs": lambda e, d, t, u, a: a if d.kind == "uint" else e.call(
        t, f"llvm.abs.{e.suffix(d, u)}", (t, a), ("i1 immarg", "false")),
    "lt": _compare("lt"), "le": _compare("le"), "eq": _compare("eq"), "ne": _compare("ne"),
}
