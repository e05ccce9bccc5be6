"""Modifiers: groups of bits <-> names in the order in which they are printed."""

from __future__ import annotations

from devrt.compiler.sass.isa.fields import Group, Mods


def read_groups(groups: tuple[Group, ...], word: int) -> Mods:
    mods: list[str] = []
    for group in groups:
        name = group.get(word)
        if name:
            mods += name.split(".")
    return tuple(mods)


def write_groups(groups: tuple[Group, ...], mods: Mods) -> int | None:
    """The bits of modifiers in the order of the groups; None where they are not all theirs."""
    if not groups:
        return 0 if not mods else None
    group, rest = groups[0], groups[1:]
    for value, name in enumerate(group.names):
        parts = tuple(name.split(".")) if name else ()
        if name is not None and mods[:len(parts)] == parts and (parts or not name):
            below = write_groups(rest, mods[len(parts):])
            if below is not None:
                return group.bits.put(value) | below
    return None
