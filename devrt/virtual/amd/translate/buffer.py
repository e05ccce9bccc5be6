"""Buffers: memory that a descriptor of four SGPRs describes. Where its swizzle bit is set, it is the waves' private memory.

Source: "AMD Instinct MI200 ISA", "RDNA 2 ISA", buffer addressing.
"""

from __future__ import annotations

from devrt.virtual.amd.isa.instruction import Instruction
from devrt.virtual.amd.isa.opcodes import bits
from devrt.virtual.amd.translate.writer import Writer


def spaces(w: Writer, i: Instruction) -> list[tuple[str, str, str]]:
    """(space, addresses, lanes): global memory in range, and private memory.

    A lane's place in private memory is the vector and constant offset; the scalar offset counts bytes of the whole wave.
    """
    m, t, wide = i.memory, w.vec("i32"), w.vec("i64")
    assert m is not None
    rsrc = next(o for o in i.operands if o.name == "srsrc")
    vector = next(o for o in i.operands if o.name == "vaddr")
    soffset = w.scalar(next(o for o in i.operands if o.name == "soffset"))
    words = [w.scalar(rsrc, k) for k in range(3)]
    offset, index = f"splat (i32 {m.offset})", "zeroinitializer"
    if i.fields["offen"]:
        offset = w.op(f"add {t} {w.dword(vector, 1 if i.fields['idxen'] else 0)}, {offset}")
    if i.fields["idxen"]:
        index = w.dword(vector)
    exec_ = w.exec()
    swizzled = w.op(f"icmp slt i32 {words[1]}, 0")
    private = w.op(f"select i1 {swizzled}, {w.iw} {exec_}, {w.iw} 0")
    rest = w.op(f"select i1 {swizzled}, {w.iw} 0, {w.iw} {exec_}")
    own = w.op(f"add {t} {offset}, {w.splat('i32', w.op(f'udiv i32 {soffset}, {w.wave}'))}")
    lane_offset = w.op(f"zext {t} {own} to {wide}")

    stride = w.op(f"and i32 {w.op(f'lshr i32 {words[1]}, 16')}, 16383")
    base = w.op(f"zext i32 {w.op(f'and i32 {words[1]}, 65535')} to i64")
    base = w.op(f"or i64 {w.op(f'shl i64 {base}, 32')}, {w.op(f'zext i32 {words[0]} to i64')}")
    base = w.op(f"add i64 {base}, {w.op(f'zext i32 {soffset} to i64')}")
    skipped = w.op(f"mul {wide} {w.op(f'zext {t} {index} to {wide}')}, {w.splat('i64', w.op(f'zext i32 {stride} to i64'))}")
    inside = w.op(f"add {wide} {skipped}, {w.op(f'zext {t} {offset} to {wide}')}")
    at = w.op(f"add {wide} {inside}, {w.splat('i64', base)}")
    records = w.op(f"zext i32 {words[2]} to i64")
    if i.fields["idxen"]:  # in units of the stride
        fits = w.op(f"icmp ult {wide} {w.op(f'zext {t} {index} to {wide}')}, {w.splat('i64', records)}")
    else:
        last = w.op(f"add i64 {w.op(f'zext i32 {soffset} to i64')}, {bits(m.type) // 8}")
        end = w.op(f"add {wide} {inside}, {w.splat('i64', last)}")
        fits = w.op(f"icmp ule {wide} {end}, {w.splat('i64', records)}")
    good = w.op(f"and {w.iw} {rest}, {w.op(f'bitcast {w.mask} {fits} to {w.iw}')}")
    return [("global", at, good), ("scratch", lane_offset, private)]
