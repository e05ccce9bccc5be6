"""LLVM IR for what a workgroup or a wave has to itself: LDS and private memory."""

from __future__ import annotations

from devrt.virtual.context import KIND

TEXT = f"""
; LDS at %at + %first: what is outside reads 0 and is not written
define internal void @lds_load(ptr %c, <$W x i64> %at, i$W %exec, i64 %first, i64 %n, ptr %out) noinline {{
  %size = call i64 @get_lds_bytes(ptr %c)
  %base = call i64 @get_lds(ptr %c)
  call void @near_load(<$W x i64> %at, i$W %exec, i64 %first, i64 %n, i64 %base, i64 0, i64 %size, ptr %out)
  ret void
}}
define internal void @lds_store(ptr %c, <$W x i64> %at, i$W %exec, i64 %first, i64 %n, ptr %in) noinline {{
  %size = call i64 @get_lds_bytes(ptr %c)
  %base = call i64 @get_lds(ptr %c)
  call void @near_store(<$W x i64> %at, i$W %exec, i64 %first, i64 %n, i64 %base, i64 0, i64 %size, ptr %in)
  ret void
}}

; private memory: each lane has bytes of its own; outside is a fault
define internal void @private_load(ptr %c, <$W x i64> %at, i$W %exec, i64 %n, ptr %out, ptr %ok) noinline {{
  %size = call i64 @get_scratch_lane(ptr %c)
  %base = call i64 @get_scratch(ptr %c)
  call void @private_check(ptr %c, <$W x i64> %at, i$W %exec, i64 %n, i64 %size, ptr %ok)
  call void @near_load(<$W x i64> %at, i$W %exec, i64 0, i64 %n, i64 %base, i64 %size, i64 %size, ptr %out)
  ret void
}}
define internal void @private_store(ptr %c, <$W x i64> %at, i$W %exec, i64 %n, ptr %in, ptr %ok) noinline {{
  %size = call i64 @get_scratch_lane(ptr %c)
  %base = call i64 @get_scratch(ptr %c)
  call void @private_check(ptr %c, <$W x i64> %at, i$W %exec, i64 %n, i64 %size, ptr %ok)
  call void @near_store(<$W x i64> %at, i$W %exec, i64 0, i64 %n, i64 %base, i64 %size, i64 %size, ptr %in)
  ret void
}}
define internal void @private_check(ptr %c, <$W x i64> %at, i$W %exec, i64 %n, i64 %size, ptr %ok) noinline {{
  %bad = call i$W @outside(<$W x i64> %at, i$W %exec, i64 0, i64 %n, i64 %size)
  %any = icmp ne i$W %bad, 0
  br i1 %any, label %fault, label %good
fault:
  %lane = call i32 @first(i$W %bad)
  %a = extractelement <$W x i64> %at, i32 %lane
  call void @set_kind(ptr %c, i32 {KIND["outside scratch"]})
  call void @set_va(ptr %c, i64 %a)
  call void @set_lane(ptr %c, i32 %lane)
  store i8 0, ptr %ok
  ret void
good:
  ret void
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
"""
