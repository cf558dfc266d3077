from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from mmssl.report import chart, curves


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter("text")]


def lines(svg: str) -> list[str]:
    return [e.get("d", "") for e in parsed(svg).iter("path") if e.get("class") == "line"]


def test_a_line_goes_through_its_points_inside_the_frame():
    svg = chart({"loss": [(0, 2.0), (50, 1.0), (100, 0.0)]}, title="Loss")
    points = [tuple(map(float, point.split())) for point in re.split("[ML]", lines(svg)[0])[1:]]
    xs, ys = zip(*points, strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[0] < ys[1] < ys[2]  # SVG counts downwards
    _, _, width, height = map(float, parsed(svg).get("viewBox").split())
    assert all(0 < x < width for x in xs)
    assert all(0 < y < height for y in ys)


def test_ticks_title_and_axis_are_written():
    found = texts(chart({"loss": [(0, 0.0), (12000, 1.0)]}, title="Loss"))
    assert {"Loss", "step", "0", "5k", "10k", "0.0", "0.2", "0.8", "1.0"} <= set(found)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ((0.0, 1.5e-3), "1.0e-3"),
        ((0.30, 0.31), "0.302"),
        ((-5.0, 5.0), "-4"),
        ((0.0, 400.0), "200"),
        ((0.0, 5e7), "20000k"),
        ((1e-9, 5e-9), "2e-9"),
    ],
)
def test_ticks_are_round_and_few_at_any_size(values, wanted):
    svg = chart({"y": [(0, values[0]), (1, values[1])]}, title="t")
    found = [e.text for e in parsed(svg).iter("text") if e.get("text-anchor") == "end" and e.text != "step"]
    assert wanted in found
    assert 2 <= len(found) <= 7
    assert len(set(found)) == len(found)


def test_values_that_are_not_finite_break_the_line_and_a_lone_point_is_a_dot():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, math.inf), (5, 2.0), (6, 1.0)]
    svg = chart({"y": points}, title="t")
    assert lines(svg)[0].count("M") == 2
    assert len(list(parsed(svg).iter("circle"))) == 1
    assert "nan" not in svg.lower()
    assert "inf" not in svg.lower()


@pytest.mark.parametrize("points", [[], [(0, math.nan)], [(0, math.inf), (1, -math.inf)]])
def test_nothing_to_draw_says_so(points):
    assert "no finite value was recorded" in texts(chart({"y": points}, title="t"))


@pytest.mark.parametrize("points", [[(3, 0.5)], [(3, 0.0)], [(0, 2.0), (9, 2.0)]])
def test_one_point_or_a_constant_has_a_scale(points):
    svg = chart({"y": points}, title="t")
    assert len(texts(svg)) >= 5
    assert bool(list(parsed(svg).iter("circle"))) == (len(points) == 1)


def test_long_series_are_thinned_without_losing_a_spike_or_a_gap():
    points = [(step, 1.0) for step in range(50_000)]
    points[31_234] = (31_234, 9.0)
    points[44_444] = (44_444, math.nan)
    svg = chart({"y": points}, title="t")
    without = chart({"y": points[:31_234] + points[31_235:]}, title="t")
    assert len(svg) < 20_000
    assert lines(svg)[0].count("M") == 2
    top = lambda s: min(float(p.split()[1]) for p in re.split("[ML]", lines(s)[0])[1:])  # noqa: E731
    assert top(svg) < top(without)


def test_legend_only_for_several_series_and_every_text_is_escaped():
    svg = chart({"<a>": [(0, 1), (1, 2)], "b&": [(0, 2), (1, 1)]}, title='"t" <script>', x_label="x & y")
    assert {"<a>", "b&", '"t" <script>', "x & y"} <= set(texts(svg))
    assert "<script" not in svg
    assert "a" not in texts(chart({"a": [(0, 1), (1, 2)]}, title="t"))


def test_curves_follow_the_metrics_that_rows_hold():
    rows = [{"step": step, "loss": 1 / (step + 1), "lr": 1e-3, "grad_norm": 0.5} for step in range(20)]
    titles = lambda charts: [texts(svg)[0] for svg, _ in charts]  # noqa: E731
    assert titles(curves(rows)) == ["Loss", "Gradient norm", "Learning rate"]
    rows[5] |= {"heldout_loss": 0.4, "effective_rank": None}
    rows[15] |= {"heldout_loss": 0.2, "effective_rank": 12.0}
    found = curves(rows)
    assert titles(found) == ["Loss", "Effective rank of the features", "Gradient norm", "Learning rate"]
    assert "held out" in texts(found[0][0]) and "either may lie above the other" in found[0][1]
    assert all(reading.endswith(".") for _, reading in found)
    assert curves([]) == []


def test_one_point_is_no_curve():
    assert curves([{"step": 1, "loss": 0.5, "lr": 1e-3}]) == []
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4, "heldout_loss": 0.3}]
    (only,) = curves(rows)
    assert "held out" not in texts(only[0])
