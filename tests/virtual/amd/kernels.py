"""LLVM IR kernels that make LLVM emit most kinds of instructions, for the tests of decoder and translator.

A kernel is (name, generations, IR of its parameters and body). `%i` is the work-item's index; bodies end in `ret void`.
"""

from __future__ import annotations

from collections.abc import Iterable

ALL = ("gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1201")
RDNA, CDNA = ALL[2:], ALL[:2]
RDNA3, RDNA4 = ("gfx1100",), ("gfx1201",)

HEADER = """
target triple = "amdgcn-amd-amdhsa"
@tile = internal addrspace(3) global [1024 x i32] poison, align 16
@table = internal addrspace(4) constant [4 x i32] [i32 3, i32 1, i32 4, i32 1], align 16
declare i32 @llvm.amdgcn.workitem.id.x()
define internal i32 @helper(i32 %a, ptr addrspace(5) %p) noinline {
  %v = load i32, ptr addrspace(5) %p
  %s = mul i32 %v, %a
  store i32 %s, ptr addrspace(5) %p
  ret i32 %s
}
define internal i32 @outer(i32 %a, ptr addrspace(5) %p) noinline {
  %v = call i32 @helper(i32 %a, ptr addrspace(5) %p)
  %w = call i32 @helper(i32 %v, ptr addrspace(5) %p)
  %x = add i32 %v, %w
  ret i32 %x
}
"""


def _body(*lines: str) -> str:
    return "\n".join(("  %i = call i32 @llvm.amdgcn.workitem.id.x()", *("  " + line for line in lines), "  ret void"))


def _float(kind: str) -> str:
    """Arithmetic of a float type on out[i], a[i], b[i], c[i], with modifiers that fold into operands."""
    t = {"f16": "half", "bf16": "bfloat", "f32": "float", "f64": "double"}[kind]
    lines = [f"%{p}p = getelementptr {t}, ptr addrspace(1) %{p}, i32 %i" for p in ("o", "a", "b", "c")]
    lines += [f"%v{p} = load {t}, ptr addrspace(1) %{p}p" for p in ("a", "b", "c")]
    lines += [f"%n = fneg {t} %va", f"%ab = call {t} @llvm.fabs.{kind}({t} %vb)", f"%s1 = fadd {t} %n, %ab",
              f"%s2 = fsub {t} %s1, %vc",
              f"%s3 = fmul {t} %s2, %va", f"%s4 = call {t} @llvm.fma.{kind}({t} %s3, {t} %vb, {t} %n)",
              f"%s5 = fdiv {t} %s4, %vc",
              f"%s6 = call {t} @llvm.sqrt.{kind}({t} %s5)", f"%s7 = call {t} @llvm.maxnum.{kind}({t} %s6, {t} %va)",
              f"%s8 = call {t} @llvm.minnum.{kind}({t} %s7, {t} %vb)", f"%s9 = call {t} @llvm.floor.{kind}({t} %s8)",
              f"%t1 = call {t} @llvm.rint.{kind}({t} %s9)", f"%t2 = call {t} @llvm.trunc.{kind}({t} %t1)",
              f"%t3 = call {t} @llvm.ceil.{kind}({t} %s8)", f"%t4 = fadd {t} %t2, %t3", f"%k = fcmp olt {t} %t4, %vc",
              f"%k2 = fcmp une {t} %va, %vb", "%k3 = and i1 %k, %k2", f"%t5 = select i1 %k3, {t} %t4, {t} %n",
              f"%k4 = call i1 @llvm.is.fpclass.{kind}({t} %t5, i32 3)", f"%t6 = select i1 %k4, {t} 0.0, {t} %t5",
              f"%t7 = fmul {t} %t6, 2.0", f"%m = call {t} @llvm.maxnum.{kind}({t} %t7, {t} 0.0)",
              f"%mm = call {t} @llvm.minnum.{kind}({t} %m, {t} 1.0)", f"%t8 = call {t} @llvm.canonicalize.{kind}({t} %mm)",
              f"%t9 = call {t} @llvm.ldexp.{kind}.i32({t} %t8, i32 %i)", f"%u1 = fadd {t} %t9, 0.5",
              f"%u2 = call {t} @llvm.copysign.{kind}({t} %u1, {t} %vb)", f"store {t} %u2, ptr addrspace(1) %op"]
    return _body(*lines)


def _integer(bits: int) -> str:
    t = f"i{bits}"
    lines = [f"%{p}p = getelementptr {t}, ptr addrspace(1) %{p}, i32 %i" for p in ("o", "a", "b", "c")]
    lines += [f"%v{p} = load {t}, ptr addrspace(1) %{p}p" for p in ("a", "b", "c")]
    lines += [f"%s1 = add {t} %va, %vb", f"%s2 = sub {t} %s1, %vc", f"%s3 = mul {t} %s2, %va", f"%s4 = and {t} %vb, {bits - 1}",
              f"%s5 = shl {t} %s3, %s4", f"%s6 = lshr {t} %s5, %s4", f"%s7 = ashr {t} %s6, 3", f"%s8 = xor {t} %s7, %vb",
              f"%s9 = or {t} %s8, 77", f"%t1 = call {t} @llvm.smax.{t}({t} %s9, {t} %va)",
              f"%t2 = call {t} @llvm.umin.{t}({t} %t1, {t} %vb)",
              f"%t3 = call {t} @llvm.ctpop.{t}({t} %t2)", f"%t4 = call {t} @llvm.ctlz.{t}({t} %va, i1 false)",
              f"%t5 = add {t} %t3, %t4",
              f"%t6 = call {t} @llvm.bitreverse.{t}({t} %t5)", f"%k = icmp slt {t} %t6, %vc", f"%k2 = icmp ugt {t} %va, %vb",
              "%k3 = xor i1 %k, %k2", f"%t7 = select i1 %k3, {t} %t6, {t} %s1",
              f"%t8 = call {t} @llvm.uadd.sat.{t}({t} %t7, {t} %vc)",
              f"%t9 = call {t} @llvm.cttz.{t}({t} %t8, i1 true)", f"%u1 = add {t} %t9, %t8",
              f"store {t} %u1, ptr addrspace(1) %op"]
    return _body(*lines)


def _convert() -> str:
    lines = ["%fp = getelementptr float, ptr addrspace(1) %a, i32 %i", "%f = load float, ptr addrspace(1) %fp",
             "%dp = getelementptr double, ptr addrspace(1) %b, i32 %i", "%d = load double, ptr addrspace(1) %dp"]
    out = []
    for n, (op, source, value, to) in enumerate((
            ("fptosi", "float", "%f", "i32"), ("fptoui", "float", "%f", "i32"), ("fptosi", "double", "%d", "i32"),
            ("fptoui", "double", "%d", "i32"), ("fptosi", "float", "%f", "i64"), ("fptoui", "double", "%d", "i64"),
            ("fptosi", "float", "%f", "i16"), ("fptoui", "float", "%f", "i8"), ("fptrunc", "float", "%f", "half"),
            ("fptrunc", "float", "%f", "bfloat"), ("fptrunc", "double", "%d", "float"), ("fpext", "float", "%f", "double"),
            ("fptrunc", "double", "%d", "half"))):
        lines.append(f"%c{n} = {op} {source} {value} to {to}")
        out.append((f"%c{n}", to))
    for n, (op, source, to) in enumerate((
            ("sitofp", 0, "float"), ("uitofp", 1, "float"), ("sitofp", 2, "double"), ("uitofp", 3, "double"), ("sitofp", 4,
                "float"),
            ("uitofp", 5, "double"), ("sitofp", 6, "half"), ("uitofp", 7, "float"), ("fpext", 8, "float"), ("fpext", 9, "float"),
            ("uitofp", 7, "half"), ("fptosi", 8, "i16"), ("fptoui", 8, "i32"), ("sitofp", 0, "bfloat"), ("uitofp", 5, "float"))):
        lines.append(f"%e{n} = {op} {out[source][1]} {out[source][0]} to {to}")
        lines += [f"%q{n} = getelementptr {to}, ptr addrspace(1) %o, i32 {n * 8}",
                  f"store volatile {to} %e{n}, ptr addrspace(1) %q{n}"]
    for n, (name, to) in enumerate(out):
        lines += [f"%r{n} = getelementptr {to}, ptr addrspace(1) %c, i32 {n * 64}", f"store {to} {name}, ptr addrspace(1) %r{n}"]
    lines += ["%w = bitcast float %f to <4 x i8>", "%w0 = extractelement <4 x i8> %w, i32 0",
              "%w2 = extractelement <4 x i8> %w, i32 2",
              "%x0 = uitofp i8 %w0 to float", "%x2 = uitofp i8 %w2 to float", "%x = fadd float %x0, %x2",
              "store volatile float %x, ptr addrspace(1) %o"]
    return _body(*lines)


_WIDTHS = ("i8", "i16", "i32", "i64", "<3 x i32>", "<4 x i32>", "half", "<2 x half>", "float", "double", "<8 x i32>")


def _memory(load: int, store: int, source: str = "%a", target: str = "%o", types: Iterable[str] = _WIDTHS) -> str:
    """Every width loaded from one address space and stored to another; bytes and halves also extended."""
    lines = []
    for n, t in enumerate(types):
        offset = 64 * n + (4096 if n == 5 and load != 5 else 0)
        lines += [f"%l{n} = getelementptr i8, ptr addrspace({load}) {source}, i32 {offset}",
                  f"%s{n} = getelementptr i8, ptr addrspace({store}) {target}, i32 {offset}",
                  f"%m{n} = getelementptr {t}, ptr addrspace({load}) %l{n}, i32 %i",
                  f"%t{n} = getelementptr {t}, ptr addrspace({store}) %s{n}, i32 %i",
                  f"%v{n} = load volatile {t}, ptr addrspace({load}) %m{n}, align {_align(t)}",
                  f"store volatile {t} %v{n}, ptr addrspace({store}) %t{n}, align {_align(t)}"]
        if t in ("i8", "i16"):
            lines += [f"%x{n} = load volatile {t}, ptr addrspace({load}) %m{n}", f"%y{n} = sext {t} %x{n} to i32",
                      f"%z{n} = zext {t} %v{n} to i32",
                      f"%u{n} = add i32 %y{n}, %z{n}", f"store volatile i32 %u{n}, ptr addrspace({store}) {target}",
                      f"%h{n} = load {t}, ptr addrspace({load}) {source}",
                      f"%g{n} = {'zext i8' if t == 'i8' else 'bitcast i16'} %h{n} to i16",
                      f"%w{n} = load i32, ptr addrspace({load}) %l{n}",
                      f"%b{n} = bitcast i32 %w{n} to <2 x i16>", f"%j{n} = insertelement <2 x i16> %b{n}, i16 %g{n}, i32 1",
                      f"store volatile <2 x i16> %j{n}, ptr addrspace({store}) %s{n}",
                      f"%k{n} = extractelement <2 x i16> %b{n}, i32 1", f"store volatile i16 %k{n}, ptr addrspace({store}) %s{n}"]
    return _body(*lines)


def _align(type: str) -> int:
    return {"i8": 1, "i16": 2, "half": 2, "i32": 4, "float": 4, "<2 x half>": 4, "i64": 8, "double": 8}.get(type, 16)


def _atomics(space: int, pointer: str) -> str:
    scope = 'syncscope("workgroup")' if space == 3 else 'syncscope("agent")'
    lines = []
    for n, (op, t) in enumerate((*((op, "i32") for op in ("add", "sub", "and", "or", "xor", "umax", "min", "xchg", "uinc_wrap")),
                                 ("add", "i64"), ("umin", "i64"), ("fadd", "float"), ("xchg", "i64"), ("fmin", "float"))):
        value = "%i" if t == "i32" else "%l" if t == "i64" else "%f"
        lines.append(f"%r{n} = atomicrmw {op} ptr addrspace({space}) {pointer}, {t} {value} {scope} monotonic, "
                     f"!amdgpu.no.fine.grained.memory !0")
        if n % 2:
            lines.append(f"store volatile {t} %r{n}, ptr addrspace(1) %o")
    lines += [f"%x = cmpxchg ptr addrspace({space}) {pointer}, i32 %i, i32 7 {scope} acq_rel monotonic",
              "%y = extractvalue {i32, i1} %x, 0",
              "store i32 %y, ptr addrspace(1) %o",
              f"%z = cmpxchg ptr addrspace({space}) {pointer}, i64 %l, i64 7 {scope} seq_cst seq_cst",
              "%w = extractvalue {i64, i1} %z, 0",
              "store i64 %w, ptr addrspace(1) %o",
              f"%la = load atomic i32, ptr addrspace({space}) {pointer} {scope} acquire, align 4",
              f"store atomic i32 %la, ptr addrspace({space}) {pointer} {scope} release, align 4", "fence seq_cst"]
    return _body("%l = zext i32 %i to i64", "%f = uitofp i32 %i to float", *lines)


def _intrinsics(type: str, *calls: str) -> str:
    """`result = call` lines over %x, a value of `type` loaded from a[i]; each i32 or float result is stored."""
    lines = [f"%p = getelementptr {type}, ptr addrspace(1) %a, i32 %i", f"%x = load {type}, ptr addrspace(1) %p"]
    for n, call in enumerate(calls):
        result = call.split(" @")[0]
        lines += [f"%r{n} = call {call}", f"store volatile {result} %r{n}, ptr addrspace(1) %o"]
    return _body(*lines)


_LOOP = """  %i = call i32 @llvm.amdgcn.workitem.id.x()
  %k = icmp ult i32 %i, %size
  br i1 %k, label %loop, label %skip
loop:
  %j = phi i32 [ 0, %0 ], [ %j1, %next ]
  %s = phi float [ 0.0, %0 ], [ %s2, %next ]
  %q = getelementptr float, ptr addrspace(1) %a, i32 %j
  %v = load float, ptr addrspace(1) %q
  %odd = icmp eq i32 %j, %i
  br i1 %odd, label %then, label %next
then:
  %w = fmul float %v, %v
  %lane = getelementptr float, ptr addrspace(1) %b, i32 %i
  %lv = load float, ptr addrspace(1) %lane
  %w2 = fadd float %w, %lv
  br label %next
next:
  %t = phi float [ %v, %loop ], [ %w2, %then ]
  %s2 = fadd float %s, %t
  %j1 = add i32 %j, 1
  %lim = add i32 %size, %i
  %more = icmp ult i32 %j1, %lim
  br i1 %more, label %loop, label %done
done:
  %r = getelementptr float, ptr addrspace(1) %o, i32 %i
  store float %s2, ptr addrspace(1) %r
  br label %skip
skip:
  %u = icmp eq i32 %size, 5
  br i1 %u, label %uniform, label %end
uniform:
  store i32 %size, ptr addrspace(1) %o
  br label %end
end:
  ret void"""

_LDS = """  %i = call i32 @llvm.amdgcn.workitem.id.x()
  %p = getelementptr i32, ptr addrspace(3) @tile, i32 %i
  %g = getelementptr i32, ptr addrspace(1) %a, i32 %i
  %v = load i32, ptr addrspace(1) %g
  store i32 %v, ptr addrspace(3) %p
  fence syncscope("workgroup") release
  call void @llvm.amdgcn.s.barrier()
  fence syncscope("workgroup") acquire
  %x = xor i32 %i, 1
  %q = getelementptr i32, ptr addrspace(3) @tile, i32 %x
  %w = load i32, ptr addrspace(3) %q
  %q1 = getelementptr i32, ptr addrspace(3) %q, i32 17
  %w1 = load i32, ptr addrspace(3) %q1
  %q2 = getelementptr i32, ptr addrspace(3) %q, i32 256
  %w2 = load i32, ptr addrspace(3) %q2
  %s = add i32 %w, %w1
  %s1 = add i32 %s, %w2
  %h = getelementptr i32, ptr addrspace(1) %o, i32 %i
  store i32 %s1, ptr addrspace(1) %h
  ret void"""

_CALL = """  %i = call i32 @llvm.amdgcn.workitem.id.x()
  %m = alloca [8 x i32], addrspace(5)
  %d = getelementptr [8 x i32], ptr addrspace(5) %m, i32 0, i32 %size
  store i32 %i, ptr addrspace(5) %d
  %v = call i32 @outer(i32 %i, ptr addrspace(5) %d)
  %w = load i32, ptr addrspace(5) %m
  %t = getelementptr [4 x i32], ptr addrspace(4) @table, i32 0, i32 %size
  %u = load i32, ptr addrspace(4) %t
  %s = add i32 %v, %w
  %s2 = add i32 %s, %u
  store i32 %s2, ptr addrspace(1) %o
  ret void"""

_SCALAR = "\n".join((
    *(f"  %p{n} = getelementptr i8, ptr addrspace(4) %a, i32 {n * 64}\n  %v{n} = load {t}, ptr addrspace(4) %p{n}, align {a}\n"
      f"  store volatile {t} %v{n}, ptr addrspace(1) %o"
      for n, (t, a) in enumerate((("i32", 4), ("i64", 8), ("<3 x i32>", 16), ("<4 x i32>", 16), ("<8 x i32>", 32), ("<16 x i32>",
          64), ("i8", 1), ("i16", 2)))),
    *(f"  %x{n} = {op}" for n, op in enumerate((
        "add i64 %v1, 1234567890123", "mul i64 %x0, %v1", "lshr i64 %x1, 7", "and i64 %x2, %v1", "sub i64 %x3, 3",
        "ashr i64 %x4, 9", "shl i64 %x5, 2"))),
    "  store volatile i64 %x6, ptr addrspace(1) %o",
    *(f"  %y{n} = {op}" for n, op in enumerate((
        "mul i32 %v0, %size", "lshr i32 %y0, 3", "call i32 @llvm.smin.i32(i32 %y1, i32 %size)",
        "call i32 @llvm.ctpop.i32(i32 %y2)", "shl i32 %y3, %size",
        "call i32 @llvm.abs.i32(i32 %y4, i1 false)", "and i32 %y5, 65535", "call i32 @llvm.ctlz.i32(i32 %y6, i1 false)",
        "call i32 @llvm.bitreverse.i32(i32 %y7)", "xor i32 %y8, -1"))),
    "  store volatile i32 %y9, ptr addrspace(1) %o", "  %cc = icmp sgt i32 %y9, %size",
    "  %sel = select i1 %cc, i64 %x6, i64 %x2",
    "  store volatile i64 %sel, ptr addrspace(1) %o", "  ret void"))

_TRIG = """  %i = call i32 @llvm.amdgcn.workitem.id.x()
  %p = getelementptr i32, ptr addrspace(1) %a, i32 %i
  %x = load i32, ptr addrspace(1) %p
  %z = zext i32 %x to i64
  %m0 = mul i64 %z, 4266746795
  %h0 = lshr i64 %m0, 32
  %m1 = mul i64 %z, 1011060801
  %s1 = add i64 %m1, %h0
  %h1 = lshr i64 %s1, 32
  %m2 = mul i64 %z, 3680671129
  %s2 = add i64 %m2, %h1
  %w = mul i64 %s2, %s1
  %wide = zext i64 %w to i128
  %wm = mul i128 %wide, 11400714819323198485
  %wh = lshr i128 %wm, 64
  %wt = trunc i128 %wh to i64
  %sz = sext i32 %x to i64
  %sm = mul i64 %sz, -77
  %sa = add i64 %sm, %wt
  %f = sitofp i64 %sa to float
  %d = call double @llvm.amdgcn.trig.preop.f64(double 1.5, i32 %x)
  %fd = fptrunc double %d to float
  %g = fadd float %f, %fd
  %sn = call float @llvm.sin.f32(float %g)
  %e = call float @llvm.exp2.f32(float %sn)
  %l = call float @llvm.log2.f32(float %e)
  %r = call float @llvm.amdgcn.fract.f32(float %l)
  %fm = call float @llvm.amdgcn.frexp.mant.f32(float %r)
  %fe = call i32 @llvm.amdgcn.frexp.exp.i32.f32(float %r)
  %ff = sitofp i32 %fe to float
  %t = fadd float %fm, %ff
  %o1 = getelementptr float, ptr addrspace(1) %o, i32 %i
  store float %t, ptr addrspace(1) %o1
  ret void"""


def _packed(t: str, kind: str) -> str:
    v = f"<2 x {t}>"
    lines = [f"%{p}p = getelementptr {v}, ptr addrspace(1) %{p}, i32 %i" for p in ("o", "a", "b", "c")]
    lines += [f"%v{p} = load {v}, ptr addrspace(1) %{p}p" for p in ("a", "b", "c")]
    if t in ("half", "float", "bfloat"):
        lines += [f"%n = fneg {v} %va", f"%s1 = fadd {v} %n, %vb", f"%s2 = fmul {v} %s1, %vc",
                  f"%s3 = call {v} @llvm.fma.v2{kind}({v} %s2, {v} %vb, {v} %n)",
                  f"%w = shufflevector {v} %s3, {v} %s3, <2 x i32> <i32 1, i32 0>", f"%s4 = fadd {v} %w, %vb",
                  f"%s5 = call {v} @llvm.maxnum.v2{kind}({v} %s4, {v} %va)",
                  f"%s6 = call {v} @llvm.minnum.v2{kind}({v} %s5, {v} splat ({t} 1.0))", f"store {v} %s6, ptr addrspace(1) %op"]
        if t == "half":
            lines += ["%e0 = extractelement <2 x half> %s6, i32 1", "%e1 = fpext half %e0 to float",
                      "%e2 = extractelement <2 x half> %va, i32 0",
                      "%e3 = fpext half %e2 to float", "%e4 = fneg float %e3",
                      "%e5 = call float @llvm.fma.f32(float %e1, float %e4, float 1.0)",
                      "store volatile float %e5, ptr addrspace(1) %o", "%e6 = fptrunc float %e5 to half",
                      "%e7 = insertelement <2 x half> %va, half %e6, i32 1", "store volatile <2 x half> %e7, ptr addrspace(1) %o",
                      "%mx = call float @llvm.fmuladd.f32(float %e1, float %e3, float %e5)", "%my = fptrunc float %mx to half",
                      "store volatile half %my, ptr addrspace(1) %o"]
    else:
        lines += [f"%s1 = add {v} %va, %vb", f"%s2 = mul {v} %s1, %vc", f"%s3 = sub {v} %s2, %vb",
                  f"%s4 = shl {v} %s3, splat ({t} 3)",
                  f"%s5 = ashr {v} %s4, splat ({t} 1)", f"%s6 = call {v} @llvm.smax.v2{kind}({v} %s5, {v} %va)",
                  f"%s7 = call {v} @llvm.umin.v2{kind}({v} %s6, {v} %vb)",
                  f"%w = shufflevector {v} %s7, {v} %s7, <2 x i32> <i32 1, i32 0>", f"%s8 = lshr {v} %w, %va",
                  f"store {v} %s8, ptr addrspace(1) %op"]
    return _body(*lines)


def _matrix(result: str, a: str, call: str) -> str:
    return _body(f"%pa = getelementptr {a}, ptr addrspace(1) %a, i32 %i", f"%x = load {a}, ptr addrspace(1) %pa",
                 f"%pb = getelementptr {a}, ptr addrspace(1) %b, i32 %i", f"%y = load {a}, ptr addrspace(1) %pb",
                 f"%pc = getelementptr {result}, ptr addrspace(1) %c, i32 %i", f"%z = load {result}, ptr addrspace(1) %pc",
                 f"%r = call {result} {call}", f"%r2 = call {result} {call.replace('%z', '%r')}",
                 f"%po = getelementptr {result}, ptr addrspace(1) %o, i32 %i", f"store {result} %r2, ptr addrspace(1) %po")


def _wmma(name: str, result: str, a: str, signed: bool = False) -> str:
    arguments = f"i1 true, {a} %x, i1 false, {a} %y, {result} %z, i1 true" if signed else f"{a} %x, {a} %y, {result} %z"
    return _matrix(result, a, f"@llvm.amdgcn.wmma.{name}({arguments})")


def _mfma(name: str, result: str, a: str, flags: str = "i32 0, i32 0, i32 0") -> str:
    return _matrix(result, a, f"@llvm.amdgcn.mfma.{name}({a} %x, {a} %y, {result} %z, {flags})")


_DPP = [f"i32 @llvm.amdgcn.update.dpp.i32(i32 %i, i32 %x, i32 {ctrl}, i32 {rows}, i32 {banks}, i1 {bound})"
        for ctrl, rows, banks, bound in ((27, 15, 15, "false"), (0x111, 15, 15, "true"), (0x122, 10, 15, "false"), (0x101, 15, 7,
            "true"), (0x140, 15, 15, "false"),
                                         (0x141, 15, 15, "true"))]

KERNELS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    *((f"float_{kind}", ALL, _float(kind)) for kind in ("f32", "f16", "bf16", "f64")),
    *((f"integer_{bits}", ALL, _integer(bits)) for bits in (8, 16, 32, 64)),
    ("convert", ALL, _convert()),
    ("loop", ALL, _LOOP),
    ("lds", ALL, _LDS),
    ("call", ALL, _CALL),
    ("scalar", ALL, _SCALAR.replace("ptr addrspace(4) %a", "ptr addrspace(4) %constants")),
    ("trig", ALL, _TRIG),
    ("global_global", ALL, _memory(1, 1)),
    ("lds_lds", ALL, _memory(3, 3, "@tile", "@tile")),
    ("flat_flat", ALL, _memory(0, 0, "%any", "%any")),
    ("scratch_scratch", ALL, "  %m = alloca [8192 x i8], align 16, addrspace(5)\n" + _memory(5, 5, "%m", "%m")),
    ("atomics_global", ALL, _atomics(1, "%a")),
    ("atomics_lds", ALL, _atomics(3, "@tile")),
    ("atomics_flat", ALL, _atomics(0, "%any")),
    *((f"packed_{kind}", ALL, _packed(t, kind)) for t, kind in (("half", "f16"), ("i16", "i16"), ("float", "f32"), ("bfloat",
        "bf16"))),
    ("dpp", ALL, _intrinsics("i32", *_DPP)),
    ("lanes", ALL, _intrinsics(
        "i32", "i32 @llvm.amdgcn.ds.bpermute(i32 %i, i32 %x)", "i32 @llvm.amdgcn.ds.permute(i32 %i, i32 %x)",
        "i32 @llvm.amdgcn.ds.swizzle(i32 %x, i32 31775)",
        "i32 @llvm.amdgcn.ds.swizzle(i32 %x, i32 32795)", "i32 @llvm.amdgcn.readlane(i32 %x, i32 5)",
        "i32 @llvm.amdgcn.readfirstlane(i32 %x)",
        "i32 @llvm.amdgcn.writelane(i32 7, i32 3, i32 %x)", "i32 @llvm.amdgcn.mbcnt.lo(i32 -1, i32 %i)",
        "i32 @llvm.amdgcn.mbcnt.hi(i32 -1, i32 %i)",
        "i32 @llvm.amdgcn.perm(i32 %x, i32 %i, i32 50462976)", "i32 @llvm.amdgcn.alignbit(i32 %x, i32 %i, i32 9)",
        "i32 @llvm.amdgcn.ubfe.i32(i32 %x, i32 3, i32 %i)",
        "i32 @llvm.amdgcn.sad.u8(i32 %x, i32 %i, i32 1)", "i64 @llvm.readcyclecounter()", "i32 @llvm.amdgcn.s.getreg(i32 6145)",
        "i64 @llvm.amdgcn.icmp.i64.i32(i32 %x, i32 %i, i32 40)").replace("call i32 @llvm.amdgcn.alignbit",
            "call i32 @llvm.fshr.i32")),
    ("permlane", RDNA, _intrinsics(
        "i32", "i32 @llvm.amdgcn.permlane16.i32(i32 %i, i32 %x, i32 1985229328, i32 -19088744, i1 false, i1 true)",
        "i32 @llvm.amdgcn.permlanex16.i32(i32 %i, i32 %x, i32 0, i32 1, i1 true, i1 false)",
        "i32 @llvm.amdgcn.mov.dpp8.i32(i32 %x, i32 3450)",
        "i32 @llvm.amdgcn.update.dpp.i32(i32 %i, i32 %x, i32 339, i32 15, i32 15, i1 true)",
        "i32 @llvm.amdgcn.update.dpp.i32(i32 %i, i32 %x, i32 353, i32 15, i32 15, i1 true)")),
    ("permlane64", (*RDNA3, *RDNA4), _intrinsics("i32", "i32 @llvm.amdgcn.permlane64.i32(i32 %x)")),
    ("special", ALL, _intrinsics(
        "float", *(f"float @llvm.amdgcn.{name}.f32(float %x)" for name in ("rcp", "rsq", "sin", "cos")),
        "float @llvm.amdgcn.fmed3.f32(float %x, float 1.0, float 3.0)",
        "float @llvm.amdgcn.div.fixup.f32(float %x, float 1.0, float %x)",
        "<2 x half> @llvm.amdgcn.cvt.pkrtz(float %x, float 2.0)", "<2 x i16> @llvm.amdgcn.cvt.pknorm.i16(float %x, float 2.0)",
        "float @llvm.amdgcn.cubeid(float %x, float 1.0, float %x)", "float @llvm.exp.f32(float %x)",
        "float @llvm.log10.f32(float %x)",
        "float @llvm.pow.f32(float %x, float %x)".replace("llvm.pow", "llvm.fmuladd").replace("float %x, float %x)",
            "float %x, float 3.0, float %x)"))),
    ("dot", (*CDNA, "gfx1030"), _intrinsics(
        "i32", "i32 @llvm.amdgcn.sdot4(i32 %x, i32 %i, i32 5, i1 false)",
        "i32 @llvm.amdgcn.udot4(i32 %x, i32 %i, i32 5, i1 true)",
        "i32 @llvm.amdgcn.sdot8(i32 %x, i32 %i, i32 5, i1 false)")),
    ("sudot", (*RDNA3, *RDNA4), _intrinsics(
        "i32", "i32 @llvm.amdgcn.sudot4(i1 true, i32 %x, i1 false, i32 %i, i32 5, i1 false)",
        "i32 @llvm.amdgcn.udot4(i32 %x, i32 %i, i32 5, i1 true)",
        "i32 @llvm.amdgcn.sudot8(i1 false, i32 %x, i1 true, i32 %i, i32 5, i1 true)")),
    ("dot2", ALL, _intrinsics("<2 x half>", "float @llvm.amdgcn.fdot2(<2 x half> %x, <2 x half> %x, float 1.0, i1 false)")),
    ("wmma_f16", RDNA3, _wmma("f32.16x16x16.f16.v8f32.v16f16", "<8 x float>", "<16 x half>")),
    ("wmma_bf16", RDNA3, _wmma("f32.16x16x16.bf16.v8f32.v16i16", "<8 x float>", "<16 x i16>")),
    ("wmma_iu8", RDNA3, _wmma("i32.16x16x16.iu8.v8i32.v4i32", "<8 x i32>", "<4 x i32>", signed=True)),
    ("wmma_f16_12", RDNA4, _wmma("f32.16x16x16.f16.v8f32.v8f16", "<8 x float>", "<8 x half>")),
    ("wmma_fp8_12", RDNA4, _wmma("f32.16x16x16.fp8.bf8.v8f32.v2i32", "<8 x float>", "<2 x i32>")),
    ("mfma_f32", CDNA, _mfma("f32.32x32x2f32", "<16 x float>", "float", "i32 1, i32 2, i32 3")),
    ("mfma_f16", CDNA, _mfma("f32.16x16x16f16", "<4 x float>", "<4 x half>")),
    ("mfma_4x4", CDNA, _mfma("f32.4x4x4f16", "<4 x float>", "<4 x half>")),
    ("mfma_bf16", CDNA, _mfma("f32.32x32x8bf16.1k", "<16 x float>", "<4 x i16>")),
    ("mfma_f64", CDNA, _mfma("f64.16x16x4f64", "<4 x double>", "double", "i32 0, i32 0, i32 5")),
    ("mfma_i8", ("gfx90a",), _mfma("i32.16x16x16i8", "<4 x i32>", "i32")),
    ("mfma_i8_942", ("gfx942",), _mfma("i32.16x16x32.i8", "<4 x i32>", "i64")),
    ("mfma_fp8", ("gfx942",), _mfma("f32.16x16x32.fp8.bf8", "<4 x float>", "i64")),
    ("fp8", ("gfx942", "gfx1201"), _intrinsics(
        "float", "i32 @llvm.amdgcn.cvt.pk.fp8.f32(float %x, float 1.0, i32 %i, i1 true)",
        "i32 @llvm.amdgcn.cvt.pk.bf8.f32(float %x, float 1.0, i32 %i, i1 false)",
        "float @llvm.amdgcn.cvt.f32.fp8(i32 %i, i32 2)", "<2 x float> @llvm.amdgcn.cvt.pk.f32.bf8(i32 %i, i1 true)",
        "i32 @llvm.amdgcn.cvt.sr.fp8.f32(float %x, i32 7, i32 %i, i32 3)")),
)

PARAMETERS = ("ptr addrspace(1) %o, ptr addrspace(1) %a, ptr addrspace(1) %b, ptr addrspace(1) %c, "
              "ptr addrspace(4) %constants, ptr %any, i32 %size")


def module(gen: str, names: Iterable[str] = ()) -> str:
    """The IR of all kernels of a generation, or of those named."""
    chosen = set(names)
    parts = [HEADER]
    for name, gens, body in KERNELS:
        if gen in gens and (not chosen or name in chosen):
            parts.append(f"define amdgpu_kernel void @{name}({PARAMETERS}) #0 {{\n{body}\n}}\n")
    return "\n".join(parts) + '\nattributes #0 = { "amdgpu-flat-work-group-size"="1,256" }\n!0 = !{}\n'
