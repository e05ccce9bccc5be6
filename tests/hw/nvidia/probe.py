"""What the driver and the hardware take, one question after another:

    python -m tests.hw.nvidia.probe nvidia:0 probe.json [STEP ..]

First every step runs as devrt does it, then with each change of probe_changes.py, those of steps that failed before the others;
each in a process of its own with a time limit, and all of them with one as well. So where no source says what is right (nothing
of Hopper's launch descriptors is documented but its fields), one run on a card does, and where a step fails its changes say why.
A line each is printed, what was seen goes into the JSON file. The exit status is 0 where every step works as devrt does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from devrt.device import DevrtError, parse_uri
from tests.hw.nvidia.probe_changes import CHANGES
from tests.hw.nvidia.probe_steps import STEPS, run, system_of

_PATIENCE = float(os.environ.get("PATIENCE", "1"))  # where virtual GPUs play real ones
LIMIT_S = 25.0 * _PATIENCE   # of one process
TOTAL_S = 170.0 * _PATIENCE  # of all of them: what is not asked by then is named
_MARK = "probe: "


def child(uri: str, step: str, change: str) -> int:
    """Run one step, and print what it saw as the last line."""
    made: dict[str, Any] = {"ok": False}
    try:
        if change:
            CHANGES[step][change]()
        made = {"ok": True, "facts": run(step, uri)}
    except DevrtError as error:
        made["said"] = f"{type(error).__name__}: {error.what} [{error.evidence}]"
    except Exception as error:  # whatever it is, the next question is asked
        made["said"] = f"{type(error).__name__}: {error}"
    if not made["ok"]:
        made["log"] = complaints(uri)
    print(_MARK + json.dumps(made, default=str), flush=True)
    os._exit(0)  # nothing waits for a GPU that hangs


def complaints(uri: str) -> list[str]:
    """The driver's last lines in the kernel log, where this process may read it."""
    try:
        lines = [line.text for line in system_of(parse_uri(uri)).kernel_log()]
    except (OSError, DevrtError):
        return []
    return [text for text in lines if "NVRM" in text or "nvidia" in text][-20:]


def ask(uri: str, step: str, change: str) -> dict[str, Any]:
    begun = time.monotonic()
    command = [sys.executable, "-m", "tests.hw.nvidia.probe", "--one", uri, step, change]
    made: dict[str, Any] = {"ok": False}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        line = next((line for line in done.stdout.splitlines()[::-1] if line.startswith(_MARK)), "")
        made = json.loads(line[len(_MARK):]) if line else made | {"said": f"ended with {done.returncode}: {done.stderr[-600:]}"}
    except subprocess.TimeoutExpired as error:
        made["said"] = f"no answer within {LIMIT_S:.0f} s: {(error.stderr or b'')[-300:]!r}"
    return {"step": step, "change": change, "seconds": round(time.monotonic() - begun, 2), **made}


def hold() -> list[int]:
    """Keep the cards open, so that the driver does not shut them down between two processes."""
    held = []
    for path in sorted(Path("/dev").glob("nvidia[0-9]*")):
        with contextlib.suppress(OSError):
            held.append(os.open(path, os.O_RDWR))
    return held


def anew(held: list[int]) -> list[int]:
    """Let the cards go, so that the driver starts one that was lost anew, and hold them again."""
    for fd in held:
        os.close(fd)
    return hold()


def put(uri: str, step: str, change: str, rows: list[dict[str, Any]], path: str) -> dict[str, Any]:
    """Ask, and say and keep what came of it."""
    row = ask(uri, step, change)
    rows.append(row)
    Path(path).write_text(json.dumps(rows, indent=1))
    about = "" if row["ok"] else f"  {row.get('said', '')[:300]}"
    named = f"{step:<13} {change or '(as devrt does it)':<36}"
    print(f"{'ok' if row['ok'] else 'NO'}  {named} {row['seconds']:>6.2f} s{about}", flush=True)
    return row


def main(uri: str, path: str, *steps: str) -> int:
    held, end = hold(), time.monotonic() + TOTAL_S
    rows: list[dict[str, Any]] = []
    asked = list(steps or STEPS)
    failed: list[str] = []
    for step in asked:
        if not put(uri, step, "", rows, path)["ok"]:
            failed.append(step)
            held = anew(held)
    changes = [(step, change) for step in sorted(asked, key=lambda step: step not in failed) for change in CHANGES.get(step, {})]
    while changes and time.monotonic() < end:
        if not put(uri, *changes.pop(0), rows, path)["ok"]:
            held = anew(held)
    if changes:
        print(f"not asked for want of time: {', '.join(f'{step} {change!r}' for step, change in changes)}")
    for step in failed:
        works = [row["change"] for row in rows if row["step"] == step and row["ok"]]
        print(f"{step} does not work as devrt does it; with these changes it does: {'; '.join(works) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(child(*sys.argv[2:5]) if sys.argv[1:2] == ["--one"] else main(*sys.argv[1:]))
