"""Tables for NVIDIA's GPUs: what masks, states and modes mean, and what to do. Each names NVIDIA's header, of
open-gpu-kernel-modules src/common/sdk/nvidia/inc."""

from __future__ import annotations

from typing import NamedTuple

from devrt.doctor.findings import ERROR, NOTE, WARNING, Severity

COOL = "check fans, air flow and dust; look again when it is cool"
RESET = "close every program on the GPU and reset it: echo 1 | sudo tee {path}/reset"
REPLACE = "reset the GPU; if errors come back, replace it"


class Meaning(NamedTuple):
    """Of a bit or a value. `what` continues "NVIDIA H200 at ..: "."""

    severity: Severity
    name: str
    what: str
    remedy: str


# Bits of RUSD_CLK_THROTTLE_REASON.reasonMask, class/cl00de.h. Bit 0 is rest, and slows nothing down.
THROTTLERS = {
    1: Meaning(NOTE, "application clocks", "held at the clocks that somebody set for programs",
               "set them back: nvidia-smi --reset-applications-clocks"),
    2: Meaning(NOTE, "power cap", "slowed down to stay within its power limit",
               "normal at full load; raise the limit if the supply and the cooling allow it"),
    3: Meaning(WARNING, "hardware slowdown", "slowed down by its hardware, for heat or for lack of power",
               "check power cables, supply and cooling"),
    4: Meaning(NOTE, "sync boost", "held back so that it stays in step with other GPUs", "take it out of its sync boost group"),
    5: Meaning(WARNING, "software thermal slowdown", "slowed down to stay within its temperature", COOL),
    6: Meaning(WARNING, "hardware thermal slowdown", "slowed down by its hardware, because it is too hot", COOL),
    7: Meaning(WARNING, "power brake", "slowed down by a signal of its power supply", "check the supply and its load"),
    8: Meaning(NOTE, "display clocks", "held at the clocks that a display needs", "take the display off this GPU"),
}
AT_REST = 1

# NV2080_CTRL_CMD_GPU_GET_RECOVERY_ACTION, ctrl/ctrl2080/ctrl2080gpu.h.
RECOVERY = {
    1: Meaning(ERROR, "GPU reset", "must be reset before it can be trusted", RESET),
    2: Meaning(ERROR, "node reboot", "can only be recovered by a reboot", "reboot the machine"),
    3: Meaning(WARNING, "drain P2P", "programs that share memory with other GPUs must end", "end them, and look again"),
    4: Meaning(ERROR, "drain and reset", "its work must end, and it must be reset", RESET),
    5: Meaning(ERROR, "recover IMEX domain", "the memory it shares with other machines must be recovered",
               "restart nvidia-imex on the machines of its domain"),
}

# NV2080_CTRL_CMD_GPU_QUERY_COMPUTE_MODE_RULES, ctrl/ctrl2080/ctrl2080gpu.h.
COMPUTE_MODES = {
    1: Meaning(NOTE, "exclusive", "one program at a time may use it", "nvidia-smi --compute-mode=0 lets all of them"),
    2: Meaning(ERROR, "prohibited", "no program may compute on it", "nvidia-smi --compute-mode=0 allows it"),
    3: Meaning(NOTE, "exclusive process", "one process at a time may use it", "nvidia-smi --compute-mode=0 lets all of them"),
}

# NV2080_CTRL_CMD_GET_GPU_FABRIC_PROBE_INFO, state: ctrl/ctrl2080/ctrl2080gpu.h. 3 is complete, 0 a board without switches.
FABRIC_STATES = {1: "not begun", 2: "in progress"}
FABRIC_COMPLETE = 3
# Pairs of bits of fabricHealthMask: 1 is trouble (2: none, 0: not supported).
FABRIC_HEALTH = {0: "lower bandwidth than it should have", 2: "a route is being changed", 4: "an unhealthy connection",
                 6: "a recovery after a timeout"}

# NV2080_CTRL_FB_REMAPPED_ROW_SOURCE_*, FLAGS of GET_REMAPPED_ROWS, and the histogram's last index, ctrl/ctrl2080/ctrl2080fb.h.
ROW_SBE, ROW_DBE = 2, 3
ROWS_PENDING, ROWS_FAILED = 1 << 0, 1 << 1
ROWS_EXHAUSTED = 4

# NV2080_CTRL_NVLINK_STATUS_LINK_STATE_*, ctrl/ctrl2080/ctrl2080nvlink.h.
LINK_ACTIVE, LINK_SLEEP = 3, 5
LINK_STATES = {0: "not trained", 1: "not trained", 2: "not trained", 4: "faulty", 6: "recovering", 8: "recovering",
               10: "recovering"}

# NV0000_CTRL_SYSTEM_GET_P2P_CAPS_*: bits of p2pCaps, and NV0000_P2P_CAPS_STATUS_*, ctrl/ctrl0000/ctrl0000system.h.
P2P_WRITES, P2P_READS, P2P_NVLINK, P2P_PCIE, P2P_BAR1 = 1 << 0, 1 << 1, 1 << 3, 1 << 6, 1 << 13
P2P_READ_INDEX = 0  # of p2pCapsStatus
P2P_STATUS = {
    1: ("the chip set does not pass it", "use slots below one root complex"),
    2: ("the GPUs do not support it", "copies between them pass through the host, by design of these cards"),
    3: ("the way between their root complexes does not pass it", "use slots below one root complex"),
    4: ("it is switched off by a driver parameter", "take the parameter out of /etc/modprobe.d and load the driver anew"),
    5: ("it is not supported here", "copies between them pass through the host"),
    6: ("NVLink could not be set up", "look at the log: sudo dmesg | grep -i nvlink"),
}

# RUSD_TEMPERATURE_TYPE, class/cl00de.h; 570 has the first two.
SENSORS = ("GPU", "memory", "board", "power supply", "HBM")
HOT_C = 90.0  # most cards slow down between 87 and 95
RUSD_CLOCKS = ("graphics", "memory", "video", "SM")  # RUSD_CLK_PUBLIC_DOMAIN_*
