"""LLVM IR that every translated kernel brings along: page table walks, gathers and scatters, and the loop over workgroups."""

from __future__ import annotations

from devrt.virtual.amd.memory import Access
from devrt.virtual.amd.translate import layout as at

DIRTY, ACCESSED = Access.DIRTY.value, Access.ACCESSED.value


def text(wave: int) -> str:
    """The functions for waves of `wave` lanes."""
    numbers = "<" + ", ".join(f"i64 {n}" for n in range(wave)) + ">"
    return _WALK + _MEMORY.replace("$FIRST_LANE", _first(wave)).replace("$W", str(wave)).replace("$NUMBERS", numbers) + _GROUPS.replace("$STATE", str(at.state_bytes(wave))) \
        .replace("$FIRST", str(512 + 3 * wave * 4)).replace("$LANES", str(3 * wave))


def _first(wave: int) -> str:
    """The lowest lane of a mask that is not empty."""
    narrow = "%r = trunc i64 %n to i32" if wave == 64 else "%r = add i32 %n, 0"
    return f"""
declare i{wave} @llvm.cttz.i{wave}(i{wave}, i1)
define internal i32 @first(i{wave} %m) alwaysinline {{
  %n = call i{wave} @llvm.cttz.i{wave}(i{wave} %m, i1 true)
  {narrow}
  ret i32 %r
}}
"""


def _field(name: str, offset: int, kind: str = "i64") -> str:
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


_WALK = "".join((
    _field("root", at.PAGE_TABLE), _field("page", at.CACHED_PAGE), _field("cached", at.CACHED_ENTRY), _field("lds", at.LDS),
    _field("lds_bytes", at.LDS_BYTES), _field("scratch", at.SCRATCH), _field("scratch_lane", at.SCRATCH_LANE),
    _field("budget", at.BUDGET), _field("stop", at.STOP), _field("clock", at.CLOCK), _field("math", at.MATH),
    _field("va", at.FAULT_VA), _field("kind", at.FAULT_KIND, "i32"), _field("lane", at.FAULT_LANE, "i32"),
    _field("pc", at.FAULT_PC), _field("states", at.STATES), _field("templates", at.TEMPLATES), _field("waves", at.WAVES, "i32"),
    _field("scratch_wave", at.SCRATCH_WAVE), _field("groups_x", at.GROUPS_X, "i32"), _field("groups_y", at.GROUPS_Y, "i32"),
    _field("id_x", at.ID_X, "i32"), _field("id_y", at.ID_Y, "i32"), _field("id_z", at.ID_Z, "i32"),
    _field("id_yz", at.ID_YZ, "i32"), _field("first_x", at.FIRST_X, "i32"), _field("first_y", at.FIRST_Y, "i32"),
    _field("first_z", at.FIRST_Z, "i32"))) + f"""
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
define internal i64 @host(ptr %c, i64 %va, i64 %need, i32 %lane) {{
entry:
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
  br i1 %allowed, label %mark, label %readonly
mark:
  %e2 = or i64 %e1, %need
  %e3 = or i64 %e2, {ACCESSED}
  store i64 %e3, ptr %pp
  call void @set_page(ptr %c, i64 %page)
  call void @set_cached(ptr %c, i64 %e3)
  br label %done
done:
  %e = phi i64 [ %e0, %entry ], [ %e3, %mark ]
  %base = and i64 %e, -4096
  %off = and i64 %va, 4095
  %h = add i64 %base, %off
  ret i64 %h
missing:
  call void @set_kind(ptr %c, i32 1)
  br label %bad
readonly:
  call void @set_kind(ptr %c, i32 2)
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
"""

# Where all lanes that take part lie in one page, one lookup serves them and the vector unit gathers; else lane by lane.
_MEMORY = f"""
declare i32 @llvm.umax.i32(i32, i32)

define internal i64 @page_delta(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, i1 %write) alwaysinline {{
  %none = icmp eq i$W %exec, 0
  br i1 %none, label %zero, label %some
some:
  %need = select i1 %write, i64 {Access.VALID.value | Access.WRITE.value | DIRTY}, i64 {Access.VALID.value}
  %d = call i64 @one_page(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, i64 %need)
  ret i64 %d
zero:
  ret i64 0
}}

; host address of %n bytes of LDS, 0 where they are outside
define internal i64 @lds_host(ptr %c, i64 %a, i64 %n) alwaysinline {{
  %size = call i64 @get_lds_bytes(ptr %c)
  %end = add i64 %a, %n
  %in = icmp ule i64 %end, %size
  %base = call i64 @get_lds(ptr %c)
  %h = add i64 %base, %a
  %r = select i1 %in, i64 %h, i64 0
  ret i64 %r
}}

; LDS: what is outside reads 0 and is not written
define internal <$W x i32> @lds_load(ptr %c, <$W x i64> %at, i$W %exec, i64 %k, i64 %n, ptr %ok) alwaysinline {{
  %size = call i64 @get_lds_bytes(ptr %c)
  %base = call i64 @get_lds(ptr %c)
  %r = call <$W x i32> @near_load(<$W x i64> %at, i$W %exec, i64 %k, i64 %n, i64 %base, i64 0, i64 %size)
  ret <$W x i32> %r
}}
define internal void @lds_store(ptr %c, <$W x i64> %at, <$W x i32> %v, i$W %exec, i64 %k, i64 %n, ptr %ok) alwaysinline {{
  %size = call i64 @get_lds_bytes(ptr %c)
  %base = call i64 @get_lds(ptr %c)
  call void @near_store(<$W x i64> %at, <$W x i32> %v, i$W %exec, i64 %k, i64 %n, i64 %base, i64 0, i64 %size)
  ret void
}}

; private memory: each lane has bytes of its own
define internal <$W x i32> @private_load(ptr %c, <$W x i64> %at, i$W %exec, i64 %k, i64 %n, ptr %ok) alwaysinline {{
  %size = call i64 @get_scratch_lane(ptr %c)
  %base = call i64 @get_scratch(ptr %c)
  call void @private_check(ptr %c, <$W x i64> %at, i$W %exec, i64 %k, i64 %n, i64 %size, ptr %ok)
  %r = call <$W x i32> @near_load(<$W x i64> %at, i$W %exec, i64 %k, i64 %n, i64 %base, i64 %size, i64 %size)
  ret <$W x i32> %r
}}
define internal void @private_store(ptr %c, <$W x i64> %at, <$W x i32> %v, i$W %exec, i64 %k, i64 %n, ptr %ok) alwaysinline {{
  %size = call i64 @get_scratch_lane(ptr %c)
  %base = call i64 @get_scratch(ptr %c)
  call void @private_check(ptr %c, <$W x i64> %at, i$W %exec, i64 %k, i64 %n, i64 %size, ptr %ok)
  call void @near_store(<$W x i64> %at, <$W x i32> %v, i$W %exec, i64 %k, i64 %n, i64 %base, i64 %size, i64 %size)
  ret void
}}
define internal void @private_check(ptr %c, <$W x i64> %at, i$W %exec, i64 %k, i64 %n, i64 %size, ptr %ok) alwaysinline {{
  %bad = call i$W @outside(<$W x i64> %at, i$W %exec, i64 %k, i64 %n, i64 %size)
  %any = icmp ne i$W %bad, 0
  br i1 %any, label %fault, label %good
fault:
  %lane = call i32 @first(i$W %bad)
  %a = extractelement <$W x i64> %at, i32 %lane
  call void @set_kind(ptr %c, i32 7)
  call void @set_va(ptr %c, i64 %a)
  call void @set_lane(ptr %c, i32 %lane)
  store i8 0, ptr %ok
  ret void
good:
  ret void
}}

; active lanes of which %n bytes at %at + %k are not below %size
define internal i$W @outside(<$W x i64> %at, i$W %exec, i64 %k, i64 %n, i64 %size) alwaysinline {{
  %kn = add i64 %k, %n
  %room = sub i64 %size, %kn
  %fits = icmp sge i64 %room, 0
  %limit = select i1 %fits, i64 %room, i64 0
  %l1 = insertelement <$W x i64> poison, i64 %limit, i32 0
  %lv = shufflevector <$W x i64> %l1, <$W x i64> poison, <$W x i32> zeroinitializer
  %over = icmp ugt <$W x i64> %at, %lv
  %bits = bitcast <$W x i1> %over to i$W
  %all = select i1 %fits, i$W %bits, i$W -1
  %r = and i$W %all, %exec
  ret i$W %r
}}

define internal <$W x i32> @near_load(<$W x i64> %at, i$W %exec, i64 %k, i64 %n, i64 %base, i64 %lane, i64 %size) alwaysinline {{
entry:
  %bad = call i$W @outside(<$W x i64> %at, i$W %exec, i64 %k, i64 %n, i64 %size)
  %keep = xor i$W %bad, -1
  %in = and i$W %exec, %keep
  %p = call <$W x ptr> @near(<$W x i64> %at, i64 %k, i64 %base, i64 %lane)
  %mask = bitcast i$W %in to <$W x i1>
  %dwords = icmp eq i64 %n, 4
  br i1 %dwords, label %whole, label %part
whole:
  %v = call <$W x i32> @llvm.masked.gather.v$Wi32.v$Wp0(<$W x ptr> %p, i32 1, <$W x i1> %mask, <$W x i32> zeroinitializer)
  ret <$W x i32> %v
part:
  %two = icmp eq i64 %n, 2
  br i1 %two, label %words, label %bytes
words:
  %s = call <$W x i16> @llvm.masked.gather.v$Wi16.v$Wp0(<$W x ptr> %p, i32 1, <$W x i1> %mask, <$W x i16> zeroinitializer)
  %sw = zext <$W x i16> %s to <$W x i32>
  ret <$W x i32> %sw
bytes:
  %b = call <$W x i8> @llvm.masked.gather.v$Wi8.v$Wp0(<$W x ptr> %p, i32 1, <$W x i1> %mask, <$W x i8> zeroinitializer)
  %bw = zext <$W x i8> %b to <$W x i32>
  ret <$W x i32> %bw
}}
define internal void @near_store(<$W x i64> %at, <$W x i32> %v, i$W %exec, i64 %k, i64 %n, i64 %base, i64 %lane, i64 %size) alwaysinline {{
entry:
  %bad = call i$W @outside(<$W x i64> %at, i$W %exec, i64 %k, i64 %n, i64 %size)
  %keep = xor i$W %bad, -1
  %in = and i$W %exec, %keep
  %p = call <$W x ptr> @near(<$W x i64> %at, i64 %k, i64 %base, i64 %lane)
  %mask = bitcast i$W %in to <$W x i1>
  %dwords = icmp eq i64 %n, 4
  br i1 %dwords, label %whole, label %part
whole:
  call void @llvm.masked.scatter.v$Wi32.v$Wp0(<$W x i32> %v, <$W x ptr> %p, i32 1, <$W x i1> %mask)
  ret void
part:
  %two = icmp eq i64 %n, 2
  br i1 %two, label %words, label %bytes
words:
  %s = trunc <$W x i32> %v to <$W x i16>
  call void @llvm.masked.scatter.v$Wi16.v$Wp0(<$W x i16> %s, <$W x ptr> %p, i32 1, <$W x i1> %mask)
  ret void
bytes:
  %b = trunc <$W x i32> %v to <$W x i8>
  call void @llvm.masked.scatter.v$Wi8.v$Wp0(<$W x i8> %b, <$W x ptr> %p, i32 1, <$W x i1> %mask)
  ret void
}}
declare <$W x i16> @llvm.masked.gather.v$Wi16.v$Wp0(<$W x ptr>, i32, <$W x i1>, <$W x i16>)
declare <$W x i8> @llvm.masked.gather.v$Wi8.v$Wp0(<$W x ptr>, i32, <$W x i1>, <$W x i8>)
declare void @llvm.masked.scatter.v$Wi16.v$Wp0(<$W x i16>, <$W x ptr>, i32, <$W x i1>)
declare void @llvm.masked.scatter.v$Wi8.v$Wp0(<$W x i8>, <$W x ptr>, i32, <$W x i1>)

define internal <$W x ptr> @near(<$W x i64> %at, i64 %k, i64 %base, i64 %lane) alwaysinline {{
  %start = add i64 %base, %k
  %b1 = insertelement <$W x i64> poison, i64 %start, i32 0
  %bv = shufflevector <$W x i64> %b1, <$W x i64> poison, <$W x i32> zeroinitializer
  %l1 = insertelement <$W x i64> poison, i64 %lane, i32 0
  %lv = shufflevector <$W x i64> %l1, <$W x i64> poison, <$W x i32> zeroinitializer
  %own = mul <$W x i64> %lv, $NUMBERS
  %a = add <$W x i64> %at, %bv
  %h = add <$W x i64> %a, %own
  %p = inttoptr <$W x i64> %h to <$W x ptr>
  ret <$W x ptr> %p
}}

; %v[%lanes[n]] for every lane n
define internal <$W x i32> @pick(<$W x i32> %v, <$W x i32> %lanes) noinline {{
entry:
  %m = alloca <$W x i32>, align 256
  store <$W x i32> %v, ptr %m, align 256
  br label %head
head:
  %n = phi i32 [ 0, %entry ], [ %n2, %head ]
  %acc = phi <$W x i32> [ zeroinitializer, %entry ], [ %acc2, %head ]
  %l = extractelement <$W x i32> %lanes, i32 %n
  %p = getelementptr i32, ptr %m, i32 %l
  %x = load i32, ptr %p
  %acc2 = insertelement <$W x i32> %acc, i32 %x, i32 %n
  %n2 = add i32 %n, 1
  %more = icmp ult i32 %n2, $W
  br i1 %more, label %head, label %out
out:
  ret <$W x i32> %acc2
}}

; lane %lanes[n] takes %v[n]; the highest n wins
define internal <$W x i32> @push(<$W x i32> %v, <$W x i32> %lanes, i$W %exec) noinline {{
entry:
  %m = alloca <$W x i32>, align 256
  store <$W x i32> zeroinitializer, ptr %m, align 256
  br label %head
head:
  %left = phi i$W [ %exec, %entry ], [ %left2, %next ]
  %none = icmp eq i$W %left, 0
  br i1 %none, label %out, label %next
next:
  %n = call i32 @first(i$W %left)
  %l = extractelement <$W x i32> %lanes, i32 %n
  %x = extractelement <$W x i32> %v, i32 %n
  %p = getelementptr i32, ptr %m, i32 %l
  store i32 %x, ptr %p
  %m1 = sub i$W %left, 1
  %left2 = and i$W %left, %m1
  br label %head
out:
  %r = load <$W x i32>, ptr %m, align 256
  ret <$W x i32> %r
}}

; a C function of the table, lane by lane
define internal <$W x float> @library(ptr %c, i64 %which, <$W x float> %v) noinline {{
entry:
  %table = call i64 @get_math(ptr %c)
  %tp = inttoptr i64 %table to ptr
  %fp = getelementptr ptr, ptr %tp, i64 %which
  %f = load ptr, ptr %fp
  br label %head
head:
  %n = phi i32 [ 0, %entry ], [ %n2, %head ]
  %acc = phi <$W x float> [ zeroinitializer, %entry ], [ %acc2, %head ]
  %x = extractelement <$W x float> %v, i32 %n
  %y = call float %f(float %x)
  %acc2 = insertelement <$W x float> %acc, float %y, i32 %n
  %n2 = add i32 %n, 1
  %more = icmp ult i32 %n2, $W
  br i1 %more, label %head, label %out
out:
  ret <$W x float> %acc2
}}
$FIRST_LANEdeclare i1 @llvm.vector.reduce.or.v$Wi1(<$W x i1>)
declare <$W x i32> @llvm.masked.gather.v$Wi32.v$Wp0(<$W x ptr>, i32, <$W x i1>, <$W x i32>)
declare void @llvm.masked.scatter.v$Wi32.v$Wp0(<$W x i32>, <$W x ptr>, i32, <$W x i1>)

; host address of the page all active lanes fall into with %n bytes each, 0 where they do not or it does not allow %need
define internal i64 @one_page(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, i64 %need) alwaysinline {{
  %mask = bitcast i$W %exec to <$W x i1>
  %lane = call i32 @first(i$W %exec)
  %va0 = extractelement <$W x i64> %va, i32 %lane
  %page = lshr i64 %va0, 12
  %start = shl i64 %page, 12
  %last = sub i64 4096, %n
  %s1 = insertelement <$W x i64> poison, i64 %start, i32 0
  %sv = shufflevector <$W x i64> %s1, <$W x i64> poison, <$W x i32> zeroinitializer
  %l1 = insertelement <$W x i64> poison, i64 %last, i32 0
  %lv = shufflevector <$W x i64> %l1, <$W x i64> poison, <$W x i32> zeroinitializer
  %off = sub <$W x i64> %va, %sv
  %out = icmp ugt <$W x i64> %off, %lv
  %bad = and <$W x i1> %out, %mask
  %any = call i1 @llvm.vector.reduce.or.v$Wi1(<$W x i1> %bad)
  br i1 %any, label %no, label %yes
yes:
  %h = call i64 @host(ptr %c, i64 %start, i64 %need, i32 %lane)
  %d = sub i64 %h, %start
  %zero = icmp eq i64 %h, 0
  %r = select i1 %zero, i64 0, i64 %d
  ret i64 %r
no:
  ret i64 0
}}

; %k-th dword of every active lane; other lanes get 0
define internal <$W x i32> @gather(ptr %c, <$W x i64> %va, i$W %exec, i64 %delta, i64 %k, ptr %ok) alwaysinline {{
entry:
  %slow = icmp eq i64 %delta, 0
  %k1 = insertelement <$W x i64> poison, i64 %k, i32 0
  %kv = shufflevector <$W x i64> %k1, <$W x i64> poison, <$W x i32> zeroinitializer
  %a = add <$W x i64> %va, %kv
  br i1 %slow, label %lanes, label %fast
fast:
  %d1 = insertelement <$W x i64> poison, i64 %delta, i32 0
  %dv = shufflevector <$W x i64> %d1, <$W x i64> poison, <$W x i32> zeroinitializer
  %h = add <$W x i64> %a, %dv
  %p = inttoptr <$W x i64> %h to <$W x ptr>
  %mask = bitcast i$W %exec to <$W x i1>
  %v = call <$W x i32> @llvm.masked.gather.v$Wi32.v$Wp0(<$W x ptr> %p, i32 1, <$W x i1> %mask, <$W x i32> zeroinitializer)
  ret <$W x i32> %v
lanes:
  %r = call <$W x i32> @gather_lanes(ptr %c, <$W x i64> %a, i$W %exec, ptr %ok)
  ret <$W x i32> %r
}}

define internal <$W x i32> @gather_lanes(ptr %c, <$W x i64> %va, i$W %exec, ptr %ok) noinline {{
entry:
  br label %head
head:
  %left = phi i$W [ %exec, %entry ], [ %left2, %next ]
  %acc = phi <$W x i32> [ zeroinitializer, %entry ], [ %acc2, %next ]
  %none = icmp eq i$W %left, 0
  br i1 %none, label %out, label %next
next:
  %lane = call i32 @first(i$W %left)
  %a = extractelement <$W x i64> %va, i32 %lane
  %v = call i32 @load_dword(ptr %c, i64 %a, i32 %lane, ptr %ok)
  %acc2 = insertelement <$W x i32> %acc, i32 %v, i32 %lane
  %m1 = sub i$W %left, 1
  %left2 = and i$W %left, %m1
  br label %head
out:
  ret <$W x i32> %acc
}}

define internal void @scatter(ptr %c, <$W x i64> %va, <$W x i32> %v, i$W %exec, i64 %delta, i64 %k, ptr %ok) alwaysinline {{
entry:
  %slow = icmp eq i64 %delta, 0
  %k1 = insertelement <$W x i64> poison, i64 %k, i32 0
  %kv = shufflevector <$W x i64> %k1, <$W x i64> poison, <$W x i32> zeroinitializer
  %a = add <$W x i64> %va, %kv
  br i1 %slow, label %lanes, label %fast
fast:
  %d1 = insertelement <$W x i64> poison, i64 %delta, i32 0
  %dv = shufflevector <$W x i64> %d1, <$W x i64> poison, <$W x i32> zeroinitializer
  %h = add <$W x i64> %a, %dv
  %p = inttoptr <$W x i64> %h to <$W x ptr>
  %mask = bitcast i$W %exec to <$W x i1>
  call void @llvm.masked.scatter.v$Wi32.v$Wp0(<$W x i32> %v, <$W x ptr> %p, i32 1, <$W x i1> %mask)
  ret void
lanes:
  call void @scatter_lanes(ptr %c, <$W x i64> %a, <$W x i32> %v, i$W %exec, i64 4, ptr %ok)
  ret void
}}

; the low %n bytes of every active lane's dword
define internal void @scatter_lanes(ptr %c, <$W x i64> %va, <$W x i32> %v, i$W %exec, i64 %n, ptr %ok) noinline {{
entry:
  %dwords = icmp eq i64 %n, 4
  br label %head
head:
  %left = phi i$W [ %exec, %entry ], [ %left2, %after ]
  %none = icmp eq i$W %left, 0
  br i1 %none, label %out, label %next
next:
  %lane = call i32 @first(i$W %left)
  %a = extractelement <$W x i64> %va, i32 %lane
  %x = extractelement <$W x i32> %v, i32 %lane
  br i1 %dwords, label %whole, label %part
whole:
  call void @store_dword(ptr %c, i64 %a, i32 %x, i32 %lane, ptr %ok)
  br label %after
part:
  call void @store_bytes(ptr %c, i64 %a, i32 %x, i64 %n, i32 %lane, ptr %ok)
  br label %after
after:
  %m1 = sub i$W %left, 1
  %left2 = and i$W %left, %m1
  br label %head
out:
  ret void
}}

; one byte or two of every active lane, zero-extended
define internal <$W x i32> @gather_narrow(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, ptr %ok) noinline {{
entry:
  %two = icmp eq i64 %n, 2
  br label %head
head:
  %left = phi i$W [ %exec, %entry ], [ %left2, %join ]
  %acc = phi <$W x i32> [ zeroinitializer, %entry ], [ %acc2, %join ]
  %none = icmp eq i$W %left, 0
  br i1 %none, label %out, label %next
next:
  %lane = call i32 @first(i$W %left)
  %a = extractelement <$W x i64> %va, i32 %lane
  %h = call i64 @host(ptr %c, i64 %a, i64 {Access.VALID.value}, i32 %lane)
  %good = icmp ne i64 %h, 0
  br i1 %good, label %low, label %bad
low:
  %p = inttoptr i64 %h to ptr
  %b = load i8, ptr %p
  %bw = zext i8 %b to i32
  br i1 %two, label %high, label %join
high:
  %a1 = add i64 %a, 1
  %h1 = call i64 @host(ptr %c, i64 %a1, i64 {Access.VALID.value}, i32 %lane)
  %good1 = icmp ne i64 %h1, 0
  br i1 %good1, label %top, label %bad
top:
  %p1 = inttoptr i64 %h1 to ptr
  %b1 = load i8, ptr %p1
  %b1w = zext i8 %b1 to i32
  %b1s = shl i32 %b1w, 8
  %both = or i32 %bw, %b1s
  br label %join
bad:
  store i8 0, ptr %ok
  br label %join
join:
  %v = phi i32 [ %bw, %low ], [ %both, %top ], [ 0, %bad ]
  %acc2 = insertelement <$W x i32> %acc, i32 %v, i32 %lane
  %m1 = sub i$W %left, 1
  %left2 = and i$W %left, %m1
  br label %head
out:
  ret <$W x i32> %acc
}}
"""

# Workgroups %begin to %end in order x, y, z: the waves of each run until all are at a barrier or done, then go on.
_GROUPS = f"""

define internal void @put_id(ptr %s, i32 %where, i32 %v) alwaysinline {{
  %no = icmp slt i32 %where, 0
  br i1 %no, label %out, label %put
put:
  %p = getelementptr i32, ptr %s, i32 %where
  store i32 %v, ptr %p
  br label %out
out:
  ret void
}}

define i32 @run(ptr %c, i64 %begin, i64 %end) {{
entry:
  %nw = call i32 @get_waves(ptr %c)
  %sx = call i64 @get_states(ptr %c)
  %tx = call i64 @get_templates(ptr %c)
  %private = call i64 @get_scratch(ptr %c)
  %per = call i64 @get_scratch_wave(ptr %c)
  %gx = call i32 @get_groups_x(ptr %c)
  %gy = call i32 @get_groups_y(ptr %c)
  br label %group
group:
  %g = phi i64 [ %begin, %entry ], [ %g2, %group.next ]
  %more = icmp slt i64 %g, %end
  br i1 %more, label %set, label %good
set:
  %gi = trunc i64 %g to i32
  %ox = urem i32 %gi, %gx
  %gr = udiv i32 %gi, %gx
  %oy = urem i32 %gr, %gy
  %oz = udiv i32 %gr, %gy
  %fx = call i32 @get_first_x(ptr %c)
  %fy = call i32 @get_first_y(ptr %c)
  %fz = call i32 @get_first_z(ptr %c)
  %idx = add i32 %ox, %fx
  %idy = add i32 %oy, %fy
  %idz = add i32 %oz, %fz
  %zs = shl i32 %idz, 16
  %yz = or i32 %idy, %zs
  br label %init
init:
  %w = phi i32 [ 0, %set ], [ %w2, %init ]
  %w64 = zext i32 %w to i64
  %so = mul i64 %w64, $STATE
  %sa = add i64 %sx, %so
  %s = inttoptr i64 %sa to ptr
  %to = mul i64 %w64, $FIRST
  %ta = add i64 %tx, %to
  %t = inttoptr i64 %ta to ptr
  %scalars = load <128 x i32>, ptr %t, align 4
  store <128 x i32> %scalars, ptr %s, align 4
  %sv = getelementptr i8, ptr %s, i64 {at.VGPR}
  %tv = getelementptr i8, ptr %t, i64 512
  %ids = load <$LANES x i32>, ptr %tv, align 4
  store <$LANES x i32> %ids, ptr %sv, align 4
  %ix = call i32 @get_id_x(ptr %c)
  call void @put_id(ptr %s, i32 %ix, i32 %idx)
  %iy = call i32 @get_id_y(ptr %c)
  call void @put_id(ptr %s, i32 %iy, i32 %idy)
  %iz = call i32 @get_id_z(ptr %c)
  call void @put_id(ptr %s, i32 %iz, i32 %idz)
  %iyz = call i32 @get_id_yz(ptr %c)
  call void @put_id(ptr %s, i32 %iyz, i32 %yz)
  %pscc = getelementptr i8, ptr %s, i64 {at.SCC}
  store i64 0, ptr %pscc
  %pmode = getelementptr i8, ptr %s, i64 {at.MODE}
  %cmode = getelementptr i8, ptr %c, i64 {at.EXEC_AND_MODE}
  %mode = load i32, ptr %cmode
  store i32 %mode, ptr %pmode
  %presume = getelementptr i8, ptr %s, i64 {at.RESUME}
  store i32 0, ptr %presume
  %pstatus = getelementptr i8, ptr %s, i64 {at.STATUS}
  store i32 {at.BARRIER}, ptr %pstatus
  %w2 = add i32 %w, 1
  %again = icmp ult i32 %w2, %nw
  br i1 %again, label %init, label %round
round:
  br label %step
step:
  %v = phi i32 [ 0, %round ], [ %v2, %step.next ]
  %alive = phi i32 [ 0, %round ], [ %alive2, %step.next ]
  %v64 = zext i32 %v to i64
  %vo = mul i64 %v64, $STATE
  %va = add i64 %sx, %vo
  %vs = inttoptr i64 %va to ptr
  %vstatus = getelementptr i8, ptr %vs, i64 {at.STATUS}
  %was = load i32, ptr %vstatus
  %waiting = icmp eq i32 %was, {at.BARRIER}
  br i1 %waiting, label %go, label %step.next
go:
  %po = mul i64 %v64, %per
  %pa = add i64 %private, %po
  call void @set_scratch(ptr %c, i64 %pa)
  %r = call i32 @wave(ptr %vs, ptr %c)
  store i32 %r, ptr %vstatus
  %fault = icmp eq i32 %r, {at.FAULT}
  br i1 %fault, label %bad, label %step.next
step.next:
  %now = phi i32 [ 0, %step ], [ %r, %go ]
  %alive2 = add i32 %alive, %now
  %v2 = add i32 %v, 1
  %others = icmp ult i32 %v2, %nw
  br i1 %others, label %step, label %step.end
step.end:
  %some = icmp ne i32 %alive2, 0
  br i1 %some, label %round, label %group.next
group.next:
  %g2 = add i64 %g, 1
  br label %group
bad:
  call void @set_scratch(ptr %c, i64 %private)
  ret i32 1
good:
  call void @set_scratch(ptr %c, i64 %private)
  ret i32 0
}}
"""
