"""explain(), the drawn graph, and the debug switches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import devrt
from devrt import nn


def x() -> devrt.Array:
    return devrt.asarray(np.random.default_rng(0).standard_normal((64, 100), dtype=np.float32))


def test_report_says_what_ran() -> None:
    y = nn.softmax(x() @ x().mT)
    report = devrt.explain(y)
    assert [k.kind for k in report.kernels] == ["contract", "rows"]
    product, rows = report.kernels
    assert product.flops == 2 * 64 * 64 * 100 and product.bytes == 4 * (64 * 64 + 2 * 64 * 100)
    assert "max" in rows.ops and "sum" in rows.ops
    assert all(k.measured_s > 0 and k.predicted_s > 0 and k.limit > 0 for k in report.kernels)
    text = str(report)
    for word in ("kernel", "FLOPs", "predicted", "measured", "GFLOP/s", "GB/s", "of limit", "tile"):
        assert word in text
    assert report.json()["kernels"][0]["flops"] == product.flops


def test_graph_is_an_svg_with_a_box_for_each_kernel(tmp_path: Path) -> None:
    out = tmp_path / "graph.svg"
    report = devrt.explain(nn.softmax(x() @ x().mT), graph=out)
    root = ElementTree.fromstring(out.read_text())
    titles = [t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == len(report.kernels) and titles[0].startswith(report.kernels[0].name)


def test_nothing_to_explain() -> None:
    with pytest.raises(devrt.InvalidArgument, match="already in memory"):
        devrt.explain(x().realize())
    with pytest.raises(devrt.InvalidArgument, match="nothing was recorded"):
        devrt.explain(devrt.capture(lambda a: a))


def test_a_captured_function_is_explained() -> None:
    step = devrt.capture(lambda a: nn.softmax(a))
    step(x())
    assert [k.kind for k in devrt.explain(step).kernels] == ["rows"]


def test_debug_switches(tmp_path: Path) -> None:
    graph = tmp_path / "g.svg"
    code = "import devrt; (devrt.arange(100, dtype=devrt.float32) * 2.0).sum().numpy()"
    env = {"DEVRT_DEBUG": "4", "DEVRT_GRAPH": str(graph), "PATH": "/usr/bin:/bin", "DEVRT_CACHE": str(tmp_path / "cache"),
           "HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True)
    for word in ("of limit", "kernel rows", "program rows_", "ret"):
        assert word in run.stderr
    assert run.stdout == "" and graph.exists()
