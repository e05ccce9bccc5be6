"""What a check says, and how a check reads the machine without ever failing."""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass, field

from devrt.ioctl.errors import errno_name
from devrt.ioctl.system import TEXT_LIMIT, System


class Severity(enum.IntEnum):
    """OK: as it should be. NOTE: worth knowing. WARNING: works, but slower or at risk. ERROR: something can't work."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3

    def __str__(self) -> str:
        return self.name.lower()


OK, NOTE, WARNING, ERROR = Severity  # checks read better without the prefix


@dataclass(frozen=True)
class Finding:
    """One result of one check. `check` is a stable name; `remedy` is a command or an action, "" when none is needed.

    Texts become one printable line: they quote files and log lines that others wrote, and a terminal obeys what it is sent.
    """

    check: str
    severity: Severity
    what: str
    evidence: str = ""
    remedy: str = ""

    def __post_init__(self) -> None:
        for name in ("what", "evidence", "remedy"):
            object.__setattr__(self, name, _printable(getattr(self, name)))

    def as_dict(self) -> dict[str, str]:
        return {"check": self.check, "severity": str(self.severity), "what": self.what, "evidence": self.evidence,
                "remedy": self.remedy}


@dataclass
class Reader:
    """A System whose reads of files never raise: what is absent is None or empty, what is forbidden is remembered."""

    system: System
    unreadable: dict[str, str] = field(default_factory=dict)

    def text(self, path: str, limit: int = TEXT_LIMIT) -> str | None:
        """The file's text without surrounding white space."""
        try:
            return self.system.read_text(path, limit).strip()
        except OSError as error:
            self._remember(path, error)
            return None

    def bytes(self, path: str, limit: int = TEXT_LIMIT) -> bytes | None:
        try:
            return self.system.read_bytes(path, limit)
        except OSError as error:
            self._remember(path, error)
            return None

    def names(self, path: str) -> list[str]:
        try:
            return self.system.list_dir(path)
        except OSError as error:
            self._remember(path, error)
            return []

    def link(self, path: str) -> str | None:
        """Where a symbolic link points, as written in it."""
        try:
            return self.system.readlink(path)
        except OSError as error:
            self._remember(path, error)
            return None

    def exists(self, path: str) -> bool:
        try:
            return self.system.stat(path).exists
        except OSError as error:
            self._remember(path, error)
            return False

    def finding(self) -> Finding | None:
        """What could not be read, as one finding."""
        if not self.unreadable:
            return None
        shown = [f"{path} ({reason})" for path, reason in sorted(self.unreadable.items())]
        more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
        count = "1 file" if len(shown) == 1 else f"{len(shown)} files"
        return Finding("readable", Severity.NOTE, f"{count} could not be read, so the checks that need them say less",
                       ", ".join(shown[:4]) + more, "run `sudo devrt doctor` to see everything")

    def _remember(self, path: str, error: OSError) -> None:
        # ENOENT and ENOTDIR: there is no such thing here. EINVAL: the path is no link. Neither is worth a word.
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
            self.unreadable[path] = errno_name(error.errno or 0)


def last_part(path: str | None) -> str:
    return path.rstrip("/").rpartition("/")[2] if path else ""


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
