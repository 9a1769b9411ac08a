"""The scatter plot as a document: what is where."""

import xml.etree.ElementTree as ElementTree

import pytest

from tinyforge.report.plot import (
    BOTTOM,
    FILLS,
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    Axes,
    Point,
    even_ticks,
    log_ticks,
    scatter_svg,
)

SPACE = "{http://www.w3.org/2000/svg}"
AXES = Axes("p90 in ms", "accuracy <&>", x_limit=2.0, y_limit=0.8)
POINTS = [
    Point("1", "chosen", 0.5, 0.4, 0.6, 0.9, 0.85, 0.95),
    Point("2<", "missed", 8.0, 7.0, 9.0, 0.95, 0.9, 0.99),
]


def circles(svg):
    return [one for one in ElementTree.fromstring(svg).iter(f"{SPACE}circle") if one.get("r") in ("4", "7")]


def test_the_same_points_give_the_same_bytes_of_valid_xml():
    svg = scatter_svg(POINTS, AXES)
    assert svg == scatter_svg(POINTS, AXES)
    root = ElementTree.fromstring(svg)
    texts = [one.text for one in root.iter(f"{SPACE}text")]
    assert {"1", "2<", "accuracy <&>", "ships", "misses a limit"} <= set(texts)
    assert "keeps the limits" not in texts  # no such point


def test_points_stand_in_order_inside_the_axes():
    first, second = circles(scatter_svg(POINTS, AXES))[:2]
    assert (first.get("fill"), second.get("fill")) == (FILLS["chosen"], FILLS["missed"])
    assert LEFT < float(first.get("cx")) < float(second.get("cx")) < WIDTH - RIGHT
    assert 0 < float(second.get("cy")) < float(first.get("cy")) < HEIGHT - BOTTOM


def test_limits_are_dashed_lines():
    dashed = [one for one in ElementTree.fromstring(scatter_svg(POINTS, AXES)).iter() if one.get("stroke-dasharray")]
    assert len(dashed) == 2
    none = scatter_svg(POINTS, Axes("x", "y"))
    assert "dasharray" not in none


def test_inside_html_it_names_no_address():
    assert "http" not in scatter_svg(POINTS, AXES, inside_html=True)


def test_one_point_without_intervals_and_sizes_instead_of_shares():
    svg = scatter_svg([Point("1", "kept", 3.0, 3.0, 3.0, 5.0, 5.0, 5.0)], Axes("ms", "MiB", percent=False))
    (point, _legend) = circles(svg)
    assert LEFT < float(point.get("cx")) < WIDTH - RIGHT
    with pytest.raises(ValueError, match="points"):
        scatter_svg([], AXES)


def test_ticks():
    assert log_ticks(0.04, 3) == [0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
    assert even_ticks(0.81, 0.99) == [0.85, 0.9, 0.95]
    assert even_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
