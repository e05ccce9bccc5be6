"""The order of instructions within a block: list scheduling on the dependence graph, twice.

`arrange` runs over virtual registers, where only true dependences hold. It goes from the end of a block to its beginning, so that
what takes long is started as early as hides it, and no earlier, for its result takes registers from then on. `schedule` runs
over real ones, from the beginning on, and fills what allocation left; then control.py gives every instruction its stall and
scoreboards, and reuse.py what the operand collector keeps.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TypeVar

from devrt.compiler.sass import latency, mir
from devrt.compiler.sass.control import control
from devrt.compiler.sass.dependence import Node, graph
from devrt.compiler.sass.instruction import File, Instruction, Label
from devrt.compiler.sass.liveness import Liveness, analyse, bits, unconditional
from devrt.compiler.sass.reuse import reuse

_PREDICATES = 7
_MARGIN = 8  # registers that arranging leaves free for alignment
_LIVE_OUT = 1 << 20  # readers of a value that lives on behind its block: more than there are in it
_Key = TypeVar("_Key")


def arrange(f: mir.Function, limit: int) -> mir.Function:
    """The function in an order that hides latencies, where at most about `limit` words of R are live, and no more predicates than
    there are, or no more than before."""
    live = analyse(f)
    blocks = []
    for n, block in enumerate(f.blocks):
        nodes = graph(block.instructions, f.sm)
        pressure = _Pressure(nodes, live, live.outs[n])
        before = pressure.peak(range(len(nodes)))
        row = _list_up(nodes, f.sm, pressure, limit - _MARGIN)
        tests = _Pressure(nodes, live, live.outs[n], File.P)
        if pressure.peak(row) > max(before, limit - _MARGIN) or \
                tests.peak(row) > max(tests.peak(range(len(nodes))), _PREDICATES):
            row = list(range(len(nodes)))
        blocks.append(mir.Block(block.label, [block.instructions[k] for k in row]))
    return mir.Function(f.name, f.sm, f.threads, blocks, f.shared_bytes, f.local_bytes, f.params, f.constants, f.words)


def schedule(f: mir.Function) -> mir.Function:
    """The function in its last order, with stalls, scoreboards and reuse flags. Registers are real. Where a stall is longer than
    the hardware can say there are NOPs. Raises CompileError for an instruction that the generation has not."""
    return reuse(control(order(f)))


def order(f: mir.Function) -> mir.Function:
    """The function in its last order, without branches to what follows anyway."""
    blocks = []
    for n, block in enumerate(f.blocks):
        following = f.blocks[n + 1].label if n + 1 < len(f.blocks) else ""
        old = block.instructions
        if old and old[-1].op == "BRA" and any(isinstance(o.value, Label) and o.value.target == following for o in old[-1].srcs):
            old = old[:-1]
        row = [old[k] for k in _list_down(graph(old, f.sm), f.sm)]
        blocks.append(mir.Block(block.label, row or [Instruction("NOP")]))  # something has to carry a stall
    return mir.Function(f.name, f.sm, f.threads, blocks, f.shared_bytes, f.local_bytes, f.params, f.constants, f.words)


class _Pressure:
    """Words of R, or predicates, that are live while a block runs in some order. A value is what one write made of a word, or
    what was there before; a write with a guard goes on with the value that was."""

    def __init__(self, nodes: list[Node], live: Liveness, out: int, file: File = File.R) -> None:
        start = latency.number(file, 0)
        end = start + latency.R_END
        current: dict[int, int] = {}  # word -> its value
        self.readers: list[int] = []  # of each value
        self.uses: list[set[int]] = []
        self.makes: list[list[int]] = []
        for node in nodes:
            used = {self._value(current, register) for register, _ in node.reads if start <= register < end}
            made = []
            for register, _ in node.writes:
                if start <= register < end and (unconditional(node.instruction) or register not in current):
                    current[register] = len(self.readers)
                    self.readers.append(0)
                    made.append(current[register])
            self.uses.append(used)
            self.makes.append(made)
            for value in used:
                self.readers[value] += 1
        outs = {latency.number(*live.names[w]) for w in bits(out) if live.names[w][0] is file}
        for register, value in current.items():
            if register in outs:
                self.readers[value] += _LIVE_OUT
        made_here = {value for made in self.makes for value in made}
        self.through = len(outs - current.keys())
        self.at_entry = len(self.readers) - len(made_here) + self.through

    def _value(self, current: dict[int, int], register: int) -> int:
        value = current.get(register)
        if value is None:
            value = current[register] = len(self.readers)
            self.readers.append(0)
        return value

    def peak(self, order: Iterable[int]) -> int:
        """The most words that are live at once, where instructions run in this order."""
        left, now = list(self.readers), self.at_entry
        most = now
        for n in order:
            now += sum(left[value] > 0 for value in self.makes[n]) - sum(left[value] == 1 for value in self.uses[n])
            for value in self.uses[n]:
                left[value] -= 1
            most = max(most, now)
        return most

    def change(self, n: int, live: set[int]) -> int:
        """Words more, or less, that are live in front of an instruction than behind it, where `live` are the values behind it."""
        return len(self.uses[n] - live) - sum(value in live for value in self.makes[n])

    def pass_up(self, n: int, live: set[int]) -> None:
        """Makes `live` what it is in front of an instruction."""
        live.difference_update(self.makes[n])
        live |= self.uses[n]


def _list_up(nodes: list[Node], sm: int, pressure: _Pressure, limit: int) -> list[int]:
    """An order, found from the end on: at each cycle what is needed late enough for its latency; first what makes registers and
    needs none, then what lies deepest. With many registers live, what leaves the fewest."""
    waiting = [len(node.after) for node in nodes]
    latest = [0] * len(nodes)
    depth = [0] * len(nodes)
    for node in nodes:
        depth[node.index] = max((depth[k] + cycles for k, cycles in node.before.items()), default=0)
    takes = [latency.issue_cycles(node.instruction, sm) for node in nodes]
    pipes = [latency.pipe(node.instruction, sm) for node in nodes]
    keys = [(len(pressure.makes[n]) <= len(pressure.uses[n]), -depth[n], -n) for n in range(len(nodes))]
    free: dict[str, int] = {}
    future: list[tuple[int, int]] = []
    ready: list[tuple[tuple[bool, int, int], int]] = []
    for n, count in enumerate(waiting):
        if not count:
            heapq.heappush(future, (0, -n))
    live = {value for value, readers in enumerate(pressure.readers) if readers >= _LIVE_OUT}
    now = len(live) + pressure.through
    order: list[int] = []
    cycle = 0
    while ready or future:
        while future and future[0][0] <= cycle:
            n = -heapq.heappop(future)[1]
            heapq.heappush(ready, (keys[n], n))
        if now >= limit:
            chosen = min((pressure.change(n, live), -n) for n in [n for _, n in ready] + [-n for _, n in future])[1] * -1
            ready = [row for row in ready if row[1] != chosen]
            future = [row for row in future if row[1] != -chosen]
            heapq.heapify(ready)
            heapq.heapify(future)
        else:
            chosen = _take(ready, pipes, free, cycle)
        if chosen < 0:
            cycle = max(cycle + 1, min([time for time, _ in future[:1]] + [free[pipes[n]] for _, n in ready]))
            continue
        order.append(chosen)
        cycle = max(cycle, latest[chosen])
        free[pipes[chosen]] = cycle + takes[chosen]
        now += pressure.change(chosen, live)
        pressure.pass_up(chosen, live)
        for k, cycles in nodes[chosen].before.items():
            waiting[k] -= 1
            latest[k] = max(latest[k], cycle + cycles)
            if not waiting[k]:
                heapq.heappush(future, (latest[k], -k))
        cycle += 1
    return order[::-1]


def _list_down(nodes: list[Node], sm: int) -> list[int]:
    """An order: at each cycle, of what has waited for its operands, what has the longest way to the end."""
    waiting = [len(node.before) for node in nodes]
    earliest = [0] * len(nodes)
    pipes = [latency.pipe(node.instruction, sm) for node in nodes]
    takes = [latency.issue_cycles(node.instruction, sm) for node in nodes]
    free: dict[str, int] = {}
    future: list[tuple[int, int]] = []
    ready = [(-nodes[n].priority, n) for n, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    order: list[int] = []
    cycle = 0
    while ready or future:
        while future and future[0][0] <= cycle:
            n = heapq.heappop(future)[1]
            heapq.heappush(ready, (-nodes[n].priority, n))
        chosen = _take(ready, pipes, free, cycle)
        if chosen < 0:
            cycle = max(cycle + 1, min([time for time, _ in future[:1]] + [free[pipes[n]] for _, n in ready]))
            continue
        order.append(chosen)
        free[pipes[chosen]] = cycle + takes[chosen]
        for k, cycles in nodes[chosen].after:
            waiting[k] -= 1
            earliest[k] = max(earliest[k], cycle + cycles)
            if not waiting[k]:
                heapq.heappush(future, (earliest[k], k))
        cycle += 1
    return order


def _take(ready: list[tuple[_Key, int]], pipes: list[str], free: dict[str, int], cycle: int) -> int:
    """The first of the ready ones whose pipe is free; -1 where none is."""
    kept = []
    chosen = -1
    while ready:
        row = heapq.heappop(ready)
        if free.get(pipes[row[1]], 0) <= cycle:
            chosen = row[1]
            break
        kept.append(row)
    for row in kept:
        heapq.heappush(ready, row)
    return chosen
