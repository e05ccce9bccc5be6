"""What lies behind the descriptors that the driver gives out."""

from __future__ import annotations

from dataclasses import dataclass, field

from devrt.ioctl.system import System
from devrt.virtual.amd.card import Card, CardStore
from devrt.virtual.amd.process import Process
from devrt.virtual.amd.vm import Vm
from devrt.virtual.client import Client
from devrt.virtual.pool import Store


@dataclass(eq=False)
class KfdFile:
    """/dev/kfd. `key` is the process that opened it: no other may use it."""

    key: int
    process: Process


@dataclass(eq=False)
class Gem:
    """A buffer of the render node. `domains` and `flags` as it was created."""

    store: CardStore
    nbytes: int
    domains: int
    flags: int
    alignment: int


@dataclass(eq=False)
class DrmFile:
    """/dev/dri/renderD* or card*."""

    key: int
    card: Card
    vm: Vm | None = None
    gems: dict[int, Gem] = field(default_factory=dict)
    visible: dict[int, tuple[Store, bool]] = field(default_factory=dict)  # see `show`

    def show(self, store: Store, touchable: bool) -> None:
        """Let pages be mapped through this file; those that are not touchable without any rights only."""
        self.visible[store.offset] = store, touchable

    def hide(self, store: Store) -> None:
        self.visible.pop(store.offset, None)

    def address_space(self, host: System, client: Client) -> Vm:
        """The file's VM, made when it is first needed."""
        if self.vm is None:
            self.vm = Vm(host, client.memory)
        return self.vm


@dataclass(eq=False)
class DmaBuf:
    """Pages that are passed on as a descriptor. `flags` are of KFD's alloc flags."""

    store: CardStore
    card: Card
    nbytes: int
    flags: int


@dataclass(eq=False)
class SmiFile:
    """The process's end of an SmiClient."""
