"""A machine that runs mir without knowing what instructions mean: each writes a hash of its name and of what it read.

So a function before and after allocation or scheduling can be compared by what it stores. Moves, selects, comparisons with 0
and local memory are real: allocation writes those itself.
"""

from __future__ import annotations

import random
import zlib
from typing import Any

from devrt.compiler.sass import mir
from devrt.compiler.sass.instruction import RZ, TRUE, Address, File, Imm, Instruction, Label, Operand, Reg


class Machine:
    """Registers by word, local memory, and what was stored."""

    def __init__(self) -> None:
        self.words: dict[tuple[File, int, int], int] = {}
        self.local: dict[int, int] = {}
        self.stored: list[Any] = []
        self.visits: dict[tuple[int, ...], int] = {}

    def read(self, r: Reg) -> tuple[int, ...]:
        if r.zero:
            return (int(r.file in (File.P, File.UP)),) * r.words
        return tuple(self.words.get(place(r, k), 0xDEAD) for k in range(r.words))

    def write(self, i: Instruction, values: list[int]) -> None:
        for o in i.dsts:
            assert isinstance(o.value, Reg)
            for k in range(o.value.words):
                value = values.pop(0) if values else 0
                if not o.value.zero:
                    self.words[place(o.value, k)] = value & 1 if o.value.file in (File.P, File.UP) else value

    def holds(self, guard: Operand) -> bool:
        assert isinstance(guard.value, Reg)
        return bool(self.read(guard.value)[0]) != guard.inv

    def step(self, i: Instruction, seed: int) -> None:
        """Runs an instruction that is no branch."""
        if i.op == "CHANCE":  # its result is the path: chance knows the instruction by its constants, and how often it ran
            name = tuple(o.value.value for o in i.srcs if isinstance(o.value, Imm))
            self.visits[name] = self.visits.get(name, 0) + 1
            self.write(i, [zlib.crc32(repr((seed, name, self.visits[name])).encode()) >> 7])
        elif not self.holds(i.guard):
            return
        elif i.op == "LDL":
            register = i.dsts[0].value
            assert isinstance(register, Reg)
            self.write(i, [self.local.get(at, 0xBAD) for at in range(offset(i), offset(i) + 4 * register.words, 4)])
        elif i.op == "STL":
            register = i.srcs[1].value
            assert isinstance(register, Reg)
            for k, value in enumerate(self.read(register)):
                self.local[offset(i) + 4 * k] = value
        elif i.op == "MOV" and isinstance(i.srcs[0].value, Reg):
            self.write(i, list(self.read(i.srcs[0].value)))
        else:
            self.compute(i)

    def compute(self, i: Instruction) -> None:
        inputs = [self.read(o.value) if isinstance(o.value, Reg) else (o.value.value,) if isinstance(o.value, Imm) else ()
                  for o in i.srcs]
        if i.op == "SEL":
            self.write(i, [inputs[0 if bool(inputs[2][0]) != i.srcs[2].inv else 1][0]])
        elif i.op == "ISETP" and i.srcs[1].value == RZ:
            self.write(i, [int(inputs[0] != (0,))])
        elif i.op == "STG":
            self.stored.append(inputs)
        else:
            results = sum(o.value.words for o in i.dsts if isinstance(o.value, Reg))
            self.write(i, [zlib.crc32(repr((i.op, [o.inv for o in i.srcs], inputs, k)).encode()) for k in range(results)])


def place(r: Reg, k: int) -> tuple[File, int, int]:
    return (r.file, r.index, r.sub + k) if r.virtual else (r.file, r.index + k, 0)


def offset(i: Instruction) -> int:
    address = next(o.value for o in i.srcs if isinstance(o.value, Address))
    assert address.base == RZ
    return address.offset


def run(f: mir.Function, seed: int, choices: int = 100) -> list[Any]:
    """What the function stores, in order, on a path that `seed` chooses at branches, until it ends or has chosen so often."""
    machine = Machine()
    labels = {block.label: n for n, block in enumerate(f.blocks)}
    block = n = 0
    while choices:
        if n >= len(f.blocks[block].instructions):
            block, n = block + 1, 0
            continue
        i = f.blocks[block].instructions[n]
        n += 1
        if i.op == "EXIT":
            return machine.stored
        choices -= i.op == "CHANCE"
        if i.op != "BRA":
            machine.step(i, seed)
        elif machine.holds(i.guard):
            target = i.srcs[-1].value
            assert isinstance(target, Label) and isinstance(target.target, str)
            block, n = labels[target.target], 0
    return machine.stored


def random_function(seed: int, blocks: int = 6, length: int = 12, live: int = 20, generation: int = 90) -> mir.Function:
    """Blocks with loops, registers of several words that are written in parts, guards, copies, and stores of what lives on."""
    r = random.Random(seed)
    f = mir.Function(f"f{seed}", generation, 32)
    scalars = [f.new(File.R) for _ in range(live)]
    pairs = [f.new(File.R, 2) for _ in range(live // 5)]
    quads = [f.new(File.R, 4) for _ in range(live // 8)]
    flags = [f.new(File.P) for _ in range(4)]

    def source() -> Operand:
        kind = r.randrange(10)
        if kind < 6:
            return Operand(r.choice(scalars))
        if kind < 8:
            return Operand(r.choice(pairs).part(r.randrange(2)))
        return Operand(r.choice(quads).part(r.randrange(4)))

    def guard() -> Operand:
        return Operand(r.choice(flags), inv=r.random() < 0.5) if r.random() < 0.2 else TRUE

    def instruction() -> Instruction:
        kind = r.randrange(12)
        if kind < 2:
            return Instruction("MOV", (), (source(),), (source(),), guard())
        if kind == 2:
            return Instruction("LDG", ("E", "64"), (Operand(r.choice(pairs)),), (source(), source()), guard())
        if kind == 3:
            return Instruction("LDG", ("E", "128"), (Operand(r.choice(quads)),), (source(),))
        if kind == 4:
            return Instruction("ISETP", ("LT", "AND"), (Operand(r.choice(flags)), TRUE), (source(), source(), TRUE), guard())
        if kind == 5:
            return Instruction("STG", ("E",), (), (Operand(r.choice(quads)), source()), guard())
        if kind == 6:
            return Instruction("MOV", (), (source(),), (Operand(Imm(r.randrange(1 << 32))),))
        if kind == 7:
            return Instruction("SEL", (), (source(),), (source(), source(), Operand(r.choice(flags))))
        return Instruction(r.choice(("IADD3", "FFMA", "LOP3", "IMAD")), (), (source(),), (source(), source(), source()), guard())

    for n in range(blocks):
        body = [instruction() for _ in range(length)] if n else \
            [Instruction("MOV", (), (Operand(x.part(k)),), (Operand(Imm(r.randrange(1 << 32))),))
             for x in (*scalars, *pairs, *quads) for k in range(x.words)] + \
            [Instruction("CHANCE", (), (Operand(p),), (Operand(Imm(n)),)) for n, p in enumerate(flags)]
        if n and n < blocks - 1:
            way = f.new(File.P)
            body.append(Instruction("CHANCE", (), (Operand(way),), (Operand(Imm(100 + n)),)))
            body.append(Instruction("BRA", (), (), (Operand(Label(f"b{r.randrange(1, blocks)}")),), Operand(way)))
        f.blocks.append(mir.Block(f"b{n}", body))
    f.blocks[-1].instructions += [Instruction("STG", ("E",), (), (Operand(x),)) for x in (*scalars, *pairs, *quads)]
    f.blocks[-1].instructions.append(Instruction("EXIT"))
    return f
