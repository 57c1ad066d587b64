# SPDX-License-Identifier: GPL-2.0-only
"""A page in a real Chromium shows what the recording holds, zooms on both axes, and asks nobody for anything."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from PIL import Image

import kdamon
from kdamon_tools.pictures.colours import DARK, LIGHT, colour_of
from kdamon_tools.pictures.page import render_page
from kdamon_tools.snapshot import Config, Recording
from tests.support.browser import chromium, console, requests
from tests.support.capabilities import needs_program
from tests.support.views import MIB, name_table, recording, stairs, write_record
from tests.support.waiting import eventually

pytestmark = [pytest.mark.real, needs_program("chromium", "chromium"), needs_program("chromedriver", "chromium-driver")]

HEAP = 0x7F00_0000_0000
#: Where the drawing begins in the canvas, and what is left free at its right and below it.
LEFT, TOP, RIGHT, BOTTOM = 236, 6, 14, 24


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """One browser for all tests."""
    with chromium() as driver:
        yield driver


def shown(driver: Any, of: Recording, path: Path) -> str:
    """Open the page of a recording; its address."""
    path.write_text(render_page(of), encoding="utf-8")
    # What the tests before asked for and logged.
    requests(driver), console(driver)
    driver.get(path.as_uri())
    eventually(lambda: driver.execute_script("return Boolean(window.kdamon && window.kdamon.ready)"))
    return path.as_uri()


def move_to(driver: Any, seconds: float, address: int, of: Recording, buttons: str = "") -> list[str]:
    """Move the pointer to a time and an address; the lines of the tip."""
    from selenium.webdriver import ActionChains

    x, y = driver.execute_script("return kdamon.placeOf(arguments[0], arguments[1])", seconds, f"{address:x}")
    canvas = driver.find_element("id", "heat")
    width, height = canvas.rect["width"], canvas.rect["height"]
    actions = ActionChains(driver).move_to_element_with_offset(canvas, round(x - width / 2), round(y - height / 2))
    (actions.double_click() if buttons else actions).perform()
    return driver.find_element("id", "tip").text.splitlines()


def pixel_at(driver: Any, seconds: float, address: int) -> str:
    """The colour that is drawn at a time and an address, without the crosshair."""
    x, y = driver.execute_script("return kdamon.placeOf(arguments[0], arguments[1])", seconds, f"{address:x}")
    driver.execute_script("kdamon.drawNow()")
    data = driver.execute_script("return document.getElementById('heat').toDataURL('image/png')")
    image = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB")
    ratio = driver.execute_script(
        "return document.getElementById('heat').width / document.getElementById('heat').clientWidth"
    )
    return "#{:02x}{:02x}{:02x}".format(*image.getpixel((int(x * ratio), int(y * ratio))))


def test_it_opens_alone(driver: Any, tmp_path: Path) -> None:
    """No message on the console, and no request but for the file itself."""
    address = shown(driver, stairs(), tmp_path / "page.html")
    assert [] == console(driver)
    assert [address] == [url for url in requests(driver) if not url.startswith(("data:", "blob:"))]
    assert "process 42" == driver.title


def test_three_points_show_what_the_record_holds(driver: Any, tmp_path: Path) -> None:
    """A hot MiB, memory that is not accessed, and unknown memory: by words and by colours."""
    of = stairs()
    shown(driver, of, tmp_path / "page.html")
    for seconds, address, name, words, colour in (
        (2.05, HEAP + 5 * MIB + 0x8000, "[heap]", "100 % of the samples found it accessed", colour_of(1.0, LIGHT)),
        (2.05, HEAP + 2 * MIB + 0x8000, "[heap]", "not accessed", LIGHT.idle),
        (2.05, HEAP + (2 << 40) + 0x4000, "[stack]", "25 % of the samples found it accessed", colour_of(0.25, LIGHT)),
    ):
        tip = move_to(driver, seconds, address, of)
        assert (name, words) == (tip[0], tip[2])
        start, end = (int(part, 16) for part in tip[1].partition(",")[0].split("-"))
        assert start <= address < end
        assert colour == pixel_at(driver, seconds, address)
    assert "not accessed for 2.0 s" == move_to(driver, 2.05, HEAP + 12 * MIB, of)[3]
    unknown = move_to(driver, 2.05, HEAP + (1 << 40) + 0x8000, of)
    assert (r"[anon: </script><b>&\x1b[31m\x0a\xff]", "unknown") == (unknown[0], unknown[2])
    assert pixel_at(driver, 2.05, HEAP + (1 << 40) + 0x8000) in LIGHT.unknown
    assert [] == console(driver)


def view_of(driver: Any) -> tuple[float, float, float, float]:
    view = driver.execute_script("return kdamon.view")
    return tuple(view[key] for key in ("t0", "t1", "y0", "y1"))


def test_it_zooms_and_moves_on_both_axes(driver: Any, tmp_path: Path) -> None:
    """By keys, by wheel, by a box, and back by a double click; the curve follows."""
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    of = stairs()
    shown(driver, of, tmp_path / "page.html")
    canvas = driver.find_element("id", "heat")
    canvas.send_keys("t")
    t0, t1, y0, y1 = view_of(driver)
    assert (2.8, (0, 1)) == (round(t1 - t0, 6), (y0, y1))
    canvas.send_keys("a")
    _, _, y0, y1 = view_of(driver)
    assert (0.7, (t0, t1)) == (round(y1 - y0, 6), view_of(driver)[:2])
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert round(t0 + 0.28, 6) == round(view_of(driver)[0], 6)
    assert view_of(driver)[:2] == tuple(
        driver.execute_script("const x = kdamon.chart().scales.x; return [x.min, x.max]")
    )
    canvas.send_keys("0")
    assert (0, 4, 0, 1) == tuple(round(edge, 6) for edge in view_of(driver))
    ActionChains(driver).scroll_from_origin(ScrollOrigin.from_element(canvas), 0, -240).perform()
    eventually(lambda: view_of(driver)[1] - view_of(driver)[0] < 3)
    assert (0, 1) == view_of(driver)[2:]
    ActionChains(driver).double_click(canvas).perform()
    assert (0, 4, 0, 1) == tuple(round(edge, 6) for edge in view_of(driver))
    box = ActionChains(driver).move_to_element_with_offset(canvas, -100, -100).key_down(Keys.SHIFT).click_and_hold()
    box.move_by_offset(200, 100).release().key_up(Keys.SHIFT).perform()
    t0, t1, y0, y1 = view_of(driver)
    assert t1 - t0 < 1 < t1 + t0
    assert y1 - y0 < 0.4
    ActionChains(driver).move_to_element(canvas).click_and_hold().move_by_offset(60, 0).release().perform()
    assert view_of(driver)[0] < t0
    assert round(t1 - t0, 6) == round(view_of(driver)[1] - view_of(driver)[0], 6)
    assert [] == console(driver)


def test_a_zoomed_picture_shows_single_snapshots_of_many(driver: Any, tmp_path: Path) -> None:
    """Of 2000 snapshots every other one is hot: from afar it is half, near it is all or nothing."""
    rows = [[(0, MIB, 20.0 * (number % 2), 0, 0), (MIB, 2 * MIB, 0, 0, 0)] for number in range(2000)]
    of = recording(rows)
    shown(driver, of, tmp_path / "page.html")
    assert "50 % of the samples found it accessed" == move_to(driver, 100.05, 0x8000, of)[2]
    driver.execute_script("kdamon.show({t0: 99.6, t1: 100.6})")
    assert {"100 % of the samples found it accessed", "not accessed"} == {
        move_to(driver, 100.05 + step, 0x8000, of)[2] for step in (0, 0.1)
    }


def test_values_are_read_by_keys_alone(driver: Any, tmp_path: Path) -> None:
    """For a reader who sees no colour, and for one who has no pointer."""
    from selenium.webdriver import ActionChains, Keys

    shown(driver, stairs(), tmp_path / "page.html")
    driver.find_element("id", "heat").send_keys("")
    ActionChains(driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_UP).key_up(Keys.SHIFT).perform()
    said = driver.find_element("id", "said").get_attribute("textContent")
    assert said.startswith("[heap], 7f00")
    assert "toolbar" == driver.find_element("css selector", ".buttons").get_attribute("role")


@pytest.mark.parametrize("dark", [False, True])
def test_the_theme_is_that_of_the_reader(driver: Any, tmp_path: Path, dark: bool) -> None:
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    shown(driver, stairs(), tmp_path / "page.html")
    theme = DARK if dark else LIGHT
    assert theme.idle == pixel_at(driver, 2.05, HEAP + 2 * MIB + 0x8000)
    driver.find_element("id", "heat").send_keys("d")
    assert (LIGHT if dark else DARK).idle == pixel_at(driver, 2.05, HEAP + 2 * MIB + 0x8000)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_it_prints(driver: Any, tmp_path: Path) -> None:
    """A PDF of a page or a few, without buttons."""
    shown(driver, stairs(), tmp_path / "page.html")
    printed = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed.startswith(b"%PDF")
    assert [] == console(driver)


def test_addresses_near_the_end_are_exact(driver: Any, tmp_path: Path) -> None:
    """A double would round them."""
    top = (1 << 64) - 0x2000
    of = recording([[(0x1000, 0x2000, 20, 0, 0), (top, top + 0x1000, 20, 0, 0)]] * 20)
    shown(driver, of, tmp_path / "page.html")
    assert f"{top:x}-{top + 0x1000:x}, 4.0 KiB" == move_to(driver, 1.0, top + 0x800, of)[1]


def test_a_record_in_a_notebook_is_a_picture(driver: Any, tmp_path: Path) -> None:
    """Its styles do not reach the page, and nothing of it runs."""
    attack = '"><img src=x onerror="window.hit=1">'
    names = name_table((0, MIB, "[heap]"), (MIB, 2 * MIB, "<svg onload='window.hit=1'>"))
    of = recording([[(0, MIB, 20, 0, 0), (MIB, 2 * MIB, 5, 0, 0)]] * 9, names)
    write_record(str(tmp_path / "a"), evolve(of, config=Config(pid=1, command=("server", attack))))
    with kdamon.open(tmp_path / "a") as record:
        shown = record._repr_html_()
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><p class=text>text</p>{shown}", encoding="utf-8")
    requests(driver), console(driver)
    driver.get((tmp_path / "page.html").as_uri())
    eventually(lambda: driver.execute_script("return document.images[0].complete"))
    script = "const i = document.images; return [i.length, i[0].naturalWidth, i[0].alt, window.hit || 0]"
    length, width, text, hit = driver.execute_script(script)
    assert (1, 960, 0) == (length, width, hit)
    assert text.startswith(f"server {attack}, ")
    assert [] == console(driver)
    script = "return getComputedStyle(document.querySelector('p')).fill"
    assert "rgb(0, 0, 0)" == driver.execute_script(script)
