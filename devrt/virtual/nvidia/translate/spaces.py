"""LLVM IR of the context's fields, of shared and local memory, and of what every access is checked for."""

from __future__ import annotations

from devrt.virtual import gather
from devrt.virtual.nvidia.translate import layout as at
from devrt.virtual.nvidia.translate.layout import KIND
from devrt.virtual.nvidia.translate.writer import LANES
from devrt.virtual.walker import field

FIELDS = "".join((
    field("shared", at.SHARED), field("shared_bytes", at.SHARED_BYTES), field("local", at.LOCAL),
    field("local_lane", at.LOCAL_LANE), field("local_low", at.LOCAL_LOW), field("local_warp", at.LOCAL_WARP),
    field("states", at.STATES), field("live_masks", at.LIVE_MASKS), field("warps", at.WARPS, "i32"),
    field("fault_warp", at.FAULT_WARP, "i32"), field("grid_x", at.GRID_X, "i32"), field("grid_y", at.GRID_Y, "i32"),
    field("cta_x", at.CTA_X, "i32"), field("cta_y", at.CTA_Y, "i32"), field("cta_z", at.CTA_Z, "i32"),
    field("block", at.BLOCK), field("block_budget", at.BLOCK_BUDGET), field("midst", at.MIDST, "i32"),
    field("shared_window", at.SHARED_WINDOW), field("local_window", at.LOCAL_WINDOW), field("entry", at.ENTRY, "i32")))


_SHARED, _LOCAL = KIND["outside shared memory"], KIND["outside local memory"]


def _shared(action: str) -> str:
    """Loads or stores of %n bytes a lane in shared memory; what is outside is a fault."""
    return f"""
define internal void @shared_{action}(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, ptr %data, ptr %ok) noinline {{
  %size = call i64 @get_shared_bytes(ptr %c)
  %base = call i64 @get_shared(ptr %c)
  %in = call i$W @within(ptr %c, <$W x i64> %va, <$W x i64> %va, i$W %exec, i64 %n, i64 %size, i32 {_SHARED}, ptr %ok)
  call void @near_{action}(<$W x i64> %va, i$W %in, i64 0, i64 %n, i64 %base, i64 0, i64 %size, ptr %data)
  ret void
}}
"""


def _local(action: str) -> str:
    """The same in local memory, where the first word of all lanes comes before the second."""
    move = """  %v = call <$W x i32> @gather_size(<$W x ptr> %p, i$W %in, i64 %each)
  store <$W x i32> %v, ptr %d, align 4""" if action == "load" else """  %v = load <$W x i32>, ptr %d, align 4
  call void @scatter_size(<$W x ptr> %p, <$W x i32> %v, i$W %in, i64 %each)"""
    return f"""
define internal void @local_{action}(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, ptr %data, ptr %ok) noinline {{
entry:
  %size = call i64 @get_local_lane(ptr %c)
  %base = call i64 @get_local(ptr %c)
  %at = call <$W x i64> @local_at(ptr %c, <$W x i64> %va)
  %in = call i$W @within(ptr %c, <$W x i64> %at, <$W x i64> %va, i$W %exec, i64 %n, i64 %size, i32 {_LOCAL}, ptr %ok)
  %narrow = icmp ult i64 %n, 4
  %each = select i1 %narrow, i64 %n, i64 4
  %byte = and <$W x i64> %at, splat (i64 3)
  %word = and <$W x i64> %at, splat (i64 -4)
  %rows = shl <$W x i64> %word, splat (i64 5)
  %own = shl <$W x i64> $NUMBERS, splat (i64 2)
  %o1 = add <$W x i64> %rows, %own
  %o2 = add <$W x i64> %o1, %byte
  br label %words
words:
  %k = phi i64 [ 0, %entry ], [ %k2, %words ]
  %far = mul i64 %k, $W
  %start = add i64 %base, %far
  %p = call <$W x ptr> @hosts(<$W x i64> %o2, i64 %start)
  %d = getelementptr i8, ptr %data, i64 %far
{move}
  %k2 = add i64 %k, 4
  %more = icmp ult i64 %k2, %n
  br i1 %more, label %words, label %done
done:
  ret void
}}
"""


_LOCAL_AT = f"""
; where bytes of a lane's local memory lie: what compiled code addresses from {at.LOCAL_END:#x} down lies behind the rest
define internal <$W x i64> @local_at(ptr %c, <$W x i64> %va) alwaysinline {{
  %size = call i64 @get_local_lane(ptr %c)
  %low = call i64 @get_local_low(ptr %c)
  %back = sub i64 %size, {at.LOCAL_END}
  %b1 = insertelement <$W x i64> poison, i64 %back, i32 0
  %bv = shufflevector <$W x i64> %b1, <$W x i64> poison, <$W x i32> zeroinitializer
  %l1 = insertelement <$W x i64> poison, i64 %low, i32 0
  %lv = shufflevector <$W x i64> %l1, <$W x i64> poison, <$W x i32> zeroinitializer
  %islow = icmp ult <$W x i64> %va, %lv
  %moved = add <$W x i64> %va, %bv
  %between = icmp ult <$W x i64> %moved, %lv
  %high = select <$W x i1> %between, <$W x i64> splat (i64 -1), <$W x i64> %moved
  %at = select <$W x i1> %islow, <$W x i64> %va, <$W x i64> %high
  ret <$W x i64> %at
}}
"""

_TEXT = f"""
; notes a fault of the lowest lane of a mask that is not empty
define internal void @refuse(ptr %c, <$W x i64> %va, i$W %bad, i32 %kind, ptr %ok) noinline cold {{
  %lane = call i32 @first(i$W %bad)
  %a = extractelement <$W x i64> %va, i32 %lane
  call void @set_kind(ptr %c, i32 %kind)
  call void @set_va(ptr %c, i64 %a)
  call void @set_lane(ptr %c, i32 %lane)
  store i8 0, ptr %ok
  ret void
}}

; %exec where every lane's address is a multiple of %n, else none after noting the fault
define internal i$W @aligned(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, ptr %ok) noinline {{
  %low = sub i64 %n, 1
  %l1 = insertelement <$W x i64> poison, i64 %low, i32 0
  %lv = shufflevector <$W x i64> %l1, <$W x i64> poison, <$W x i32> zeroinitializer
  %off = and <$W x i64> %va, %lv
  %odd = icmp ne <$W x i64> %off, zeroinitializer
  %bits = bitcast <$W x i1> %odd to i$W
  %bad = and i$W %bits, %exec
  %any = icmp ne i$W %bad, 0
  br i1 %any, label %fault, label %good
fault:
  call void @refuse(ptr %c, <$W x i64> %va, i$W %bad, i32 {KIND["misaligned"]}, ptr %ok)
  ret i$W 0
good:
  ret i$W %exec
}}

; %exec where %n bytes at %at of every lane are below %size, else none after noting the fault
define internal i$W @within(ptr %c, <$W x i64> %at, <$W x i64> %va, i$W %exec, i64 %n, i64 %size, i32 %kind, ptr %ok) noinline {{
  %bad = call i$W @outside(<$W x i64> %at, i$W %exec, i64 0, i64 %n, i64 %size)
  %any = icmp ne i$W %bad, 0
  br i1 %any, label %fault, label %good
fault:
  call void @refuse(ptr %c, <$W x i64> %va, i$W %bad, i32 %kind, ptr %ok)
  ret i$W 0
good:
  ret i$W %exec
}}

; lanes of %exec whose address lies in a window
define internal i$W @in_window(<$W x i64> %va, i$W %exec, i64 %start) alwaysinline {{
  %s1 = insertelement <$W x i64> poison, i64 %start, i32 0
  %sv = shufflevector <$W x i64> %s1, <$W x i64> poison, <$W x i32> zeroinitializer
  %off = sub <$W x i64> %va, %sv
  %in = icmp ult <$W x i64> %off, splat (i64 {at.WINDOW})
  %bits = bitcast <$W x i1> %in to i$W
  %m = and i$W %bits, %exec
  %there = icmp ne i64 %start, 0
  %r = select i1 %there, i$W %m, i$W 0
  ret i$W %r
}}

; a jump to what is no block
define internal i32 @lost(ptr %c, i32 %place) noinline cold {{
  %p = zext i32 %place to i64
  %r = call i32 @leave(ptr %c, i64 %p, i32 {KIND["bad address"]})
  ret i32 %r
}}
""" + _LOCAL_AT

_GENERIC = """
; an access of addresses that may lie in either window
define internal void @generic_load(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, ptr %data, ptr %ok) noinline {
entry:
  %part = alloca [4 x <$W x i32>], align 256
  %shared = call i64 @get_shared_window(ptr %c)
  %local = call i64 @get_local_window(ptr %c)
  %ms = call i$W @in_window(<$W x i64> %va, i$W %exec, i64 %shared)
  %ml = call i$W @in_window(<$W x i64> %va, i$W %exec, i64 %local)
  %mw = or i$W %ms, %ml
  %mn = xor i$W %mw, -1
  %mg = and i$W %exec, %mn
  call void @global_load(ptr %c, <$W x i64> %va, i$W %mg, i64 %n, ptr %data, ptr %ok)
  %any = icmp ne i$W %mw, 0
  br i1 %any, label %windows, label %out
windows:
  %low = and <$W x i64> %va, splat (i64 $MASK)
  call void @shared_load(ptr %c, <$W x i64> %low, i$W %ms, i64 %n, ptr %part, ptr %ok)
  call void @join(ptr %data, ptr %part, i$W %ms, i64 %n)
  call void @local_load(ptr %c, <$W x i64> %low, i$W %ml, i64 %n, ptr %part, ptr %ok)
  call void @join(ptr %data, ptr %part, i$W %ml, i64 %n)
  ret void
out:
  ret void
}
define internal void @join(ptr %data, ptr %part, i$W %m, i64 %n) noinline {
entry:
  %mask = bitcast i$W %m to <$W x i1>
  br label %dwords
dwords:
  %k = phi i64 [ 0, %entry ], [ %k2, %dwords ]
  %at = mul i64 %k, $W
  %d = getelementptr i8, ptr %data, i64 %at
  %p = getelementptr i8, ptr %part, i64 %at
  %x = load <$W x i32>, ptr %d, align 4
  %y = load <$W x i32>, ptr %p, align 4
  %z = select <$W x i1> %mask, <$W x i32> %y, <$W x i32> %x
  store <$W x i32> %z, ptr %d, align 4
  %k2 = add i64 %k, 4
  %more = icmp ult i64 %k2, %n
  br i1 %more, label %dwords, label %out
out:
  ret void
}
define internal void @generic_store(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, ptr %data, ptr %ok) noinline {
entry:
  %shared = call i64 @get_shared_window(ptr %c)
  %local = call i64 @get_local_window(ptr %c)
  %ms = call i$W @in_window(<$W x i64> %va, i$W %exec, i64 %shared)
  %ml = call i$W @in_window(<$W x i64> %va, i$W %exec, i64 %local)
  %mw = or i$W %ms, %ml
  %mn = xor i$W %mw, -1
  %mg = and i$W %exec, %mn
  call void @global_store(ptr %c, <$W x i64> %va, i$W %mg, i64 %n, ptr %data, ptr %ok)
  %any = icmp ne i$W %mw, 0
  br i1 %any, label %windows, label %out
windows:
  %low = and <$W x i64> %va, splat (i64 $MASK)
  call void @shared_store(ptr %c, <$W x i64> %low, i$W %ms, i64 %n, ptr %data, ptr %ok)
  call void @local_store(ptr %c, <$W x i64> %low, i$W %ml, i64 %n, ptr %data, ptr %ok)
  ret void
out:
  ret void
}
""".replace("$MASK", str(at.WINDOW - 1))

_CONSTANT = f"""
; constants at an index that lanes compute
define internal void @constant_load(ptr %c, i64 %bank, <$W x i64> %at, i$W %exec, i64 %n, ptr %data, ptr %ok) noinline {{
  %b0 = getelementptr i8, ptr %c, i64 {at.BANKS}
  %bp = getelementptr i64, ptr %b0, i64 %bank
  %base = load i64, ptr %bp
  %s0 = getelementptr i8, ptr %c, i64 {at.BANK_BYTES}
  %sp = getelementptr i32, ptr %s0, i64 %bank
  %s32 = load i32, ptr %sp
  %size = zext i32 %s32 to i64
  %in = call i$W @within(ptr %c, <$W x i64> %at, <$W x i64> %at, i$W %exec, i64 %n, i64 %size, i32 {KIND["outside constant bank"]}, ptr %ok)
  call void @near_load(<$W x i64> %at, i$W %in, i64 0, i64 %n, i64 %base, i64 0, i64 %size, ptr %data)
  ret void
}}
"""  # noqa: E501

_SPACES = "".join(_shared(action) + _local(action) for action in ("load", "store"))
TEXT = gather.for_lanes(_TEXT + _SPACES + _GENERIC + _CONSTANT, LANES)
