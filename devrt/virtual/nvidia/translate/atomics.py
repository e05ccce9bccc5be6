"""Atomic operations in global, shared and generic memory: lane after lane, the lowest first."""

from __future__ import annotations

from devrt.compiler.sass.instruction import Address, Instruction, Operand, Reg
from devrt.virtual.memory import Access
from devrt.virtual.nvidia.translate.layout import KIND, WINDOW
from devrt.virtual.nvidia.translate.memory import address, marking
from devrt.virtual.nvidia.translate.operands import outcomes
from devrt.virtual.nvidia.translate.writer import LANES, NotTranslated, Rule, Writer, named

RULES: dict[str, Rule] = {}

_NEED = (Access.VALID | Access.WRITE | Access.DIRTY).value
_GLOBAL, _SHARED, _GENERIC = 0, 1, 2
_SPACE = {"ATOMG": _GLOBAL, "RED": _GLOBAL, "ATOMS": _SHARED, "ATOM": _GENERIC}
_TYPES = {"F32": "f32", "F64": "f64", "F16X2": "f16x2", "F16": "f16x2", "BF16X2": "bf16x2", "BF16": "bf16x2",
          "U64": "u64", "S64": "s64", "64": "u64", "S32": "s32"}
_OPERATIONS = {"ADD": "add", "AND": "and", "OR": "or", "XOR": "xor", "EXCH": "xchg", "INC": "uinc_wrap", "DEC": "udec_wrap"}


@named(RULES, "ATOMG", "ATOM", "ATOMS", "RED", "REDG")
def atomic(w: Writer, i: Instruction) -> None:
    space = _SPACE.get(i.op, _GLOBAL)
    a = next(o.value for o in i.srcs if isinstance(o.value, Address))
    data = [o for o in i.srcs if isinstance(o.value, Reg)]
    name, kind = operation(i)
    width = 64 if kind.endswith("64") else 32
    t, e = w.vec(f"i{width}"), f"i{width}"

    def number(o: Operand) -> str:
        return w.word64(o) if width == 64 else w.word(o)
    at = address(w, a, space != _SHARED)
    value = "splat (i32 1)" if "POPC" in i.mods else number(data[-1])  # .POPC.INC counts the lanes of an address together
    compare = number(data[0]) if name == "cmpxchg" else "zeroinitializer"
    function = f"atomic_{name}_{kind}"
    w.helpers["atomic_host"] = _HOST
    w.helpers[function] = _text(function, name, kind, e)
    marks = 0 if space == _SHARED else Access.TOLD if i.op.startswith("RED") else Access.POLLED | Access.TOLD
    with marking(w, int(marks)):
        old = w.call(t, function, ("ptr", "%c"), (w.vec("i64"), at), (t, value), (t, compare), ("i32", w.lanes()),
                     ("i32", str(space)), ("ptr", "%ok"))
    w.check()
    if "CAST" in i.mods:  # whether it was stored
        same = w.op(f"icmp eq {t} {old}, {compare}")
        old = w.op(f"zext {w.vec('i1')} {same} to {t}")
        for o in outcomes(i):
            w.write_pred(o, same)
    elif i.op == "ATOM":  # whether it was done: shared memory is reached here, too
        for o in outcomes(i):
            w.write_pred(o, w.const("i1", -1))
    out = [o for o in i.dsts if isinstance(o.value, Reg) and o not in outcomes(i)]
    if out:
        if width == 64:
            w.write64(out[0], old)
        else:
            w.write(out[0], old)


def operation(i: Instruction) -> tuple[str, str]:
    """(LLVM's operation, type) of an atomic: u32, s32, u64, s64, f32, ftz32, f64, f16x2, bf16x2."""
    mods = {m.upper() for m in i.mods}
    kind = next((k for m, k in _TYPES.items() if m in mods), "u32")
    if kind == "f32" and "FTZ" in mods:
        kind = "ftz32"
    if mods & {"CAS", "CAST"}:
        return "cmpxchg", kind
    for which in ("MIN", "MAX"):
        if which in mods:
            if kind[0] not in "us":
                raise NotTranslated(str(i))
            return ("u" if kind[0] == "u" else "") + which.lower(), kind
    name = next((n for m, n in _OPERATIONS.items() if m in mods), "")
    if not name:
        raise NotTranslated(str(i))
    return ("fadd" if name == "add" and kind[0] not in "us" else name), kind


_HOST = f"""
; host address of %n bytes for an atomic, 0 after noting why there is none
define internal i64 @atomic_host(ptr %c, i64 %va, i64 %n, i32 %space, i32 %lane) noinline {{
entry:
  %low = sub i64 %n, 1
  %off = and i64 %va, %low
  %even = icmp eq i64 %off, 0
  br i1 %even, label %where, label %crooked
where:
  %window = call i64 @get_shared_window(ptr %c)
  %in = sub i64 %va, %window
  %inside = icmp ult i64 %in, {WINDOW}
  %known = icmp ne i64 %window, 0
  %mapped = and i1 %inside, %known
  %generic = icmp eq i32 %space, {_GENERIC}
  %through = and i1 %mapped, %generic
  %own = icmp eq i32 %space, {_SHARED}
  %shared = or i1 %own, %through
  br i1 %shared, label %near, label %far
near:
  %at = select i1 %own, i64 %va, i64 %in
  %size = call i64 @get_shared_bytes(ptr %c)
  %end = add i64 %at, %n
  %fits = icmp ule i64 %end, %size
  %base = call i64 @get_shared(ptr %c)
  %hs = add i64 %base, %at
  br i1 %fits, label %done, label %outside
far:
  %hg = call i64 @host(ptr %c, i64 %va, i64 {_NEED}, i32 %lane)
  br label %done
done:
  %h = phi i64 [ %hs, %near ], [ %hg, %far ]
  ret i64 %h
crooked:
  br label %bad
outside:
  br label %bad
bad:
  %kind = phi i32 [ {KIND["misaligned"]}, %crooked ], [ {KIND["outside shared memory"]}, %outside ]
  call void @set_kind(ptr %c, i32 %kind)
  call void @set_va(ptr %c, i64 %va)
  call void @set_lane(ptr %c, i32 %lane)
  ret i64 0
}}
"""

_FLUSH = """
  %{0}.bits = bitcast float {1} to i32
  %{0}.exp = and i32 %{0}.bits, 2139095040
  %{0}.tiny = icmp eq i32 %{0}.exp, 0
  %{0}.sign = and i32 %{0}.bits, -2147483648
  %{0}.kept = select i1 %{0}.tiny, i32 %{0}.sign, i32 %{0}.bits
  %{0} = bitcast i32 %{0}.kept to float
"""
_SUMS = {
    "f32": "  %f = bitcast i32 %seen to float\n  %g = bitcast i32 %x to float\n  %s = fadd float %f, %g\n"
           "  %new = bitcast float %s to i32\n",
    "ftz32": "  %f0 = bitcast i32 %seen to float\n  %g0 = bitcast i32 %x to float\n" + _FLUSH.format("f", "%f0")
             + _FLUSH.format("g", "%g0") + "  %s0 = fadd float %f, %g\n" + _FLUSH.format("s", "%s0")
             + "  %new = bitcast float %s to i32\n",
    "f64": "  %f = bitcast i64 %seen to double\n  %g = bitcast i64 %x to double\n  %s = fadd double %f, %g\n"
           "  %new = bitcast double %s to i64\n",
    "f16x2": "  %f = bitcast i32 %seen to <2 x half>\n  %g = bitcast i32 %x to <2 x half>\n  %s = fadd <2 x half> %f, %g\n"
             "  %new = bitcast <2 x half> %s to i32\n",
    # The sum in float, rounded to nearest even; a quiet NaN where it is none.
    "bf16x2": """  %f16 = bitcast i32 %seen to <2 x i16>
  %g16 = bitcast i32 %x to <2 x i16>
  %f32 = zext <2 x i16> %f16 to <2 x i32>
  %g32 = zext <2 x i16> %g16 to <2 x i32>
  %fs = shl <2 x i32> %f32, splat (i32 16)
  %gs = shl <2 x i32> %g32, splat (i32 16)
  %f = bitcast <2 x i32> %fs to <2 x float>
  %g = bitcast <2 x i32> %gs to <2 x float>
  %s = fadd <2 x float> %f, %g
  %raw = bitcast <2 x float> %s to <2 x i32>
  %high = lshr <2 x i32> %raw, splat (i32 16)
  %odd = and <2 x i32> %high, splat (i32 1)
  %half = add <2 x i32> %odd, splat (i32 32767)
  %sum = add <2 x i32> %raw, %half
  %near = lshr <2 x i32> %sum, splat (i32 16)
  %nan = fcmp uno <2 x float> %s, %s
  %word = select <2 x i1> %nan, <2 x i32> splat (i32 32767), <2 x i32> %near
  %r16 = trunc <2 x i32> %word to <2 x i16>
  %new = bitcast <2 x i16> %r16 to i32
""",
}


def _text(function: str, name: str, kind: str, e: str) -> str:
    """The function that does one atomic operation lane by lane."""
    t, size = f"<{LANES} x {e}>", int(e[1:]) // 8
    if name == "cmpxchg":
        body = (f"  %pair = cmpxchg ptr %p, {e} %k, {e} %x seq_cst seq_cst\n"
                f"  %old = extractvalue {{ {e}, i1 }} %pair, 0\n  br label %next")
    elif name == "fadd":
        body = (f"  %first = load atomic {e}, ptr %p monotonic, align {size}\n  br label %again\nagain:\n"
                f"  %seen = phi {e} [ %first, %go ], [ %now, %again ]\n{_SUMS[kind]}"
                f"  %pair = cmpxchg ptr %p, {e} %seen, {e} %new seq_cst seq_cst\n  %now = extractvalue {{ {e}, i1 }} %pair, 0\n"
                f"  %did = extractvalue {{ {e}, i1 }} %pair, 1\n  br i1 %did, label %added, label %again\nadded:\n"
                f"  %old = or {e} %seen, 0\n  br label %next")
    else:
        body = f"  %old = atomicrmw {name} ptr %p, {e} %x seq_cst\n  br label %next"
    end = "added" if name == "fadd" else "go"
    return f"""
define internal {t} @{function}(ptr %c, <{LANES} x i64> %va, {t} %v, {t} %e, i32 %exec, i32 %space, ptr %ok) noinline {{
entry:
  br label %head
head:
  %left = phi i32 [ %exec, %entry ], [ %left2, %next ]
  %acc = phi {t} [ zeroinitializer, %entry ], [ %acc2, %next ]
  %none = icmp eq i32 %left, 0
  %good = load i8, ptr %ok
  %fault = icmp eq i8 %good, 0
  %end = or i1 %none, %fault
  br i1 %end, label %out, label %lane
lane:
  %n = call i32 @first(i32 %left)
  %a = extractelement <{LANES} x i64> %va, i32 %n
  %x = extractelement {t} %v, i32 %n
  %k = extractelement {t} %e, i32 %n
  %h = call i64 @atomic_host(ptr %c, i64 %a, i64 {size}, i32 %space, i32 %n)
  %there = icmp ne i64 %h, 0
  br i1 %there, label %go, label %bad
go:
  %p = inttoptr i64 %h to ptr
{body}
bad:
  store i8 0, ptr %ok
  br label %next
next:
  %r = phi {e} [ %old, %{end} ], [ 0, %bad ]
  %acc2 = insertelement {t} %acc, {e} %r, i32 %n
  %m1 = sub i32 %left, 1
  %left2 = and i32 %left, %m1
  br label %head
out:
  ret {t} %acc
}}
"""
