"""`devrt` as a stranger types it: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import devrt
from devrt.cli import main as cli
from devrt.cli.exit_codes import BUG, FAILED, FINDINGS, INTERRUPTED, OK, USAGE
from devrt.device import OutOfMemory
from devrt.ioctl.machine import MachineSystem
from devrt.paths import cache_folder

COMMANDS = tuple(cli.COMMANDS)
PROCESSOR = {"files": {"/proc/cpuinfo": "processor\t: 0\nmodel name\t: Test\nflags\t\t: avx2 fma\n"}}


def one_sentence_and_remedy(stderr: str) -> tuple[str, str]:
    """The two lines of a complaint."""
    first, second = stderr.splitlines()
    assert first.startswith("devrt: ") and second.startswith("  try: ") and "Traceback" not in stderr
    return first.removeprefix("devrt: "), second.removeprefix("  try: ")


def fail_with(monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    """Make `devrt devices` fail."""
    def devices() -> list[object]:
        raise failure
    monkeypatch.setattr(devrt, "devices", devices)


def test_alone_it_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == OK
    out = capsys.readouterr().out
    assert all(f"\n  {name}" in out for name in COMMANDS)
    assert "\x1b" not in out, "no colours into a pipe"


def test_every_command_the_overview_shows_is_understood() -> None:
    for example, _ in cli.EXAMPLES:
        words = example.split("'")
        arguments = words[0].split()[1:] + ([words[1]] if len(words) > 1 else [])
        assert cli.parser().parse_args(arguments).command == arguments[0]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"devrt {devrt.__version__}\n"


def test_the_version_costs_no_heavy_import() -> None:
    script = ("import sys\nfrom devrt.cli import main\ntry: main.main(['--version'])\nexcept SystemExit: pass\n"
              "print(sorted({'numpy', 'llvmlite', 'cffi', 'yaml', 'tabulate', 'devrt.doctor'} & set(sys.modules)))")
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_documents_the_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"] if command else ["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {code}  " in out for code in (OK, FINDINGS, USAGE, FAILED, BUG))
    assert not command or "--json" in out


@pytest.mark.parametrize("line", ["frobnicate", "doctor --nonsense", "explain", "devices extra"])
def test_a_line_that_is_not_understood(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(line.split())
    assert stopped.value.code == USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--help" in one_sentence_and_remedy(captured.err)[1]


def test_a_devrt_error_is_a_sentence_and_a_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, OutOfMemory("no room", evidence="ENOMEM", remedy="free some"))
    assert cli.main(["devices"]) == FAILED
    assert one_sentence_and_remedy(capsys.readouterr().err) == ("no room (ENOMEM)", "free some")


def test_an_error_without_its_own_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, OutOfMemory("no room"))
    assert cli.main(["devices"]) == FAILED
    assert one_sentence_and_remedy(capsys.readouterr().err) == ("no room", OutOfMemory.advice)


def test_a_bug_is_called_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, ZeroDivisionError("by zero"))
    assert cli.main(["devices"]) == BUG
    what, remedy = one_sentence_and_remedy(capsys.readouterr().err)
    assert what == "this is a bug in devrt: ZeroDivisionError: by zero" and "DEVRT_TRACEBACK=1" in remedy


def test_a_developer_may_see_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, ZeroDivisionError("by zero"))
    monkeypatch.setenv("DEVRT_TRACEBACK", "1")
    assert cli.main(["devices"]) == BUG
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    assert cli.main(["devices"]) == INTERRUPTED
    assert capsys.readouterr().err == ""


def test_a_reader_that_goes_away_is_no_error() -> None:
    for words, first in (("doctor --no-devices --json", "["), ("", "d")):
        run = subprocess.run(f"{sys.executable} -m devrt.cli.main {words} | head -c 1; echo ${{PIPESTATUS[0]}}",
                             shell=True, executable="/bin/bash", capture_output=True, text=True)
        assert (run.stdout, run.stderr) == (f"{first}0\n", "")


def test_devices_in_json_and_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "--json"]) == OK
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["uri"] == "cpu" and rows[0]["memory_bytes"] > 0
    assert cli.main(["devices"]) == OK
    table = capsys.readouterr().out
    assert table.splitlines()[0].split() == ["uri", "name", "isa", "memory"] and rows[0]["name"] in table


def test_doctor_uses_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["doctor", "--json"])  # the exit code is this machine's business
    findings = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    for check in ("device-copy", "device-timestamp", "device-compute"):
        assert findings[check]["severity"] == "ok", findings[check]


def test_doctor_on_a_device_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "amd:7", "--json"]) == FINDINGS
    [finding] = [finding for finding in json.loads(capsys.readouterr().out) if finding["severity"] == "error"
                 and finding["check"] == "device"]
    assert finding["what"] == "amd:7 does not open" and finding["remedy"]


def test_doctor_replays_what_it_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    machine = MachineSystem({**PROCESSOR, "log": "<3>[   10.0] NVRM: Xid (PCI:0000:17:00): 79, GPU has fallen off the bus."})
    monkeypatch.setattr("devrt.cli.commands.LinuxSystem", lambda: machine)
    recording = str(tmp_path / "machine.jsonl")
    assert cli.main(["doctor", "--no-devices", "--record", recording]) == FINDINGS
    first = capsys.readouterr().out
    monkeypatch.undo()
    assert cli.main(["doctor", "--replay", recording]) == FINDINGS
    assert capsys.readouterr().out == first and "fell off the bus" in first


def test_doctor_examines_the_machine_that_a_virtual_device_stands_on(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["doctor", "--device", "virtual:amd/gfx1030", "--json"])  # the exit code is also this host's business
    findings = json.loads(capsys.readouterr().out)
    about = {finding["check"]: finding["severity"] for finding in findings}
    assert {about[check] for check in ("kfd", "amd-temperature", "amd-resets", "device-copy", "device-compute")} == {"ok"}
    assert all("virtual:amd/gfx1030" in finding["what"] for finding in findings if finding["check"].startswith("device"))


def test_doctor_sees_in_counters_and_log_what_its_use_of_a_device_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "virtual:amd/gfx1100?reset@1", "--json"]) == FINDINGS
    said = [(finding["check"], finding["severity"], finding["what"]) for finding in json.loads(capsys.readouterr().out)]
    assert any(check == "amd-resets" and severity == "warning" for check, severity, _ in said)
    assert any(check == "kernel-log" and "amdgpu-reset on 0000:03:00.0" in what for check, _, what in said)


def test_doctor_says_a_page_fault_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "virtual:amd/gfx942?page-fault@1", "--json"]) == FINDINGS
    [fault] = [finding for finding in json.loads(capsys.readouterr().out) if "amdgpu-fault" in finding["what"]]
    assert "a read; the page is not valid; the page may not be read; client 0x0, vmid 8" in fault["evidence"]


def test_doctor_on_several_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["doctor", "--device", "cpu", "--device", "virtual:amd/2xgfx1100:1", "--no-devices"]
    cli.main(line)
    out = capsys.readouterr().out
    assert "this machine\n" in out and "virtual:amd/2xgfx1100\n" in out
    assert cli.main([*line, "--record", str(tmp_path / "machine.jsonl")]) == FAILED
    assert "one machine" in one_sentence_and_remedy(capsys.readouterr().err)[0]


def test_doctor_replays_a_virtual_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = str(tmp_path / "machine.jsonl")
    code = cli.main(["doctor", "--device", "virtual:amd/4xgfx942", "--no-devices", "--record", recording])
    first = capsys.readouterr().out
    assert cli.main(["doctor", "--replay", recording]) == code
    assert capsys.readouterr().out == first and "all 12 pairs" in first


@pytest.mark.parametrize("option", ["--replay", "--record"])
def test_doctor_on_a_file_it_can_not_use(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--no-devices", option, str(tmp_path / "no" / "file")]) == FAILED
    what, _ = one_sentence_and_remedy(capsys.readouterr().err)
    assert "file can't be" in what and "ENOENT" in what


def in_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command prints on a terminal."""
    leader, follower = pty.openpty()
    try:
        process = subprocess.Popen([sys.executable, "-m", "devrt.cli.main", *arguments], stdout=follower, stderr=follower,
                                   env={**os.environ, "TERM": "xterm", **environment})
    finally:
        os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:  # EIO: the last writer closed the terminal
        pass
    finally:
        os.close(leader)
        process.wait()
    return shown.decode()


def test_colours_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1m" in in_a_terminal()
    assert "\x1b" not in in_a_terminal(NO_COLOR="1")
    assert "\x1b" not in in_a_terminal(TERM="dumb")
    assert "\x1b[1;31mdevrt:" in in_a_terminal("frobnicate")


def test_explain_reports_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "randn(4, 4) + 1", "--json"]) == OK
    json.loads(capsys.readouterr().out)
    assert cli.main(["explain", "softmax("]) == FAILED
    assert "can't be evaluated" in one_sentence_and_remedy(capsys.readouterr().err)[0]


@pytest.mark.parametrize("arguments", [("devices",), ("devices", "--json"), ("doctor", "--no-devices")])
def test_a_full_disk_is_one_sentence(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-m", "devrt.cli.main", *arguments], stdout=full, stderr=subprocess.PIPE,
                               text=True, timeout=60)
    what, _ = one_sentence_and_remedy(ended.stderr)
    assert ended.returncode in (FAILED, FINDINGS) and "can't be written" in what


def test_a_closed_output_is_no_bug() -> None:
    ended = subprocess.run(f"{sys.executable} -m devrt.cli.main devices >&-", shell=True, capture_output=True, text=True,
                           timeout=60)
    assert ended.returncode == OK and not ended.stderr


def test_too_little_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, MemoryError("Unable to allocate 9 TiB"))
    assert cli.main(["devices"]) == FAILED
    assert "Unable to allocate 9 TiB" in one_sentence_and_remedy(capsys.readouterr().err)[0]


@pytest.mark.parametrize("line", ["bench launch --plot {}", "explain relu(randn(4)) --graph {}"])
def test_a_picture_that_has_no_place(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said before anything is measured."""
    assert cli.main(line.format(tmp_path / "nowhere" / "x.svg").split()) == FAILED
    captured = capsys.readouterr()
    assert "can't be written" in one_sentence_and_remedy(captured.err)[0] and not captured.out


def test_help_keeps_capitals(capsys: pytest.CaptureFixture[str]) -> None:
    for command, word in (("devices", "URIs"), ("explain", "FLOPs")):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        assert word in capsys.readouterr().out


def test_an_empty_cache_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVRT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/devrt")
