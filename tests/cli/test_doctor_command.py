"""`devrt doctor` and what its promises cost: time, imports, examples that work."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from devrt.cli import main as cli


def test_every_command_the_overview_shows_is_understood() -> None:
    for example, _ in cli.EXAMPLES:
        words = example.split("'")
        arguments = words[0].split()[1:] + ([words[1]] if len(words) > 1 else [])
        assert cli.parser().parse_args(arguments).command == arguments[0]


def test_the_version_costs_no_heavy_import() -> None:
    script = ("import sys\nfrom devrt.cli import main\ntry: main.main(['--version'])\nexcept SystemExit: pass\n"
              "print(sorted({'numpy', 'llvmlite', 'cffi', 'yaml', 'tabulate', 'devrt.doctor'} & set(sys.modules)))")
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_doctor_takes_less_than_a_second_and_a_half() -> None:
    """The best of three after a first run, which compiles."""
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "devrt.cli.main", "doctor"], capture_output=True)
        return time.perf_counter() - start
    assert min([seconds() for _ in range(4)][1:]) < 1.5


def test_doctor_on_a_device_that_does_not_open(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "amd:7", "--json"]) == 1
    [finding] = [row for row in json.loads(capsys.readouterr().out) if row["check"] == "device"]
    assert (finding["severity"], finding["what"]) == ("error", "amd:7 does not open") and finding["remedy"]


def test_explain_says_what_is_wrong_with_an_expression(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "softmax("]) == 3
    first, second = capsys.readouterr().err.splitlines()
    assert "can't be evaluated: softmax(" in first and second.startswith("  try: ")
