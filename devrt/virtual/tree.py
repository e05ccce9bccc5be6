"""The files, links and device nodes of a virtual machine, as texts by their path."""

from __future__ import annotations

import errno
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from devrt.virtual.errors import fail

_LINK_LIMIT = 40  # links that Linux follows in one path


@dataclass
class Tree:
    """Files, links and device nodes by their path; folders follow from paths, empty ones are named."""

    files: dict[str, str | bytes | Callable[[], str | bytes]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, tuple[int, int]] = field(default_factory=dict)  # (major, minor)
    empty: set[str] = field(default_factory=set)
    children: dict[str, set[str]] = field(default_factory=dict)

    def index(self) -> None:
        """Find the folders. Called when all is there."""
        self.children = {path: set() for path in self.empty}
        for path in (*self.files, *self.links, *self.nodes, *self.empty):
            while path != "/":
                parent = posixpath.dirname(path)
                self.children.setdefault(parent, set()).add(posixpath.basename(path))
                path = parent

    def resolve(self, path: str) -> str:
        """`path` with its links followed, so far as they are this tree's. Raises OSError: ELOOP."""
        for _ in range(_LINK_LIMIT):
            path = posixpath.normpath(path)
            parts = path.split("/")
            at = next((n for n in range(2, len(parts) + 1) if "/".join(parts[:n]) in self.links), None)
            if at is None:
                return path
            link = "/".join(parts[:at])
            path = posixpath.join(posixpath.dirname(link), self.links[link], *parts[at:])
        fail(errno.ELOOP, path)

    def read(self, path: str) -> bytes:
        """Raises OSError: ENOENT, EISDIR."""
        content = self.files.get(self.resolve(path))
        if content is None:
            fail(errno.EISDIR if self.resolve(path) in self.children else errno.ENOENT, path)
        if callable(content):
            content = content()
        return content if isinstance(content, bytes) else content.encode()

    def text(self, path: str) -> str:
        return self.read(path).decode()


def write_tree(tree: Tree, folder: str | Path) -> None:
    """The files and links as they are now, below `folder`; links point inside it as they do below /."""
    root = Path(folder)
    for path in tree.empty:
        (root / path[1:]).mkdir(parents=True, exist_ok=True)
    for path in tree.files:
        place = root / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(tree.read(path))
    for path, target in tree.links.items():
        place = root / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_symlink():
            place.symlink_to(target)
