"""`devrt bench NAME`: a name that fits nothing is said to, and nothing is measured."""

from __future__ import annotations

import argparse

import pytest

from devrt.benchmark.main import run_bench
from devrt.device import InvalidArgument


def test_unknown_name() -> None:
    args = argparse.Namespace(quick=True, json=False, plot=None, device="cpu", filter=["nosuchname"])
    with pytest.raises(InvalidArgument, match="no benchmark is called nosuchname"):
        run_bench(args)
