"""The committed tables are what their comments say, and what the derivation gives. Judge: mpmath."""

from __future__ import annotations

import re
from pathlib import Path

import mpmath as mp
import pytest

from devrt.compiler import coefficients as tables
from tests.compiler import coefficients

SPECS = {s.name: s for s in coefficients.specs()}


@pytest.mark.parametrize("name", SPECS)
def test_stated_error(name):
    text = Path(tables.__file__).read_text()
    stated = float(re.search(rf"2\^(-\d+\.\d)\n{name} = ", text)[1])
    measured = float(mp.log(coefficients.error(SPECS[name], getattr(tables, name)), 2))
    assert measured == pytest.approx(stated, abs=0.06)


@pytest.mark.parametrize("name", ["EXP2_F32", "SIN_F32", "COS_F32", "ATANH_F32", "SIN_F64"])
def test_derivation(name):
    assert tuple(coefficients.derive(SPECS[name])) == getattr(tables, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_every_derivation(name):
    assert tuple(coefficients.derive(SPECS[name])) == getattr(tables, name)


def test_constants():
    for name, values in coefficients.constants().items():
        assert getattr(tables, name) == values
    assert coefficients.two_over_pi(40) == tables.TWO_OVER_PI_WORDS
