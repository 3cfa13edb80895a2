"""The page in a real headless Chromium: a newcomer's way to a playing song, readings, keyboard,
both languages, light and dark.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from chromium import PICTURES, needs_chromium, open_chromium
from mudit_engine.serving.access import Keys, hash_key, new_key
from mudit_engine.serving.engine import Engine
from served import Served, serving

pytestmark = needs_chromium


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A service of its own for each test, as the page lists the songs of those before."""
    with serving(lambda: Engine.open("tiny", runtime="torch"), tmp_path / "service") as one:
        yield one


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    with open_chromium(tmp_path, width=1000, height=1500) as driver:
        yield driver


class Page:
    """The page as a person uses it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.until(lambda: self.text("model") or self.shown("error"))

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def text(self, id: str) -> str:
        return str(self.find(f"#{id}").text)

    def shown(self, id: str) -> bool:
        return bool(self.find(f"#{id}").is_displayed())

    def type(self, id: str, text: str) -> None:
        field = self.find(f"#{id}")
        field.clear()
        field.send_keys(text)

    def value(self, id: str) -> str:
        return str(self.find(f"#{id}").get_property("value"))

    def until(self, true: Callable[[], Any], *, seconds: float = 60.0) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(
            self.driver, seconds, 0.05, ignored_exceptions=[StaleElementReferenceException]
        )
        return waiting.until(lambda _: true())

    def picture(self, name: str) -> None:
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(PICTURES) / f"{name}.png"))

    def complaints(self) -> list[str]:
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE"
        ]


def test_from_the_page_to_a_playing_song(served: Served, browser: Any, tmp_path: Path) -> None:
    page = Page(browser, served.url)
    assert page.text("model") == "tiny · torch" and page.shown("no-history")
    page.picture("1-empty")
    page.type("description", "流行抒情，钢琴，女声，BPM 96，C大调")
    page.type("lyrics", "[verse]\n月亮升起来\n银行长大了")
    page.until(lambda: page.shown("understood") and page.shown("readings-box"))
    chips = page.text("chips")
    assert "96 BPM" in chips and "C major" in chips and "钢琴" in chips
    assert page.shown("budget") and "10" in page.text("budget-words")

    # a polyphone is corrected by a click, and stands so in the lyrics
    many = page.until(lambda: [one for one in page.all("ruby.many") if "长" in one.text])
    many[0].click()
    page.until(lambda: page.shown("chooser"))
    page.picture("2-reading")
    options = {one.text: one for one in page.all("#chooser-options .chip")}
    assert {"zhǎng", "cháng"} <= options.keys()
    options["cháng"].click()
    page.until(lambda: "长{chang2}" in page.value("lyrics"))
    page.until(lambda: [one for one in page.all("ruby.fixed") if "cháng" in one.text])

    # the tempo is changed in its chip
    page.find("#chips [data-field=bpm]").click()
    field = page.until(lambda: page.find("#chips input"))
    field.clear()
    field.send_keys("80\n")
    page.until(lambda: "80 BPM" in page.text("chips"))

    page.type("seconds", "8")
    page.type("steps", "6")
    page.type("seed", "5")
    page.find("#make").click()
    page.until(lambda: page.shown("progress"))
    page.until(lambda: page.shown("player"))
    assert not page.shown("error")
    audio = page.find("#audio")
    page.until(lambda: (audio.get_property("duration") or 0) > 7.5)
    page.until(lambda: audio.get_property("currentTime") > 0.3)
    assert not audio.get_property("paused")
    page.until(lambda: page.all("#sung li.now"))
    page.picture("3-playing")
    drawn = browser.execute_script(
        "return ['wave', 'spectrum'].map(id => { const c = document.getElementById(id);"
        "return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size; })"
    )
    assert min(drawn) > 3, "both pictures show something"
    page.find("#sung li:last-child button").click()
    assert audio.get_property("currentTime") > 1

    [job] = served.client.get("/v1/songs").json()["data"]
    assert job["request"]["bpm"] == 80 and "长{chang2}" in job["request"]["lyrics"]
    page.until(lambda: page.all("#history li"))
    page.find("#download").click()
    page.until(lambda: list(tmp_path.glob("song-*.wav")))
    assert soundfile.info(str(next(tmp_path.glob("song-*.wav")))).duration == 8
    page.find("#sidecar").click()
    page.until(lambda: list(tmp_path.glob("song-*.json")))

    # after a reload the song is still there
    browser.refresh()
    page.until(lambda: page.all("#history li"))
    page.find("#history li button").click()
    page.until(lambda: page.shown("player"))
    assert len(page.all("#sung li:not(.kind)")) == 2
    assert page.complaints() == []
    served.client.delete(f"/v1/songs/{job['id']}")


def test_a_part_of_a_song_is_made_anew(served: Served, browser: Any) -> None:
    from selenium.webdriver import ActionChains

    page = Page(browser, served.url)
    page.type("description", "calm piano")
    page.type("lyrics", "[verse]\n月亮升起来\n照着旧窗台")
    page.type("seconds", "8")
    page.type("steps", "4")
    page.until(lambda: "BPM" in page.text("chips"))
    tempo = re.search(r"(\d+(?:\.\d+)?) BPM", page.text("chips"))
    page.find("#make").click()
    page.until(lambda: page.shown("player") and page.find("#make").is_enabled())
    [first] = served.client.get("/v1/songs").json()["data"]
    sidecar = served.client.get(f"/v1/songs/{first['id']}/sidecar").json()
    assert tempo and sidecar["outline"]["bpm"] == float(tempo[1]), "what was shown is made"

    page.find("#repaint-box summary").click()
    page.find("#repaint").click()
    page.until(lambda: page.shown("error"))
    assert "within the song" in page.text("error")
    # a span is drawn over the waveform, from a quarter to a half of it; a click still seeks
    wave = page.find("#wave")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", wave)
    wide = wave.size["width"]
    drag = ActionChains(browser).move_to_element_with_offset(wave, -round(wide / 4), 0)
    drag.click_and_hold().move_by_offset(round(wide / 8), 0).move_by_offset(
        round(wide / 8), 0
    ).release().perform()
    spans = [float(page.value(f"repaint-{end}")) for end in ("from", "to")]
    assert spans == pytest.approx([2, 4], abs=0.15) and page.shown("span")
    page.find("#audio").click()
    ActionChains(browser).move_to_element_with_offset(wave, round(wide / 4), 0).click().perform()
    assert page.find("#audio").get_property("currentTime") == pytest.approx(6, abs=0.7)
    assert [float(page.value(f"repaint-{end}")) for end in ("from", "to")] == spans
    page.type("repaint-lyrics", "[verse]\n太阳落下去\n照着旧窗台")
    page.picture("6-repaint")
    page.find("#repaint").click()
    page.until(lambda: len(page.all("#history li")) == 2 and page.find("#make").is_enabled())
    assert not page.shown("error")
    [second] = [
        one for one in served.client.get("/v1/songs").json()["data"] if one["id"] != first["id"]
    ]
    assert second["status"] == "completed" and second["request"]["edit"] == first["id"]
    assert second["request"]["repaint"] == f"{spans[0]:g}-{spans[1]:g}"
    page.until(lambda: "太阳落下去" in page.text("sung"))
    assert not page.shown("span") and page.value("repaint-from") == ""
    assert page.complaints() == []


def test_two_languages_dark_and_the_keyboard_alone(served: Served, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys as Key

    page = Page(browser, served.url)
    assert page.text("make") == "Make the song"
    page.find("#language").send_keys(Key.ENTER)
    assert page.text("make") == "生成歌曲" and page.find("html").get_attribute("lang") == "zh-CN"
    page.find("#theme").send_keys(Key.SPACE)
    assert page.find("html").get_attribute("data-theme") == "dark"
    description = page.find("#description")
    description.send_keys("慢歌，钢琴")
    # every control is reached by Tab, in the order of the page
    reached, focused = [], None
    browser.execute_script("document.querySelector('.skip').focus()")
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Key.TAB)
        focused = browser.switch_to.active_element
        reached.append(focused.get_attribute("id"))
        if reached[-1] == "make":
            break
    ids = [one for one in reached if one]
    assert ids.index("description") < ids.index("lyrics") < ids.index("seconds") < len(ids)
    assert reached[-1] == "make"
    page.type("seconds", "3")
    page.type("steps", "2")
    page.find("#steps").send_keys(Key.CONTROL, Key.ENTER)
    page.until(lambda: page.shown("player"))
    wave = page.find("#wave")
    before = page.find("#audio").get_property("currentTime")
    wave.send_keys(Key.ARROW_RIGHT)
    page.until(lambda: page.find("#audio").get_property("currentTime") >= before + 0.9)
    page.picture("4-dark-chinese")
    browser.refresh()
    page.until(lambda: page.text("make") == "生成歌曲")
    browser.set_window_size(420, 900)
    page.picture("5-narrow")
    wide = browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert wide, "a phone shows the page without scrolling sideways"
    assert page.complaints() == []


def test_a_song_is_stopped_and_errors_are_told(served: Served, browser: Any) -> None:
    page = Page(browser, served.url)
    page.type("lyrics", "[verze]\n月亮")
    page.until(lambda: "verze" in page.text("error"))
    page.type("lyrics", "")
    page.type("description", "calm piano")
    page.type("seconds", "60")
    page.type("steps", "500")
    page.until(lambda: not page.shown("error"))
    page.find("#make").click()
    page.until(lambda: "step" in page.text("state"))
    page.find("#stop").click()
    page.until(lambda: not page.shown("progress"))
    [job] = [
        one
        for one in served.client.get("/v1/songs").json()["data"]
        if one["request"]["sampler"] == {"steps": 500}
    ]
    assert served.ended(job["id"])["status"] == "cancelled"
    assert page.find("#make").is_enabled()


def test_a_key_is_asked_for(micro: Path, tmp_path: Path, browser: Any) -> None:
    key = new_key()
    file = tmp_path / "keys.txt"
    file.write_text(f"alpha {hash_key(key)}\n")
    with serving(
        lambda: Engine.open(micro, runtime="torch"), tmp_path / "songs", keys=Keys.load(file)
    ) as served:
        page = Page(browser, served.url)
        page.until(lambda: page.shown("error"))
        assert "key" in page.text("error")
        page.type("apikey", key)
        page.type("description", "piano")
        page.type("seconds", "2")
        page.find("#make").click()
        page.until(lambda: page.shown("player"))
        page.until(lambda: (page.find("#audio").get_property("duration") or 0) > 1.5)
