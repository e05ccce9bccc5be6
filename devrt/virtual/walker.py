"""LLVM IR that walks page tables: the host address of a byte, single dwords and bytes, faults."""

from __future__ import annotations

from devrt.virtual import context as at
from devrt.virtual.context import KIND
from devrt.virtual.memory import Access

DIRTY, ACCESSED = Access.DIRTY.value, Access.ACCESSED.value


def field(name: str, offset: int, kind: str = "i64") -> str:
    """Functions that get and set a field of the context."""
    return f"""
define internal {kind} @get_{name}(ptr %c) alwaysinline {{
  %p = getelementptr i8, ptr %c, i64 {offset}
  %v = load {kind}, ptr %p
  ret {kind} %v
}}
define internal void @set_{name}(ptr %c, {kind} %v) alwaysinline {{
  %p = getelementptr i8, ptr %c, i64 {offset}
  store {kind} %v, ptr %p
  ret void
}}
"""


TEXT = "".join((
    field("root", at.PAGE_TABLE), field("page", at.CACHED_PAGE), field("cached", at.CACHED_ENTRY), field("budget", at.BUDGET),
    field("share", at.SHARE), field("clock", at.CLOCK), field("math", at.MATH), field("va", at.FAULT_VA),
    field("kind", at.FAULT_KIND, "i32"), field("lane", at.FAULT_LANE, "i32"), field("pc", at.FAULT_PC),
    field("code", at.CODE), field("marks", at.MARKS))) + f"""
define internal i64 @leaf(ptr %c, i64 %page) noinline {{
entry:
  %root = call i64 @get_root(ptr %c)
  %high = lshr i64 %page, 36
  %inside = icmp eq i64 %high, 0
  br i1 %inside, label %first, label %none
first:
  %i0 = lshr i64 %page, 24
  %rp = inttoptr i64 %root to ptr
  %p0 = getelementptr i64, ptr %rp, i64 %i0
  %t1 = load i64, ptr %p0
  %ok1 = icmp ne i64 %t1, 0
  br i1 %ok1, label %second, label %none
second:
  %s1 = lshr i64 %page, 12
  %i1 = and i64 %s1, 4095
  %m = inttoptr i64 %t1 to ptr
  %p1 = getelementptr i64, ptr %m, i64 %i1
  %t2 = load i64, ptr %p1
  %ok2 = icmp ne i64 %t2, 0
  br i1 %ok2, label %third, label %none
third:
  %i2 = and i64 %page, 4095
  %l = inttoptr i64 %t2 to ptr
  %p2 = getelementptr i64, ptr %l, i64 %i2
  %r = ptrtoint ptr %p2 to i64
  ret i64 %r
none:
  ret i64 0
}}

; host address of one byte of a page that allows %need, 0 after noting the fault
define internal i64 @host(ptr %c, i64 %va, i64 %own, i32 %lane) {{
entry:
  %more = call i64 @get_marks(ptr %c)
  %need = or i64 %own, %more
  %page = lshr i64 %va, 12
  %known = call i64 @get_page(ptr %c)
  %hit = icmp eq i64 %page, %known
  %e0 = call i64 @get_cached(ptr %c)
  %mask0 = and i64 %e0, %need
  %enough0 = icmp eq i64 %mask0, %need
  %fast = and i1 %hit, %enough0
  br i1 %fast, label %done, label %walk
walk:
  %place = call i64 @leaf(ptr %c, i64 %page)
  %there = icmp ne i64 %place, 0
  br i1 %there, label %look, label %missing
look:
  %pp = inttoptr i64 %place to ptr
  %e1 = load i64, ptr %pp
  %valid = and i64 %e1, {Access.VALID.value}
  %isvalid = icmp ne i64 %valid, 0
  br i1 %isvalid, label %rights, label %missing
rights:
  %want = and i64 %need, {Access.WRITE.value}
  %have = and i64 %e1, %want
  %allowed = icmp eq i64 %have, %want
  br i1 %allowed, label %near, label %readonly
near:
  %far = and i64 %e1, {Access.FOREIGN.value}
  %here = icmp eq i64 %far, 0
  br i1 %here, label %mark, label %elsewhere
mark:
  %marks = or i64 %need, {ACCESSED}
  %e3 = or i64 %e1, %marks
  %old = icmp eq i64 %e1, %e3
  br i1 %old, label %keep, label %touch
touch:
  %before = atomicrmw or ptr %pp, i64 %marks monotonic
  br label %keep
keep:
  call void @set_page(ptr %c, i64 %page)
  call void @set_cached(ptr %c, i64 %e3)
  br label %done
done:
  %e = phi i64 [ %e0, %entry ], [ %e3, %keep ]
  %base = and i64 %e, -4096
  %off = and i64 %va, 4095
  %h = add i64 %base, %off
  ret i64 %h
missing:
  call void @set_kind(ptr %c, i32 {KIND["not mapped"]})
  br label %bad
readonly:
  call void @set_kind(ptr %c, i32 {KIND["read-only"]})
  br label %bad
elsewhere:
  call void @set_kind(ptr %c, i32 {KIND["of another process"]})
  br label %bad
bad:
  call void @set_va(ptr %c, i64 %va)
  call void @set_lane(ptr %c, i32 %lane)
  ret i64 0
}}

define internal i32 @load_dword(ptr %c, i64 %va, i32 %lane, ptr %ok) {{
entry:
  %off = and i64 %va, 4095
  %whole = icmp ule i64 %off, 4092
  br i1 %whole, label %one, label %bytes
one:
  %h = call i64 @host(ptr %c, i64 %va, i64 {Access.VALID.value}, i32 %lane)
  %good = icmp ne i64 %h, 0
  br i1 %good, label %read, label %bad
read:
  %p = inttoptr i64 %h to ptr
  %v = load i32, ptr %p, align 1
  ret i32 %v
bytes:
  %i = phi i64 [ 0, %entry ], [ %i2, %next ]
  %acc = phi i32 [ 0, %entry ], [ %acc2, %next ]
  %a = add i64 %va, %i
  %hb = call i64 @host(ptr %c, i64 %a, i64 {Access.VALID.value}, i32 %lane)
  %goodb = icmp ne i64 %hb, 0
  br i1 %goodb, label %next, label %bad
next:
  %pb = inttoptr i64 %hb to ptr
  %b = load i8, ptr %pb
  %w = zext i8 %b to i32
  %i32 = trunc i64 %i to i32
  %sh = shl i32 %i32, 3
  %ws = shl i32 %w, %sh
  %acc2 = or i32 %acc, %ws
  %i2 = add i64 %i, 1
  %more = icmp ult i64 %i2, 4
  br i1 %more, label %bytes, label %out
out:
  ret i32 %acc2
bad:
  store i8 0, ptr %ok
  ret i32 0
}}

define internal void @store_bytes(ptr %c, i64 %va, i32 %v, i64 %n, i32 %lane, ptr %ok) {{
entry:
  br label %bytes
bytes:
  %i = phi i64 [ 0, %entry ], [ %i2, %next ]
  %a = add i64 %va, %i
  %h = call i64 @host(ptr %c, i64 %a, i64 {Access.VALID.value | Access.WRITE.value | DIRTY}, i32 %lane)
  %good = icmp ne i64 %h, 0
  br i1 %good, label %next, label %bad
next:
  %i32 = trunc i64 %i to i32
  %sh = shl i32 %i32, 3
  %vs = lshr i32 %v, %sh
  %b = trunc i32 %vs to i8
  %p = inttoptr i64 %h to ptr
  store i8 %b, ptr %p
  %i2 = add i64 %i, 1
  %more = icmp ult i64 %i2, %n
  br i1 %more, label %bytes, label %out
bad:
  store i8 0, ptr %ok
  ret void
out:
  ret void
}}

define internal void @store_dword(ptr %c, i64 %va, i32 %v, i32 %lane, ptr %ok) {{
entry:
  %off = and i64 %va, 4095
  %whole = icmp ule i64 %off, 4092
  br i1 %whole, label %one, label %bytes
one:
  %h = call i64 @host(ptr %c, i64 %va, i64 {Access.VALID.value | Access.WRITE.value | DIRTY}, i32 %lane)
  %good = icmp ne i64 %h, 0
  br i1 %good, label %write, label %bad
write:
  %p = inttoptr i64 %h to ptr
  store i32 %v, ptr %p, align 1
  ret void
bytes:
  call void @store_bytes(ptr %c, i64 %va, i32 %v, i64 4, i32 %lane, ptr %ok)
  ret void
bad:
  store i8 0, ptr %ok
  ret void
}}

; the end of a wave by a fault of %kind, 0 where it is noted already
define internal i32 @leave(ptr %c, i64 %offset, i32 %kind) noinline cold {{
entry:
  %base = call i64 @get_code(ptr %c)
  %pc = add i64 %base, %offset
  call void @set_pc(ptr %c, i64 %pc)
  %known = icmp eq i32 %kind, 0
  br i1 %known, label %done, label %new
new:
  call void @set_kind(ptr %c, i32 %kind)
  call void @set_va(ptr %c, i64 0)
  call void @set_lane(ptr %c, i32 -1)
  br label %done
done:
  ret i32 {at.FAULT}
}}

; one less until the launch gives way: whether it does
define internal i1 @tire(ptr %c) alwaysinline {{
  %t = call i64 @get_share(ptr %c)
  %t2 = sub i64 %t, 1
  call void @set_share(ptr %c, i64 %t2)
  %r = icmp sle i64 %t2, 0
  ret i1 %r
}}

; counts a branch backwards: 0, the kind of fault, or -1 where the launch gives way
define internal i32 @spend(ptr %c) noinline {{
  %had = call i64 @get_budget(ptr %c)
  %left = sub i64 %had, 1
  call void @set_budget(ptr %c, i64 %left)
  %spent = icmp slt i64 %left, 0
  %tired = call i1 @tire(ptr %c)
  %way = select i1 %tired, i32 -1, i32 0
  %r = select i1 %spent, i32 {KIND["hang"]}, i32 %way
  ret i32 %r
}}
"""

_SLICE = 4096  # branches backwards until another wave of the block may run


def giving_way(waves: str, used: int, status: int) -> str:
    """`pass`, for blocks of as many waves as the function `waves` says; `used` and `status` are places in the context, where
    branches are counted from when a wave began to run, and in a wave's state."""
    return f"""
; counts a branch backwards: 0, the kind of fault, or -1 where the wave gives way to others or with the launch
define internal i32 @pass(ptr %c, ptr %state) noinline {{
  %kind = call i32 @spend(ptr %c)
  %p = getelementptr i8, ptr %c, i64 {used}
  %n = load i32, ptr %p
  %n2 = add i32 %n, 1
  store i32 %n2, ptr %p
  %w = call i32 @{waves}(ptr %c)
  %several = icmp ugt i32 %w, 1
  %long = icmp uge i32 %n2, {_SLICE}
  %fine = icmp eq i32 %kind, 0
  %other = and i1 %several, %long
  %turn = and i1 %other, %fine
  %tired = icmp eq i32 %kind, -1
  %gives = or i1 %turn, %tired
  br i1 %gives, label %over, label %on
over:
  %s = getelementptr i8, ptr %state, i64 {status}
  store i32 {at.READY}, ptr %s
  ret i32 -1
on:
  ret i32 %kind
}}
"""
