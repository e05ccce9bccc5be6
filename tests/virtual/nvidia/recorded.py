"""What a recording of `tests.hw.nvidia.record` says of the driver it was made on, without what differs from run to run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import unified_diff
from typing import Any

from devrt.ioctl.errors import errno_name
from devrt.ioctl.nv_status import status_name
from devrt.ioctl.nv_versions import VERSION_FILE, running_version
from devrt.ioctl.recording import Call
from devrt.virtual.nvidia.machine import MODELS

STATUS = ("status", "rmStatus", "Status")


def driver_of(calls: Sequence[Call]) -> str:
    """The version of the driver that was recorded."""
    return running_version(next(call.result for call in calls if call.name == "read_text"
                                and call.arguments["path"] == VERSION_FILE and call.result))


def model_of(calls: Sequence[Call]) -> str:
    """The model, as a topology names it, of the first GPU that was recorded. Raises LookupError where no model is it."""
    for call in calls:
        if call.decoded.get("name") == "NV_ESC_CARD_INFO":
            device_id = call.decoded["after"]["pci_info"]["device_id"]
            return next(key for key, model in MODELS.items() if model.device_id == device_id)
    raise LookupError("no card was asked for")


def acts(calls: Sequence[Call]) -> list[str]:
    """One line a call to NVIDIA's driver: the node, the call and what it is about, and what was answered. Equal ones in a row
    count as one: chips of one model differ in how many of their parts are switched on where."""
    lines = []
    for call in calls:
        path = re.sub(r"\d+$", "N", str(call.arguments.get("path", "")))
        if not path.startswith("/dev/nvidia") or call.name not in ("open", "close", "mmap", "ioctl"):
            continue
        words, answer = [path, call.name], errno_name(call.errno) if call.errno else "done"
        if call.decoded:
            after = call.decoded["after"]
            fields = {**after, **after["params"]} if isinstance(after.get("params"), dict) else after
            words = [path, call.decoded["name"], *(str(fields[name]) for name in ("cmd", "hClass") if name in fields)]
            statuses = [fields[name] for name in STATUS if name in fields]
            if statuses and not call.errno:
                answer = statuses[0] if isinstance(statuses[0], str) else status_name(statuses[0])
        line = f"{' '.join(words)} -> {answer}"
        if line not in lines[-1:]:
            lines.append(line)
    return lines


def facts(calls: Sequence[Call]) -> dict[str, Any]:
    """What a GPU of one model answers on every machine: its classes, its engines, what it is made of."""
    found: dict[str, Any] = {}
    for call in calls:
        after = call.decoded.get("after", {})
        short = str(after.get("cmd", "")).rpartition("_CMD_")[2]
        if short == "GPU_GET_CLASSLIST" and call.out["pointed"].get("params.classList"):
            data = bytes.fromhex(call.out["pointed"]["params.classList"])
            found["classes"] = {int.from_bytes(data[at:at + 4], "little") for at in range(0, len(data), 4)}
        elif short == "GR_GET_INFO":
            data = bytes.fromhex(call.out["pointed"]["params.grInfoList"])
            words = [int.from_bytes(data[at:at + 4], "little") for at in range(0, len(data), 4)]
            found["graphics"] = dict(zip(words[::2], words[1::2], strict=True))
        elif short == "GR_GET_TPC_MASK":
            found["tpcs"] = found.get("tpcs", 0) + bin(after["params.tpcMask"]).count("1")
        elif short == "GPU_GET_NAME_STRING":
            found["name"] = bytes(after["params.gpuNameString"]["ascii"]).rstrip(b"\0").decode()
    return found


def difference(recorded: Sequence[str], made: Sequence[str]) -> str:
    """Where two lists of acts differ, "" where they don't."""
    return "\n".join(unified_diff(recorded, made, "recorded", "virtual", lineterm="", n=2))
