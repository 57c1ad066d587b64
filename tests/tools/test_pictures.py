# SPDX-License-Identifier: GPL-2.0-only
"""Pictures hold what the recording has, in one file of limited size, whatever the names in it are."""

from __future__ import annotations

import base64
import io
import json
import re
import xml.etree.ElementTree as ET
import zlib
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from PIL import Image

from kdamon_tools.pictures import page
from kdamon_tools.pictures.colours import DARK, LIGHT, Theme, colour_of
from kdamon_tools.pictures.page import LARGEST, render_page
from kdamon_tools.pictures.png import render_png
from kdamon_tools.pictures.scene import LEVELS, Scene, Text, scene_of
from kdamon_tools.pictures.svg import render_svg
from kdamon_tools.snapshot import Config, Recording
from tests.support.views import HOSTILE, MIB, name_table, recording, stairs

UNKNOWN, ABSENT = 254, 255
SVG = "{http://www.w3.org/2000/svg}"


def data_of(text: str) -> dict[str, Any]:
    """The data in a page."""
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text)[1])


def unpacked(text: str, dtype: Any) -> Any:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def cells_of(data: dict[str, Any], level: int = 0) -> Any:
    found = data["levels"][level]
    return unpacked(found["cells"], np.uint8).reshape(-1, found["columns"])


def busy(nr_snapshots: int, nr_regions: int, size: int = 100 << 40) -> Recording:
    """Regions with random borders and random accesses all over."""
    random = np.random.default_rng(3)
    rows = []
    for number in range(nr_snapshots):
        cuts = np.unique(random.integers(1, size >> 12, nr_regions - 1) << 12)
        edges = np.concatenate([[0], cuts, [size]]).tolist()
        counts = random.integers(0, 21, len(edges) - 1).tolist()
        rows.append([(*one, count, number % 50, 0) for *one, count in zip(edges[:-1], edges[1:], counts, strict=True)])
    return recording(rows)


class TestPage:
    """The HTML file."""

    def test_the_finest_cells_are_those_of_the_recording(self) -> None:
        of = stairs()
        data = data_of(render_page(of))
        cells, sizes = cells_of(data), unpacked(data["sizes"], np.float64)
        assert (len(sizes), 40) == cells.shape
        starts = np.cumsum(np.append(0, sizes))
        for column in range(40):
            hot = int(np.searchsorted(starts, column // 4 * MIB))
            assert 100 == cells[hot, column]
            assert {0, 25, UNKNOWN} == set(np.delete(cells[:, column], hot).tolist())

    def test_each_level_is_the_mean_of_the_one_below(self) -> None:
        data = data_of(render_page(stairs(steps=16, each=4)))
        assert [(1, 64), (4, 16)] == [(level["factor"], level["columns"]) for level in data["levels"]]
        assert (cells_of(data)[:, ::4] == cells_of(data, 1)).all()

    def test_a_rare_access_is_not_rounded_away(self) -> None:
        """One sample in thousands of seconds is drawn, faintly."""
        data = data_of(render_page(recording([[(0, MIB, 0, 0, 0)]] * 500 + [[(0, MIB, 1, 0, 0)]])))
        assert [1] == sorted(set(cells_of(data, len(data["levels"]) - 1).ravel().tolist()))[-1:]

    def test_a_pause_is_absent(self) -> None:
        of = stairs()
        del of.snapshots[8:16]
        assert {ABSENT} == set(cells_of(data_of(render_page(of)))[:, 8:16].ravel().tolist())

    def test_a_page_of_10000_snapshots_is_small(self) -> None:
        """It has a pyramid of five levels, and the hot page in 100 TiB of idle memory."""
        hot = 33 << 40
        rows = [(0, hot, 0, 0, 0), (hot, hot + 4096, 20, 0, 0), (hot + 4096, 100 << 40, 0, 0, 0)]
        text = render_page(recording([rows] * 10_000))
        data = data_of(text)
        assert len(text.encode()) < LARGEST
        assert [2048, 512, 128, 32, 8] == [level["columns"] for level in data["levels"]]
        assert [{0}, {100}, {0}] == [set(row.tolist()) for row in cells_of(data)]

    def test_a_page_that_would_be_too_large_is_coarser(self, monkeypatch: pytest.MonkeyPatch) -> None:
        of = busy(300, 60)
        fine = render_page(of)
        monkeypatch.setattr(page, "LARGEST", len(fine) - 1)
        assert len(render_page(of)) < len(fine)

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_both_themes_are_in_it(self, theme: str) -> None:
        assert len(LIGHT.ramp) == len(data_of(render_page(stairs()))["themes"][theme]["ramp"])

    def test_a_hostile_name_is_only_text(self) -> None:
        """It ends no script, is no markup, and moves no cursor; in the data it is escaped as everywhere."""
        names = name_table((0, MIB, HOSTILE), (MIB, 2 * MIB, "]]><!--<script>"))
        text = render_page(recording([[(0, 2 * MIB, 20, 0, 0)]], names))
        assert 3 == text.count("<script") == text.count("</script>")
        assert "<b>&" not in text
        assert "\x1b" not in text
        assert [r"[anon: </script><b>&\x1b[31m\x0a\xff]", "]]><!--<script>"] == data_of(text)["labels"]

    def test_nothing_is_loaded(self) -> None:
        """No address of the network, but in comments; and a policy that forbids to load any."""
        text = render_page(stairs())
        assert [] == re.findall(r"(?:src|href|url|import|fetch|@import)\s*[=(]\s*[\"']?https?:", text)
        assert "default-src 'none'" in text
        assert "Permission is hereby granted" in text


class TestDocuments:
    """SVG and PNG."""

    def test_svg_is_xml_with_the_names(self) -> None:
        root = ET.fromstring("".join(render_svg(scene_of(stairs()))))
        words = [one.text for one in root.iter(f"{SVG}text")]
        assert "[heap]" in words
        assert r"[anon: </script>…1b[31m\x0a\xff]" in words
        assert [] == [one.tag for one in root.iter() if one.tag.removeprefix(SVG) in ("script", "image", "a", "b")]

    def test_hot_idle_and_unknown_cells_have_their_colours(self) -> None:
        """A stair of ten steps, each of the hottest colour, in the heap."""
        scene = scene_of(stairs())
        colours = {colour for *_, colour in scene.rectangles}
        assert {"idle", "unknown", str(LEVELS - 1), "3"} <= colours
        area = {
            name: sum(width * height for _, y, width, height, colour in scene.rectangles if colour == name and y < 480)
            for name in ("idle", str(LEVELS - 1))
        }
        assert 1 / 10 == pytest.approx(area[str(LEVELS - 1)] / (area["idle"] + area[str(LEVELS - 1)]), rel=0.1)

    def test_png_has_the_same_colours(self) -> None:
        scene = scene_of(stairs())
        image = Image.open(io.BytesIO(render_png(scene)))
        assert (2 * scene.width, 2 * scene.height) == image.size
        x, y, width, height, colour = max(
            (one for one in scene.rectangles if one[4] == str(LEVELS - 1) and one[1] < 400), key=lambda one: one[2]
        )
        found = image.getpixel((round(2 * x + width), round(2 * y + height)))
        assert colour_of((int(colour) + 0.5) / LEVELS, LIGHT) == "#{:02x}{:02x}{:02x}".format(*found)

    def test_what_is_not_drawn_is_summed_up(self) -> None:
        rows = [(0, MIB, 20, 0, 0), (1 << 40, (1 << 40) + 64 * MIB, 0, 0, 0)]
        words = [text.text for text in scene_of(recording([rows] * 20)).texts]
        assert "not drawn: 64.0 MiB not accessed" in words


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_the_lightness_of_shares_goes_one_way(theme: Theme) -> None:
    """So that a grey print and a reader who sees no red still show what is hotter."""

    def lightness(colour: str) -> float:
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    steps = np.diff([lightness(colour_of(share / 50, theme)) for share in range(1, 51)])
    assert (steps < 0).all() or (steps > 0).all()


def test_the_title_of_an_svg_is_that_of_a_hostile_command() -> None:
    """A control character, which XML cannot have, is escaped."""
    of = evolve(stairs(), config=Config(pid=42, command=("server", HOSTILE)))
    root = ET.fromstring("".join(render_svg(scene_of(of))))
    assert r"server [anon: </script><b>&\x1b[31m\x0a\xff]" == root.find(f"{SVG}title").text  # type: ignore[union-attr]


def test_svg_has_no_character_that_xml_has_not() -> None:
    scene = Scene(10, 10, "a\ufffe", texts=[Text(0, 0, "b\uffff")])
    text = "".join(render_svg(scene))
    found = [one.text for one in ET.fromstring(text)]
    assert ("a\\ufffe", "b\\uffff") == (found[0], found[-1])
