"""Makes a LIR program that fails as small as it can while it still fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from devrt.compiler import lir
from devrt.compiler.lir import Inst, Param, Program, Reg
from devrt.device import CompileError

Block = list[Inst]


def shrink(program: Program, fails: Callable[[Program], bool]) -> Program:
    """A program for which `fails` still holds and of which no single change below leaves it so.

    `fails` may raise CompileError for a program that breaks LIR's rules; such a change is not made.
    """
    def still(candidate: Program) -> bool:
        try:
            lir.verify(candidate)
            return fails(candidate)
        except CompileError:
            return False

    one_group = replace(program, groups=1)
    if still(one_group):
        program = one_group
    progress = True
    while progress:
        progress = False
        for body in _smaller(program.body):
            candidate = _tidy(replace(program, body=body))
            if size(candidate) < size(program) and still(candidate):
                program, progress = candidate, True
                break
    return program


def size(program: Program) -> tuple[int, int]:
    """Instructions, and how many of them are not constants."""
    instructions = list(lir.walk(program.body))
    return sum(i.op != "const" for i in instructions), len(instructions)


def _smaller(block: Block) -> Iterator[Block]:
    """The block with one change: half of its stores gone, an instruction gone, replaced by an operand or a constant, or
    its block run once in its place. Later instructions first: what only they use goes with them."""
    stores = [i for i in block if i.op == "store"]
    for part in (stores[::2], stores[1::2]) if len(stores) > 1 else ():
        yield [i for i in block if i not in part]
    for n in reversed(range(len(block))):
        i, before, after = block[n], block[:n], block[n + 1:]
        if i.op == "yield":
            continue
        if not i.out:
            yield before + after
        for operands in _stand_ins(i):
            yield before + _rename(after, dict(zip(i.out, operands, strict=True)))
        if i.body:
            *inner, last = i.body
            start = dict(zip(i.inner, (i.args[0], *i.args[2:]), strict=True)) if i.op == "loop" else {}
            inner, last = _rename(inner, start), _rename([last], start)[0]
            yield before + inner + _rename(after, dict(zip(i.out, last.args, strict=True)))
            for body in _smaller(i.body):
                yield [*before, replace(i, body=body), *after]
        if i.op != "const" and i.out:
            yield [*before, *(Inst("const", (r,), (), {"value": _zero(r)}) for r in i.out), *after]


def _stand_ins(i: Inst) -> Iterator[tuple[Reg, ...]]:
    """Registers that could take the place of what `i` defines."""
    if i.op in ("loop", "when"):
        yield i.args[2:] if i.op == "loop" else i.args[1:]
    elif i.out:
        for a in i.args:
            if a.dtype is i.out[0].dtype:
                yield (a,)


def _zero(r: Reg) -> int | float | bool:
    return False if r.dtype.kind == "bool" else 0.0 if r.dtype.is_float else 0


def _rename(block: Block, names: dict[Reg, Reg]) -> Block:
    return [replace(i, args=tuple(names.get(r, r) for r in i.args), body=_rename(i.body, names)) for i in block]


def _tidy(program: Program) -> Program:
    """Without instructions whose results nobody reads, and without parameters and arrays that nobody names."""
    body = program.body
    while True:
        used = {r for i in lir.walk(body) for r in i.args}
        smaller = _without_unused(body, used)
        if sum(1 for _ in lir.walk(smaller)) == sum(1 for _ in lir.walk(body)):
            break
        body = smaller
    mems = {id(i.mem) for i in lir.walk(body)}
    params: tuple[Param, ...] = tuple(p for p in program.params if id(p) in mems)
    return replace(program, body=body, params=params, shared=tuple(s for s in program.shared if id(s) in mems),
                   tables=tuple(t for t in program.tables if id(t) in mems))


def _without_unused(block: Block, used: set[Reg]) -> Block:
    """Loops keep what they carry; a loop or when none of whose results is read goes if it stores nothing."""
    kept = []
    for i in block:
        acts = any(j.op in ("store", "barrier") for j in lir.walk(i.body))
        if i.op in ("store", "barrier", "yield") or acts or any(r in used for r in i.out):
            kept.append(replace(i, body=_without_unused(i.body, used)))
    return kept
