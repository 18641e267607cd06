"""Plots as SVG: what stands where, read back from the markup."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from rbft.evaluation.curves import LossCurve
from rbft.evaluation.figures import Series, beside, line_plot, loss_plot, standalone

SERIES = [
    Series("RB-FT", (("64", 0.6, (0.5, 0.7)), ("128", 0.7, (0.65, 0.75)), ("256", 0.8, (0.78, 0.83)))),
    Series("Direct-SFT <2>", (("64", 0.61, (0.55, 0.68)), ("256", 0.8, (0.7, 0.9)))),
]


def points(group: ET.Element) -> list[tuple[float, float]]:
    line = next(each for each in group.iter() if each.tag.endswith("polyline"))
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())]


def test_a_line_goes_up_with_its_values_and_whiskers_hold_them() -> None:
    root = ET.fromstring(line_plot(SERIES, description="a & b", axis="labels"))
    first, second = (group for group in root if group.attrib.get("class", "").startswith("series"))
    xs, ys = zip(*points(first), strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys, reverse=True)
    whiskers = [each for each in first if each.attrib.get("class") == "whisker"]
    for y, whisker in zip(ys, whiskers, strict=True):
        assert float(whisker.attrib["y2"]) < y < float(whisker.attrib["y1"])
    assert len(points(second)) == 2
    assert abs(points(second)[1][0] - points(first)[2][0]) < 10  # the same place on the axis, a little apart


def test_names_at_the_same_height_do_not_overlap_and_are_escaped() -> None:
    root = ET.fromstring(line_plot(SERIES, description="d", axis="labels"))
    names = {each.text: float(each.attrib["y"]) for each in root.iter() if each.attrib.get("class") == "name"}
    assert set(names) == {"RB-FT", "Direct-SFT <2>"}
    assert abs(names["RB-FT"] - names["Direct-SFT <2>"]) >= 15


def test_plots_side_by_side_keep_their_sizes_and_titles() -> None:
    one = loss_plot(LossCurve("rb-ft", "rationale", (1, 2, 3), (3.0, 2.0, 1.0)))
    both = ET.fromstring(beside([("first", one), ("second", one)]))
    inner = [each for each in both if each.tag.endswith("svg")]
    assert [float(each.attrib["x"]) for each in inner] == [0, pytest.approx(float(inner[0].attrib["width"]) + 24)]
    assert float(both.attrib["width"]) == pytest.approx(2 * float(inner[0].attrib["width"]) + 24)
    assert [each.text for each in both if each.attrib.get("class") == "name"] == ["first", "second"]


def test_a_standalone_plot_is_an_svg_file_with_its_own_colours() -> None:
    text = standalone(line_plot(SERIES, description="d", axis="labels"))
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert re.search(r"prefers-color-scheme: dark", text) and text.index("<style>") < text.index("polyline")
