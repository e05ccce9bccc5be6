"""Loads and stores as warps mostly make them: lanes one behind another, or all at one address."""

from __future__ import annotations

from devrt.virtual.memory import Access
from devrt.virtual.nvidia.translate.layout import LOCAL_END
from devrt.virtual.nvidia.translate.writer import LANES

SIZES = (4, 8, 16)
_READ, _WRITE = Access.VALID.value, (Access.VALID | Access.WRITE | Access.DIRTY).value

# Where the bytes at %a0 of the lowest lane lie: %h, 0 where they don't lie together with those at %a1, the last byte.
_WHERE = {
    "global": """
  %pg0 = lshr i64 %a0, 12
  %pg1 = lshr i64 %a1, 12
  %together = icmp eq i64 %pg0, %pg1
  br i1 %together, label %find, label %slow
find:
  %h = call i64 @host(ptr %c, i64 %a0, i64 {need}, i32 %lane)
  %there = icmp ne i64 %h, 0
  br i1 %there, label %fast, label %refused
refused:
  store i8 0, ptr %ok
  ret void
""",
    "shared": """
  %size = call i64 @get_shared_bytes(ptr %c)
  %start = call i64 @get_shared(ptr %c)
  %inside = icmp ult i64 %a1, %size
  %h = add i64 %start, %a0
  br i1 %inside, label %fast, label %slow
""",
}


def _row(n: int, body: str, need: int, space: str, action: str) -> str:
    """The function for `n` bytes a lane; `body` moves a whole row at %p."""
    steps = ", ".join(f"i64 {n * lane}" for lane in range(LANES))
    other = "same" if action == "load" else "slow"
    same = _same(n) if action == "load" else ""
    return f"""
define internal void @{space}_{action}{n}(ptr %c, <{LANES} x i64> %va, i32 %exec, ptr %data, ptr %ok) noinline {{
entry:
  %none = icmp eq i32 %exec, 0
  br i1 %none, label %done, label %look
look:
  %lane = call i32 @first(i32 %exec)
  %a0 = extractelement <{LANES} x i64> %va, i32 %lane
  %l64 = zext i32 %lane to i64
  %back = mul i64 %l64, {n}
  %base = sub i64 %a0, %back
  %b1 = insertelement <{LANES} x i64> poison, i64 %base, i32 0
  %bv = shufflevector <{LANES} x i64> %b1, <{LANES} x i64> poison, <{LANES} x i32> zeroinitializer
  %off = sub <{LANES} x i64> %va, %bv
  %low = and i64 %a0, {n - 1}
  %aligned = icmp eq i64 %low, 0
  %seq = icmp eq <{LANES} x i64> %off, <{steps}>
  %bits = bitcast <{LANES} x i1> %seq to i32
  %in = and i32 %bits, %exec
  %row = icmp eq i32 %in, %exec
  %last = call i32 @last(i32 %exec)
  %last64 = zext i32 %last to i64
  %far = mul i64 %last64, {n}
  %far1 = add i64 %far, {n - 1}
  %a1row = add i64 %base, %far1
  %whole = icmp eq i32 %exec, -1
  %wide = or i1 %whole, {"true" if n == 4 else "false"}
  %good = and i1 %aligned, %wide
  %yes = and i1 %row, %good
  br i1 %yes, label %place, label %{other}
{same}
place:
  %a1 = phi i64 [ %a1row, %look ]{", [ %a1same, %one ]" if same else ""}
  %kind = phi i1 [ true, %look ]{", [ false, %one ]" if same else ""}
{_WHERE[space].format(need=need)}
fast:
  br i1 %kind, label %move, label %{"spread" if same else "move"}
move:
  %start.of = sub i64 %h, %back
  %p = inttoptr i64 %start.of to ptr
{body}
  ret void
slow:
  %m = call i32 @aligned(ptr %c, <{LANES} x i64> %va, i32 %exec, i64 {n}, ptr %ok)
  call void @{space}_{action}(ptr %c, <{LANES} x i64> %va, i32 %m, i64 {n}, ptr %data, ptr %ok)
  ret void
done:
  ret void
}}
"""


def _same(n: int) -> str:
    """All lanes at one address."""
    words = "".join(f"""
  %q{k} = getelementptr i8, ptr %one.at, i64 {4 * k}
  %w{k} = load i32, ptr %q{k}, align 4
  %x{k} = insertelement <{LANES} x i32> poison, i32 %w{k}, i32 0
  %y{k} = shufflevector <{LANES} x i32> %x{k}, <{LANES} x i32> poison, <{LANES} x i32> zeroinitializer
  %d{k} = getelementptr i8, ptr %data, i64 {4 * LANES * k}
  store <{LANES} x i32> %y{k}, ptr %d{k}, align 4""" for k in range(n // 4))
    return f"""same:
  %s1 = insertelement <{LANES} x i64> poison, i64 %a0, i32 0
  %sv = shufflevector <{LANES} x i64> %s1, <{LANES} x i64> poison, <{LANES} x i32> zeroinitializer
  %eq = icmp eq <{LANES} x i64> %va, %sv
  %sbits = bitcast <{LANES} x i1> %eq to i32
  %sin = and i32 %sbits, %exec
  %all = icmp eq i32 %sin, %exec
  %ready = and i1 %all, %aligned
  br i1 %ready, label %one, label %slow
one:
  %a1same = add i64 %a0, {n - 1}
  br label %place
spread:
  %one.at = inttoptr i64 %h to ptr{words}
  ret void
"""


def _load(n: int) -> str:
    if n == 4:
        t = f"<{LANES} x i32>"
        return f"""  %mask = bitcast i32 %exec to <{LANES} x i1>
  %v = call {t} @llvm.masked.load.v{LANES}i32.p0(ptr %p, i32 4, <{LANES} x i1> %mask, {t} zeroinitializer)
  store <{LANES} x i32> %v, ptr %data, align 4"""
    count = n // 4
    t = f"<{LANES * count} x i32>"
    out = [f"  %v = load {t}, ptr %p, align 4"]
    for k in range(count):
        numbers = ", ".join(f"i32 {lane * count + k}" for lane in range(LANES))
        out += [f"  %v{k} = shufflevector {t} %v, {t} poison, <{LANES} x i32> <{numbers}>",
                f"  %o{k} = getelementptr i8, ptr %data, i64 {4 * LANES * k}",
                f"  store <{LANES} x i32> %v{k}, ptr %o{k}, align 4"]
    return "\n".join(out)


def _store(n: int) -> str:
    if n == 4:
        return f"""  %v = load <{LANES} x i32>, ptr %data, align 4
  %mask = bitcast i32 %exec to <{LANES} x i1>
  call void @llvm.masked.store.v{LANES}i32.p0(<{LANES} x i32> %v, ptr %p, i32 4, <{LANES} x i1> %mask)"""
    count = n // 4
    t = f"<{LANES * count} x i32>"
    numbers = ", ".join(f"i32 {k * LANES + lane}" for lane in range(LANES) for k in range(count))
    return f"""  %v = load {t}, ptr %data, align 4
  %w = shufflevector {t} %v, {t} poison, {t} <{numbers}>
  store {t} %w, ptr %p, align 4"""


def _stack(n: int, action: str) -> str:
    """All lanes at one address of their local memory: a row of words."""
    move = "".join(f"""
  %v{k} = load <{LANES} x i32>, ptr %q{k}, align 4
  store <{LANES} x i32> %v{k}, ptr %d{k}, align 4""" if action == "load" else f"""
  %v{k} = load <{LANES} x i32>, ptr %d{k}, align 4
  call void @llvm.masked.store.v{LANES}i32.p0(<{LANES} x i32> %v{k}, ptr %q{k}, i32 4, <{LANES} x i1> %mask)"""
                   for k in range(n // 4))
    places = "".join(f"""
  %q{k} = getelementptr i8, ptr %p, i64 {4 * LANES * k}
  %d{k} = getelementptr i8, ptr %data, i64 {4 * LANES * k}""" for k in range(n // 4))
    return f"""
define internal void @local_{action}{n}(ptr %c, <{LANES} x i64> %va, i32 %exec, ptr %data, ptr %ok) noinline {{
entry:
  %none = icmp eq i32 %exec, 0
  br i1 %none, label %done, label %look
look:
  %lane = call i32 @first(i32 %exec)
  %a0 = extractelement <{LANES} x i64> %va, i32 %lane
  %s1 = insertelement <{LANES} x i64> poison, i64 %a0, i32 0
  %sv = shufflevector <{LANES} x i64> %s1, <{LANES} x i64> poison, <{LANES} x i32> zeroinitializer
  %eq = icmp eq <{LANES} x i64> %va, %sv
  %bits = bitcast <{LANES} x i1> %eq to i32
  %in = and i32 %bits, %exec
  %same = icmp eq i32 %in, %exec
  %odd = and i64 %a0, {n - 1}
  %aligned = icmp eq i64 %odd, 0
  %size = call i64 @get_local_lane(ptr %c)
  %low = call i64 @get_local_low(ptr %c)
  %back = sub i64 %size, {LOCAL_END}
  %up = add i64 %a0, %back
  %below = icmp ult i64 %a0, %low
  %at = select i1 %below, i64 %a0, i64 %up
  %limit = select i1 %below, i64 %low, i64 %size
  %first = select i1 %below, i64 0, i64 %low
  %end = add i64 %at, {n}
  %over = icmp ule i64 %end, %limit
  %under = icmp uge i64 %at, %first
  %g1 = and i1 %same, %aligned
  %g2 = and i1 %over, %under
  %good = and i1 %g1, %g2
  br i1 %good, label %fast, label %slow
fast:
  %base = call i64 @get_local(ptr %c)
  %row = shl i64 %at, 5
  %h = add i64 %base, %row
  %p = inttoptr i64 %h to ptr
  %mask = bitcast i32 %exec to <{LANES} x i1>{places}{move}
  ret void
slow:
  %m = call i32 @aligned(ptr %c, <{LANES} x i64> %va, i32 %exec, i64 {n}, ptr %ok)
  call void @local_{action}(ptr %c, <{LANES} x i64> %va, i32 %m, i64 {n}, ptr %data, ptr %ok)
  ret void
done:
  ret void
}}
"""


TEXT = f"""
declare <{LANES} x i32> @llvm.masked.load.v{LANES}i32.p0(ptr, i32, <{LANES} x i1>, <{LANES} x i32>)
declare void @llvm.masked.store.v{LANES}i32.p0(<{LANES} x i32>, ptr, i32, <{LANES} x i1>)
""" + "".join(_row(n, _load(n), _READ, space, "load") + _row(n, _store(n), _WRITE, space, "store")
              for n in SIZES for space in ("global", "shared")) + "".join(
                  _stack(n, action) for n in SIZES for action in ("load", "store"))
