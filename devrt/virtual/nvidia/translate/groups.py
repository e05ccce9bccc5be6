"""LLVM IR of the loop over blocks: the warps of each run until all wait or have ended, then those that may go on do.

A launch gives way after a number of branches backwards and blocks, so that other channels have their turn: every warp of the
block stops at its next branch backwards, and `run` returns PAUSED. Called again, it goes on.
"""

from __future__ import annotations

from devrt.virtual import walker
from devrt.virtual.nvidia.translate import layout as at

# Blocks %begin to %end in order x, y, z.
TEXT = walker.giving_way("get_warps", at.SLICE, at.STATUS) + f"""
define i32 @run(ptr %c, i64 %begin, i64 %end) {{
entry:
  %nw = call i32 @get_warps(ptr %c)
  %states = call i64 @get_states(ptr %c)
  %masks = call i64 @get_live_masks(ptr %c)
  %private = call i64 @get_local(ptr %c)
  %per = call i64 @get_local_warp(ptr %c)
  %gx = call i32 @get_grid_x(ptr %c)
  %gy = call i32 @get_grid_y(ptr %c)
  %start = call i32 @get_entry(ptr %c)
  %budget = call i64 @get_block_budget(ptr %c)
  %gx64 = zext i32 %gx to i64
  %gy64 = zext i32 %gy to i64
  %midst = call i32 @get_midst(ptr %c)
  %begun = icmp ne i32 %midst, 0
  call void @set_midst(ptr %c, i32 0)
  br i1 %begun, label %round, label %block
block:
  %g = phi i64 [ %begin, %entry ], [ %g2, %block.next ]
  %more = icmp slt i64 %g, %end
  br i1 %more, label %set, label %good
set:
  %x64 = urem i64 %g, %gx64
  %gr = udiv i64 %g, %gx64
  %y64 = urem i64 %gr, %gy64
  %z64 = udiv i64 %gr, %gy64
  %x = trunc i64 %x64 to i32
  %y = trunc i64 %y64 to i32
  %z = trunc i64 %z64 to i32
  call void @set_budget(ptr %c, i64 %budget)
  call void @set_cta_x(ptr %c, i32 %x)
  call void @set_cta_y(ptr %c, i32 %y)
  call void @set_cta_z(ptr %c, i32 %z)
  %bars = getelementptr i8, ptr %c, i64 {at.EXPECTED}
  store <64 x i32> zeroinitializer, ptr %bars, align 4
  br label %init
init:
  %w = phi i32 [ 0, %set ], [ %w2, %init ]
  %w64 = zext i32 %w to i64
  %so = mul i64 %w64, {at.STATE_BYTES}
  %sa = add i64 %states, %so
  %s = inttoptr i64 %sa to ptr
  %mo = shl i64 %w64, 2
  %ma = add i64 %masks, %mo
  %mp = inttoptr i64 %ma to ptr
  %mask = load i32, ptr %mp
  store <{at.FRESH_BYTES // 4} x i32> zeroinitializer, ptr %s, align 4
  %p0 = getelementptr i8, ptr %s, i64 {at.RESUME}
  store i32 %start, ptr %p0
  %p1 = getelementptr i8, ptr %s, i64 {at.LIVE}
  store i32 %mask, ptr %p1
  %p2 = getelementptr i8, ptr %s, i64 {at.STATUS}
  store i32 {at.READY}, ptr %p2
  %p3 = getelementptr i8, ptr %s, i64 {at.NUMBER}
  store i32 %w, ptr %p3
  %w2 = add i32 %w, 1
  %again = icmp ult i32 %w2, %nw
  br i1 %again, label %init, label %round
round:
  %h = phi i64 [ %begin, %entry ], [ %g, %init ], [ %h, %still.on ]
  br label %step
step:
  %v = phi i32 [ 0, %round ], [ %v2, %step.next ]
  %ran = phi i32 [ 0, %round ], [ %ran2, %step.next ]
  %left = phi i32 [ 0, %round ], [ %left2, %step.next ]
  %v64 = zext i32 %v to i64
  %vo = mul i64 %v64, {at.STATE_BYTES}
  %va = add i64 %states, %vo
  %vs = inttoptr i64 %va to ptr
  %tp = getelementptr i8, ptr %vs, i64 {at.STATUS}
  %was = load i32, ptr %tp
  %ready = icmp eq i32 %was, {at.READY}
  br i1 %ready, label %go, label %step.next
go:
  %po = mul i64 %v64, %per
  %pa = add i64 %private, %po
  call void @set_local(ptr %c, i64 %pa)
  store i32 {at.BARRIER}, ptr %tp
  %slice = getelementptr i8, ptr %c, i64 {at.SLICE}
  store i32 0, ptr %slice
  %r = call i32 @warp(ptr %vs, ptr %c)
  %fault = icmp eq i32 %r, {at.FAULT}
  br i1 %fault, label %bad, label %went
went:
  %ended = icmp eq i32 %r, {at.DONE}
  br i1 %ended, label %over, label %step.next
over:
  store i32 {at.DONE}, ptr %tp
  %alone = icmp eq i32 %nw, 1
  br i1 %alone, label %step.next, label %others
others:
  %b = phi i32 [ 0, %over ], [ %b2, %others ]
  %met = call i1 @bar.check(ptr %c, i32 %b)
  %b2 = add i32 %b, 1
  %all = icmp ule i32 %b2, {at.CLUSTER}
  br i1 %all, label %others, label %step.next
step.next:
  %did = phi i32 [ 0, %step ], [ 1, %went ], [ 1, %over ], [ 1, %others ]
  %here = phi i32 [ %was, %step ], [ {at.BARRIER}, %went ], [ {at.DONE}, %over ], [ {at.DONE}, %others ]
  %ran2 = or i32 %ran, %did
  %left2 = or i32 %left, %here
  %v2 = add i32 %v, 1
  %rest = icmp ult i32 %v2, %nw
  br i1 %rest, label %step, label %step.end
step.end:
  %some = icmp ne i32 %left2, {at.DONE}
  br i1 %some, label %still, label %block.next
still:
  %share = call i64 @get_share(ptr %c)
  %goes = icmp sgt i64 %share, 0
  %moved = icmp ne i32 %ran2, 0
  %pauses = xor i1 %goes, true
  %pause = and i1 %pauses, %moved
  br i1 %pause, label %paused, label %still.on
still.on:
  br i1 %moved, label %round, label %stuck
paused:
  %where = phi i64 [ %h, %still ], [ %g2, %block.next ]
  %within = phi i32 [ 1, %still ], [ 0, %block.next ]
  call void @set_block(ptr %c, i64 %where)
  call void @set_midst(ptr %c, i32 %within)
  call void @set_local(ptr %c, i64 %private)
  ret i32 {at.PAUSED}
block.next:
  %g2 = add i64 %h, 1
  %tired = call i1 @tire(ptr %c)
  %last = icmp sge i64 %g2, %end
  %rests = xor i1 %last, true
  %gives = and i1 %tired, %rests
  br i1 %gives, label %paused, label %block
stuck:
  %held = call i32 @bar.stuck(ptr %c)
  br label %bad
bad:
  %who = phi i32 [ %v, %go ], [ %held, %stuck ]
  call void @set_fault_warp(ptr %c, i32 %who)
  call void @set_local(ptr %c, i64 %private)
  ret i32 {at.BAD}
good:
  call void @set_local(ptr %c, i64 %private)
  ret i32 {at.GOOD}
}}
"""
