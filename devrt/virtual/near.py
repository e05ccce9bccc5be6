"""LLVM IR for what a workgroup or a wave has to itself, and for moves between lanes. $W: lanes of a wave."""

from __future__ import annotations

TEXT = """
; %n bytes of every active lane in memory of %size bytes at %base, a lane's own %lane bytes behind that of the lane before it; what is
; outside reads 0 and is not written
define internal void @near_load(<$W x i64> %at, i$W %exec, i64 %first, i64 %n, i64 %base, i64 %lane, i64 %size, ptr %out) noinline {
entry:
  %narrow = icmp ult i64 %n, 4
  %each = select i1 %narrow, i64 %n, i64 4
  br label %dwords
dwords:
  %k = phi i64 [ 0, %entry ], [ %k2, %dwords ]
  %from = add i64 %first, %k
  %bad = call i$W @outside(<$W x i64> %at, i$W %exec, i64 %from, i64 %each, i64 %size)
  %keep = xor i$W %bad, -1
  %in = and i$W %exec, %keep
  %p = call <$W x ptr> @near(<$W x i64> %at, i64 %from, i64 %base, i64 %lane)
  %v = call <$W x i32> @gather_size(<$W x ptr> %p, i$W %in, i64 %each)
  %ot = mul i64 %k, $W
  %o = getelementptr i8, ptr %out, i64 %ot
  store <$W x i32> %v, ptr %o, align 4
  %k2 = add i64 %k, 4
  %more = icmp ult i64 %k2, %n
  br i1 %more, label %dwords, label %done
done:
  ret void
}
define internal void @near_store(<$W x i64> %at, i$W %exec, i64 %first, i64 %n, i64 %base, i64 %lane, i64 %size, ptr %src) noinline {
entry:
  %narrow = icmp ult i64 %n, 4
  %each = select i1 %narrow, i64 %n, i64 4
  br label %dwords
dwords:
  %k = phi i64 [ 0, %entry ], [ %k2, %dwords ]
  %from = add i64 %first, %k
  %bad = call i$W @outside(<$W x i64> %at, i$W %exec, i64 %from, i64 %each, i64 %size)
  %keep = xor i$W %bad, -1
  %in = and i$W %exec, %keep
  %p = call <$W x ptr> @near(<$W x i64> %at, i64 %from, i64 %base, i64 %lane)
  %ot = mul i64 %k, $W
  %o = getelementptr i8, ptr %src, i64 %ot
  %v = load <$W x i32>, ptr %o, align 4
  call void @scatter_size(<$W x ptr> %p, <$W x i32> %v, i$W %in, i64 %each)
  %k2 = add i64 %k, 4
  %more = icmp ult i64 %k2, %n
  br i1 %more, label %dwords, label %done
done:
  ret void
}
; active lanes of which %n bytes at %at + %k are not below %size
define internal i$W @outside(<$W x i64> %at, i$W %exec, i64 %k, i64 %n, i64 %size) alwaysinline {
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
}

define internal <$W x ptr> @near(<$W x i64> %at, i64 %k, i64 %base, i64 %lane) alwaysinline {
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
}
"""  # noqa: E501

LANES = """
; %v[%lanes[n]] for every lane n
define internal <$W x i32> @pick(<$W x i32> %v, <$W x i32> %lanes) noinline {
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
}

; lane %lanes[n] takes %v[n]; the highest n wins
define internal <$W x i32> @push(<$W x i32> %v, <$W x i32> %lanes, i$W %exec) noinline {
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
}

; a C function of the table, lane by lane
define internal <$W x float> @library(ptr %c, i64 %which, <$W x float> %v) noinline {
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
}
"""
