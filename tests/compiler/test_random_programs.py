"""Random LIR programs: the interpreter against itself group by group, and the LLVM backend against the interpreter."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from devrt.compiler import lir
from devrt.compiler.llvm import backend, target
from tests.compiler import random_programs as programs
from tests.compiler.shrink import shrink

PER_LANES = 40


@pytest.mark.parametrize("lanes", programs.LANES)
def test_groups_at_once_or_one_by_one(lanes):
    for seed in range(20):
        g = programs.Generator(seed, lanes=lanes)
        one_by_one = programs.interpreted(g.program, g.arrays, groups_at_once=1)
        assert not programs.difference(g.program, programs.interpreted(g.program, g.arrays), one_by_one), f"seed {seed}"


@pytest.mark.parametrize("lanes", programs.LANES)
def test_machine_code_computes_what_the_interpreter_does(lanes):
    for seed in range(PER_LANES):
        g, to, why = programs.check(seed, lanes=lanes, size=25)
        assert not why, f"{why}\nseed {seed}, lanes {lanes}, {to.cpu}: to shrink it, run\n" \
            f"python -m tests.compiler.random_programs --count 1 --seed {seed} --lanes {lanes} --size 25\n{g.program}"


@pytest.mark.parametrize("name", ["x86-64-avx512", "aarch64"])
def test_code_for_other_machines_is_generated(name):
    for seed in range(12):
        assert backend.compile_program(programs.Generator(seed, size=25).program, target.named(name))[:4] == b"\x7fELF"


def test_every_instruction_and_type_occurs():
    instructions = [i for seed in range(60) for i in lir.walk(programs.Generator(seed).program.body)]
    ops = {i.op for i in instructions}
    assert set(lir.KINDS) <= ops
    assert {"const", "group", "lane", "select", "cast", "bitcast", "load", "store", "table", "lane_xor", "lane_get",
            "barrier", "loop", "when"} <= ops
    casts = {(i.args[0].dtype, i.out[0].dtype) for i in instructions if i.op == "cast"}
    assert len(casts) > 0.8 * len(programs.TYPES) * (len(programs.TYPES) - 1)
    assert {i.out[0].dtype for i in instructions if i.op == "load"} == set(programs.TYPES)
    assert any(len(i.args) > 1 for i in instructions if i.op == "load")


def test_a_wrong_bit_is_seen_and_shrunk():
    """A backend that adds floats where it should subtract: the program that shows it has little but that."""
    def broken(block):
        return [replace(i, op="add" if i.op == "sub" and i.out[0].dtype.is_float else i.op, body=broken(i.body))
                for i in block]

    def fails(program):
        wrong = replace(program, body=broken(program.body))
        want = programs.interpreted(program, g.arrays)
        return bool(programs.difference(program, want, programs.interpreted(wrong, g.arrays)))

    g = next(g for seed in range(50) if fails((g := programs.Generator(seed, lanes=4)).program))
    small = shrink(g.program, fails)
    assert fails(small)
    assert len(list(lir.walk(small.body))) <= 12


def test_a_crash_is_a_failure_like_any_other(monkeypatch):
    g = programs.Generator(0, lanes=4)
    monkeypatch.setattr(programs, "disagreement", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert programs.isolated(g.program, g.arrays, target.host()) == "the code crashed: signal 9"
