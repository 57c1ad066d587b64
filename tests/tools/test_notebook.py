# SPDX-License-Identifier: GPL-2.0-only
"""A record in a notebook is its heatmap, in HTML that no name in it can change."""

from __future__ import annotations

import base64
import html.parser
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import attrs
import pytest

import kdamon
from kdamon_tools.snapshot import Config, Recording
from tests.support.records import STARTED, writer
from tests.support.views import HOSTILE, recording, stairs, write_record

ATTACK = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Tags(html.parser.HTMLParser):
    """All elements of a text, with their attributes, and what is between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(path: Path) -> Tags:
    with kdamon.open(path) as record:
        text = record._repr_html_()
    assert text is not None
    return Tags(text)


def test_the_heatmap_is_one_image(tmp_path: Path) -> None:
    """It has the names, as text; the command is in the attribute that stands for the picture."""
    of = stairs()
    write_record(str(tmp_path / "a"), attrs.evolve(of, config=Config(pid=42, command=("server", ATTACK, HOSTILE))))
    ((tag, attributes),) = shown(tmp_path / "a").found
    assert ("img", {"alt", "style", "src"}) == (tag, set(attributes))
    assert str(attributes["alt"]).startswith(f"server {ATTACK} ")
    kind, _, picture = str(attributes["src"]).partition(",")
    assert "data:image/svg+xml;base64" == kind
    root = ET.fromstring(base64.b64decode(picture))
    assert "{http://www.w3.org/2000/svg}svg" == root.tag
    assert "[heap]" in {one.text for one in root.iter()}
    assert not any(one.tag.endswith("script") for one in root.iter())


@pytest.mark.parametrize("of", [recording([]), recording([[]])])
def test_nothing_to_draw_is_a_sentence(tmp_path: Path, of: Recording) -> None:
    write_record(str(tmp_path / "<b>"), of)
    found = shown(tmp_path / "<b>")
    assert ["p"] == [tag for tag, _ in found.found]
    assert found.text.endswith("/<b>: there is nothing to draw")


def test_a_record_that_has_not_begun_is_a_sentence(tmp_path: Path) -> None:
    record = writer(tmp_path / "a")
    record.add(kdamon.Snapshot.of(STARTED + 1, []))
    record.close()
    with kdamon.open(tmp_path / "a") as found:
        found.close()
        text = found._repr_html_()
        assert text is not None
        assert ["p"] == [tag for tag, _ in Tags(text).found]
        assert f"<kdamon.Record {str(tmp_path / 'a')!r}>" == repr(found)


def test_without_the_tools_there_is_the_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(str(tmp_path / "a"), stairs())
    monkeypatch.setitem(sys.modules, "kdamon_tools.pictures.notebook", None)
    with kdamon.open(tmp_path / "a") as record:
        assert None is record._repr_html_()
