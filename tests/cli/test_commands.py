"""What the commands print, and that the words on the command line reach those who do the work."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from devrt import safetensors
from devrt.cli import commands, main
from devrt.cli.exit_codes import FAILED, FINDINGS, OK
from devrt.doctor import Finding, Severity
from devrt.ioctl.machine import MachineSystem


def test_doctor_exits_1_where_something_cannot_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = "/sys/bus/pci/devices/0000:03:00.0"
    machine = MachineSystem({"files": {f"{gpu}/class": "0x030000", f"{gpu}/vendor": "0x1002", f"{gpu}/device": "0x744c"}})
    monkeypatch.setattr(commands, "LinuxSystem", lambda: machine)
    assert main.main(["doctor", "--no-devices"]) == FINDINGS
    assert "do: sudo modprobe amdgpu\n" in capsys.readouterr().out


def test_report_keeps_a_command_on_one_line() -> None:
    """A command is copied into a shell; anything else is wrapped between words."""
    command = "sudo " + "very-" * 60 + "long"
    text = commands.report([Finding("node", Severity.ERROR, "what " * 60, "evidence " * 60, command),
                            Finding("node", Severity.ERROR, "what", "evidence", "log out and in-again " * 20)])
    assert f"do: {command}\n" in text and text.endswith("\n\n2 errors: mend the errors first")
    assert all(len(line) <= 120 for line in text.splitlines() if command not in line)
    assert "in-\n" not in text


@pytest.mark.parametrize(("severities", "last"), [
    ("OK", "1 ok: this machine is in order"), ("OK OK NOTE", "1 note, 2 ok: nothing stands in the way"),
    ("WARNING NOTE NOTE", "1 warning, 2 notes: everything works, some of it slower or at risk"),
    ("ERROR WARNING WARNING", "1 error, 2 warnings: mend the errors first")])
def test_report_ends_with_a_verdict(severities: str, last: str) -> None:
    findings = [Finding("node", Severity[name], "what") for name in severities.split()]
    assert commands.report(findings).splitlines()[-1] == last


def test_explain_reaches_the_scheduler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = tmp_path / "graph.svg"
    assert main.main(["explain", "softmax(randn(8, 64))", "--json", "--graph", str(drawn)]) == OK
    assert json.loads(capsys.readouterr().out)["kernels"] and "<svg" in drawn.read_text()


def test_bench_hands_its_words_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, argparse.Namespace]] = []

    def imported(name: str) -> SimpleNamespace:
        def run_bench(arguments: argparse.Namespace) -> int:
            seen.append((name, arguments))
            return OK
        return SimpleNamespace(run_bench=run_bench)
    monkeypatch.setattr("importlib.import_module", imported)
    assert main.main(["bench", "--quick", "--plot", "out.svg", "--device", "cpu", "gemm", "copy"]) == OK
    [(name, arguments)] = seen
    assert name == "devrt.benchmark.main" and (arguments.quick, arguments.json, arguments.plot) == (True, False, "out.svg")
    assert (arguments.device, arguments.filter) == ("cpu", ["gemm", "copy"])


def test_compare_says_where_two_files_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs, x = tmp_path / "ours", tmp_path / "theirs", np.arange(1, 25, dtype=np.float32).reshape(4, 6)
    safetensors.save(ours, {"embed": x, "layer.0": x * np.float32(1.01), "layer.1": x * 2})
    safetensors.save(theirs, {"embed": x, "layer.0": x, "layer.1": x})
    assert main.main(["compare", str(ours), str(theirs)]) == FINDINGS
    out = capsys.readouterr().out
    for text in ("same bits", "first divergence: layer.0 (log-L2 -2.00)", "largest error: layer.1 (log-L2 0.00)"):
        assert text in out
    assert main.main(["compare", str(ours), str(theirs), "--json"]) == FINDINGS
    data = json.loads(capsys.readouterr().out)
    assert data["first_divergence"] == "layer.0" and [t["name"] for t in data["tensors"]] == ["embed", "layer.0", "layer.1"]
    assert main.main(["compare", str(ours), str(theirs), "--tolerance", "0.5", "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert main.main(["compare", str(ours), str(ours), "--tolerance", "-12.5"]) == OK
    assert "3 tensors, all within 10^-12.5" in capsys.readouterr().out


def test_compare_fails_on_what_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged").write_bytes(b"1234")
    for name, what in (("none", "can't be read"), ("damaged", "is no safetensors file"), ("", "is no file")):
        assert main.main(["compare", str(tmp_path / name), str(tmp_path / name)]) == FAILED
        captured = capsys.readouterr()
        assert what in captured.err and "\n  try: " in captured.err and captured.out == ""
