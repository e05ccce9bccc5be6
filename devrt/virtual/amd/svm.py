"""The SVM ioctl: attributes of ranges of a process's own memory, and their pages in the GPUs that may access them. Linux
kfd_svm.c.

Pages do not migrate: a prefetch to VRAM is noted and the range stays where it is, which a program can't tell but by time.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import replace

from devrt.ioctl.kfd import KFD, SvmAttribute, SvmFlag, SvmLocation, SvmOp
from devrt.virtual.amd.calls import Call, handles
from devrt.virtual.amd.process import Process, SvmRange, unmap_range
from devrt.virtual.errors import fail
from devrt.virtual.memory import PAGE, Access

_DEFAULTS = {SvmAttribute.PREFERRED_LOC: SvmLocation.UNDEFINED, SvmAttribute.PREFETCH_LOC: SvmLocation.UNDEFINED,
             SvmAttribute.GRANULARITY: 9}
_DEFAULT_FLAGS = SvmFlag.HOST_ACCESS | SvmFlag.COHERENT
_ALL_FLAGS = 0xFF
_ACCESSES = (SvmAttribute.ACCESS, SvmAttribute.ACCESS_IN_PLACE, SvmAttribute.NO_ACCESS)
_LOCATIONS = (SvmAttribute.PREFERRED_LOC, SvmAttribute.PREFETCH_LOC)
_NO_GPU = (SvmLocation.SYSMEM, SvmLocation.UNDEFINED)


@handles("AMDKFD_IOC_SVM")
def svm(call: Call) -> None:
    args, process = call.args, call.process
    start, end, head = args.start_addr, args.start_addr + args.size, KFD.size("kfd_ioctl_svm_args")
    if not args.size or start % PAGE or args.size % PAGE or len(call.raw) < head + 8 * args.nattr:
        fail(errno.EINVAL)
    wanted = list(struct.iter_unpack("<II", call.raw[head:head + 8 * args.nattr]))
    if args.op == SvmOp.SET_ATTR:
        _check(process, wanted)
        if not process.client.memory.covers(start, end - start, write=False):
            fail(errno.EFAULT)
        if any(_mapped_otherwise(process, start, end)):
            fail(errno.EADDRINUSE)
        for span in _spans(process, start, end):
            _set(span, wanted)
            _map(process, span)
    elif args.op == SvmOp.GET_ATTR:
        answer = [_get(process, start, end, kind, value) for kind, value in wanted]
        call.raw[head:head + 8 * len(answer)] = b"".join(struct.pack("<II", *pair) for pair in answer)
    else:
        fail(errno.EINVAL)


def _check(process: Process, wanted: list[tuple[int, int]]) -> None:
    """Raises OSError: EINVAL for an unknown attribute, GPU or flag."""
    for kind, value in wanted:
        if kind not in tuple(SvmAttribute):
            fail(errno.EINVAL)
        if kind in _ACCESSES or (kind in _LOCATIONS and value not in _NO_GPU):
            process.device(value)
        if kind in (SvmAttribute.SET_FLAGS, SvmAttribute.CLR_FLAGS) and value & ~_ALL_FLAGS:
            fail(errno.EINVAL)


def _mapped_otherwise(process: Process, start: int, end: int) -> list[bool]:
    """For each GPU, whether a buffer lies at these addresses."""
    return [any(not isinstance(mapping.owner, SvmRange) for mapping in device.vm.overlapping(start, end - start))
            for device in process.devices.values() if device.vm is not None]


def _spans(process: Process, start: int, end: int) -> list[SvmRange]:
    """The ranges that make up [start, end): those there are, cut at its ends, and new ones between."""
    inside, others, at = [], [], start
    for span in sorted(process.ranges, key=lambda s: s.start):
        if span.end <= start or end <= span.start:
            others.append(span)
            continue
        unmap_range(span)
        if at < span.start:
            inside.append(_fresh(at, span.start))
        first, last = max(span.start, start), min(span.end, end)
        for a, b, kept in ((span.start, first, others), (first, last, inside), (last, span.end, others)):
            if a < b:
                kept.append(replace(span, start=a, end=b, values=dict(span.values), access=dict(span.access), mappings=[]))
        at = last
    if at < end:
        inside.append(_fresh(at, end))
    process.ranges = [*others, *inside]
    for span in others:
        if not span.mappings:  # the ends that were cut off
            _map(process, span)
    return inside


def _fresh(start: int, end: int) -> SvmRange:
    return SvmRange(start, end, {int(kind): int(value) for kind, value in _DEFAULTS.items()}, int(_DEFAULT_FLAGS), {})


def _set(span: SvmRange, wanted: list[tuple[int, int]]) -> None:
    for kind, value in wanted:
        if kind in _ACCESSES:
            span.access[value] = kind
        elif kind == SvmAttribute.SET_FLAGS:
            span.flags |= value
        elif kind == SvmAttribute.CLR_FLAGS:
            span.flags &= ~value
        else:
            span.values[kind] = min(value, 0x3F) if kind == SvmAttribute.GRANULARITY else value


def _map(process: Process, span: SvmRange) -> None:
    """Into the page table of every GPU that may access the range."""
    access = Access.SYSTEM | (Access.FOREIGN if process.client.foreign else Access(0))
    if not span.flags & SvmFlag.GPU_RO:
        access |= Access.WRITE
    if span.flags & SvmFlag.GPU_EXEC:
        access |= Access.EXECUTE
    for gpu_id, kind in span.access.items():
        vm = process.devices[gpu_id].vm
        if kind != SvmAttribute.NO_ACCESS and vm is not None:
            span.mappings.append((vm, vm.map(span.start, span.end - span.start, span.start, access, span)))


def _get(process: Process, start: int, end: int, kind: int, value: int) -> tuple[int, int]:
    """An attribute of a whole range: what all of its pages have, else the value that says they differ."""
    spans = sorted((s for s in process.ranges if s.start < end and start < s.end), key=lambda s: s.start)
    covered = sum(min(s.end, end) - max(s.start, start) for s in spans)
    if covered < end - start:
        spans.append(_fresh(start, end))
    if kind in _ACCESSES:
        process.device(value)
        found = {span.access.get(value, SvmAttribute.NO_ACCESS) for span in spans}
        return (int(found.pop()) if len(found) == 1 else int(SvmAttribute.NO_ACCESS)), value
    if kind == SvmAttribute.SET_FLAGS:
        every = _ALL_FLAGS
        for span in spans:
            every &= span.flags
        return kind, every
    if kind == SvmAttribute.CLR_FLAGS:
        none = _ALL_FLAGS
        for span in spans:
            none &= ~span.flags
        return kind, none
    if kind not in _DEFAULTS:
        fail(errno.EINVAL)
    values = [span.values[kind] for span in spans]
    if kind == SvmAttribute.GRANULARITY:
        return kind, min(values)
    return kind, values[0] if len(set(values)) == 1 else int(SvmLocation.UNDEFINED)
