"""What goes wrong on a virtual GPU, and when.

    virtual:amd/gfx1100?page-fault@3&seed=7&vram=512M       the third dispatch or copy faults
    inject("virtual:amd/gfx1100", "hang")                   the next submission hangs

A spec is KIND or KIND@N: the Nth time the driver or an engine comes to where that could happen (1 where N is left out), once.
`errno=NAME:IOCTL@N` fails the Nth call of an ioctl: `errno=ENOMEM:ALLOC_MEMORY_OF_GPU@2`. `status=NAME:CALL@N` does so by a
status of NVIDIA's driver, which answers in the call's struct: `status=NO_MEMORY:RM_ALLOC@2`, `status=TIMEOUT:GPU_GET_GID_INFO`.
States last: `link-down`, `exclusive`, `cc`, .. `driver=VERSION` says which driver of NVIDIA's the machine runs, `mig` or
`mig=3g,1g` how its GPUs are split (devrt.virtual.nvidia.mig).
"""

from __future__ import annotations

import errno
import random
import re
import threading
from collections import Counter
from typing import Any

from devrt.device import InvalidArgument, parse_uri
from devrt.ioctl.errors import ENOTSUPP

# Kind -> what one occasion is.
KINDS = {
    "page-fault": "a dispatch or a copy: an access of it finds its page not present",
    "hang": "the start of work in a queue: it never ends",
    "lost-interrupt": "an interrupt of an engine: the driver never sees it",
    "ecc": "a dispatch or a copy: it reads poison, an uncorrectable memory error",
    "corrupt-copy": "a copy by a copy engine: one bit of what it wrote is wrong",
    "reset": "the start of work in a queue: the GPU resets instead and loses its memory",
    "lost": "a call of NVIDIA's driver that concerns a GPU: the GPU has fallen off the bus",
    "link-down": "state: GPUs don't reach each other's memory",
    "exclusive": "state: NVIDIA GPUs are in exclusive mode, and another process has them",
    "mig-pending": "state: the MIG mode of NVIDIA GPUs changes with the next reset",
    "cc": "state: confidential computing is on, and NVIDIA GPUs wait to be attested",
    "ppcie": "state: confidential computing of several NVIDIA GPUs (protected PCIe) is on",
    "vgpu": "state: this is a virtual machine, and NVIDIA GPUs are parts of one",
    "vgpu-host": "state: NVIDIA GPUs are lent out to virtual machines",
}
SIZES = ("vram", "gtt", "bar1")  # options with a number of bytes, K, M or G

_SPEC = re.compile(r"(?P<kind>[a-z-]+)(?:@(?P<at>[1-9]\d{0,8}))?")
_ERRNO = re.compile(r"errno=(?P<name>E[A-Z0-9]+):(?P<ioctl>[A-Za-z0-9_]+)(?:@(?P<at>[1-9]\d{0,8}))?")
_STATUS = re.compile(r"status=(?P<name>[A-Z][A-Z0-9_]+):(?P<ioctl>[A-Za-z0-9_]+)(?:@(?P<at>[1-9]\d{0,8}))?")
_DRIVER = re.compile(r"driver=(?P<version>\d{1,4}(?:\.\d{1,4}){1,2})")
_MIG = re.compile(r"mig(?:=(?P<instances>[0-9gc.,]+))?")
_SIZE = re.compile(r"(?P<name>[a-z]+\d?)=(?P<number>[1-9]\d{0,14})(?P<unit>[KMG]?)")
_REMEDY = (f"faults: {', '.join(KINDS)}, each with @N; errno=NAME:IOCTL@N, status=NAME:CALL@N, seed=N, driver=VERSION, "
           f"mig=SIZES, {', '.join(f'{s}=BYTES' for s in SIZES)}")


class Faults:
    """The faults of one machine. Driver and engines ask `take` wherever one could happen; any thread may."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)  # which bit, which byte
        self.taken: list[str] = []         # what has happened, in order
        self._lock = threading.RLock()  # a finalizer may make a call in the midst of one
        self._seen: Counter[str] = Counter()
        self._planned: dict[str, dict[int, int]] = {}  # occasion -> its count -> errno or status (0: no ioctl's)

    def inject(self, spec: str) -> None:
        """Plan a fault, counted from now. Raises InvalidArgument for a spec that is none."""
        call = _ERRNO.fullmatch(spec)
        plain = _SPEC.fullmatch(spec)
        number = _errno(call["name"]) if call else 0
        answer = _STATUS.fullmatch(spec)
        status = _status(answer["name"]) if answer else 0
        if answer and status:
            self._plan(f"status {_short(answer['ioctl'])}", int(answer["at"] or 1), status)
        elif call and number:
            self._plan(f"ioctl {_short(call['ioctl'])}", int(call["at"] or 1), number)
        elif plain and plain["kind"] in KINDS:
            self._plan(plain["kind"], int(plain["at"] or 1), 0)
        else:
            raise InvalidArgument(f"{spec!r} is no fault", remedy=_REMEDY)

    def take(self, kind: str) -> bool:
        """Whether the fault happens on this occasion. Asking counts."""
        return self._take(kind) is not None

    def errno(self, ioctl: str) -> int:
        """The errno this call of an ioctl must fail with, 0 for none. Names as in the headers, with or without prefix."""
        return self._take(f"ioctl {_short(ioctl)}") or 0

    def status(self, call: str) -> int:
        """The status of NVIDIA's driver that this call must fail with, 0 for none. Names as `errno` takes them."""
        return self._take(f"status {_short(call)}") or 0

    def stands(self, state: str) -> bool:
        """Whether a state lasts."""
        with self._lock:
            return state in self._planned

    @property
    def link_down(self) -> bool:
        return self.stands("link-down")

    def mend(self, kind: str) -> None:
        """Take back what was planned and has not happened yet."""
        with self._lock:
            self._planned.pop(kind, None)

    def _plan(self, occasion: str, at: int, number: int) -> None:
        with self._lock:
            self._planned.setdefault(occasion, {})[self._seen[occasion] + at] = number

    def _take(self, occasion: str) -> int | None:
        if not self._planned:  # nothing planned, nothing to count: what is injected later counts from then
            return None
        with self._lock:
            self._seen[occasion] += 1
            number = self._planned.get(occasion, {}).pop(self._seen[occasion], None)
            if number is not None:
                self.taken.append(occasion)
                if not self._planned[occasion]:
                    del self._planned[occasion]
            return number


def parse_query(query: str) -> tuple[Faults, dict[str, int]]:
    """The faults in the query of a URI, and its sizes in bytes by name. Raises InvalidArgument."""
    words = [word for word in query.split("&") if word]
    seeds = [word for word in words if re.fullmatch(r"seed=\d{1,18}", word)]
    faults, sizes = Faults(int(seeds[-1][5:]) if seeds else 0), {}
    for word in words:
        size = _SIZE.fullmatch(word)
        if size and size["name"] in SIZES:
            sizes[size["name"]] = int(size["number"]) << {"": 0, "K": 10, "M": 20, "G": 30}[size["unit"]]
        elif word not in seeds and not _DRIVER.fullmatch(word) and not _MIG.fullmatch(word):
            faults.inject(word)
    return faults, sizes


def driver_version(query: str) -> str:
    """The version that `driver=` names in the query of a URI, "" where none does."""
    found = [match["version"] for word in query.split("&") if (match := _DRIVER.fullmatch(word))]
    return found[-1] if found else ""


def instances(query: str) -> str | None:
    """What `mig=` in the query of a URI splits GPUs into, "" for `mig` alone; None where MIG mode is off."""
    found = [match["instances"] or "" for word in query.split("&") if (match := _MIG.fullmatch(word))]
    return found[-1] if found else None


def inject(target: Any, spec: str) -> None:
    """Plan a fault on a virtual system, on a device that stands on one, or on the system of a URI."""
    if isinstance(target, str):
        from devrt.virtual.system import open_system
        target = open_system(parse_uri(target))
    faults = getattr(target, "faults", None) or getattr(getattr(target, "system", None), "faults", None)
    if not isinstance(faults, Faults):
        raise InvalidArgument(f"{target!r} is no virtual device", remedy="open one by a URI that begins with virtual:")
    faults.inject(spec)


def _short(ioctl: str) -> str:
    return re.sub(r"^(AMDKFD_IOC_|DRM_IOCTL_AMDGPU_|DRM_IOCTL_|NV_ESC_|UVM_|NV[0-9A-F]{4}_CTRL_CMD_)", "", ioctl.upper())


def _errno(name: str) -> int:
    return ENOTSUPP if name == "ENOTSUPP" else int(getattr(errno, name, 0))


def _status(name: str) -> int:
    from devrt.ioctl.nv_status import Status
    found = Status.__members__.get(f"NV_ERR_{name}") or Status.__members__.get(name)
    return int(found) if found is not None else 0
