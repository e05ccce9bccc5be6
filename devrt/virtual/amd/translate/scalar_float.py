"""Float arithmetic of RDNA 4's scalar unit. Source: "RDNA 4 ISA", scalar ALU operations."""

from __future__ import annotations

from collections.abc import Callable

from devrt.virtual.amd.isa.instruction import Instruction, Operand
from devrt.virtual.amd.isa.opcodes import bits
from devrt.virtual.amd.translate.writer import ORDERED, Rule, Writer, element, stem

NAMED: dict[str, Rule] = {}
_SUFFIX = {"f16": "f16", "f32": "f32"}
_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul"}
_CALLS = {"min_num": "minimumnum", "max_num": "maximumnum", "minimum": "minimum", "maximum": "maximum", "ceil": "ceil",
          "floor": "floor", "trunc": "trunc", "rndne": "roundeven"}


def _value(w: Writer, o: Operand) -> str:
    raw, t = w.scalar(o), element(o.type)
    if bits(o.type) == 16:
        raw = w.op(f"trunc i32 {raw} to i16")
    if t == f"i{bits(o.type)}":
        return raw
    return w.op(f"bitcast i{bits(o.type)} {raw} to {t}")


def _set(w: Writer, o: Operand, value: str, type: str) -> None:
    width = bits(type)
    raw = value if element(type) == f"i{width}" else w.op(f"bitcast {element(type)} {value} to i{width}")
    w.set_scalar(o, raw if width == 32 else w.op(f"zext i16 {raw} to i32"))


def _plain(compute: Callable[..., str]) -> Rule:
    def run(w: Writer, i: Instruction) -> None:
        out = i.destinations[0]
        _set(w, out, compute(w, out.type, *(_value(w, o) for o in i.sources if not o.dst)), out.type)
    return run


def _op(name: str) -> Callable[..., str]:
    return lambda w, type, a, b: w.op(f"{name} {element(type)} {a}, {b}")


def _call(name: str) -> Callable[..., str]:
    return lambda w, type, *a: w.call(element(type), f"llvm.{name}.{_SUFFIX[type]}", *((element(type), x) for x in a))


for _type in ("f16", "f32"):
    NAMED |= {f"s_{name}_{_type}": _plain(_op(word)) for name, word in _BINARY.items()}
    NAMED |= {f"s_{name}_{_type}": _plain(_call(word)) for name, word in _CALLS.items()}
NAMED |= dict.fromkeys(("s_fmaak_f32", "s_fmamk_f32"), _plain(_call("fma")))


def _fmac(w: Writer, i: Instruction) -> None:
    out = i.destinations[0]
    a, b = (_value(w, o) for o in i.sources if not o.dst)
    _set(w, out, _call("fma")(w, out.type, a, b, _value(w, out)), out.type)


NAMED |= dict.fromkeys(("s_fmac_f32", "s_fmac_f16"), _fmac)


def _convert(w: Writer, i: Instruction) -> None:
    out, o = i.destinations[0], i.sources[0]
    value, s, t = _value(w, o), element(o.type), element(out.type)
    if o.type.startswith("f") and out.type.startswith("f"):
        r = w.op(f"{'fpext' if bits(out.type) > bits(o.type) else 'fptrunc'} {s} {value} to {t}")
    elif o.type.startswith("f"):
        r = w.call(t, f"llvm.fpto{'si' if out.type == 'i32' else 'ui'}.sat.i32.{_SUFFIX[o.type]}", (s, value))
    else:
        r = w.op(f"{'si' if o.type == 'i32' else 'ui'}tofp {s} {value} to {t}")
    _set(w, out, r, out.type)


NAMED |= dict.fromkeys(("s_cvt_f32_i32", "s_cvt_f32_u32", "s_cvt_i32_f32", "s_cvt_u32_f32", "s_cvt_f16_f32", "s_cvt_f32_f16"),
                       _convert)


def _convert_high(w: Writer, i: Instruction) -> None:
    high = w.op(f"trunc i32 {w.op(f'lshr i32 {w.scalar(i.sources[0])}, 16')} to i16")
    _set(w, i.destinations[0], w.op(f"fpext half {w.op(f'bitcast i16 {high} to half')} to float"), "f32")


NAMED["s_cvt_hi_f32_f16"] = _convert_high


def _compare(w: Writer, i: Instruction) -> None:
    name, type = stem(i.mnemonic)
    a, b = (_value(w, o) for o in i.sources[:2])
    w.set_scc(w.op(f"fcmp {ORDERED[name.rpartition('_')[2]]} {element(type)} {a}, {b}"))


for _type in ("f16", "f32"):
    NAMED |= dict.fromkeys((f"s_cmp_{name}_{_type}" for name in ORDERED), _compare)
