; The command processor of the CPU device: what a GPU does in firmware, in portable LLVM IR.
;
; A queue is a ring of packets. One worker, the leader, takes packets in order; the others, helpers, take chunks of the
; leader's current dispatch. Nobody here allocates, locks or calls Python. The types below are the memory layout that
; packets.py writes; tests/cpu compare the two. Target-specific functions (@relax, @reset_float_mode) are appended by
; processor.py.

; libc syscall, clock_gettime, SYS_futex, SYS_sched_yield, spin turns, libc sched_getcpu
%os = type { ptr, ptr, i64, i64, i64, ptr }
%signal = type { i64, i32 }                        ; value (futex on its low half), number of sleepers

; packets written so far (futex on its low half), core of the host thread that last rang; written by the host
%doorbell = type { i64, i64, [6 x i64] }
%progress = type { i64, i64, i64, i32, i32, [4 x i64] } ; packets read, commands executed, current command, leader asleep
%job = type { i64, ptr, ptr, i64, i64, [3 x i64] } ; ticket, kernel, arguments, groups, groups per chunk
%done = type { i64, [7 x i64] }                    ; chunks that helpers have finished
%helpers = type { i32, i32, [7 x i64] }            ; number of helpers asleep (futex on the ticket's high half)
%fixed = type { ptr, ptr, i64, i64, i32, i32, [3 x i64] } ; os, ring, index mask, workers, stop
%queue = type { %doorbell, %progress, %job, %done, %helpers, %fixed } ; one cache line each

; A ticket is epoch << 32 | chunks << 16 | next chunk, so one atomic add both claims a chunk and says of which job.
; A claimed chunk keeps its job alive (the leader waits for it), hence the descriptor read after a claim is the right one.

; ---------------------------------------------------------------------------------------------------------------------
; Operating system.

define internal void @futex_wait(ptr %os, ptr %word, i32 %expected, i64 %timeout_ns) #0 {
  %timespec = alloca { i64, i64 }
  %seconds = udiv i64 %timeout_ns, 1000000000
  %nanoseconds = urem i64 %timeout_ns, 1000000000
  %second = getelementptr { i64, i64 }, ptr %timespec, i64 0, i32 1
  store i64 %seconds, ptr %timespec
  store i64 %nanoseconds, ptr %second
  %forever = icmp eq i64 %timeout_ns, 0
  %limit = select i1 %forever, ptr null, ptr %timespec
  %syscall = load ptr, ptr %os
  %number.at = getelementptr %os, ptr %os, i64 0, i32 2
  %number = load i64, ptr %number.at
  %value = zext i32 %expected to i64
  %ignored = call i64 (i64, ...) %syscall(i64 %number, ptr %word, i64 128, i64 %value, ptr %limit) ; WAIT | PRIVATE
  ret void
}

define internal void @futex_wake(ptr %os, ptr %word, i64 %count) #0 {
  %syscall = load ptr, ptr %os
  %number.at = getelementptr %os, ptr %os, i64 0, i32 2
  %number = load i64, ptr %number.at
  %ignored = call i64 (i64, ...) %syscall(i64 %number, ptr %word, i64 129, i64 %count) ; WAKE | PRIVATE
  ret void
}

define internal void @yield_core(ptr %os) #0 {
  %syscall = load ptr, ptr %os
  %number.at = getelementptr %os, ptr %os, i64 0, i32 3
  %number = load i64, ptr %number.at
  %ignored = call i64 (i64, ...) %syscall(i64 %number)
  ret void
}

define internal i64 @current_core(ptr %os) #0 {
  %getcpu.at = getelementptr %os, ptr %os, i64 0, i32 5
  %getcpu = load ptr, ptr %getcpu.at
  %core = call i32 %getcpu()
  %wide = sext i32 %core to i64
  ret i64 %wide
}

define internal i64 @now_ns(ptr %os) #0 {
  %timespec = alloca { i64, i64 }
  %clock.at = getelementptr %os, ptr %os, i64 0, i32 1
  %clock = load ptr, ptr %clock.at
  %ignored = call i32 %clock(i32 1, ptr %timespec)          ; CLOCK_MONOTONIC
  %seconds = load i64, ptr %timespec
  %second = getelementptr { i64, i64 }, ptr %timespec, i64 0, i32 1
  %nanoseconds = load i64, ptr %second
  %scaled = mul i64 %seconds, 1000000000
  %ns = add i64 %scaled, %nanoseconds
  ret i64 %ns
}

; ---------------------------------------------------------------------------------------------------------------------
; Signals.

; Wait until the signal reaches `value`: spin, then sleep once for at most `timeout_ns`. Returns the value last seen, so
; that the caller decides whether to go on (and the host can look at Ctrl-C in between). `spared` is the core of whoever
; is going to raise the signal (-1: not known): on that core spinning would only keep it from running.
define dso_local i64 @signal_wait(ptr %os, ptr %signal, i64 %value, i64 %spins, i64 %timeout_ns, i64 %spared) #0 {
entry:
  %core = call i64 @current_core(ptr %os)
  %shared = icmp eq i64 %core, %spared
  %turns = select i1 %shared, i64 0, i64 %spins
  br label %spin
spin:
  %left = phi i64 [ %turns, %entry ], [ %left.next, %turn ]
  %seen = load atomic i64, ptr %signal acquire, align 8
  %reached = icmp uge i64 %seen, %value
  br i1 %reached, label %out, label %again
again:
  %spent = icmp eq i64 %left, 0
  br i1 %spent, label %sleep, label %turn
turn:
  call void @relax()
  %left.next = sub i64 %left, 1
  br label %spin
sleep:
  %sleepers = getelementptr %signal, ptr %signal, i64 0, i32 1
  %ignored = atomicrmw add ptr %sleepers, i32 1 seq_cst
  %last = load atomic i64, ptr %signal seq_cst, align 8
  %late = icmp uge i64 %last, %value
  br i1 %late, label %awake, label %doze
doze:
  %expected = trunc i64 %last to i32
  call void @futex_wait(ptr %os, ptr %signal, i32 %expected, i64 %timeout_ns)
  br label %awake
awake:
  %ignored2 = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  %final = load atomic i64, ptr %signal acquire, align 8
  ret i64 %final
out:
  ret i64 %seen
}

define dso_local void @signal_raise(ptr %os, ptr %signal, i64 %value) #0 {
  %old = atomicrmw umax ptr %signal, i64 %value seq_cst
  %sleepers.at = getelementptr %signal, ptr %signal, i64 0, i32 1
  %sleepers = load atomic i32, ptr %sleepers.at seq_cst, align 4
  %nobody = icmp eq i32 %sleepers, 0
  br i1 %nobody, label %out, label %wake
wake:
  call void @futex_wake(ptr %os, ptr %signal, i64 2147483647)
  br label %out
out:
  ret void
}

; ---------------------------------------------------------------------------------------------------------------------
; The host's side of a ring. The host holds a lock and has made sure that there is room.

define dso_local void @ring_push(ptr %queue, ptr %packets, i64 %count) #0 {
entry:
  %os.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 0
  %ring.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 1
  %mask.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 2
  %asleep.at = getelementptr %queue, ptr %queue, i64 0, i32 1, i32 3
  %os = load ptr, ptr %os.at
  %ring = load ptr, ptr %ring.at
  %mask = load i64, ptr %mask.at
  %written = load i64, ptr %queue
  br label %copy
copy:
  %i = phi i64 [ 0, %entry ], [ %i.next, %copy ]
  %from = getelementptr <4 x i64>, ptr %packets, i64 %i
  %packet = load <4 x i64>, ptr %from, align 8
  %position = add i64 %written, %i
  %slot = and i64 %position, %mask
  %to = getelementptr <4 x i64>, ptr %ring, i64 %slot
  store <4 x i64> %packet, ptr %to, align 32
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %count
  br i1 %more, label %copy, label %bell
bell:
  %core = call i64 @current_core(ptr %os)
  %core.at = getelementptr %queue, ptr %queue, i64 0, i32 0, i32 1
  store atomic i64 %core, ptr %core.at monotonic, align 8
  %total = add i64 %written, %count
  store atomic i64 %total, ptr %queue seq_cst, align 8
  %asleep = load atomic i32, ptr %asleep.at seq_cst, align 4
  %awake = icmp eq i32 %asleep, 0
  br i1 %awake, label %out, label %wake
wake:
  call void @futex_wake(ptr %os, ptr %queue, i64 1)
  br label %out
out:
  ret void
}

; Ask every worker to leave after its current command. Both futex words change, so nobody can fall asleep past it.
define dso_local void @ring_stop(ptr %queue) #0 {
  %os.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 0
  %stop.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 4
  %ticket.at = getelementptr %queue, ptr %queue, i64 0, i32 2, i32 0
  %epoch.at = getelementptr i8, ptr %ticket.at, i64 4
  %os = load ptr, ptr %os.at
  store atomic i32 1, ptr %stop.at seq_cst, align 4
  %ignored = atomicrmw add ptr %queue, i64 1 seq_cst
  %ignored2 = atomicrmw add ptr %ticket.at, i64 4294967296 seq_cst
  call void @futex_wake(ptr %os, ptr %queue, i64 2147483647)
  call void @futex_wake(ptr %os, ptr %epoch.at, i64 2147483647)
  ret void
}

; `turns` turns of a spin loop, for the host to time.
define dso_local void @spin(i64 %turns) #0 {
entry:
  br label %turn
turn:
  %left = phi i64 [ %turns, %entry ], [ %left.next, %turn ]
  call void @relax()
  %left.next = sub i64 %left, 1
  %more = icmp sgt i64 %left.next, 0
  br i1 %more, label %turn, label %out
out:
  ret void
}

; ---------------------------------------------------------------------------------------------------------------------
; Workers.

define dso_local void @worker_main(ptr %queue, i64 %index, ptr %scratch) #0 {
  call void @reset_float_mode()
  %leads = icmp eq i64 %index, 0
  br i1 %leads, label %leader, label %helper
leader:
  call void @leader_main(ptr %queue, ptr %scratch)
  ret void
helper:
  call void @helper_main(ptr %queue, ptr %scratch)
  ret void
}

define internal void @leader_main(ptr %queue, ptr %scratch) #0 {
entry:
  %os.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 0
  %ring.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 1
  %mask.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 2
  %stop.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 4
  %read.at = getelementptr %queue, ptr %queue, i64 0, i32 1, i32 0
  %asleep.at = getelementptr %queue, ptr %queue, i64 0, i32 1, i32 3
  %host.at = getelementptr %queue, ptr %queue, i64 0, i32 0, i32 1
  %os = load ptr, ptr %os.at
  %spins.at = getelementptr %os, ptr %os, i64 0, i32 4
  %spins = load i64, ptr %spins.at
  %ring = load ptr, ptr %ring.at
  %mask = load i64, ptr %mask.at
  br label %look
look:
  %read = phi i64 [ 0, %entry ], [ %read.next, %run ], [ %read, %wake ]
  %waiting = load atomic i64, ptr %queue acquire, align 8
  %ready = icmp ne i64 %waiting, %read
  br i1 %ready, label %check, label %rest
rest:
  ; the host needs this core to write the next packet
  %host = load atomic i64, ptr %host.at monotonic, align 8
  %core = call i64 @current_core(ptr %os)
  %shared = icmp eq i64 %host, %core
  %turns = select i1 %shared, i64 0, i64 %spins
  br label %spin
spin:
  %left = phi i64 [ %turns, %rest ], [ %left.next, %turn ]
  %written = load atomic i64, ptr %queue acquire, align 8
  %rung = icmp ne i64 %written, %read
  br i1 %rung, label %check, label %idle
idle:
  %spent = icmp eq i64 %left, 0
  br i1 %spent, label %sleep, label %turn
turn:
  call void @relax()
  %left.next = sub i64 %left, 1
  br label %spin
sleep:
  store atomic i32 1, ptr %asleep.at seq_cst, align 4
  %last = load atomic i64, ptr %queue seq_cst, align 8
  %late = icmp ne i64 %last, %read
  br i1 %late, label %wake, label %doze
doze:
  %expected = trunc i64 %read to i32
  call void @futex_wait(ptr %os, ptr %queue, i32 %expected, i64 0)
  br label %wake
wake:
  store atomic i32 0, ptr %asleep.at seq_cst, align 4
  br label %look
check:
  %stop = load atomic i32, ptr %stop.at monotonic, align 4
  %stopped = icmp ne i32 %stop, 0
  br i1 %stopped, label %out, label %run
run:
  %slot = and i64 %read, %mask
  %packet = getelementptr <4 x i64>, ptr %ring, i64 %slot
  call void @execute_packet(ptr %queue, ptr %packet, ptr %scratch)
  %read.next = add i64 %read, 1
  store atomic i64 %read.next, ptr %read.at release, align 8
  br label %look
out:
  ret void
}

; A ring packet is four words; INDIRECT runs a list of commands of any length, anything else is one command.
define internal void @execute_packet(ptr %queue, ptr %packet, ptr %scratch) #0 {
entry:
  %header = load i64, ptr %packet
  %opcode = and i64 %header, 255
  %indirect = icmp eq i64 %opcode, 6
  br i1 %indirect, label %list, label %single
single:
  call void @execute_command(ptr %queue, ptr %packet, ptr %scratch)
  ret void
list:
  %first.at = getelementptr i64, ptr %packet, i64 1
  %count.at = getelementptr i64, ptr %packet, i64 2
  %profile.at = getelementptr i64, ptr %packet, i64 3
  %first = load ptr, ptr %first.at
  %count = load i64, ptr %count.at
  %profile = load ptr, ptr %profile.at
  %profiled = icmp ne ptr %profile, null
  %os.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 0
  %stop.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 4
  %os = load ptr, ptr %os.at
  br label %look
look:
  %i = phi i64 [ 0, %list ], [ %i.next, %run ]
  %command = phi ptr [ %first, %list ], [ %command.next, %run ]
  br i1 %profiled, label %stamp, label %next
stamp:
  %ns = call i64 @now_ns(ptr %os)
  %stamp.at = getelementptr i64, ptr %profile, i64 %i
  store i64 %ns, ptr %stamp.at
  br label %next
next:
  %more = icmp ult i64 %i, %count
  br i1 %more, label %check, label %out
check:
  %stop = load atomic i32, ptr %stop.at monotonic, align 4
  %stopped = icmp ne i32 %stop, 0
  br i1 %stopped, label %out, label %run
run:
  call void @execute_command(ptr %queue, ptr %command, ptr %scratch)
  %command.header = load i64, ptr %command
  %words = lshr i64 %command.header, 32
  %command.next = getelementptr i64, ptr %command, i64 %words
  %i.next = add i64 %i, 1
  br label %look
out:
  ret void
}

define internal void @execute_command(ptr %queue, ptr %command, ptr %scratch) #0 {
entry:
  %executed.at = getelementptr %queue, ptr %queue, i64 0, i32 1, i32 1
  %current.at = getelementptr %queue, ptr %queue, i64 0, i32 1, i32 2
  store atomic ptr %command, ptr %current.at monotonic, align 8
  %a.at = getelementptr i64, ptr %command, i64 1
  %b.at = getelementptr i64, ptr %command, i64 2
  %c.at = getelementptr i64, ptr %command, i64 3
  %header = load i64, ptr %command
  %opcode = and i64 %header, 255
  switch i64 %opcode, label %out [ i64 1, label %dispatch
                                   i64 2, label %copy
                                   i64 3, label %timestamp
                                   i64 4, label %wait
                                   i64 5, label %signal ]
dispatch:
  %kernel = load ptr, ptr %a.at
  %groups = load i64, ptr %b.at
  call void @run_groups(ptr %queue, ptr %kernel, ptr %c.at, i64 %groups, ptr %scratch)
  br label %out
copy:
  %nbytes = load i64, ptr %c.at
  %rounded = add i64 %nbytes, 262143
  %pieces = lshr i64 %rounded, 18
  call void @run_groups(ptr %queue, ptr @copy_groups, ptr %a.at, i64 %pieces, ptr %scratch)
  br label %out
timestamp:
  %os.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 0
  %os = load ptr, ptr %os.at
  %to = load ptr, ptr %a.at
  %ns = call i64 @now_ns(ptr %os)
  store i64 %ns, ptr %to, align 1
  br label %out
wait:
  %awaited = load ptr, ptr %a.at
  %target = load i64, ptr %b.at
  call void @wait_packet(ptr %queue, ptr %awaited, i64 %target)
  br label %out
signal:
  %os.at2 = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 0
  %os2 = load ptr, ptr %os.at2
  %raised = load ptr, ptr %a.at
  %value = load i64, ptr %b.at
  call void @signal_raise(ptr %os2, ptr %raised, i64 %value)
  br label %out
out:
  %executed = load i64, ptr %executed.at
  %executed.next = add i64 %executed, 1
  store atomic i64 %executed.next, ptr %executed.at release, align 8
  ret void
}

; Sleeps in slices of 50 ms, so that a queue that waits for a signal nobody will raise can still be stopped.
define internal void @wait_packet(ptr %queue, ptr %signal, i64 %value) #0 {
entry:
  %os.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 0
  %stop.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 4
  %os = load ptr, ptr %os.at
  %spins.at = getelementptr %os, ptr %os, i64 0, i32 4
  %spins = load i64, ptr %spins.at
  br label %turn
turn:
  %seen = call i64 @signal_wait(ptr %os, ptr %signal, i64 %value, i64 %spins, i64 50000000, i64 -1)
  %reached = icmp uge i64 %seen, %value
  %stop = load atomic i32, ptr %stop.at monotonic, align 4
  %stopped = icmp ne i32 %stop, 0
  %leave = or i1 %reached, %stopped
  br i1 %leave, label %out, label %turn
out:
  ret void
}

; Run all groups of one dispatch and return when every one is done. A single group stays on this core.
define internal void @run_groups(ptr %queue, ptr %kernel, ptr %args, i64 %groups, ptr %scratch) #0 {
entry:
  %workers.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 3
  %workers = load i64, ptr %workers.at
  %empty = icmp eq i64 %groups, 0
  br i1 %empty, label %out, label %some
some:
  %one = icmp eq i64 %groups, 1
  %alone = icmp eq i64 %workers, 1
  %here = or i1 %one, %alone
  br i1 %here, label %single, label %share
single:
  call void %kernel(ptr %args, i64 0, i64 %groups, ptr %scratch)
  br label %out
share:
  %os.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 0
  %ticket.at = getelementptr %queue, ptr %queue, i64 0, i32 2, i32 0
  %kernel.at = getelementptr %queue, ptr %queue, i64 0, i32 2, i32 1
  %args.at = getelementptr %queue, ptr %queue, i64 0, i32 2, i32 2
  %groups.at = getelementptr %queue, ptr %queue, i64 0, i32 2, i32 3
  %chunk.at = getelementptr %queue, ptr %queue, i64 0, i32 2, i32 4
  %done.at = getelementptr %queue, ptr %queue, i64 0, i32 3, i32 0
  %asleep.at = getelementptr %queue, ptr %queue, i64 0, i32 4, i32 0
  %epoch.at = getelementptr i8, ptr %ticket.at, i64 4
  %os = load ptr, ptr %os.at
  %spins.at = getelementptr %os, ptr %os, i64 0, i32 4
  %spins = load i64, ptr %spins.at
  ; eight chunks per worker: coarse enough that claiming is free, fine enough that the last one ends soon
  %eighths = shl i64 %workers, 3
  %ideal = udiv i64 %groups, %eighths
  %chunk = call i64 @llvm.umax.i64(i64 %ideal, i64 1)
  %last = sub i64 %chunk, 1
  %rounded = add i64 %groups, %last
  %chunks = udiv i64 %rounded, %chunk
  store ptr %kernel, ptr %kernel.at
  store ptr %args, ptr %args.at
  store i64 %groups, ptr %groups.at
  store i64 %chunk, ptr %chunk.at
  store atomic i64 0, ptr %done.at monotonic, align 8
  %old = load atomic i64, ptr %ticket.at monotonic, align 8
  %old.epoch = lshr i64 %old, 32
  %epoch = add i64 %old.epoch, 1
  %epoch.up = shl i64 %epoch, 32
  %chunks.up = shl i64 %chunks, 16
  %ticket = or i64 %epoch.up, %chunks.up
  store atomic i64 %ticket, ptr %ticket.at seq_cst, align 8
  %asleep = load atomic i32, ptr %asleep.at seq_cst, align 4
  %awake = icmp eq i32 %asleep, 0
  br i1 %awake, label %claim, label %wake
wake:
  %wanted = sub i64 %chunks, 1
  call void @futex_wake(ptr %os, ptr %epoch.at, i64 %wanted)
  br label %claim
claim:
  %mine = phi i64 [ 0, %share ], [ 0, %wake ], [ %mine.next, %work ]
  %claimed = atomicrmw add ptr %ticket.at, i64 1 acq_rel
  %index = and i64 %claimed, 65535
  %got = icmp ult i64 %index, %chunks
  br i1 %got, label %work, label %gather
work:
  %begin = mul i64 %index, %chunk
  %end.full = add i64 %begin, %chunk
  %end = call i64 @llvm.umin.i64(i64 %end.full, i64 %groups)
  call void %kernel(ptr %args, i64 %begin, i64 %end, ptr %scratch)
  %mine.next = add i64 %mine, 1
  br label %claim
gather:
  %theirs = sub i64 %chunks, %mine
  br label %wait
wait:
  %left = phi i64 [ %spins, %gather ], [ %left.next, %turn ], [ 0, %preempted ]
  %finished = load atomic i64, ptr %done.at acquire, align 8
  %complete = icmp eq i64 %finished, %theirs
  br i1 %complete, label %out, label %pending
pending:
  %spent = icmp eq i64 %left, 0
  br i1 %spent, label %preempted, label %turn
turn:
  call void @relax()
  %left.next = sub i64 %left, 1
  br label %wait
preempted:
  ; a helper is late: it may be waiting for this very core
  call void @yield_core(ptr %os)
  br label %wait
out:
  ret void
}

define internal void @helper_main(ptr %queue, ptr %scratch) #0 {
entry:
  %os.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 0
  %stop.at = getelementptr %queue, ptr %queue, i64 0, i32 5, i32 4
  %ticket.at = getelementptr %queue, ptr %queue, i64 0, i32 2, i32 0
  %kernel.at = getelementptr %queue, ptr %queue, i64 0, i32 2, i32 1
  %args.at = getelementptr %queue, ptr %queue, i64 0, i32 2, i32 2
  %groups.at = getelementptr %queue, ptr %queue, i64 0, i32 2, i32 3
  %chunk.at = getelementptr %queue, ptr %queue, i64 0, i32 2, i32 4
  %done.at = getelementptr %queue, ptr %queue, i64 0, i32 3, i32 0
  %asleep.at = getelementptr %queue, ptr %queue, i64 0, i32 4, i32 0
  %epoch.at = getelementptr i8, ptr %ticket.at, i64 4
  %os = load ptr, ptr %os.at
  %spins.at = getelementptr %os, ptr %os, i64 0, i32 4
  %spins = load i64, ptr %spins.at
  br label %look
look:
  %seen = phi i64 [ 0, %entry ], [ %now, %skip ], [ %claimed.epoch, %rest ], [ %seen, %sleep ]
  br label %spin
spin:
  %left = phi i64 [ %spins, %look ], [ %left.next, %turn ]
  %ticket = load atomic i64, ptr %ticket.at acquire, align 8
  %now = lshr i64 %ticket, 32
  %stop = load atomic i32, ptr %stop.at monotonic, align 4
  %stopped = icmp ne i32 %stop, 0
  br i1 %stopped, label %out, label %compare
compare:
  %news = icmp ne i64 %now, %seen
  br i1 %news, label %peek, label %idle
idle:
  %spent = icmp eq i64 %left, 0
  br i1 %spent, label %sleep, label %turn
turn:
  call void @relax()
  %left.next = sub i64 %left, 1
  br label %spin
sleep:
  %ignored = atomicrmw add ptr %asleep.at, i32 1 seq_cst
  %expected = trunc i64 %seen to i32
  call void @futex_wait(ptr %os, ptr %epoch.at, i32 %expected, i64 0)
  %ignored2 = atomicrmw sub ptr %asleep.at, i32 1 seq_cst
  br label %look
peek:
  %ticket.index = and i64 %ticket, 65535
  %ticket.up = lshr i64 %ticket, 16
  %ticket.chunks = and i64 %ticket.up, 65535
  %available = icmp ult i64 %ticket.index, %ticket.chunks
  br i1 %available, label %claim, label %skip
skip:
  br label %look
claim:
  %mine = phi i64 [ 0, %peek ], [ %mine.next, %work ]
  %claimed = atomicrmw add ptr %ticket.at, i64 1 acq_rel
  %claimed.epoch = lshr i64 %claimed, 32
  %index = and i64 %claimed, 65535
  %claimed.up = lshr i64 %claimed, 16
  %chunks = and i64 %claimed.up, 65535
  %got = icmp ult i64 %index, %chunks
  br i1 %got, label %work, label %report
work:
  %kernel = load ptr, ptr %kernel.at
  %args = load ptr, ptr %args.at
  %groups = load i64, ptr %groups.at
  %chunk = load i64, ptr %chunk.at
  %begin = mul i64 %index, %chunk
  %end.full = add i64 %begin, %chunk
  %end = call i64 @llvm.umin.i64(i64 %end.full, i64 %groups)
  call void %kernel(ptr %args, i64 %begin, i64 %end, ptr %scratch)
  %mine.next = add i64 %mine, 1
  br label %claim
report:
  %idle.claim = icmp eq i64 %mine, 0
  br i1 %idle.claim, label %rest, label %tell
tell:
  %ignored3 = atomicrmw add ptr %done.at, i64 %mine release
  br label %rest
rest:
  br label %look
out:
  ret void
}

; ---------------------------------------------------------------------------------------------------------------------
; The copy engine: a kernel of 256 KiB groups. args: destination, source, bytes.

define dso_local void @copy_groups(ptr %args, i64 %group_begin, i64 %group_end, ptr %scratch) #0 {
  %src.at = getelementptr i64, ptr %args, i64 1
  %nbytes.at = getelementptr i64, ptr %args, i64 2
  %dst = load ptr, ptr %args
  %src = load ptr, ptr %src.at
  %nbytes = load i64, ptr %nbytes.at
  %begin = shl i64 %group_begin, 18
  %end.full = shl i64 %group_end, 18
  %end = call i64 @llvm.umin.i64(i64 %end.full, i64 %nbytes)
  %length = sub i64 %end, %begin
  %to = getelementptr i8, ptr %dst, i64 %begin
  %from = getelementptr i8, ptr %src, i64 %begin
  ; beyond the caches a copy should not read the lines it is about to overwrite
  %stream = icmp uge i64 %nbytes, 4194304
  call void @copy_range(ptr %to, ptr %from, i64 %length, i1 %stream)
  ret void
}

; Head and tail are one unaligned vector each, overlapping the aligned middle, which rewrites the same bytes.
define internal void @copy_range(ptr %dst, ptr %src, i64 %nbytes, i1 %stream) #1 {
entry:
  %short = icmp ult i64 %nbytes, 64
  br i1 %short, label %bytes, label %head
bytes:
  %b = phi i64 [ 0, %entry ], [ %b.next, %byte ]
  %b.more = icmp ult i64 %b, %nbytes
  br i1 %b.more, label %byte, label %out
byte:
  %byte.from = getelementptr i8, ptr %src, i64 %b
  %byte.to = getelementptr i8, ptr %dst, i64 %b
  %one = load i8, ptr %byte.from
  store i8 %one, ptr %byte.to
  %b.next = add i64 %b, 1
  br label %bytes
head:
  %first = load <8 x i64>, ptr %src, align 1
  store <8 x i64> %first, ptr %dst, align 1
  %dst.int = ptrtoint ptr %dst to i64
  %over = and i64 %dst.int, 63
  %start = sub i64 64, %over
  %quads.end = sub i64 %nbytes, 256
  br i1 %stream, label %nt, label %quads
nt:
  %n = phi i64 [ %start, %head ], [ %n.next, %nt.body ]
  %n.more = icmp sle i64 %n, %quads.end
  br i1 %n.more, label %nt.body, label %nt.fence
nt.body:
  %n.from = getelementptr i8, ptr %src, i64 %n
  %n.from1 = getelementptr i8, ptr %n.from, i64 64
  %n.from2 = getelementptr i8, ptr %n.from, i64 128
  %n.from3 = getelementptr i8, ptr %n.from, i64 192
  %n.to = getelementptr i8, ptr %dst, i64 %n
  %n.to1 = getelementptr i8, ptr %n.to, i64 64
  %n.to2 = getelementptr i8, ptr %n.to, i64 128
  %n.to3 = getelementptr i8, ptr %n.to, i64 192
  %n0 = load <8 x i64>, ptr %n.from, align 1
  %n1 = load <8 x i64>, ptr %n.from1, align 1
  %n2 = load <8 x i64>, ptr %n.from2, align 1
  %n3 = load <8 x i64>, ptr %n.from3, align 1
  store <8 x i64> %n0, ptr %n.to, align 64, !nontemporal !0
  store <8 x i64> %n1, ptr %n.to1, align 64, !nontemporal !0
  store <8 x i64> %n2, ptr %n.to2, align 64, !nontemporal !0
  store <8 x i64> %n3, ptr %n.to3, align 64, !nontemporal !0
  %n.next = add i64 %n, 256
  br label %nt
nt.fence:
  ; streaming stores are weakly ordered; a release store does not wait for them
  fence seq_cst
  br label %lines
quads:
  %q = phi i64 [ %start, %head ], [ %q.next, %quads.body ]
  %q.more = icmp sle i64 %q, %quads.end
  br i1 %q.more, label %quads.body, label %lines
quads.body:
  %q.from = getelementptr i8, ptr %src, i64 %q
  %q.from1 = getelementptr i8, ptr %q.from, i64 64
  %q.from2 = getelementptr i8, ptr %q.from, i64 128
  %q.from3 = getelementptr i8, ptr %q.from, i64 192
  %q.to = getelementptr i8, ptr %dst, i64 %q
  %q.to1 = getelementptr i8, ptr %q.to, i64 64
  %q.to2 = getelementptr i8, ptr %q.to, i64 128
  %q.to3 = getelementptr i8, ptr %q.to, i64 192
  %q0 = load <8 x i64>, ptr %q.from, align 1
  %q1 = load <8 x i64>, ptr %q.from1, align 1
  %q2 = load <8 x i64>, ptr %q.from2, align 1
  %q3 = load <8 x i64>, ptr %q.from3, align 1
  store <8 x i64> %q0, ptr %q.to, align 64
  store <8 x i64> %q1, ptr %q.to1, align 64
  store <8 x i64> %q2, ptr %q.to2, align 64
  store <8 x i64> %q3, ptr %q.to3, align 64
  %q.next = add i64 %q, 256
  br label %quads
lines:
  %l = phi i64 [ %n, %nt.fence ], [ %q, %quads ], [ %l.next, %line ]
  %l.end = sub i64 %nbytes, 64
  %l.more = icmp sle i64 %l, %l.end
  br i1 %l.more, label %line, label %tail
line:
  %l.from = getelementptr i8, ptr %src, i64 %l
  %l.to = getelementptr i8, ptr %dst, i64 %l
  %l0 = load <8 x i64>, ptr %l.from, align 1
  store <8 x i64> %l0, ptr %l.to, align 64
  %l.next = add i64 %l, 64
  br label %lines
tail:
  %t.from = getelementptr i8, ptr %src, i64 %l.end
  %t.to = getelementptr i8, ptr %dst, i64 %l.end
  %t0 = load <8 x i64>, ptr %t.from, align 1
  store <8 x i64> %t0, ptr %t.to, align 1
  br label %out
out:
  ret void
}

declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.umax.i64(i64, i64)

attributes #0 = { nounwind "no-builtins" }
attributes #1 = { nounwind "no-builtins" "min-legal-vector-width"="512" }

!0 = !{ i32 1 }
