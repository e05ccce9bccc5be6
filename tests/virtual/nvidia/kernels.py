"""PTX of the translator's tests: kernels over arrays in, out (u64 addresses) and a number n."""

from __future__ import annotations

# Registers that every kernel has; %i is the thread's number in the grid, %x in[i], and `out` the result's place.
_HEAD = """
.visible .entry {name}(.param .u64 in, .param .u64 out, .param .u32 n) {{
 .reg .pred %p<16>; .reg .b16 %h<16>; .reg .b32 %r<64>; .reg .b64 %d<32>; .reg .f32 %f<32>; .reg .f64 %e<8>;
 .reg .b32 %i, %t, %n, %x, %y; .reg .b64 %in, %out;
 {locals}
 ld.param.u64 %in, [in]; ld.param.u64 %out, [out]; ld.param.u32 %n, [n];
 cvta.to.global.u64 %in, %in; cvta.to.global.u64 %out, %out;
 mov.u32 %t, %tid.x; mov.u32 %r0, %ctaid.x; mov.u32 %r1, %ntid.x; mad.lo.u32 %i, %r0, %r1, %t;
 mul.wide.u32 %d0, %i, 4; add.u64 %in, %in, %d0; add.u64 %out, %out, %d0;
 ld.global.u32 %x, [%in];
 {body}
 st.global.u32 [%out], %y;
 ret;
}}
"""

# name -> (declarations, body): computes %y of %x
BODIES: dict[str, tuple[str, str]] = {
    # Steps of Collatz's sequence: a loop that lanes leave one by one.
    "collatz": ("", """
 mov.u32 %y, 0;
again: setp.le.u32 %p0, %x, 1; @%p0 bra done;
 and.b32 %r2, %x, 1; setp.eq.u32 %p1, %r2, 0; @%p1 bra even;
 mad.lo.u32 %x, %x, 3, 1; bra next;
even: shr.u32 %x, %x, 1;
next: add.u32 %y, %y, 1; bra again;
done:"""),
    # Branches in branches, with a store in each so that they stay branches.
    "nested": ("", """
 and.b32 %r2, %x, 1; setp.eq.u32 %p0, %r2, 0; mov.u32 %y, 0;
 @%p0 bra l0;
 and.b32 %r3, %x, 2; setp.eq.u32 %p1, %r3, 0; @%p1 bra l1;
 st.global.u32 [%out], %x; ld.global.u32 %r4, [%in]; mad.lo.u32 %y, %r4, 7, 1; bra l2;
l1: st.global.u32 [%out], %r2; ld.global.u32 %r4, [%in]; div.u32 %y, %r4, 3;
l2: add.u32 %y, %y, 1000; bra l5;
l0: and.b32 %r3, %x, 4; setp.eq.u32 %p1, %r3, 0; @%p1 bra l4;
 and.b32 %r5, %x, 31; mov.u32 %r6, 0;
l3: setp.ge.u32 %p2, %r6, %r5; @%p2 bra l5; mad.lo.u32 %y, %y, 5, %r6; add.u32 %r6, %r6, 1; st.global.u32 [%out], %y; bra l3;
l4: mov.u32 %y, 77;
l5: add.u32 %y, %y, 1;"""),
    # A warp's sum by shuffles, and what each lane's neighbours have.
    "shuffle": ("", """
 mov.u32 %y, %x;
 shfl.sync.bfly.b32 %r2, %y, 16, 31, -1; add.u32 %y, %y, %r2; shfl.sync.bfly.b32 %r2, %y, 8, 31, -1; add.u32 %y, %y, %r2;
 shfl.sync.bfly.b32 %r2, %y, 4, 31, -1; add.u32 %y, %y, %r2; shfl.sync.bfly.b32 %r2, %y, 2, 31, -1; add.u32 %y, %y, %r2;
 shfl.sync.bfly.b32 %r2, %y, 1, 31, -1; add.u32 %y, %y, %r2;
 shfl.sync.up.b32 %r3|%p0, %x, 3, 0, -1; @!%p0 add.u32 %r3, %r3, 100; mad.lo.u32 %y, %r3, 3, %y;
 shfl.sync.down.b32 %r3|%p0, %x, 5, 7199, -1; @!%p0 add.u32 %r3, %r3, 200; mad.lo.u32 %y, %r3, 5, %y;
 and.b32 %r4, %x, 31; shfl.sync.idx.b32 %r3, %x, %r4, 31, -1; mad.lo.u32 %y, %r3, 7, %y;"""),
    "votes": ("", """
 and.b32 %r2, %x, 3; setp.eq.u32 %p0, %r2, 0; vote.sync.ballot.b32 %y, %p0, -1;
 vote.sync.any.pred %p1, %p0, -1; vote.sync.all.pred %p2, %p0, -1; selp.u32 %r3, 1, 0, %p1; selp.u32 %r4, 2, 0, %p2;
 xor.b32 %y, %y, %r3; xor.b32 %y, %y, %r4;
 match.any.sync.b32 %r5, %r2, -1; mad.lo.u32 %y, %r5, 3, %y; match.all.sync.b32 %r6|%p3, %r2, -1; add.u32 %y, %y, %r6;
 activemask.b32 %r7; add.u32 %y, %y, %r7;"""),
    # A block's sum in shared memory, by halves, then by the last warp.
    "reduce": (".shared .align 4 .b32 part[1024];", """
 mov.u32 %r2, part; shl.b32 %r3, %t, 2; add.u32 %r2, %r2, %r3; st.shared.u32 [%r2], %x; bar.sync 0;
 mov.u32 %r4, %ntid.x; shr.u32 %r4, %r4, 1;
again: setp.eq.u32 %p0, %r4, 0; @%p0 bra done; setp.ge.u32 %p1, %t, %r4; @%p1 bra skip;
 shl.b32 %r5, %r4, 2; add.u32 %r6, %r2, %r5; ld.shared.u32 %r7, [%r6]; ld.shared.u32 %r8, [%r2]; add.u32 %r8, %r8, %r7;
 st.shared.u32 [%r2], %r8;
skip: bar.sync 0; shr.u32 %r4, %r4, 1; bra again;
done: ld.shared.u32 %y, [part];"""),
    "divide": ("", """
 add.u32 %r2, %n, %i; div.u32 %r3, %x, %r2; rem.u32 %r4, %x, %r2; xor.b32 %y, %r3, %r4; div.s32 %r5, %x, %r2;
 xor.b32 %y, %y, %r5;
 rem.s32 %r6, %x, -7; xor.b32 %y, %y, %r6; cvt.u64.u32 %d1, %x; shl.b64 %d1, %d1, 13; or.b64 %d1, %d1, 77; cvt.u64.u32 %d2, %r2;
 div.u64 %d3, %d1, %d2; rem.u64 %d4, %d1, %d2; xor.b64 %d3, %d3, %d4; cvt.u32.u64 %r7, %d3; xor.b32 %y, %y, %r7;"""),
    "bits": ("", """
 popc.b32 %y, %x; clz.b32 %r2, %x; mad.lo.u32 %y, %y, 41, %r2; brev.b32 %r3, %x; xor.b32 %y, %y, %r3;
 bfind.u32 %r4, %x; add.u32 %y, %y, %r4; bfind.s32 %r4, %x; mad.lo.u32 %y, %y, 3, %r4; bfe.u32 %r5, %x, 5, 9;
 add.u32 %y, %y, %r5;
 bfe.s32 %r5, %x, 3, 11; add.u32 %y, %y, %r5; bfi.b32 %r6, %x, %y, 7, 6; xor.b32 %y, %y, %r6; prmt.b32 %r7, %x, %y, 0x3175;
 xor.b32 %y, %y, %r7; and.b32 %r8, %x, 31; shl.b32 %r9, %x, %r8; add.u32 %y, %y, %r9; shr.s32 %r9, %x, %r8; add.u32 %y, %y, %r9;
 shf.l.wrap.b32 %r10, %x, %y, %r8; xor.b32 %y, %y, %r10; abs.s32 %r11, %x; add.u32 %y, %y, %r11; min.s32 %r12, %x, %r8;
 max.u32 %r13, %x, %r8; xor.b32 %r12, %r12, %r13; add.u32 %y, %y, %r12; lop3.b32 %r14, %x, %y, %r8, 0x6a; add.u32 %y, %y, %r14;
 mul.hi.u32 %r15, %x, %y; add.u32 %y, %y, %r15; mul.hi.s32 %r15, %x, %y; add.u32 %y, %y, %r15; dp4a.u32.s32 %y, %x, %y, %y;
 prmt.b32 %r16, %x, %y, %r8; add.u32 %y, %y, %r16; fns.b32 %r17, %x, 0, 2; add.u32 %y, %y, %r17;"""),
    "wide": ("", """
 cvt.s64.s32 %d1, %x; shl.b64 %d2, %d1, 19; xor.b64 %d2, %d2, 0x123456789; mul.lo.u64 %d3, %d1, %d2; add.u64 %d3, %d3, %d2;
 sub.u64 %d4, %d2, %d3; and.b32 %r2, %x, 63; shr.s64 %d5, %d3, %r2; shl.b64 %d6, %d4, %r2; shr.u64 %d7, %d4, %r2;
 xor.b64 %d5, %d5, %d6; xor.b64 %d5, %d5, %d7; setp.lt.s64 %p0, %d3, %d4; selp.b64 %d5, %d5, %d3, %p0;
 setp.le.u64 %p1, %d5, %d2;
 setp.eq.s64 %p2, %d5, %d2; selp.u32 %r3, 5, 9, %p1; selp.u32 %r4, 16, 0, %p2; min.s64 %d8, %d5, %d4; max.u64 %d9, %d5, %d2;
 xor.b64 %d5, %d8, %d9; mul.hi.u64 %d10, %d5, %d2; add.u64 %d5, %d5, %d10; abs.s64 %d11, %d4; xor.b64 %d5, %d5, %d11;
 popc.b64 %r5, %d5; clz.b64 %r6, %d5; cvt.u32.u64 %y, %d5; shr.u64 %d5, %d5, 32; cvt.u32.u64 %r7, %d5; xor.b32 %y, %y, %r7;
 add.u32 %y, %y, %r3; add.u32 %y, %y, %r4; mad.lo.u32 %y, %r5, 99, %y; mad.lo.u32 %y, %r6, 999, %y;"""),
    # A table on the stack, by an index that differs.
    "stack": (".local .align 16 .b8 table[64];", """
 mov.u32 %r2, 0; mov.u64 %d1, table; cvta.local.u64 %d2, %d1;
fill: mul.wide.u32 %d3, %r2, 4; add.u64 %d4, %d1, %d3; mad.lo.u32 %r3, %r2, %x, 3; st.local.u32 [%d4], %r3; add.u32 %r2, %r2, 1;
 setp.lt.u32 %p0, %r2, 16; @%p0 bra fill;
 and.b32 %r4, %x, 15; mul.wide.u32 %d3, %r4, 4; add.u64 %d4, %d2, %d3; ld.u32 %y, [%d4]; and.b32 %r4, %r4, 7;
 mul.wide.u32 %d3, %r4, 8;
 add.u64 %d4, %d1, %d3; ld.local.v2.u32 {%r5, %r6}, [%d4]; xor.b32 %y, %y, %r5; add.u32 %y, %y, %r6;"""),
    # A lock in global memory that lanes of one warp take in turn: those that hold it must get on while the others spin.
    "lock": ("", """
 ld.param.u64 %d1, [in]; mul.wide.u32 %d2, %n, 4; add.u64 %d1, %d1, %d2; mov.u32 %y, 0;
again: atom.global.cas.b32 %r2, [%d1], 0, 1; setp.ne.u32 %p0, %r2, 0; @%p0 bra again;
 ld.volatile.global.u32 %r3, [%d1+4]; add.u32 %y, %r3, 1; st.volatile.global.u32 [%d1+4], %y; membar.gl;
 atom.global.exch.b32 %r4, [%d1], 0;"""),
    "switch": ("", """
 and.b32 %r2, %x, 7; mov.u32 %y, 1;
 ts: .branchtargets a0, a1, a2, a3, a4, a5, a6, a7;
 brx.idx %r2, ts;
a0: mad.lo.u32 %y, %x, 3, 1; bra done;
a1: xor.b32 %y, %x, 0x55; st.global.u32 [%out], %y; bra done;
a2: shr.u32 %y, %x, 3; bra done;
a3: not.b32 %y, %x; st.global.u32 [%out], %x; bra a5;
a4: popc.b32 %y, %x; bra done;
a5: add.u32 %y, %y, 17; bra done;
a6: div.u32 %y, %x, 9; bra done;
a7: mov.u32 %y, 42;
done:"""),
    "calls": ("", """
 and.b32 %r2, %x, 1; setp.eq.u32 %p0, %r2, 0; @%p0 bra other;
 { .param .b32 a; .param .b32 r; st.param.b32 [a], %x; call (r), twice, (a); ld.param.b32 %y, [r]; }
 add.u32 %y, %y, 5; bra done;
other: { .param .b32 a; .param .b32 r; st.param.b32 [a], %i; call (r), twice, (a); ld.param.b32 %y, [r]; }
done: { .param .b32 a; .param .b32 r; st.param.b32 [a], %y; call (r), loops, (a); ld.param.b32 %y, [r]; }"""),
    # Named barriers between halves of a block: one half brings, the other takes.
    "pipe": (".shared .align 4 .b32 box[64];", """
 mov.u32 %r2, box; and.b32 %r3, %t, 63; shl.b32 %r4, %r3, 2; add.u32 %r2, %r2, %r4; setp.ge.u32 %p0, %t, 64; mov.u32 %y, 0;
 mov.u32 %r5, 0; @%p0 bra take;
bring: mad.lo.u32 %r6, %x, 3, %r5; st.shared.u32 [%r2], %r6; bar.arrive 1, 128; bar.sync 2, 128; add.u32 %r5, %r5, 1;
 setp.lt.u32 %p1, %r5, 4; @%p1 bra bring; bra done;
take: bar.sync 1, 128; ld.shared.u32 %r7, [%r2]; mad.lo.u32 %y, %y, 31, %r7; bar.arrive 2, 128; add.u32 %r5, %r5, 1;
 setp.lt.u32 %p1, %r5, 4; @%p1 bra take;
done:"""),
    "barred": ("", """
 and.b32 %r2, %x, 3; setp.ne.u32 %p0, %r2, 0; bar.red.popc.u32 %y, 0, %p0; setp.gt.u32 %p1, %x, 5; bar.red.and.pred %p2, 0, %p1;
 selp.u32 %r3, 1000, 0, %p2; add.u32 %y, %y, %r3; setp.eq.u32 %p3, %x, 7; bar.red.or.pred %p4, 0, %p3;
 selp.u32 %r4, 5000, 0, %p4;
 add.u32 %y, %y, %r4; shr.u32 %r6, %t, 6; add.u32 %r6, %r6, 3; bar.red.popc.u32 %r5, %r6, 64, %p0; add.u32 %y, %y, %r5;"""),
    # Lanes that end early, others that meet at a barrier.
    "early": (".shared .align 4 .b32 sum;", """
 mov.u32 %r2, sum; setp.eq.u32 %p0, %t, 0; @%p0 st.shared.u32 [%r2], 0; bar.sync 0; and.b32 %r3, %x, 1; setp.eq.u32 %p1, %r3, 0;
 @%p1 st.global.u32 [%out], 9; @%p1 exit; atom.shared.add.u32 %r4, [%r2], %x; barrier.sync 0; ld.shared.u32 %y, [%r2];"""),
    "atomics": (".shared .align 8 .b64 mine[4];", """
 ld.param.u64 %d1, [out]; mul.wide.u32 %d2, %n, 4; add.u64 %d1, %d1, %d2; and.b32 %r2, %x, 3; mul.wide.u32 %d3, %r2, 8;
 add.u64 %d4, %d1, %d3; red.global.add.u32 [%d4], %x; red.global.add.u64 [%d1+32], %d0; red.global.max.s32 [%d1+40], %x;
 red.global.min.u32 [%d1+44], %x; atom.global.inc.u32 %y, [%d1+48], 100; red.global.or.b32 [%d1+52], %x;
 cvt.rn.f32.u32 %f1, %r2; red.global.add.f32 [%d1+56], %f1; red.global.xor.b32 [%d1+60], %x; atom.add.u32 %r3, [%d1+64], 2;
 mov.u32 %r4, mine; setp.eq.u32 %p0, %t, 0; mov.u64 %d5, 0; @%p0 st.shared.u64 [%r4], %d5; @%p0 st.shared.u64 [%r4+8], %d5;
 bar.sync 0;
 atom.shared.add.u32 %r5, [%r4], %r2; atom.shared.add.f32 %f2, [%r4+4], %f1; cvta.shared.u64 %d6, %d5; mov.u64 %d7, mine;
 cvta.shared.u64 %d8, %d7; atom.max.u32 %r6, [%d8+8], %x; bar.sync 0; ld.shared.u32 %r7, [%r4]; ld.shared.u32 %r8, [%r4+4];
 ld.u32 %r9, [%d8+8]; @%p0 st.global.u32 [%d1+68], %r7; @%p0 st.global.u32 [%d1+72], %r8; @%p0 st.global.u32 [%d1+76], %r9;
 mov.u32 %y, %r2;"""),
    # Widths and signs of loads and stores.
    "widths": (".shared .align 16 .b8 room[2048];", """
 mov.u32 %r2, room; shl.b32 %r3, %t, 4; add.u32 %r2, %r2, %r3; mov.u32 %r4, 5; st.shared.v4.u32 [%r2], {%x, %t, %i, %r4};
 st.shared.u8 [%r2+5], %x; cvt.u16.u32 %h1, %x; st.shared.u16 [%r2+8], %h1; ld.shared.v2.u32 {%r5, %r6}, [%r2];
 ld.shared.s8 %r7, [%r2+3];
 ld.shared.u16 %h2, [%r2+6]; ld.shared.s16 %h3, [%r2+2]; cvt.s32.s16 %r8, %h3; cvt.u32.u16 %r9, %h2;
 ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r2];
 xor.b32 %y, %r5, %r6; add.u32 %y, %y, %r7; xor.b32 %y, %y, %r8; mad.lo.u32 %y, %y, 3, %r9; xor.b32 %y, %y, %r11;
 add.u32 %y, %y, %r12;
 mad.lo.u32 %y, %r13, %r10, %y; ld.global.s8 %r14, [%in+1]; xor.b32 %y, %y, %r14; ld.global.u16 %h4, [%in+2];
 cvt.u32.u16 %r15, %h4;
 add.u32 %y, %y, %r15; ld.global.nc.u32 %r16, [%in]; add.u32 %y, %y, %r16; st.global.u8 [%out], %y; ld.global.u8 %r17, [%out];
 mad.lo.u32 %y, %r17, 257, %y;"""),
    "async": (".shared .align 16 .b8 room[1024];", """
 mov.u32 %r2, room; shl.b32 %r4, %t, 2; add.u32 %r2, %r2, %r4; cp.async.ca.shared.global [%r2], [%in], 4;
 cp.async.commit_group; cp.async.wait_group 0; bar.sync 0; mov.u32 %r5, room; xor.b32 %r6, %r4, 124; add.u32 %r5, %r5, %r6;
 ld.shared.u32 %y, [%r5];"""),
    "reduced": ("", """
 redux.sync.add.u32 %y, %x, -1; redux.sync.min.s32 %r2, %x, -1; xor.b32 %y, %y, %r2; redux.sync.or.b32 %r3, %x, -1;
 add.u32 %y, %y, %r3;
 redux.sync.max.u32 %r4, %x, -1; xor.b32 %y, %y, %r4;"""),
    # Bytes of registers that a matrix load gives.
    "matrix": (".shared .align 16 .b8 tile[2048];", """
 mov.u32 %r2, tile; shr.u32 %r3, %t, 5; shl.b32 %r3, %r3, 9; add.u32 %r2, %r2, %r3; and.b32 %r3, %t, 31; shl.b32 %r4, %r3, 2;
 add.u32 %r5, %r2, %r4; st.shared.u32 [%r5], %x; add.u32 %r6, %x, 1;
 st.shared.u32 [%r5+128], %r6; add.u32 %r6, %x, 2; st.shared.u32 [%r5+256], %r6; add.u32 %r6, %x, 3;
 st.shared.u32 [%r5+384], %r6;
 bar.sync 0; shl.b32 %r7, %r3, 4; add.u32 %r8, %r2, %r7;
 ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r8];
 ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r14, %r15}, [%r8]; mad.lo.u32 %y, %r10, 3, %r11; mad.lo.u32 %y, %y, 5, %r12;
 mad.lo.u32 %y, %y, 7, %r13; mad.lo.u32 %y, %y, 11, %r14; mad.lo.u32 %y, %y, 13, %r15;"""),
}

# Lanes of a warp in groups that part and exchange within themselves, by masks that only run time knows.
BODIES["groups"] = ("", """
 and.b32 %r2, %x, 3; match.any.sync.b32 %r3, %r2, -1; setp.gt.u32 %p0, %r2, 1; mov.u32 %y, %x; @%p0 bra high;
 mov.u32 %r4, 0;
low: st.global.u32 [%out], %y; redux.sync.add.u32 %r5, %x, %r3; add.u32 %y, %y, %r5; add.u32 %r4, %r4, 1;
 setp.le.u32 %p1, %r4, %r2;
 @%p1 bra low; bra done;
high: bfind.u32 %r6, %r3; shfl.sync.idx.b32 %r7, %x, %r6, 31, %r3; st.global.u32 [%out], %r7; setp.gt.u32 %p2, %x, %r7;
 vote.sync.ballot.b32 %r8, %p2, %r3; xor.b32 %y, %r7, %r8; bar.warp.sync %r3; setp.ne.u32 %p3, %r2, 2; @%p3 bra done;
 vote.sync.all.pred %p4, %p2, %r3; selp.u32 %r9, 3, 5, %p4; add.u32 %y, %y, %r9;
done:""")
BODIES["cluster"] = (".shared .align 4 .b32 box[128];", """
 mov.u32 %r2, box; shl.b32 %r3, %t, 2; add.u32 %r4, %r2, %r3; st.shared.u32 [%r4], %x; barrier.cluster.arrive.aligned;
 mul.lo.u32 %y, %x, 3; barrier.cluster.wait.aligned; xor.b32 %r5, %r3, 508; add.u32 %r6, %r2, %r5; ld.shared.u32 %r7, [%r6];
 add.u32 %y, %y, %r7; barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; st.shared.u32 [%r4], %y;
 barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; ld.shared.u32 %r7, [%r6]; xor.b32 %y, %y, %r7;""")

FUNCTIONS = """
.func (.param .b32 r) twice(.param .b32 a) { .reg .b32 %r<4>; .reg .pred %p;
 ld.param.b32 %r1, [a]; and.b32 %r2, %r1, 4; setp.eq.u32 %p, %r2, 0; @%p bra skip; mul.lo.u32 %r1, %r1, 3; div.u32 %r1, %r1, 5;
skip: add.u32 %r3, %r1, %r1; st.param.b32 [r], %r3; ret; }
.func (.param .b32 r) loops(.param .b32 a) { .reg .b32 %r<6>; .reg .pred %p;
 ld.param.b32 %r1, [a]; and.b32 %r3, %r1, 7; mov.u32 %r2, 1;
again: setp.eq.u32 %p, %r3, 0; @%p bra done; sub.u32 %r3, %r3, 1;
 { .param .b32 b; .param .b32 s; st.param.b32 [b], %r2; call (s), twice, (b); ld.param.b32 %r4, [s]; } add.u32 %r2, %r1, %r4;
 bra again;
done: st.param.b32 [r], %r2; ret; }
"""
SINCE = {"reduced": 80, "groups": 80, "async": 80, "cluster": 90}  # the first generation that has it


def source(name: str) -> str:
    """The kernel of one body, with the functions it may call."""
    locals_, body = BODIES[name]
    return (FUNCTIONS if name == "calls" else "") + _HEAD.format(name=name, locals=locals_, body=body)
