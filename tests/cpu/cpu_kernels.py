"""Kernels for the tests, as LLVM IR text compiled by llvmlite (the product's compiler is not under test here)."""

from __future__ import annotations

from devrt.cpu.processor import compile_image

HEAD = "define dso_local void @{name}(ptr %args, i64 %begin, i64 %end, ptr %scratch) {{\nentry:\n"

# Per group g: the u64 at out + 8 g becomes 3 x + 1. Order and coverage both show in the result.
STEP = HEAD.format(name="step") + """
  %out = load ptr, ptr %args
  br label %group
group:
  %g = phi i64 [ %begin, %entry ], [ %g.next, %group ]
  %at = getelementptr i64, ptr %out, i64 %g
  %old = load i64, ptr %at
  %scaled = mul i64 %old, 3
  %new = add i64 %scaled, 1
  store i64 %new, ptr %at
  %g.next = add i64 %g, 1
  %more = icmp ult i64 %g.next, %end
  br i1 %more, label %group, label %out.block
out.block:
  ret void
}
"""

# Per group: out[g] = in[(g + 1) % n] + k; arguments out, in, n, k. Reads what another worker wrote before the barrier.
SHIFT = HEAD.format(name="shift") + """
  %in.at = getelementptr i64, ptr %args, i64 1
  %n.at = getelementptr i64, ptr %args, i64 2
  %k.at = getelementptr i64, ptr %args, i64 3
  %out = load ptr, ptr %args
  %in = load ptr, ptr %in.at
  %n = load i64, ptr %n.at
  %k = load i64, ptr %k.at
  br label %group
group:
  %g = phi i64 [ %begin, %entry ], [ %g.next, %group ]
  %g.next = add i64 %g, 1
  %from.index = urem i64 %g.next, %n
  %from = getelementptr i64, ptr %in, i64 %from.index
  %to = getelementptr i64, ptr %out, i64 %g
  %value = load i64, ptr %from
  %sum = add i64 %value, %k
  store i64 %sum, ptr %to
  %more = icmp ult i64 %g.next, %end
  br i1 %more, label %group, label %out.block
out.block:
  ret void
}
"""

# Argument 0 turns of an empty loop: work that takes a while.
BUSY = HEAD.format(name="busy") + """
  %turns = load i64, ptr %args
  br label %turn
turn:
  %left = phi i64 [ %turns, %entry ], [ %left.next, %turn ]
  %left.next = sub i64 %left, 1
  %more = icmp sgt i64 %left.next, 0
  br i1 %more, label %turn, label %out.block
out.block:
  ret void
}
"""

NOP = HEAD.format(name="nop") + "  ret void\n}\n"

# A constant table, reached through a relocation: out[g] = table[g & 3].
TABLE = "@values = private constant [4 x i64] [i64 11, i64 22, i64 33, i64 44]\n" + HEAD.format(name="table") + """
  %out = load ptr, ptr %args
  br label %group
group:
  %g = phi i64 [ %begin, %entry ], [ %g.next, %group ]
  %low = and i64 %g, 3
  %from = getelementptr i64, ptr @values, i64 %low
  %value = load i64, ptr %from
  %to = getelementptr i64, ptr %out, i64 %g
  store i64 %value, ptr %to
  %g.next = add i64 %g, 1
  %more = icmp ult i64 %g.next, %end
  br i1 %more, label %group, label %out.block
out.block:
  ret void
}
"""


def image(text: str) -> bytes:
    return compile_image(text).object
