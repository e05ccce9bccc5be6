"""`devrt bench`: what it measures, how it judges, what it prints. No test looks at a time."""

import argparse
import dataclasses
import json
import xml.etree.ElementTree as ET

import pytest

import devrt
from devrt.benchmark.cases import Case, cases
from devrt.benchmark.main import Record, heading, judge, plot, report, run_bench, run_cases, table
from devrt.benchmark.measure import Sample, summarise
from devrt.benchmark.roofline import draw
from devrt.device import CompileError, OutOfMemory, Properties, Unsupported

PEAKS = Properties("test", "host", "x86-64", 2, 16, 1 << 30, 1 << 20, peak_f32_flops_per_s=100e9, memory_bytes_per_s=10e9)


def arguments(**more) -> argparse.Namespace:
    return argparse.Namespace(**{"quick": True, "json": False, "plot": None, "device": "cpu", "filter": []} | more)


def test_judged_by_whichever_limit_takes_longer():
    assert judge(100e9, 1e9, 2.0, PEAKS) == (pytest.approx(0.5), "compute")
    assert judge(1e9, 10e9, 4.0, PEAKS) == (pytest.approx(0.25), "memory")


def test_nothing_is_judged_without_limits_or_work():
    assert judge(0.0, 0.0, 1.0, PEAKS) == (None, "")
    assert judge(1e9, 1e9, 1.0, dataclasses.replace(PEAKS, peak_f32_flops_per_s=0.0, memory_bytes_per_s=0.0)) == (None, "")


@pytest.mark.parametrize("quick", [True, False])
def test_titles_are_unique_and_work_is_counted(quick):
    found = cases(quick)
    titles = [c.title for c in found]
    assert len(set(titles)) == len(titles)
    assert all(c.nbytes or c.group == "launch" for c in found)


@pytest.mark.parametrize("case", cases(quick=True), ids=lambda c: c.title)
def test_every_quick_case_runs(case):
    run = case.build(devrt.open("cpu"))
    run()
    run()


def test_bench_prints_a_table_and_draws(capsys, tmp_path):
    picture = tmp_path / "roofline.svg"
    assert run_bench(arguments(filter=["gemv: float32", "launch: submit"], plot=str(picture))) == 0
    text = capsys.readouterr().out
    assert "submit and wait" in text and "float32 2048x2048" in text and "measured limits" in text
    assert len([e for e in ET.parse(picture).iter() if e.tag.endswith("circle")]) == 1


def test_bench_prints_json(capsys):
    assert run_bench(arguments(filter=["copy: 64 KiB"], json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    (record,) = found["records"]
    assert record["group"] == "copy" and record["nbytes"] == 2 << 16 and record["measurement"]["median"] > 0
    assert found["device"] == "cpu"


@pytest.mark.parametrize("error", [Unsupported, OutOfMemory, CompileError])
def test_what_a_device_cannot_do_is_named(monkeypatch, error):
    def refuse(device):
        raise error("no such thing")
    monkeypatch.setattr("devrt.benchmark.main.cases", lambda quick: [Case("op", "impossible", refuse)])
    records, skipped = run_cases(devrt.open("cpu"), True, (), lambda *_: None)
    assert not records and skipped[0][0] == "op: impossible" and "no such thing" in skipped[0][1]
    assert table(records)


def test_the_roofline_holds_every_point_inside_its_frame():
    points = [("low", 0.01, 1e8), ("high", 1e4, 99e9), ("<&>", 10.0, 5e9)]
    root = ET.fromstring(draw("a <b>", 100e9, 10e9, points))
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == 3
    assert all(80 <= float(c.get("cx")) <= 700 and 50 <= float(c.get("cy")) <= 500 for c in circles)


def test_a_roofline_without_limits_has_no_roof():
    assert "polyline" not in draw("unknown", 0.0, 0.0, [("x", 1.0, 1e9)])


def test_the_operations_of_language_models_are_all_there():
    names = [c.name for c in cases(quick=True) if c.group == "op"]
    for wanted in ("softmax", "rms_norm 64", "rms_norm backward", "layer_norm", "gelu 64", "gelu tanh", "squared_relu", "swiglu",
                   "rope", "attention causal", "attention grouped", "attention window", "attention decode", "cross_entropy 64",
                   "cross_entropy in", "soft_cap", "lm_head", "embedding", "sample", "rwkv time mix", "rwkv channel mix"):
        assert any(n.startswith(wanted) for n in names), wanted


def test_a_group_is_chosen_whole():
    records, _ = run_cases(devrt.open("cpu"), True, ["copy"], lambda *_: None)
    assert {r.group for r in records} == {"copy"}


def test_the_legend_of_many_points_is_inside_the_picture():
    root = ET.fromstring(draw("many", 100e9, 10e9, [(f"name {n}", 1.0 + n, 1e9) for n in range(60)]))
    height = float(root.get("viewBox").split()[3])
    assert max(float(e.get("y")) for e in root.iter() if e.tag.endswith("text")) < height


def test_shares_above_the_limit_are_explained():
    m = summarise([Sample(1.0, False)])
    record = Record("copy", "fast", 0.0, 1.0, m, 1.5, "memory")
    assert "above 100%" in table([record]) and "above 100%" not in table([dataclasses.replace(record, share=0.9)])


class Stub:
    """The CPU under the URI of a virtual device."""

    uri = "virtual:amd/gfx0"

    def __init__(self) -> None:
        self.cpu = devrt.open("cpu")

    def __getattr__(self, name):
        return getattr(self.cpu, name)


def test_figures_of_a_virtual_device_are_marked_everywhere():
    device = Stub()
    records, _ = run_cases(device, True, ["copy: 64 KiB"], lambda *_: None)
    assert all(r.share is None and r.bound == "" for r in records)
    assert heading(device).startswith("SIMULATED: virtual:amd/gfx0")
    assert table(records, True).split()[0] == "simulated"
    assert report(device, records, [])["simulated"] is True and report(devrt.open("cpu"), [], [])["simulated"] is False
    picture = plot(device, [dataclasses.replace(records[0], flops=1e6)])
    assert "simulated by this host" in picture and "polyline" not in picture
    real = devrt.open("cpu")
    assert "SIMULATED" not in heading(real) and "simulated" not in plot(real, []) + table(records)


def test_bench_on_a_virtual_gpu(capsys, tmp_path):
    picture = tmp_path / "roofline.svg"
    line = {"device": "virtual:amd/gfx1100", "filter": ["launch: submit", "copy: 64 KiB", "gemv: float32", "op: gelu 64"]}
    assert run_bench(arguments(**line, plot=str(picture))) == 0
    text = capsys.readouterr().out
    assert text.startswith("SIMULATED: virtual:amd/gfx1100") and "not measured" not in text and text.count("%") == 4
    assert "simulated" in picture.read_text()
    assert run_bench(arguments(**line, json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["simulated"] is True and len(found["records"]) == 4 and not found["skipped"]
