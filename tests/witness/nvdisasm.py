"""nvdisasm as a witness: what it reads in words of an instruction set, and in the code of a cubin."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from elftools.elf.elffile import ELFFile

from tests.compiler.sass import vendor

LINE = re.compile(r"^[ \t]*/\*(?P<address>[0-9a-f]+)\*/[ \t]+(?P<text>.*?) ?;?[ \t]*(?:/\*.*)?$", re.MULTILINE)
NOTHING = "no instruction"


def disassemble(words: Sequence[int] | bytes, sm: int) -> list[str]:
    """The text of each word, `no instruction` where nvdisasm knows none. Skips without nvdisasm."""
    code = words if isinstance(words, bytes) else b"".join(word.to_bytes(16, "little") for word in words)
    found: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "code.bin")
        while True:
            file.write_bytes(code)
            done = subprocess.run([vendor.nvdisasm(), "-b", f"SM{sm}", "-ndf", file], capture_output=True, text=True, check=False)
            wrong = re.search(r"at address 0x([0-9a-f]+)", done.stderr)
            if not wrong:
                break
            at = int(wrong[1], 16) // 16  # it stops at the first word that it does not know: say so, and read on behind it
            assert at not in found, done.stderr
            found[at] = NOTHING
            code = code[:16 * at] + NOP + code[16 * at + 16:]
    assert not done.stderr.strip(), done.stderr
    for match in LINE.finditer(done.stdout):
        found.setdefault(int(match["address"], 16) // 16, match["text"].strip())
    return [found.get(n, NOTHING) for n in range(len(code) // 16)]


NOP = (0x7918 | 0x7F4 << 105).to_bytes(16, "little")


def code(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """The name of each kernel or function of a cubin, and its code."""
    for section in ELFFile(BytesIO(cubin)).iter_sections():
        if section.name.startswith(".text."):
            yield section.name.removeprefix(".text."), section.data()
