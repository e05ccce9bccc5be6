"""LLVM IR that loads and stores the lanes of a wave in global memory.

Where all lanes that take part lie in one page, one lookup serves them and the vector unit gathers; else lane by lane.
"""

from __future__ import annotations

from devrt.virtual import near
from devrt.virtual.memory import Access
from devrt.virtual.walker import DIRTY


def text(wave: int) -> str:
    """The functions for waves of `wave` lanes."""
    return _ends(wave) + for_lanes(_GLOBAL + near.TEXT + near.LANES, wave)


def for_lanes(text: str, wave: int) -> str:
    """A text for waves of $W lanes, whose numbers are $NUMBERS."""
    numbers = "<" + ", ".join(f"i64 {n}" for n in range(wave)) + ">"
    return text.replace("$W", str(wave)).replace("$NUMBERS", numbers)


def _ends(wave: int) -> str:
    """The lowest and the highest lane of a mask that is not empty."""
    narrow = "%r = trunc i64 %n to i32" if wave == 64 else "%r = add i32 %n, 0"
    return f"""
declare i{wave} @llvm.cttz.i{wave}(i{wave}, i1)
declare i{wave} @llvm.ctlz.i{wave}(i{wave}, i1)
define internal i32 @first(i{wave} %m) alwaysinline {{
  %n = call i{wave} @llvm.cttz.i{wave}(i{wave} %m, i1 true)
  {narrow}
  ret i32 %r
}}
define internal i32 @last(i{wave} %m) alwaysinline {{
  %above = call i{wave} @llvm.ctlz.i{wave}(i{wave} %m, i1 true)
  %n = sub i{wave} {wave - 1}, %above
  {narrow}
  ret i32 %r
}}
"""


_GLOBAL = f"""
declare <$W x i16> @llvm.masked.gather.v$Wi16.v$Wp0(<$W x ptr>, i32, <$W x i1>, <$W x i16>)
declare <$W x i32> @llvm.masked.gather.v$Wi32.v$Wp0(<$W x ptr>, i32, <$W x i1>, <$W x i32>)
declare <$W x i8> @llvm.masked.gather.v$Wi8.v$Wp0(<$W x ptr>, i32, <$W x i1>, <$W x i8>)
declare void @llvm.masked.scatter.v$Wi16.v$Wp0(<$W x i16>, <$W x ptr>, i32, <$W x i1>)
declare void @llvm.masked.scatter.v$Wi32.v$Wp0(<$W x i32>, <$W x ptr>, i32, <$W x i1>)
declare void @llvm.masked.scatter.v$Wi8.v$Wp0(<$W x i8>, <$W x ptr>, i32, <$W x i1>)

; host address minus address of the page that all active lanes fall into with %n bytes each, 0 where they do not
define internal i64 @one_page(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, i64 %need) {{
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

; %n bytes of every active lane as dwords at %out, one after another; other lanes get 0
define internal void @global_load(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, ptr %out, ptr %ok) noinline {{
entry:
  %none = icmp eq i$W %exec, 0
  br i1 %none, label %start, label %look
look:
  %found = call i64 @one_page(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, i64 {Access.VALID.value})
  br label %start
start:
  %delta = phi i64 [ 0, %entry ], [ %found, %look ]
  %slow = icmp eq i64 %delta, 0
  %narrow = icmp ult i64 %n, 4
  br i1 %narrow, label %part, label %dwords
dwords:
  %k = phi i64 [ 0, %start ], [ %k2, %put ]
  %k1 = insertelement <$W x i64> poison, i64 %k, i32 0
  %kv = shufflevector <$W x i64> %k1, <$W x i64> poison, <$W x i32> zeroinitializer
  %a = add <$W x i64> %va, %kv
  br i1 %slow, label %lanes, label %fast
fast:
  %p = call <$W x ptr> @hosts(<$W x i64> %a, i64 %delta)
  %mask = bitcast i$W %exec to <$W x i1>
  %v = call <$W x i32> @llvm.masked.gather.v$Wi32.v$Wp0(<$W x ptr> %p, i32 1, <$W x i1> %mask, <$W x i32> zeroinitializer)
  br label %put
lanes:
  %r = call <$W x i32> @gather_lanes(ptr %c, <$W x i64> %a, i$W %exec, ptr %ok)
  br label %put
put:
  %x = phi <$W x i32> [ %v, %fast ], [ %r, %lanes ]
  %at = mul i64 %k, $W
  %o = getelementptr i8, ptr %out, i64 %at
  store <$W x i32> %x, ptr %o, align 4
  %k2 = add i64 %k, 4
  %more = icmp ult i64 %k2, %n
  br i1 %more, label %dwords, label %done
part:
  br i1 %slow, label %slowpart, label %fastpart
slowpart:
  %s = call <$W x i32> @gather_narrow(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, ptr %ok)
  store <$W x i32> %s, ptr %out, align 4
  ret void
fastpart:
  %q = call <$W x ptr> @hosts(<$W x i64> %va, i64 %delta)
  %y = call <$W x i32> @gather_size(<$W x ptr> %q, i$W %exec, i64 %n)
  store <$W x i32> %y, ptr %out, align 4
  ret void
done:
  ret void
}}

; where all lanes store to one address, only the last does: what another engine writes there meanwhile must stay
define internal void @global_store(ptr %c, <$W x i64> %va, i$W %given, i64 %n, ptr %in, ptr %ok) noinline {{
entry:
  %none = icmp eq i$W %given, 0
  br i1 %none, label %done, label %look
look:
  %lane = call i32 @first(i$W %given)
  %a0 = extractelement <$W x i64> %va, i32 %lane
  %s1 = insertelement <$W x i64> poison, i64 %a0, i32 0
  %sv = shufflevector <$W x i64> %s1, <$W x i64> poison, <$W x i32> zeroinitializer
  %eq = icmp eq <$W x i64> %va, %sv
  %here = bitcast <$W x i1> %eq to i$W
  %elsewhere = xor i$W %here, -1
  %others = and i$W %given, %elsewhere
  %same = icmp eq i$W %others, 0
  %last = call i32 @last(i$W %given)
  %less = sub i$W 0, %given
  %lowest = and i$W %given, %less
  %exec = select i1 %same, i$W %lowest, i$W %given
  %delta = call i64 @one_page(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, i64 {Access.VALID.value | Access.WRITE.value | DIRTY})
  %slow = icmp eq i64 %delta, 0
  %narrow = icmp ult i64 %n, 4
  %size = select i1 %narrow, i64 %n, i64 4
  br label %dwords
dwords:
  %k = phi i64 [ 0, %look ], [ %k2, %next ]
  %k1 = insertelement <$W x i64> poison, i64 %k, i32 0
  %kv = shufflevector <$W x i64> %k1, <$W x i64> poison, <$W x i32> zeroinitializer
  %a = add <$W x i64> %va, %kv
  %at = mul i64 %k, $W
  %i = getelementptr i8, ptr %in, i64 %at
  %xs = load <$W x i32>, ptr %i, align 4
  %top = extractelement <$W x i32> %xs, i32 %last
  %x0 = insertelement <$W x i32> %xs, i32 %top, i32 %lane
  %x = select i1 %same, <$W x i32> %x0, <$W x i32> %xs
  br i1 %slow, label %lanes, label %fast
fast:
  %p = call <$W x ptr> @hosts(<$W x i64> %a, i64 %delta)
  call void @scatter_size(<$W x ptr> %p, <$W x i32> %x, i$W %exec, i64 %size)
  br label %next
lanes:
  call void @scatter_lanes(ptr %c, <$W x i64> %a, <$W x i32> %x, i$W %exec, i64 %size, ptr %ok)
  br label %next
next:
  %k2 = add i64 %k, 4
  %more = icmp ult i64 %k2, %n
  br i1 %more, label %dwords, label %done
done:
  ret void
}}

define internal <$W x ptr> @hosts(<$W x i64> %a, i64 %delta) alwaysinline {{
  %d1 = insertelement <$W x i64> poison, i64 %delta, i32 0
  %dv = shufflevector <$W x i64> %d1, <$W x i64> poison, <$W x i32> zeroinitializer
  %h = add <$W x i64> %a, %dv
  %p = inttoptr <$W x i64> %h to <$W x ptr>
  ret <$W x ptr> %p
}}

; 4, 2 or 1 bytes at each pointer
define internal <$W x i32> @gather_size(<$W x ptr> %p, i$W %in, i64 %n) noinline {{
entry:
  %mask = bitcast i$W %in to <$W x i1>
  switch i64 %n, label %whole [ i64 2, label %words i64 1, label %bytes ]
whole:
  %v = call <$W x i32> @llvm.masked.gather.v$Wi32.v$Wp0(<$W x ptr> %p, i32 1, <$W x i1> %mask, <$W x i32> zeroinitializer)
  ret <$W x i32> %v
words:
  %s = call <$W x i16> @llvm.masked.gather.v$Wi16.v$Wp0(<$W x ptr> %p, i32 1, <$W x i1> %mask, <$W x i16> zeroinitializer)
  %sw = zext <$W x i16> %s to <$W x i32>
  ret <$W x i32> %sw
bytes:
  %b = call <$W x i8> @llvm.masked.gather.v$Wi8.v$Wp0(<$W x ptr> %p, i32 1, <$W x i1> %mask, <$W x i8> zeroinitializer)
  %bw = zext <$W x i8> %b to <$W x i32>
  ret <$W x i32> %bw
}}

define internal void @scatter_size(<$W x ptr> %p, <$W x i32> %v, i$W %in, i64 %n) noinline {{
entry:
  %mask = bitcast i$W %in to <$W x i1>
  switch i64 %n, label %whole [ i64 2, label %words i64 1, label %bytes ]
whole:
  call void @llvm.masked.scatter.v$Wi32.v$Wp0(<$W x i32> %v, <$W x ptr> %p, i32 1, <$W x i1> %mask)
  ret void
words:
  %s = trunc <$W x i32> %v to <$W x i16>
  call void @llvm.masked.scatter.v$Wi16.v$Wp0(<$W x i16> %s, <$W x ptr> %p, i32 1, <$W x i1> %mask)
  ret void
bytes:
  %b = trunc <$W x i32> %v to <$W x i8>
  call void @llvm.masked.scatter.v$Wi8.v$Wp0(<$W x i8> %b, <$W x ptr> %p, i32 1, <$W x i1> %mask)
  ret void
}}

define internal <$W x i32> @gather_lanes(ptr %c, <$W x i64> %va, i$W %exec, ptr %ok) noinline {{
entry:
  br label %head
head:
  %left = phi i$W [ %exec, %entry ], [ %left2, %next ]
  %acc = phi <$W x i32> [ zeroinitializer, %entry ], [ %acc2, %next ]
  %none = icmp eq i$W %left, 0
  %good.so.far = load i8, ptr %ok
  %fault = icmp eq i8 %good.so.far, 0
  %end = or i1 %none, %fault
  br i1 %end, label %out, label %next
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

; the low %n bytes of every active lane's dword
define internal void @scatter_lanes(ptr %c, <$W x i64> %va, <$W x i32> %v, i$W %exec, i64 %n, ptr %ok) noinline {{
entry:
  %dwords = icmp eq i64 %n, 4
  br label %head
head:
  %left = phi i$W [ %exec, %entry ], [ %left2, %after ]
  %none = icmp eq i$W %left, 0
  %good.so.far = load i8, ptr %ok
  %fault = icmp eq i8 %good.so.far, 0
  %end = or i1 %none, %fault
  br i1 %end, label %out, label %next
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
  %good.so.far = load i8, ptr %ok
  %fault = icmp eq i8 %good.so.far, 0
  %end = or i1 %none, %fault
  br i1 %end, label %out, label %next
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
