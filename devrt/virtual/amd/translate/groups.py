"""LLVM IR of the loop over workgroups.

A dispatch gives way after a number of branches backwards and groups: every wave of the group stops at its next branch backwards,
and `run` returns PAUSED. Called again, it goes on.
"""

from __future__ import annotations

from devrt.virtual.amd.translate import layout as at


def text(wave: int) -> str:
    """`run`, for waves of `wave` lanes."""
    lanes = 3 * wave * 4
    return _TEXT.replace("$STATE", str(at.state_bytes(wave))).replace("$FIRST", str(512 + lanes)).replace("$LANES", str(lanes))


# Workgroups %begin to %end in order x, y, z: the waves of each run in turn until all are at a barrier or done, then go on.
_TEXT = f"""

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
  %midst = call i32 @get_midst(ptr %c)
  %begun = icmp ne i32 %midst, 0
  call void @set_midst(ptr %c, i32 0)
  br i1 %begun, label %round, label %group
group:
  %g = phi i64 [ %begin, %entry ], [ %g2, %group.next ]
  %more = icmp slt i64 %g, %end
  br i1 %more, label %set, label %good
set:
  %budget = call i64 @get_group_budget(ptr %c)
  call void @set_budget(ptr %c, i64 %budget)
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
  store i32 {at.READY}, ptr %pstatus
  %w2 = add i32 %w, 1
  %again = icmp ult i32 %w2, %nw
  br i1 %again, label %init, label %round
round:
  %h = phi i64 [ %begin, %entry ], [ %g, %init ], [ %h, %still ], [ %h, %met.next ]
  br label %step
step:
  %v = phi i32 [ 0, %round ], [ %v2, %step.next ]
  %ready = phi i1 [ false, %round ], [ %ready2, %step.next ]
  %wait = phi i1 [ false, %round ], [ %wait2, %step.next ]
  %v64 = zext i32 %v to i64
  %vo = mul i64 %v64, $STATE
  %va = add i64 %sx, %vo
  %vs = inttoptr i64 %va to ptr
  %vstatus = getelementptr i8, ptr %vs, i64 {at.STATUS}
  %was = load i32, ptr %vstatus
  %may = icmp eq i32 %was, {at.READY}
  br i1 %may, label %go, label %step.next
go:
  %po = mul i64 %v64, %per
  %pa = add i64 %private, %po
  call void @set_scratch(ptr %c, i64 %pa)
  %slice = getelementptr i8, ptr %c, i64 {at.SLICE}
  store i32 0, ptr %slice
  %r = call i32 @wave(ptr %vs, ptr %c)
  store i32 %r, ptr %vstatus
  %fault = icmp eq i32 %r, {at.FAULT}
  br i1 %fault, label %bad, label %step.next
step.next:
  %now = phi i32 [ %was, %step ], [ %r, %go ]
  %isready = icmp eq i32 %now, {at.READY}
  %ready2 = or i1 %ready, %isready
  %iswait = icmp eq i32 %now, {at.BARRIER}
  %wait2 = or i1 %wait, %iswait
  %v2 = add i32 %v, 1
  %others = icmp ult i32 %v2, %nw
  br i1 %others, label %step, label %step.end
step.end:
  br i1 %ready2, label %still, label %all
still:
  %share = call i64 @get_share(ptr %c)
  %goes = icmp sgt i64 %share, 0
  br i1 %goes, label %round, label %paused
all:
  br i1 %wait2, label %met, label %group.next
met:
  %m = phi i32 [ 0, %all ], [ %m2, %met.next ]
  %m64 = zext i32 %m to i64
  %mo = mul i64 %m64, $STATE
  %ma = add i64 %sx, %mo
  %ms = inttoptr i64 %ma to ptr
  %mp = getelementptr i8, ptr %ms, i64 {at.STATUS}
  %mstatus = load i32, ptr %mp
  %mwait = icmp eq i32 %mstatus, {at.BARRIER}
  br i1 %mwait, label %free, label %met.next
free:
  store i32 {at.READY}, ptr %mp
  br label %met.next
met.next:
  %m2 = add i32 %m, 1
  %mmore = icmp ult i32 %m2, %nw
  br i1 %mmore, label %met, label %round
group.next:
  %g2 = add i64 %h, 1
  %tired = call i1 @tire(ptr %c)
  %rest = icmp slt i64 %g2, %end
  %gives = and i1 %tired, %rest
  br i1 %gives, label %paused, label %group
paused:
  %where = phi i64 [ %h, %still ], [ %g2, %group.next ]
  %within = phi i32 [ 1, %still ], [ 0, %group.next ]
  call void @set_group(ptr %c, i64 %where)
  call void @set_midst(ptr %c, i32 %within)
  call void @set_scratch(ptr %c, i64 %private)
  ret i32 {at.PAUSED}
bad:
  call void @set_scratch(ptr %c, i64 %private)
  ret i32 {at.BAD}
good:
  call void @set_scratch(ptr %c, i64 %private)
  ret i32 {at.GOOD}
}}
"""
