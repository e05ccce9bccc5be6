"""`uri` is each GPU that the module's CARDS names, `pair` each two of them. A test that hangs is ended, its GPUs are closed."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

import devrt

LIMIT_S = 30 * int(os.environ.get("PATIENCE", "1"))  # of one test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cards = metafunc.module.CARDS
    if "uri" in metafunc.fixturenames:
        metafunc.parametrize("uri", cards)
    if "pair" in metafunc.fixturenames:
        pairs = [f"{a} {b}" for a, b in itertools.permutations(cards, 2)]
        metafunc.parametrize("pair", pairs or [pytest.param("", marks=pytest.mark.skip(reason="this machine has one card"))])


@pytest.fixture(autouse=True)
def ended(request: pytest.FixtureRequest) -> Iterator[None]:
    """devrt waits for a kernel as long as it runs; minutes on a card are too few for that."""
    late = False

    def end(number: int, frame: Any) -> None:
        nonlocal late
        late = True
        pytest.fail(f"not done after {LIMIT_S} s")
    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        arguments = request.node.callspec.params
        for uri in f"{arguments.get('uri', '')} {arguments.get('pair', '')}".split() if late else ():
            devrt.open(uri).close()
