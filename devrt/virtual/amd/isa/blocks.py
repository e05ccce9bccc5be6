"""Basic blocks: every instruction that can be reached from an entry.

Calls inside the code object go through s_getpc_b64 and additions of constants to an SGPR pair; those are followed as constants
within a block. A call is an edge to its function and one to the instruction after it, where the function returns; s_setpc_b64 of
what is not such a constant is a return.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

from devrt.virtual.amd.isa.decode import decode
from devrt.virtual.amd.isa.formats import Gen
from devrt.virtual.amd.isa.instruction import IllegalInstruction, Instruction, Operand
from devrt.virtual.amd.isa.opcodes import Effect

_LEAVES = Effect.BRANCH | Effect.INDIRECT | Effect.END


@dataclass(slots=True)
class Block:
    """Instructions without a way in or out between them; addresses in bytes."""

    address: int
    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)  # taken branch first, then what follows
    calls: int | None = None                             # the function that the last instruction calls, if it is known
    returns: bool = False                                # ends in an s_setpc_b64 to an address that is not constant

    @property
    def end(self) -> int:
        return self.instructions[-1].end


@dataclass(frozen=True, slots=True)
class _Way:
    successors: tuple[int, ...]
    calls: int | None = None
    returns: bool = False


def walk(code: bytes | memoryview, entry: int, gen: Gen) -> dict[int, Block]:
    """The blocks by address. Code that ends without s_endpgm or a branch is an IllegalInstruction."""
    found: dict[int, Instruction] = {}
    ways: dict[int, _Way] = {}
    leaders, waiting = {entry}, [entry]
    while waiting:
        address = waiting.pop()
        known: dict[int, int] = {}
        while address not in found:
            instruction = found[address] = decode(code, address, gen)
            way = _follow(instruction, known)
            _constants(instruction, known)
            if way is not None:
                ways[address] = way
                new = [*way.successors, *([way.calls] if way.calls is not None else [])]
                for target in new:
                    if target < 0 or target >= len(code):
                        words = tuple(int.from_bytes(code[at:at + 4], "little") for at in range(address, instruction.end, 4))
                        raise IllegalInstruction(address, words, gen, f"it leaves the code, to 0x{target:x}")
                leaders.update(new)
                waiting.extend(new)
                break
            address = instruction.end
        else:
            leaders.add(address)
    return _cut(found, ways, sorted(leaders))


def _cut(found: dict[int, Instruction], ways: dict[int, _Way], leaders: list[int]) -> dict[int, Block]:
    blocks: dict[int, Block] = {}
    for leader in leaders:
        block = blocks[leader] = Block(leader)
        following = bisect.bisect_right(leaders, leader)
        limit = leaders[following] if following < len(leaders) else None
        address = leader
        while True:
            instruction = found[address]
            block.instructions.append(instruction)
            if way := ways.get(address):
                block.successors, block.calls, block.returns = list(way.successors), way.calls, way.returns
                break
            address = instruction.end
            if address == limit:
                block.successors = [address]
                break
    return blocks


def _follow(instruction: Instruction, known: dict[int, int]) -> _Way | None:
    """Where a branch, call, return or end goes; None for all others."""
    effects = instruction.effects
    if not effects & _LEAVES:
        return None
    if Effect.END in effects:
        return _Way(())
    if Effect.INDIRECT in effects:
        address = instruction.operands[-1]
        target = None
        if address.kind == "sgpr" and address.index in known and address.index + 1 in known:
            target = known[address.index] | known[address.index + 1] << 32
        if Effect.CALL in effects:
            return _Way((instruction.end,), target)
        return _Way((), returns=True) if target is None else _Way((target,))
    assert instruction.target is not None
    if Effect.CALL in effects:
        return _Way((instruction.end,), instruction.target)
    if Effect.CONDITIONAL in effects:
        return _Way((instruction.target, instruction.end))
    return _Way((instruction.target,))


def _constants(instruction: Instruction, known: dict[int, int]) -> None:
    """Follows scalar registers with constant values: s_getpc, s_add, s_addc, s_mov; key -1 is the carry in SCC."""
    name = instruction.mnemonic
    values = [_value(operand, known) for operand in instruction.sources]
    written = [operand for operand in instruction.destinations if operand.kind == "sgpr"]
    result: int | None = None
    carry: int | None = None
    if name == "s_getpc_b64":
        result = instruction.end
    elif all(value is not None for value in values) and values:
        numbers = [value for value in values if value is not None]
        if name in ("s_add_u32", "s_add_co_u32", "s_addc_u32", "s_add_co_ci_u32"):
            incoming = known.get(-1) if name in ("s_addc_u32", "s_add_co_ci_u32") else 0
            if incoming is not None:
                total = numbers[0] + numbers[1] + incoming
                result, carry = total & 0xFFFFFFFF, total >> 32
        elif name == "s_add_nc_u64":
            result = numbers[0] + numbers[1] & (1 << 64) - 1
        elif name in ("s_mov_b32", "s_mov_b64"):
            result = numbers[0]
        elif name == "s_sext_i32_i16":
            result = ((numbers[0] & 0xFFFF) ^ 0x8000) - 0x8000 & 0xFFFFFFFF
    if Effect.WRITES_SCC in instruction.effects:
        known.pop(-1, None)
        if carry is not None:
            known[-1] = carry
    for operand in written:
        for i in range(operand.dwords):
            known.pop(operand.index + i, None)
            if result is not None:
                known[operand.index + i] = result >> 32 * i & 0xFFFFFFFF


def _value(operand: Operand, known: dict[int, int]) -> int | None:
    if operand.constant:
        return operand.value
    if operand.kind != "sgpr" or any(operand.index + i not in known for i in range(operand.dwords)):
        return None
    return sum(known[operand.index + i] << 32 * i for i in range(operand.dwords))
