"""`uri` is each GPU that the module's CARDS names, `pair` each two of them."""

from __future__ import annotations

import itertools

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cards = metafunc.module.CARDS
    if "uri" in metafunc.fixturenames:
        metafunc.parametrize("uri", cards)
    if "pair" in metafunc.fixturenames:
        pairs = [f"{a} {b}" for a, b in itertools.permutations(cards, 2)]
        metafunc.parametrize("pair", pairs or [pytest.param("", marks=pytest.mark.skip(reason="this machine has one card"))])
