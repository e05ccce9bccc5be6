"""The order of instructions within a block: list scheduling on the dependence graph, twice.

`arrange` runs over virtual registers, where only true dependences hold: it starts what takes long early, as far as registers
suffice. `schedule` runs over real ones, where it fills what allocation left, then control.py gives every instruction its stall
and scoreboards.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from devrt.compiler.sass import latency, mir
from devrt.compiler.sass.control import control
from devrt.compiler.sass.dependence import Node, graph
from devrt.compiler.sass.instruction import File, Instruction
from devrt.compiler.sass.liveness import Liveness, analyse, bits, unconditional

_MARGIN = 8  # registers that arranging leaves free for alignment


def arrange(f: mir.Function, limit: int) -> mir.Function:
    """The function in an order that hides latencies, where at most about `limit` words of R are live, or no more than before."""
    live = analyse(f)
    blocks = []
    for n, block in enumerate(f.blocks):
        nodes = graph(block.instructions, f.sm)
        pressure = _Pressure(nodes, live, live.outs[n])
        before = pressure.peak(range(len(nodes)))
        order = _list(nodes, f.sm, pressure, limit - _MARGIN)
        if pressure.peak(order) > max(before, limit - _MARGIN):
            order = list(range(len(nodes)))
        blocks.append(mir.Block(block.label, [block.instructions[k] for k in order]))
    return mir.Function(f.name, f.sm, f.threads, blocks, f.shared_bytes, f.local_bytes, f.params, f.constants, f.words)


def schedule(f: mir.Function) -> mir.Function:
    """The function in its last order, with stalls, scoreboards and reuse flags. Registers are real. A block whose code needs more
    than the hardware can say gets NOPs."""
    blocks = []
    for block in f.blocks:
        nodes = graph(block.instructions, f.sm)
        order = [block.instructions[k] for k in _list(nodes, f.sm, None, 0)]
        blocks.append(mir.Block(block.label, order or [Instruction("NOP")]))  # something has to carry a stall
    return control(mir.Function(f.name, f.sm, f.threads, blocks, f.shared_bytes, f.local_bytes, f.params, f.constants, f.words))


class _Pressure:
    """Words of R that are live while a block runs in some order. A value is what one write made of a word, or what was there
    before; a write with a guard goes on with the value that was."""

    def __init__(self, nodes: list[Node], live: Liveness, out: int) -> None:
        current: dict[int, int] = {}  # word -> its value
        self.readers: list[int] = []  # of each value
        self.uses: list[set[int]] = []
        self.makes: list[list[int]] = []
        for node in nodes:
            used = {self._value(current, register) for register, _ in node.reads if register < latency.R_END}
            made = []
            for register, _ in node.writes:
                if register < latency.R_END and (unconditional(node.instruction) or register not in current):
                    current[register] = len(self.readers)
                    self.readers.append(0)
                    made.append(current[register])
            self.uses.append(used)
            self.makes.append(made)
            for value in used:
                self.readers[value] += 1
        outs = {latency.number(*live.names[w]) for w in bits(out) if live.names[w][0] is File.R}
        for register, value in current.items():
            if register in outs:
                self.readers[value] += 1 << 20  # never the last
        made_here = {value for made in self.makes for value in made}
        self.at_entry = len(self.readers) - len(made_here) + len(outs - current.keys())

    def _value(self, current: dict[int, int], register: int) -> int:
        value = current.get(register)
        if value is None:
            value = current[register] = len(self.readers)
            self.readers.append(0)
        return value

    def change(self, n: int, left: list[int]) -> int:
        """Words more, or less, that are live behind an instruction, where `left` are the readers to come of each value."""
        return sum(left[value] > 0 for value in self.makes[n]) - sum(left[value] == 1 for value in self.uses[n])

    def take(self, n: int, left: list[int]) -> None:
        """Notes that an instruction has read."""
        for value in self.uses[n]:
            left[value] -= 1

    def peak(self, order: Iterable[int]) -> int:
        """The most words that are live at once."""
        left, now = list(self.readers), self.at_entry
        most = now
        for n in order:
            now += self.change(n, left)
            self.take(n, left)
            most = max(most, now)
        return most


def _list(nodes: list[Node], sm: int, pressure: _Pressure | None, limit: int) -> list[int]:
    """An order: at each cycle what has waited for its operands and has the longest way to the end; with many registers live, what
    frees some."""
    waiting = [len(node.before) for node in nodes]
    earliest = [0] * len(nodes)
    pipes = [latency.pipe(node.instruction, sm) for node in nodes]
    takes = [latency.issue_cycles(node.instruction, sm) for node in nodes]
    free: dict[str, int] = {}
    future: list[tuple[int, int]] = []
    ready: list[tuple[int, int]] = []
    for n, count in enumerate(waiting):
        if not count:
            heapq.heappush(ready, (-nodes[n].priority, n))
    left, now = (list(pressure.readers), pressure.at_entry) if pressure else ([], 0)
    order: list[int] = []
    cycle = 0
    while ready or future:
        while future and future[0][0] <= cycle:
            n = heapq.heappop(future)[1]
            heapq.heappush(ready, (-nodes[n].priority, n))
        chosen = _relief(ready, future, pressure, left) if pressure and now >= limit else _take(ready, pipes, free, cycle)
        if chosen < 0:
            steps = [time for time, _ in future[:1]] + [free[pipes[n]] for _, n in ready if free.get(pipes[n], 0) > cycle]
            cycle = max(cycle + 1, min(steps))
            continue
        cycle = max(cycle, earliest[chosen])
        order.append(chosen)
        if pressure:
            now += pressure.change(chosen, left)
            pressure.take(chosen, left)
        free[pipes[chosen]] = cycle + takes[chosen]
        for k, cycles in nodes[chosen].after:
            waiting[k] -= 1
            earliest[k] = max(earliest[k], cycle + cycles)
            if not waiting[k]:
                heapq.heappush(future, (earliest[k], k))
        cycle += 1
    return order


def _take(ready: list[tuple[int, int]], pipes: list[str], free: dict[str, int], cycle: int) -> int:
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


def _relief(ready: list[tuple[int, int]], future: list[tuple[int, int]], pressure: _Pressure, left: list[int]) -> int:
    """Of all that could be issued, now or after a wait, what leaves the fewest registers live; the first in source order."""
    best = min((pressure.change(n, left), n) for _, n in (*ready, *future))[1]
    for heap in (ready, future):
        for k, (_, n) in enumerate(heap):
            if n == best:
                heap[k] = heap[-1]
                heap.pop()
                heapq.heapify(heap)
                return best
    return -1

