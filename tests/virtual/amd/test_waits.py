"""Missing waits: none in what LLVM compiles, and found where one is taken out."""

from __future__ import annotations

import random

import pytest

from devrt.compiler.llvm import amdgcn
from devrt.virtual.amd import isa
from devrt.virtual.amd.isa import Effect, Instruction
from devrt.virtual.amd.translate import waits
from tests.compiler.test_amdgcn import EXPRESSIONS, programs
from tests.virtual.amd.emulator import lay_out
from tests.virtual.amd.test_isa import GENS, code_of, functions

NOP = (0xBF800000).to_bytes(4, "little")


def kernels(gen: isa.Gen, opt: int) -> dict[str, int]:
    """Where kernels begin; functions that are called are reached from them."""
    return {name: at for name, (_, at, _) in functions(gen, opt).items() if name not in ("helper", "outer")}


@pytest.mark.parametrize("opt", (0, 2))
@pytest.mark.parametrize("gen", GENS)
def test_compiled_code_waits_for_everything(gen: isa.Gen, opt: int) -> None:
    code = code_of(gen, opt)
    found = {name: waits.missing(isa.walk(code, at, gen), at, gen) for name, at in kernels(gen, opt).items()}
    assert not {name: offsets for name, offsets in found.items() if offsets}


@pytest.mark.parametrize("gen", ("gfx1100", "gfx942"))
def test_kernels_of_devrt_wait_for_everything(gen: isa.Gen) -> None:
    for name in EXPRESSIONS:
        for program in programs(gen, name):
            code, found = lay_out(amdgcn.compile_program(program, amdgcn.target(gen)))
            entry = found[program.name].entry
            assert not waits.missing(isa.walk(bytes(code), entry, gen), entry, gen), name


def registers(i: Instruction, written: bool) -> set[tuple[str, int]]:
    return {(o.kind, o.index + k) for o in i.operands if o.kind in ("vgpr", "sgpr") and (o.dst if written else True)
            for k in range(o.dwords)}


def needed(block: list[Instruction], at: int, gen: isa.Gen) -> bool:
    """Whether, in a block alone, the wait lets go of a load that nothing waited for before, and its result is used next."""
    wait = block[at]
    counters = {name for name, _ in waits._releases(wait, gen)}
    loaded: set[tuple[str, int]] = set()
    for i in block[:at]:
        if Effect.WAIT in i.effects and counters & {name for name, _ in waits._releases(i, gen)}:
            loaded.clear()
        elif i.memory is not None and i.memory.action == "load" and set(i.memory.counters) <= counters:
            loaded |= registers(i, True)
        else:
            loaded -= registers(i, True)
    for i in block[at + 1:]:
        if Effect.WAIT in i.effects:
            return False
        if i.memory is None and registers(i, False) & loaded and all(left == 0 for _, left in waits._releases(wait, gen)):
            return True
    return False


@pytest.mark.parametrize("gen", GENS)
def test_a_wait_that_is_taken_out_is_missed(gen: isa.Gen, record_property) -> None:
    rng, code, tried, missed = random.Random(3), bytearray(code_of(gen, 2)), 0, []
    for name, entry in kernels(gen, 2).items():
        if name == "call":  # not relocated here: the call goes nowhere
            continue
        blocks = isa.walk(bytes(code), entry, gen)
        places = [block.instructions[k] for block in blocks.values() for k, i in enumerate(block.instructions)
                  if Effect.WAIT in i.effects and needed(block.instructions, k, gen)]
        for i in rng.sample(places, min(3, len(places))):
            before = bytes(code[i.address:i.address + 4])
            code[i.address:i.address + 4] = NOP
            tried += 1
            if not waits.missing(isa.walk(bytes(code), entry, gen), entry, gen):
                missed.append(f"{name}: {i} at {i.address:#x}")
            code[i.address:i.address + 4] = before
    record_property("waits taken out", tried)
    assert tried > 25 and not missed, (tried, missed)


def check(gen: isa.Gen, *words: int) -> set[int]:
    code = b"".join(word.to_bytes(4, "little") for word in words)
    return waits.missing(isa.walk(code, 0, gen), 0, gen)


LOAD = (0xF4000002, 0xF8000000)            # s_load_b32 s0, s[4:5], 0x0
END = 0xBFB00000                           # s_endpgm


def test_rules_on_a_few_instructions() -> None:
    move = 0xBE810000                      # s_mov_b32 s1, s0
    other = 0xBE800001                     # s_mov_b32 s0, s1
    waiting = 0xBF89FC07                   # s_waitcnt lgkmcnt(0)
    assert check("gfx1100", *LOAD, waiting, move, END) == set()
    assert check("gfx1100", *LOAD, move, END) == {8}
    assert check("gfx1100", *LOAD, other, END) == {8}                    # written under the load
    assert check("gfx1100", *LOAD, *LOAD, 0xBF89FC17, move, END) == {8, 20}   # lgkmcnt(1) lets go of none
    branch = 0xBFA10001                    # s_cbranch_scc0 over the wait: one way is enough
    assert check("gfx1100", *LOAD, branch, waiting, move, END) == {16}
