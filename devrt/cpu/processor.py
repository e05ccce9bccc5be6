"""The command processor: command_processor.ll compiled for this host, cached on disk, callable from Python.

Compiling takes a fraction of a second and needs llvmlite; loading the cached object takes well under a millisecond.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import cffi

from devrt.cpu.program import Code, load_object
from devrt.device import InvalidArgument, Unsupported
from devrt.ioctl.system import System
from devrt.paths import cache_folder

SPIN_NS = 30_000  # how long a worker spins before it sleeps: longer than a futex wake-up, shorter than a time slice

# What the portable text leaves to the target: the pause of a spin loop; IEEE rounding with denormals kept, whatever
# mode the thread that opened the device was in; asking Linux for the AMX tile registers (0: granted).
_TARGETS = {"x86_64": """
declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.ldmxcsr(ptr)
define internal void @relax() alwaysinline #0 {
  call void @llvm.x86.sse2.pause()
  ret void
}
define internal void @reset_float_mode() #0 {
  %mode = alloca i32
  store i32 8064, ptr %mode                                  ; MXCSR: all exceptions masked, round to nearest
  call void @llvm.x86.sse.ldmxcsr(ptr %mode)
  ret void
}
define dso_local i64 @request_matrix_state(ptr %os) #0 {
  %syscall = load ptr, ptr %os
  %result = call i64 (i64, ...) %syscall(i64 158, i64 4131, i64 18)  ; arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA
  ret i64 %result
}
"""}
_SYSCALLS = {"x86_64": (202, 24)}  # SYS_futex, SYS_sched_yield; Linux arch/x86/entry/syscalls/syscall_64.tbl

_SIGNATURES = {
    "worker_main": "void(*)(uint64_t queue, int64_t index, uint64_t scratch)",
    "ring_push": "void(*)(uint64_t queue, uint64_t packets, int64_t count)",
    "ring_stop": "void(*)(uint64_t queue)",
    "signal_wait": "uint64_t(*)(uint64_t os, uint64_t signal, uint64_t value, int64_t spins, int64_t timeout_ns, "
                   "int64_t spared)",
    "signal_raise": "void(*)(uint64_t os, uint64_t signal, uint64_t value)",
    "spin": "void(*)(int64_t turns)",
    "copy_groups": "void(*)(uint64_t args, int64_t begin, int64_t end, uint64_t scratch)",
    "request_matrix_state": "int64_t(*)(uint64_t os)",
}


class Image(NamedTuple):
    """What the cache keeps: the object, and LLVM's names of the host's cpu and features."""

    object: bytes
    cpu: str
    features: tuple[str, ...]


class Processor:
    """The loaded command processor. Every function releases the interpreter lock while it runs.

    `os` is the address of the block that tells the machine code how to reach libc; `spins` is SPIN_NS in turns.
    """

    def __init__(self, system: System) -> None:
        self.image = host_image(system)
        self.code: Code = load_object(system, self.image.object)
        ffi, libc = _libc()
        missing = _SIGNATURES.keys() - self.code.symbols.keys()
        if missing:
            raise InvalidArgument("the command processor is incomplete", evidence=f"no {', '.join(sorted(missing))}")
        functions = {name: ffi.cast(signature, self.code.symbols[name]) for name, signature in _SIGNATURES.items()}
        self.worker_main = functions["worker_main"]
        self.ring_push, self.ring_stop = functions["ring_push"], functions["ring_stop"]
        self.signal_wait, self.signal_raise = functions["signal_wait"], functions["signal_raise"]
        self._spin, self._request_matrix_state = functions["spin"], functions["request_matrix_state"]
        self.spins = self._calibrate()
        syscall, clock, getcpu = (int(ffi.cast("uintptr_t", getattr(libc, name)))
                                  for name in ("syscall", "clock_gettime", "sched_getcpu"))
        self._os = ffi.new("uint64_t[6]", [syscall, clock, *_SYSCALLS[platform.machine()], self.spins, getcpu])
        self.os = int(ffi.cast("uintptr_t", self._os))

    def request_matrix_state(self) -> bool:
        """Whether Linux lets this process use the AMX tile registers; holds for every thread from then on."""
        return int(self._request_matrix_state(self.os)) == 0

    def _calibrate(self) -> int:
        """Turns of the spin loop in SPIN_NS. A pause takes 5 to 150 cycles, depending on the core."""
        turns, best = 200, float("inf")
        for _ in range(5):
            start = time.perf_counter_ns()
            self._spin(turns)
            best = min(best, time.perf_counter_ns() - start)
        return max(16, int(SPIN_NS * turns / max(best, 1)))


@functools.lru_cache(maxsize=1)
def _libc() -> tuple[cffi.FFI, Any]:
    ffi = cffi.FFI()
    ffi.cdef("long syscall(long number, ...); int clock_gettime(int clock, void *result);"
             "int sched_getcpu(void);")
    return ffi, ffi.dlopen(None)


def source() -> str:
    """The LLVM IR for this machine. Raises Unsupported where the target-specific part is not written."""
    machine = platform.machine()
    if machine not in _TARGETS:
        raise Unsupported(f"the cpu device runs on x86-64, this machine is {machine}",
                          evidence=f"targets of the command processor: {', '.join(_TARGETS)}",
                          remedy="use another device, or write the target's functions in devrt/cpu/processor.py")
    return importlib.resources.files("devrt.cpu").joinpath("command_processor.ll").read_text() + _TARGETS[machine]


def host_image(system: System) -> Image:
    """The compiled command processor of this host, from the user's cache where it is there and whole."""
    text = source()
    cpu = [line for line in system.read_text("/proc/cpuinfo").split("\n\n")[0].splitlines()
           if line.split(":")[0].strip() in ("model name", "flags", "cpu family", "model")]
    key = hashlib.sha256("\n".join([text, *cpu]).encode()).hexdigest()[:24]
    path = cache_folder() / f"command-processor-{key}"
    image = _read_cache(path)
    if image is None:
        image = compile_image(text)
        _write_cache(path, image)
    return image


def compile_image(text: str) -> Image:
    """Compile LLVM IR for the host's own cpu."""
    import llvmlite.binding as llvm  # costs 0.1 s to import, and only the first open on a machine needs it

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=features.flatten(), opt=3, reloc="pic", codemodel="small")
    module = llvm.parse_assembly(text)
    module.verify()
    return Image(machine.emit_object(module), cpu, tuple(sorted(name for name, present in features.items() if present)))


def _read_cache(path: Path) -> Image | None:
    """What is there, unless it is damaged or another user could have written it: it will be executed."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            head, _, body = file.read().partition(b"\n")
    except OSError:
        return None
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        return None
    try:
        record = json.loads(head)
        if record["sha256"] != hashlib.sha256(body).hexdigest():
            return None
        return Image(body, str(record["cpu"]), tuple(record["features"]))
    except (ValueError, KeyError, TypeError):
        return None


def _write_cache(path: Path, image: Image) -> None:
    digest = hashlib.sha256(image.object).hexdigest()
    head = json.dumps({"sha256": digest, "cpu": image.cpu, "features": image.features})
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            file.write(head.encode() + b"\n" + image.object)
        os.replace(temporary, path)
    except OSError:
        return  # a read-only home costs a compilation per process, nothing else
