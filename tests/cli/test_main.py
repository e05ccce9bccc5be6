"""The command line from outside: words in, text, JSON and exit codes out."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import devrt
from devrt.cli import commands, main
from devrt.cli.paint import paint
from devrt.device import OutOfMemory
from devrt.doctor import Finding, Severity
from devrt.ioctl.machine import MachineSystem


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "devrt.cli.main", *words], capture_output=True, text=True,
                          env=os.environ | {"NO_COLOR": "1"} | environment)


def test_alone_it_says_what_it_can_do() -> None:
    done = run()
    assert done.returncode == 0 and done.stderr == ""
    assert all(name in done.stdout for name in main.COMMANDS)


def test_version_needs_no_numpy() -> None:
    code = "import sys; from devrt.cli.main import main\ntry: main(['--version'])\nfinally: print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["devrt", devrt.__version__, "False"]


def test_version_is_quick() -> None:
    """At most 150 ms beyond what the interpreter takes to start; the best of five, since other work shares the machine."""
    def seconds(*words: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        return time.perf_counter() - start
    interpreter = min(seconds("-c", "pass") for _ in range(5))
    assert min(seconds("-m", "devrt.cli.main", "--version") for _ in range(5)) - interpreter < 0.15


@pytest.mark.parametrize("words", [("nope",), ("doctor", "--nope"), ("explain",), ("bench", "--plot")])
def test_what_is_not_understood_is_one_sentence_and_a_remedy(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 2 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("devrt: ") and second.startswith("  try: ")


def test_help_lists_the_exit_codes() -> None:
    for words in ((), *((name,) for name in main.COMMANDS)):
        done = run(*words, "--help")
        assert done.returncode == 0 and main.EXIT_CODES in done.stdout


def test_doctor_on_this_machine_agrees_with_itself(tmp_path: Path) -> None:
    """What was recorded, replayed, is what was found."""
    recording = tmp_path / "calls.jsonl"
    first = run("doctor", "--no-devices", "--json", "--record", str(recording))
    again = run("doctor", "--replay", str(recording), "--json")
    assert first.returncode == again.returncode in (0, 1)
    assert json.loads(first.stdout) == json.loads(again.stdout)
    assert {"kernel", "cpu", "iommu"} <= {row["check"] for row in json.loads(first.stdout)}


def test_doctor_uses_the_cpu() -> None:
    done = run("doctor", "--device", "cpu", "--json")
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert [rows[f"device-{name}"]["severity"] for name in ("copy", "timestamp", "compute")] == ["ok", "ok", "ok"]


def test_doctor_exits_1_where_something_cannot_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"/sys/bus/pci/devices/0000:03:00.0/class": "0x030000", "/sys/bus/pci/devices/0000:03:00.0/vendor": "0x1002",
             "/sys/bus/pci/devices/0000:03:00.0/device": "0x744c"}
    monkeypatch.setattr(commands, "LinuxSystem", lambda: MachineSystem({"files": files}))
    assert main.main(["doctor", "--no-devices"]) == 1
    assert "do: sudo modprobe amdgpu\n" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "said"), [
    (("doctor", "--replay", "/nonexistent"), "/nonexistent can't be read"),
    (("doctor", "--no-devices", "--record", "/nonexistent/file"), "/nonexistent/file can't be written"),
    (("explain", "1 / 0"), "division by zero"),
    (("explain", "3"), "not an Array"),
])
def test_what_devrt_cannot_do_exits_3(words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert done.returncode == 3 and said in done.stderr and "  try: " in done.stderr and "Traceback" not in done.stderr


def test_devices_prints_a_table_and_json() -> None:
    rows = json.loads(run("devices", "--json").stdout)
    assert rows[0]["uri"] == "cpu" and rows[0]["memory_bytes"] > 0
    table = run("devices").stdout
    assert table.splitlines()[0].split() == ["uri", "name", "isa", "memory"] and rows[0]["name"] in table


def test_explain_reaches_the_scheduler(tmp_path: Path) -> None:
    drawn = tmp_path / "graph.svg"
    done = run("explain", "softmax(randn(8, 64))", "--json", "--graph", str(drawn))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kernels"] and drawn.read_text().startswith("<svg")


def test_bench_hands_its_words_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(main.importlib, "import_module",
                        lambda name: SimpleNamespace(run_bench=lambda arguments: seen.append((name, arguments)) or 0))
    assert main.main(["bench", "--quick", "--plot", "out.svg", "--device", "cpu", "gemm", "copy"]) == 0
    ((name, arguments),) = seen  # type: ignore[misc]
    assert name == "devrt.benchmark.main" and (arguments.quick, arguments.json, arguments.plot) == (True, False, "out.svg")
    assert (arguments.device, arguments.filter) == ("cpu", ["gemm", "copy"])


def failing(error: BaseException) -> SimpleNamespace:
    def run_devices(arguments: object) -> int:
        raise error
    return SimpleNamespace(run_devices=run_devices)


@pytest.mark.parametrize(("error", "code", "said"), [
    (OutOfMemory("no room", evidence="ENOMEM", remedy="free some"), 3, "devrt: no room (ENOMEM)\n  try: free some\n"),
    (ZeroDivisionError("oops"), 4, "devrt: this is a bug in devrt: ZeroDivisionError: oops\n"),
    (KeyboardInterrupt(), 130, ""),
])
def test_failures_become_exit_codes(error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(main.importlib, "import_module", lambda name: failing(error))
    assert main.main(["devices"]) == code
    assert capsys.readouterr().err.startswith(said)


def test_a_developer_can_ask_for_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(main.importlib, "import_module", lambda name: failing(ZeroDivisionError("oops")))
    monkeypatch.setenv("DEVRT_TRACEBACK", "1")
    assert main.main(["devices"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(f"{sys.executable} -m devrt.cli.main doctor --no-devices --json | head -c 10; echo ${{PIPESTATUS[0]}}",
                          shell=True, executable="/bin/bash", capture_output=True, text=True)
    assert done.stdout.endswith("0\n") and done.stderr == ""


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_only_on_a_terminal_that_wants_them(environment: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    surroundings = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"} | environment
    subprocess.run([sys.executable, "-m", "devrt.cli.main"], stdout=theirs, env=surroundings, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16)
    os.close(ours)
    assert (b"\x1b[" in shown) is coloured


def test_paint_leaves_text_alone_in_a_pipe() -> None:
    assert paint("x", "bold", "red") == "x"


def test_report_keeps_a_remedy_on_one_line() -> None:
    remedy = "sudo " + "very-" * 60 + "long"
    text = commands.report([Finding("node", Severity.ERROR, "what " * 60, "evidence " * 60, remedy)])
    assert f"do: {remedy}\n" in text and text.endswith("1 error")
    assert all(len(line) <= 120 for line in text.splitlines() if "do:" not in line)
