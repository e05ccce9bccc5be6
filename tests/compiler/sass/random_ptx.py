"""Random PTX: straight code and loops of many kinds of instructions on few registers, so that ptxas has to keep all latencies."""

from __future__ import annotations

import random
import re

HEAD = ".version 8.0\n.target sm_{sm}\n.address_size 64\n.const .align 4 .f32 tab[64] = {{1.0, 2.0}};\n"
REGISTERS = """{
.reg .f32 %f<24>, %c<8>; .reg .b32 %r<24>, %t<4>, %h<8>, %m<4>, %base, %n, %u<4>, %k; .reg .b64 %l<8>, %a<3>, %gp;
.reg .f64 %d<6>; .reg .pred %p<5>, %q<2>; .reg .b16 %s<2>; .shared .align 16 .b8 sm[4096]; .local .align 16 .b8 loc[32];
ld.param.u64 %gp, [g]; ld.param.u32 %n, [n]; ld.param.u32 %u0, [m]; ld.param.u32 %u1, [q];
mov.u32 %u2, %ctaid.x; mov.u32 %u3, %nctaid.x; mov.u32 %base, sm; mov.u32 %k, 0;"""
# In these, f r p l d h u stand for any register of their kind; S and G prepare an address in shared and global memory.
COMMON = """
fma.rn.f32 f,f,f,f;|fma.rn.f32 f,f,f,f;|fma.rn.f32 f,f,f,f;|add.f32 f,f,f;|mul.f32 f,f,f;|min.f32 f,f,f;|mad.lo.s32 r,r,r,r;
add.s32 r,r,r;|xor.b32 r,r,r;|shl.b32 r,r,3;|shf.l.wrap.b32 r,r,r,r;|mul.hi.s32 r,r,r;|max.s32 r,r,r;|prmt.b32 r,r,r,0x5410;
setp.lt.s32 p,r,r;|setp.gt.f32 p,f,f;|setp.lt.and.s32 p,r,r,p;|selp.b32 r,r,r,p;|selp.f32 f,f,f,p;|and.pred p,p,p;
@p add.s32 r,r,r;|@p fma.rn.f32 f,f,f,f;|@!p mad.lo.s32 r,r,r,r;|mad.wide.s32 l,r,r,l;|add.s64 l,l,l;|mul.lo.s64 l,l,l;
cvt.u32.u64 r,l;|cvt.s64.s32 l,r;|rcp.approx.f32 f,f;|ex2.approx.f32 f,f;|cvt.rn.f32.s32 f,r;|cvt.rzi.s32.f32 r,f;
cvt.rni.f32.f32 f,f;|popc.b32 r,r;|bfind.u32 r,r;|brev.b32 r,r;|bfe.u32 r,r,3,9;|dp4a.s32.s32 r,r,r,r;|mov.u32 r,%clock;
S ld.shared.f32 f,[%t1];|S st.shared.f32 [%t1],f;|S atom.shared.add.u32 r,[%t1],r;|G ld.global.u32 r,[%a1];
G st.global.u32 [%a1],r;|G ld.global.v2.f32 {f,f},[%a1];|G @p ld.global.f32 f,[%a1];|G @p st.global.f32 [%a1],f;
G ld.global.v4.f32 {%f0,%f1,%f2,%f3},[%a1];|G st.global.v4.f32 [%a1],{f,f,f,f};|G atom.global.add.u32 r,[%a1],r;
G red.global.add.u32 [%a1],r;|G atom.global.cas.b32 r,[%a1],r,r;|shfl.sync.bfly.b32 r,r,1,31,-1;
shfl.sync.idx.b32 f|p,f,r,31,-1;|vote.sync.ballot.b32 r,p,-1;|vote.sync.any.pred p,p,-1;|bar.sync 0;|membar.gl;
add.u32 u,u,u;|mul.lo.u32 u,u,u;|xor.b32 u,u,u;|add.s32 r,r,u;|cvt.rn.f32.u32 f,u;|shr.u32 u,u,2;|min.u32 u,u,u;
ld.local.f32 f,[loc+8];|and.b32 %t0,r,28; mov.u32 %t1,loc; add.u32 %t1,%t1,%t0; st.local.f32 [%t1],f;|mov.u32 r,%laneid;
add.cc.u32 r,r,r; addc.u32 r,r,r;|ld.const.f32 f,[tab+20];
fma.rn.f64 d,d,d,d;|fma.rn.f64 d,d,d,d;|add.f64 d,d,d;|setp.lt.f64 p,d,d;|cvt.f64.f32 d,f;|cvt.rn.f32.f64 f,d;|selp.f64 d,d,d,p;
fma.rn.f16x2 h,h,h,h;|fma.rn.f16x2 h,h,h,h;|add.f16x2 h,h,h;|mul.f16x2 h,h,h;|setp.lt.f16x2 p|p,h,h;|mov.b32 r,h;
mov.b32 {%s0,%s1},h; cvt.f32.f16 f,%s0;
mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%c0,%c1,%c2,%c3},{h,h},{h},{%c0,%c1,%c2,%c3};
mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%m0,%m1},{r},{r},{%m0,%m1};|mov.f32 f,%c1;|mov.f32 %c2,f;|mov.b32 r,%m0;"""
SINCE_80 = """
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%c4,%c5,%c6,%c7},{h,h,h,h},{h,h},{%c4,%c5,%c6,%c7};|mov.f32 f,%c5;
mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%m0,%m1,%m2,%m3},{r,r,r,r},{r,r},{%m0,%m1,%m2,%m3};|redux.sync.add.s32 r,r,-1;
mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%c0,%c1,%c2,%c3},{r,r,r,r},{r,r},{%c0,%c1,%c2,%c3};
mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d0,%d1},{d},{d},{%d0,%d1};|cvt.rn.f16x2.f32 h,f,f;|cp.async.wait_all;
S G and.b32 %t1,%t1,-16; and.b64 %a1,%a1,-16; cp.async.ca.shared.global [%t1],[%a1],16; cp.async.commit_group;"""
# Pairs of halves and what stands around them, by the first generation that has them.
HALVES = {75: """
fma.rn.f16x2 h,h,h,h;|add.f16x2 h,h,h;|mul.f16x2 h,h,h;|sub.f16x2 h,h,h;|setp.lt.f16x2 p|p,h,h;|mov.b32 r,h;|mov.b32 h,r;
set.gtu.u32.f16x2 h,h,h;|lop3.b32 h,h,h,r,0xd8;|prmt.b32 h,h,r,0x5410;|mov.b32 {%s0,%s1},h; cvt.f32.f16 f,%s0;
set.nan.u32.f16x2 h,h,h;|and.b32 h,h,r;|mad.lo.s32 r,r,r,r;|fma.rn.f32 f,f,f,f;|add.s32 r,r,r;|add.f32 f,f,f;|abs.f16x2 h,h;
cvt.rn.f16.f32 %s0,f; mov.b32 h,{%s0,%s1};|selp.b32 h,h,r,p;|@p add.f16x2 h,h,h;|@p add.s32 r,r,r;|mad.wide.s32 l,r,r,l;
setp.gt.f32 p,f,f;|setp.lt.s32 p,r,r;|G ld.global.u32 h,[%a1];|G st.global.u32 [%a1],h;|mov.b32 h,f;|mov.b32 f,h;|cvt.u32.u64 r,l;
""", 80: """
max.NaN.f16x2 h,h,h;|min.f16x2 h,h,h;|max.NaN.bf16x2 h,h,h;|fma.rn.bf16x2 h,h,h,h;|cvt.rn.bf16x2.f32 h,f,f;
cvt.rn.f16x2.f32 h,f,f;|min.bf16x2 h,h,h;|max.NaN.f16x2 h,h,h;|fma.rn.relu.f16x2 h,h,h,h;
""", 90: """
add.rn.bf16x2 h,h,h;|mul.rn.bf16x2 h,h,h;|set.gtu.u32.bf16x2 h,h,h;
"""}
KINDS = {"f": 24, "r": 24, "p": 5, "l": 8, "d": 6, "h": 8, "u": 4}


def lines(text: str) -> list[str]:
    """Templates: those of a line are separated by a bar that follows a semicolon."""
    return [x if x.endswith(";") else x + ";" for line in text.strip().splitlines() for x in line.rstrip(";").split(";|")]


def module(seed: int, sm: int, length: int, *, halves: bool = False) -> str:
    """A kernel with so many random instructions, in a loop where `seed` is odd; `halves`: mostly on pairs of halves."""
    chance = random.Random(seed)
    templates = lines(COMMON) + (lines(SINCE_80) if sm >= 80 else [])
    if halves:
        templates = [template for first, text in HALVES.items() if sm >= first for template in lines(text)]

    def filled(template: str) -> str:
        words: list[str] = []
        for part in re.sub(r"([{},|;])", r" \1 ", template).split():
            guard = part[:2] if part.startswith("@!") else part[:1] if part.startswith("@") else ""
            name = part[len(guard):]
            words.append(guard + (f"%{name}{chance.randrange(KINDS[name])}" if name in KINDS else name))
        text = " ".join(words).replace("{ ", "{").replace(" }", "}")
        first = chance.randrange(KINDS["r"])
        return text.replace("S ", f"and.b32 %t0, %r{first}, 1020; add.u32 %t1, %t0, %base; ").replace(
            "G ", f"and.b32 %t2, %r{first}, 4092; cvt.u64.u32 %a0, %t2; add.u64 %a1, %a0, %gp; ")

    everything = [(f"%{name}{n}", kind, place + 8 * n) for name, kind, count, place in (
        ("r", "u32", 24, 0), ("f", "f32", 24, 512), ("l", "u64", 8, 1024), ("h", "b32", 8, 2048), ("c", "f32", 8, 3000),
        ("d", "f64", 6, 1536), ("m", "b32", 4, 4096)) for n in range(count)]
    body = [f"ld.global.{kind} {name}, [%gp + {place}];" for name, kind, place in everything]
    body += [f"setp.gt.s32 %p{n}, %r{n}, {n};" for n in range(5)]
    body += ["LOOP:"] if seed & 1 else []
    for n in range(length):
        body.append(filled(chance.choice(templates)))
        if chance.random() < 0.03:
            body.append(f"@%p{n % 5} bra SKIP{n};\n{filled('add.s32 r,r,r;')}\n{filled('fma.rn.f32 f,f,f,f;')}\nSKIP{n}:")
    body += ["add.u32 %k, %k, 1; setp.lt.u32 %q0, %k, %n; @%q0 bra LOOP;"] if seed & 1 else []
    body += [f"st.global.{kind} [%gp + {place}], {name};" for name, kind, place in everything]
    body += [f"selp.b32 %r0, 1, 0, %p{n}; st.global.u32 [%gp + {4200 + 4 * n}], %r0;" for n in range(5)]
    entry = f".visible .entry k{seed}(.param .u64 g, .param .u32 n, .param .u32 m, .param .u32 q)\n"
    head = HEAD.format(sm=min(sm, 90 if halves else 80))
    return head + entry + REGISTERS + "\n" + "\n".join(body) + "\nret;\n}\n"
