"""Small C programs under the supervisor: they open, look at, call and map virtual devices as they would real ones."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from devrt.device import Unsupported
from devrt.virtual.exec.bpf import assemble, at, equal, load, result
from devrt.virtual.exec.launch import supported
from devrt.virtual.exec.seccomp import SECCOMP
from devrt.virtual.exec.syscalls import ARCHS, Status, pack_stat, pack_statx

try:
    supported()
    REFUSED = ""
except Unsupported as error:
    REFUSED = f"{error.what}: {error.evidence}"
needs_seccomp = pytest.mark.skipif(bool(REFUSED), reason=REFUSED)
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc: apt-get install gcc libc6-dev linux-libc-dev")

HEAD = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kfd_ioctl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>
// What a call gave and whether something holds then: arguments of one printf come in no order.
#define SHOW(call, then) do { long gave = (call); printf("%ld %d\n", gave, (int)(then)); } while (0)
static int kfd(void) { int fd = open("/dev/kfd", O_RDWR | O_CLOEXEC); if (fd < 0) perror("kfd"); return fd; }
static int version(int fd) {
  struct kfd_ioctl_get_version_args v = {0};
  return ioctl(fd, AMDKFD_IOC_GET_VERSION, &v) ? -errno : (int)(v.major_version * 100 + v.minor_version);
}
int main(void) {
"""


def run(*command: str | Path, topology: str = "amd/gfx1100", options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    devrt = [sys.executable, "-m", "devrt.cli.main", "virtual", "exec", *options, topology, "--"]
    return subprocess.run([*devrt, *map(str, command)], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])


def build(folder: Path, body: str) -> Path:
    return compiled(folder, HEAD + body + "\n  return 0;\n}\n")


def compiled(folder: Path, text: str) -> Path:
    """kfd_ioctl.h wants drm/drm.h, which linux-libc-dev lacks, for nothing but what that includes."""
    source, program = folder / "program.c", folder / "program"
    source.write_text(text)
    (folder / "drm").mkdir()
    (folder / "drm" / "drm.h").write_text("#include <linux/types.h>\n#include <linux/ioctl.h>\n")
    subprocess.run(["gcc", "-O1", "-I", folder, "-o", program, source], check=True)
    return program


def output(folder: Path, body: str, topology: str = "amd/gfx1100") -> list[str]:
    done = run(build(folder, body), topology=topology)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return done.stdout.splitlines()


pytestmark = [needs_seccomp, needs_gcc]


def test_version(tmp_path: Path) -> None:
    assert output(tmp_path, 'printf("%d\\n", version(kfd()));') == ["118"]


def test_stat_of_nodes_and_files(tmp_path: Path) -> None:
    lines = output(tmp_path, r"""
  struct stat s;
  struct statx x;
  const char *paths[] = {"/dev/kfd", "/dev/dri/renderD128", "/sys/class/kfd/kfd/topology/nodes", "/sys/class/kfd", "/etc/passwd"};
  for (int i = 0; i < 5; i++) {
    if (stat(paths[i], &s)) return perror(paths[i]), 1;
    printf("%o %d:%d\n", s.st_mode & S_IFMT, major(s.st_rdev), minor(s.st_rdev));
  }
  int fd = kfd();
  if (fstat(fd, &s)) return perror("fstat"), 1;
  printf("%d %d\n", S_ISCHR(s.st_mode), major(s.st_rdev));
  if (statx(AT_FDCWD, "/dev/dri/card0", 0, STATX_BASIC_STATS, &x)) return perror("statx"), 1;
  printf("%o %d:%d\n", x.stx_mode, x.stx_rdev_major, x.stx_rdev_minor);
  SHOW(lstat("/sys/class/drm/card0", &s), S_ISLNK(s.st_mode));
  SHOW(stat("/dev/dri/renderD129", &s), errno == ENOENT);
""")
    assert lines == ["20000 235:0", "20000 226:128", "40000 0:0", "40000 0:0", "100000 0:0", "1 235", "20666 226:0", "0 1",
                     "-1 1"]


def test_access_and_links(tmp_path: Path) -> None:
    lines = output(tmp_path, r"""
  char text[256] = {0};
  printf("%d\n", access("/dev/kfd", R_OK | W_OK));
  SHOW(access("/sys/class/kfd/kfd/topology/generation_id", W_OK), errno == EACCES);
  SHOW(faccessat(AT_FDCWD, "/dev/nothing", F_OK, 0), errno == ENOENT);
  int fd = open("/sys/class/kfd/kfd/topology/generation_id", O_RDWR);
  printf("%d %d\n", fd, errno == EACCES);
  ssize_t n = readlink("/sys/class/drm/renderD128/device", text, sizeof text);
  printf("%zd %s\n", n, text);
""")
    assert lines == ["0", "-1 1", "-1 1", "-1 1", "21 ../../../0000:03:00.0"]


def test_folders_are_listed_and_read_from(tmp_path: Path) -> None:
    lines = output(tmp_path, r"""
  DIR *folder = opendir("/sys/class/kfd/kfd/topology/nodes");
  int count = 0;
  for (struct dirent *e; (e = readdir(folder));) count += e->d_name[0] != '.';
  char text[64] = {0};
  int fd = openat(dirfd(folder), "2/gpu_id", O_RDONLY);
  SHOW(count, read(fd, text, sizeof text) > 1 && atoi(text) > 0);
  fd = openat(dirfd(folder), "../nodes/../generation_id", O_RDONLY);
  SHOW(read(fd, text, sizeof text), text[0] - '0');
""", topology="amd/2xgfx1100")
    assert lines == ["3 1", "2 1"]


MAPPED = r"""
  int fd = kfd(), drm = open("/dev/dri/renderD128", O_RDWR);
  struct kfd_process_device_apertures a[1];
  struct kfd_ioctl_get_process_apertures_new_args n = {(uintptr_t)a, 1, 0};
  if (ioctl(fd, AMDKFD_IOC_GET_PROCESS_APERTURES_NEW, &n)) return perror("apertures"), 1;
  struct kfd_ioctl_acquire_vm_args vm = {drm, a[0].gpu_id};
  if (ioctl(fd, AMDKFD_IOC_ACQUIRE_VM, &vm)) return perror("vm"), 1;
  struct kfd_ioctl_alloc_memory_of_gpu_args b = {.va_addr = 0x200000, .size = 8192, .gpu_id = a[0].gpu_id,
    .flags = KFD_IOC_ALLOC_MEM_FLAGS_GTT | KFD_IOC_ALLOC_MEM_FLAGS_WRITABLE};
  if (ioctl(fd, AMDKFD_IOC_ALLOC_MEMORY_OF_GPU, &b)) return perror("alloc"), 1;
  int *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, drm, b.mmap_offset);
  if (p == MAP_FAILED) return perror("mmap"), 1;
"""


def test_memory_is_mapped_and_freed(tmp_path: Path) -> None:
    lines = output(tmp_path, MAPPED + r"""
  int *q = mmap(NULL, 8192, PROT_READ, MAP_SHARED, dup(drm), b.mmap_offset);
  p[5] = 42;
  struct kfd_ioctl_free_memory_of_gpu_args f = {b.handle};
  SHOW(q[5], ioctl(fd, AMDKFD_IOC_FREE_MEMORY_OF_GPU, &f));
  printf("%d\n", ioctl(fd, AMDKFD_IOC_FREE_MEMORY_OF_GPU, &f) == -1 && errno == EINVAL);
  printf("%d\n", ioctl(fd, AMDKFD_IOC_GET_VERSION, (void *)8) == -1 && errno == EFAULT);
""")
    assert lines == ["42 0", "1", "1"]


def test_a_forked_child_must_open_for_itself(tmp_path: Path) -> None:
    lines = output(tmp_path, MAPPED + r"""
  p[0] = 7;
  if (!fork()) {
    printf("%d %d %d\n", version(fd) == -EBADF, version(kfd()), p[0]++);
    fflush(stdout);
    _exit(0);
  }
  int status;
  wait(&status);
  printf("%d %d\n", WEXITSTATUS(status), p[0]);
""")
    assert lines == ["1 118 7", "0 8"]


def test_memory_of_an_ended_process_is_free_again(tmp_path: Path) -> None:
    """Ten children in turn, each with more than half of what there is."""
    lines = output(tmp_path, r"""
  for (int i = 0; i < 10; i++) {
    if (!fork()) {""" + MAPPED.replace(".size = 8192", ".size = 40 << 20") + r"""
      _exit(0);
    }
    int status;
    wait(&status);
    if (status) return puts("failed"), 1;
    usleep(20000);
  }
  puts("all");
""", topology="amd/gfx1100?gtt=64M")
    assert lines == ["all"]


def test_a_wait_ends_by_time_and_by_signal(tmp_path: Path) -> None:
    lines = output(tmp_path, r"""
  int fd = kfd();
  struct kfd_ioctl_create_event_args e = {.event_type = KFD_IOC_EVENT_SIGNAL};
  if (ioctl(fd, AMDKFD_IOC_CREATE_EVENT, &e)) return perror("event"), 1;
  struct kfd_event_data data = {.event_id = e.event_id};
  struct kfd_ioctl_wait_events_args w = {.events_ptr = (uintptr_t)&data, .num_events = 1, .timeout = 120};
  int answer = ioctl(fd, AMDKFD_IOC_WAIT_EVENTS, &w);
  printf("%d %d\n", answer, w.wait_result == KFD_IOC_WAIT_RESULT_TIMEOUT);
  struct sigaction quiet = {.sa_handler = (void (*)(int))version};
  sigaction(SIGALRM, &quiet, NULL);
  ualarm(50000, 0);
  w.timeout = 0xFFFFFFFF;
  answer = ioctl(fd, AMDKFD_IOC_WAIT_EVENTS, &w);
  printf("%d %d\n", answer, errno == EINTR);
  struct kfd_ioctl_set_event_args s = {e.event_id, 0};
  ioctl(fd, AMDKFD_IOC_SET_EVENT, &s);
  answer = ioctl(fd, AMDKFD_IOC_WAIT_EVENTS, &w);
  printf("%d %d\n", answer, w.wait_result == KFD_IOC_WAIT_RESULT_COMPLETE);
""")
    assert lines == ["0 1", "-1 1", "0 1"]


def test_exit_codes_signals_and_stdio() -> None:
    assert run("sh", "-c", "exit 42").returncode == 42
    assert run("sh", "-c", "kill -TERM $$").returncode == 128 + 15
    done = run("sh", "-c", "echo out; echo err >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_what_can_not_be_run() -> None:
    done = run("no-such-program")
    assert done.returncode == 3 and "no-such-program can't be run" in done.stderr and "try:" in done.stderr
    done = run("true", topology="amd/gfx9999")
    assert done.returncode == 3 and "gfx9999" in done.stderr
    done = run("true", topology="nvidia/sm_9")
    assert done.returncode == 3 and "sm_9" in done.stderr
    assert run().returncode == 3


def test_trace(tmp_path: Path) -> None:
    done = run(build(tmp_path, "version(kfd());"), options=("--trace",))
    first, second = done.stderr.splitlines()
    assert first.endswith("open(/dev/kfd) = 3")
    call, answer = "AMDKFD_IOC_GET_VERSION major_version=0 minor_version=0", "0 major_version=1 minor_version=18"
    assert f"ioctl(/dev/kfd, {call}) = {answer}" in second


# devrt itself as another program: its device is nvidia:0, and what it asks Linux for comes from the virtual machine.
PROGRAM = """
import numpy as np
import devrt
a = np.arange(48, dtype=np.float32).reshape(6, 8)
x = devrt.asarray(a)
print(np.array_equal((x @ x.T + 1).numpy(), a @ a.T + 1))
"""


def test_devrt_on_a_virtual_nvidia_gpu(tmp_path: Path) -> None:
    """Mappings land on their pages, pinned pages are reached in the process, doorbells and time lines work."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = "env", "DEVRT_DEVICE=nvidia:0", sys.executable, tmp_path / "program.py"
    done = run(*command, topology="nvidia/sm_90", options=("--trace",))
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    for call in ("open(/dev/nvidia0) = ", "UVM_MAP_EXTERNAL_ALLOCATION", "NV_ESC_RM_ALLOC_MEMORY", "NV_ESC_RM_MAP_MEMORY"):
        assert call in done.stderr


KILLED = """
import os, signal
from devrt.device import Placement
from devrt.ioctl.system import LinuxSystem
from devrt.nvidia.device import NvidiaDevice
memory = NvidiaDevice("nvidia:0", LinuxSystem()).alloc(150 << 20, Placement.DEVICE)
print("allocated", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_memory_of_a_killed_process_is_free_again(tmp_path: Path) -> None:
    """Of a GPU with 256 MiB."""
    (tmp_path / "program.py").write_text(KILLED)
    twice = f"{sys.executable} {tmp_path}/program.py; {sys.executable} {tmp_path}/program.py; true"
    assert run("sh", "-c", twice, topology="nvidia/sm_86?vram=256M").stdout == "allocated\nallocated\n"


def test_structs_are_the_headers(tmp_path: Path) -> None:
    """struct stat and statx by gcc's view of this machine; the notification's structs and requests by linux/seccomp.h."""
    status = Status(0o100444, 77, 3, 4096, (226, 128), 1234567)
    (tmp_path / "stat").write_bytes(pack_stat(ARCHS[supported().name], status))
    (tmp_path / "statx").write_bytes(pack_statx(status))
    source = HEAD.replace("int main", "#include <linux/seccomp.h>\nint main") + f"""
  struct stat s; struct statx x;
  printf("%d ", read(open("{tmp_path}/stat", O_RDONLY), &s, 4096) == sizeof s);
  printf("%d\\n", read(open("{tmp_path}/statx", O_RDONLY), &x, 4096) == sizeof x);
  printf("%o %d %d %d %d:%d %d\\n", s.st_mode, (int)s.st_ino, (int)s.st_nlink, (int)s.st_size, major(s.st_rdev), minor(s.st_rdev),
         (int)s.st_mtime);
  printf("%o %d %d %d %d:%d %d\\n", x.stx_mode, (int)x.stx_ino, x.stx_nlink, (int)x.stx_size, x.stx_rdev_major, x.stx_rdev_minor,
         (int)x.stx_mtime.tv_sec);
  printf("%lu %lu %lu %lu\\n", SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND, SECCOMP_IOCTL_NOTIF_ID_VALID,
         SECCOMP_IOCTL_NOTIF_ADDFD);
  return 0;
}}
"""
    lines = subprocess.run([compiled(tmp_path, source)], capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = "100444 77 3 4096 226:128 1234567"
    requests = [str(SECCOMP.request(name)) for name in SECCOMP.ioctls]
    ours = [requests[list(SECCOMP.ioctls).index(f"SECCOMP_IOCTL_NOTIF_{name}")] for name in ("RECV", "SEND", "ID_VALID", "ADDFD")]
    assert lines == ["1 1", wanted, wanted, " ".join(ours)]


@pytest.mark.parametrize("arch", ARCHS)
def test_numbers_are_the_headers(arch: str) -> None:
    header = Path("/usr/include") / ("x86_64-linux-gnu/asm/unistd_64.h" if arch == "x86_64" else "asm-generic/unistd.h")
    if not header.exists():
        pytest.skip(f"no {header}: apt-get install linux-libc-dev")
    words = [line.split() for line in header.read_text().splitlines() if line.startswith("#define __NR")]
    numbers = {name.replace("__NR3264_", "__NR_").removeprefix("__NR_"): int(value) for _, name, value, *_ in words
               if value.isdigit()}
    renamed = {"newfstatat": "fstatat"} if arch == "aarch64" else {}
    for name, number in {**ARCHS[arch].numbers, "seccomp": ARCHS[arch].seccomp}.items():
        assert numbers[renamed.get(name, name)] == number, name


def test_assembler() -> None:
    program = assemble([load(4), equal(7, yes="out"), result(1), at("out", result(2))])
    assert list(struct.iter_unpack("<HBBI", program)) == [(0x20, 0, 0, 4), (0x15, 1, 0, 7), (6, 0, 0, 1), (6, 0, 0, 2)]
    with pytest.raises(ValueError, match="nowhere"):
        assemble([equal(1, yes="nowhere"), result(0)])
    with pytest.raises(ValueError, match="back"):
        assemble([at("back", load(0)), equal(1, yes="back")])
