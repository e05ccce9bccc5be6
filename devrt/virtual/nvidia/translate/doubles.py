"""Float64 arithmetic and comparisons.

Directed rounding is the host's own: a function that sets the mode, computes by LLVM's constrained operations, and sets it back.
"""

from __future__ import annotations

from devrt.compiler.sass.instruction import Instruction
from devrt.virtual.nvidia.translate import rounding
from devrt.virtual.nvidia.translate.floats import set_predicates
from devrt.virtual.nvidia.translate.rounding import NEAREST
from devrt.virtual.nvidia.translate.writer import Rule, Writer, named

RULES: dict[str, Rule] = {}
_HOST = {"RZ": 0, "RN": 1, "RP": 2, "RM": 3}  # llvm.set.rounding


def arithmetic(w: Writer, name: str, how: str, *values: str) -> str:
    """fadd, fmul or fma of float64 in a mode."""
    if how == NEAREST:
        return w.intrinsic(name, "double", *values) if name == "fma" else \
            w.op(f"{name} {w.t('double')} {', '.join(values)}")
    return rounding.function(w, f"{name}.double.{how}", "double", ("double",) * len(values),
                             lambda inner, *a: _directed(inner, name, how, *a), *values)


def _directed(w: Writer, name: str, how: str, *values: str) -> str:
    t = w.t("double")
    suffix = "f64" if w.uniform else "v32f64"
    full = f"llvm.experimental.constrained.{name}.{suffix}"
    w.declared[full] = f"declare {t} @{full}({', '.join([t] * len(values))}, metadata, metadata)"
    w.declared["llvm.set.rounding"] = "declare void @llvm.set.rounding(i32)"
    w.line(f"call void @llvm.set.rounding(i32 {_HOST[how]}) strictfp")
    args = ", ".join(f"{t} {v}" for v in values)
    r = w.op(f"call {t} @{full}({args}, metadata !\"round.dynamic\", metadata !\"fpexcept.strict\") strictfp")
    w.line(f"call void @llvm.set.rounding(i32 {_HOST[NEAREST]}) strictfp")
    return r


@named(RULES, "DADD")
def dadd(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, "RM", "RP", "RZ")
    w.write_f64(i.dsts[0], arithmetic(w, "fadd", rounding.mode(i), *(w.f64(o) for o in i.srcs)))


@named(RULES, "DMUL")
def dmul(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, "RM", "RP", "RZ")
    w.write_f64(i.dsts[0], arithmetic(w, "fmul", rounding.mode(i), *(w.f64(o) for o in i.srcs)))


@named(RULES, "DFMA")
def dfma(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, "RM", "RP", "RZ")
    w.write_f64(i.dsts[0], arithmetic(w, "fma", rounding.mode(i), *(w.f64(o) for o in i.srcs)))


@named(RULES, "DSETP")
def dsetp(w: Writer, i: Instruction) -> None:
    """MIN and MAX: the first says that the result is the first operand, the second that both are NaN (ptxas then makes the second
    operand's NaN quiet)."""
    rounding.unknown(i, "MIN", "MAX", *rounding.COMPARE, *rounding.COMBINE)
    a, b = (w.f64(o) for o in i.srcs[:2])
    if "MIN" not in i.mods and "MAX" not in i.mods:
        set_predicates(w, i, rounding.compare(w, i, "double", a, b))
        return
    t, bit = w.t("double"), w.t("i1")
    nans = [w.op(f"fcmp uno {t} {x}, {x}") for x in (a, b)]
    raw = [w.cast(x, "double", "i64") for x in (a, b)]
    before = w.op(f"fcmp {'olt' if 'MIN' in i.mods else 'ogt'} {t} {a}, {b}")
    equal = w.op(f"fcmp oeq {t} {a}, {b}")
    zeros = w.op(f"icmp {'slt' if 'MIN' in i.mods else 'sgt'} {w.t('i64')} {raw[0]}, {raw[1]}")  # -0 is below +0
    first = w.op(f"or {bit} {before}, {w.op(f'and {bit} {equal}, {zeros}')}")
    first = w.op(f"and {bit} {w.op(f'or {bit} {first}, {nans[1]}')}, {rounding.inverse(w, nans[0])}")
    other = w.pred(i.srcs[2])
    w.write_pred(i.dsts[0], rounding.combined(w, i, first, other))
    w.write_pred(i.dsts[1], rounding.combined(w, i, w.op(f"and {bit} {nans[0]}, {nans[1]}"), other))
