"""The questionnaire in a real headless Chromium: background, keyboard, players, both languages, a
stop in the middle, and answers that `mudit eval survey read` takes.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chromium import PICTURES, needs_chromium, open_chromium
from mudit_engine.evaluation.survey.answers import load_key, read_answers
from survey_cases import made_in

pytestmark = needs_chromium


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    with open_chromium(tmp_path / "saved", width=900, height=1300) as driver:
        yield driver


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and takes what is posted."""

    posted: list[dict[str, Any]]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).posted.append(json.loads(body))
        self.send_response(204)
        self.end_headers()


def serve(folder: Path) -> tuple[ThreadingHTTPServer, type[Quiet]]:
    handler = type("Handler", (Quiet,), {"posted": []})
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, handler


class Page:
    """The questionnaire as a listener uses it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def shown(self, id: str) -> bool:
        return bool(self.find(f"#{id}").is_displayed())

    def text(self, id: str) -> str:
        return str(self.find(f"#{id}").text)

    def until(self, true: Callable[[], Any], *, seconds: float = 60.0) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, 0.05).until(lambda _: true())

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def picture(self, name: str) -> None:
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(PICTURES) / f"{name}.png"))

    def complaints(self) -> list[str]:
        return [
            one["message"] for one in self.driver.get_log("browser") if one["level"] == "SEVERE"
        ]

    def begin(self) -> None:
        from selenium.webdriver.support.ui import Select

        assert not self.find("#start").is_enabled()
        for select in self.all("#background select"):
            Select(select).select_by_index(1)
        self.find("#start").click()

    def listen(self, *play: str) -> None:
        """Plays each song by its key until the page has heard enough of it."""
        for number, key in enumerate(play):
            audio = self.all("audio")[number]
            self.until(lambda audio=audio: audio.get_property("readyState") >= 2)
            self.keys(key)
            self.until(lambda audio=audio: audio.get_property("currentTime") > 0.6)
            self.until(lambda audio=audio: audio.get_property("ended"))


def test_a_listener_rates_stops_and_ends(browser: Any, tmp_path: Path) -> None:
    made = made_in(tmp_path, trials=3, forms=2, listen_seconds=0.5)
    server, _ = serve(made.page.parent)
    key = load_key(made.key)
    try:
        url = f"http://127.0.0.1:{server.server_port}/index.html?form=2"
        page = Page(browser, url)
        page.picture("1-welcome")
        page.begin()
        page.until(lambda: page.shown("trial"))
        answered, n = 0, 5
        while page.shown("trial"):
            trial = key.trials[f"2-{answered + 1}"]
            check = int(trial["check"])
            assert page.shown("check") == bool(check)
            if not check:
                assert not page.find("#next").is_enabled()
                page.listen(" ")
            page.keys(*[str(check or 4)] * len(key.questions))
            if answered == 0:
                page.keys("\ue013", "2")  # arrow up: the last question again
            page.until(page.find("#next").is_enabled)
            if answered == 0:
                page.find("#comment").send_keys("clear voice")
                page.picture("2-rating")
                # another language keeps what was answered
                page.find("#language").click()
                assert page.text("next") == "下一首"
                assert len(page.all("#questions input:checked")) == len(key.questions)
                page.picture("3-chinese")
                page.find("#language").click()
            page.find("#next").click()
            answered += 1
            if answered == 2:  # the browser is closed and opened again
                browser.get("about:blank")
                page = Page(browser, url)
                assert page.shown("trial")
                assert page.text("place") == f"3 of {n}"
        assert answered == n and page.shown("end")
        page.picture("4-end")
        page.find("#save").click()
        [saved] = page.until(lambda: list((tmp_path / "saved").glob("answers-*.json")))
        assert page.complaints() == []
    finally:
        server.shutdown()
    told = json.loads(saved.read_text("utf-8"))
    assert told["answers"][0]["comment"] == "clear voice"
    assert all(min(one["played"]) > 0.4 for one in told["answers"] if not check_of(key, one))
    heard = read_answers(key, [saved])
    assert list(heard.listeners.values()) == ["amateur"] and len(heard.ratings) == 3 * 8


def check_of(key: Any, answer: dict[str, Any]) -> int:
    return int(key.trials[answer["trial"]]["check"])


def test_pairs_are_answered_by_keys_and_sent(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "survey"
    made = made_in(
        tmp_path, mode="pairs", trials=2, forms=1, repeats=0, listen_seconds=0.5, submit="/answers"
    )
    server, handler = serve(folder / "page")
    key = load_key(made.key)
    try:
        page = Page(browser, f"http://127.0.0.1:{server.server_port}/index.html")
        page.begin()
        page.until(lambda: page.shown("trial"))
        for number in range(3):
            check = int(key.trials[f"1-{number + 1}"]["check"])
            if not check:
                page.listen("a", "b")
            page.keys(*[("3", "1", "3")[check]] * 2)
            page.until(lambda: page.find("#next").is_enabled())
            page.picture(f"5-pair-{number}")
            page.keys("\ue007")  # Enter
        page.until(lambda: page.shown("end") and page.text("sent").startswith("Sent"))
        assert page.complaints() == []
    finally:
        server.shutdown()
    [told] = handler.posted
    (tmp_path / "sent.json").write_text(json.dumps(told), "utf-8")
    heard = read_answers(key, [tmp_path / "sent.json"])
    assert len(heard.preferences) == 2 * 2
    for one in heard.preferences:
        [trial] = [t for t in key.trials.values() if t["request"] == one.request and not t["check"]]
        assert one.winner == trial["systems"][1] and not one.draw


def test_a_form_that_does_not_exist_is_named(browser: Any, tmp_path: Path) -> None:
    made = made_in(tmp_path, trials=2, forms=1)
    page = Page(browser, f"{made.page.as_uri()}?form=9")  # from the disk, without a server
    page.until(lambda: "form 9" in page.text("error"))
    assert not page.shown("welcome")
