"""The report in a real browser: nothing complains, sorting works, dark and narrow screens are served."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_subjects import SECTIONS

from netloupe.report.html import write_report
from netloupe.report.inspection import Inspection

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="a browser is needed: apt-get install chromium chromium-driver"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    assert BROWSER is not None
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=["digits", "text"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    inspection: Inspection = request.getfixturevalue(request.param)
    return write_report(inspection, tmp_path_factory.mktemp("report"))


def show(browser: Any, page: Path, width: int = 1280, dark: bool = False, part: str = "") -> None:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get("about:blank")  # so that a change of the part alone is a new page too
    browser.get(page.as_uri() + part)


def press(browser: Any, element: Any) -> None:
    """A click that does not wait for the page to have scrolled smoothly to the element."""
    browser.execute_script("arguments[0].click()", element)


def column_values(browser: Any, column: int) -> list[float | None]:
    return browser.execute_script(
        "return Array.from(document.querySelectorAll('#numbers tbody tr'), row => {"
        "  const v = row.cells[arguments[0]].dataset.v; return v === undefined ? null : Number(v); })",
        column,
    )


def test_sections_are_there_and_nothing_complains(browser: Any, page: Path) -> None:
    browser.get_log("browser")
    show(browser, page)
    for section in SECTIONS:
        found = browser.find_element("id", section)
        assert found.is_displayed()
        assert found.find_element("tag name", "h2").text
    press(browser, browser.find_element("id", "toggle"))
    assert browser.execute_script("return document.querySelectorAll('.site > details:not([open])').length") == 0
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []
    seconds = browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
    print(f"{page.name}: {page.stat().st_size / 1e6:.2f} MB, loaded in {seconds:.2f} s")


def test_headings_sort_as_numbers_both_ways(browser: Any, page: Path) -> None:
    show(browser, page)
    heads = browser.find_elements("css selector", "#numbers thead tr:last-child th")
    names = [head.text.split(" \u2191")[0] for head in heads]
    turned = 0
    for index in [0, names.index("min"), names.index("active\nfraction") if "active\nfraction" in names else 6]:
        button = heads[index].find_element("tag name", "button")
        for _ in range(2):
            press(browser, button)
            direction = heads[index].get_attribute("aria-sort")
            values = [value for value in column_values(browser, index) if value is not None]
            assert values == sorted(values, reverse=direction == "descending")
            turned += values != sorted(values)
        others = [head.get_attribute("aria-sort") for at, head in enumerate(heads) if at != index]
        assert set(others) == {"none"}
    assert turned > 0


def test_missing_numbers_stay_last(browser: Any, digits: Inspection, tmp_path: Path) -> None:
    show(browser, write_report(digits, tmp_path))
    script = (
        "return Array.from(document.querySelectorAll('#numbers thead tr:last-child th'), th => th.innerText.trim())"
    )
    column = next(at for at, name in enumerate(browser.execute_script(script)) if name.startswith("nc4"))
    button = browser.find_elements("css selector", "#numbers thead tr:last-child th button")[column]
    for _ in range(2):
        press(browser, button)
        values = column_values(browser, column)
        known = [value for value in values if value is not None]
        assert 0 < len(known) < len(values)
        assert values[: len(known)] == known


def test_dark_scheme_turns_the_page_dark(browser: Any, page: Path) -> None:
    seen = {}
    for dark in (False, True):
        show(browser, page, dark=dark)
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        seen[dark] = [sum(int(part) for part in color[4:-1].split(",")) / 3 for color in browser.execute_script(script)]
    assert seen[False][0] > 200 > 100 > seen[False][1]
    assert seen[True][0] < 60 < 180 < seen[True][1]


@pytest.mark.parametrize("width", [360, 768])
def test_no_sideways_scrolling(browser: Any, page: Path, width: int) -> None:
    show(browser, page, width)
    press(browser, browser.find_element("id", "toggle"))
    wide = browser.execute_script("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] == wide[1] <= width


def test_link_to_a_site_opens_it(browser: Any, page: Path) -> None:
    show(browser, page, part="#site-4")
    opened = "return document.querySelector(arguments[0]).querySelector(':scope > details').open"
    assert browser.execute_script(opened, "#site-4")
    assert not browser.execute_script(opened, "#site-5")
    link = browser.find_element("css selector", '.chip[href="#site-5"]')
    press(browser, link)
    assert browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => "
        "done(document.querySelector('#site-5 > details').open)))"
    )


def test_heat_map_reads_out_the_cell(browser: Any, page: Path) -> None:
    show(browser, page)
    title = browser.execute_script(
        "const cell = document.querySelectorAll('.heat .cell')[1];"
        "cell.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));"
        "return cell.querySelector('title').textContent"
    )
    assert browser.find_element("id", "readout").text == title


def test_readable_without_a_script(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, page)
        assert browser.find_element("id", "table").is_displayed()
        assert not browser.find_element("id", "toggle").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
