"""The page of a service that needs a key: it asks, keeps the key in its tab, and shows pictures with it."""

import time

import pytest

from cirray.serving import keys as module
from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs
from cirray.serving.keys import run_keys
from cirray.serving.keys_config import KeysRun

pytestmark = pytest.mark.timeout(120)
ASKED = "document.querySelector('#keybox').open"
LOADED = "document.querySelector('#grid .cell img')?.naturalWidth > 0"


@pytest.fixture
def file(site, tmp_path):
    place, before = tmp_path / "keys.json", site.app
    site.app = make_api(lambda: site.service, ServeArgs(max_body_mb=1, keys=str(place)))
    yield place
    site.app = before


def made(file, name):
    return run_keys(KeysRun(file=str(file), add=name)).split("\n")[0]


def tell(one, key):
    one.tab.js("document.querySelector('#key').focus()")
    one.tab.type(key)
    one.tab.press("Enter")


def test_the_page_asks_for_a_key_and_shows_pictures_with_it(user, file, phone):
    key = made(file, "shop")
    for screen in ((), (phone,)):
        one = user("", *screen)
        one.tab.wait(ASKED)
        assert one.tab.text("#keyreason") == "This service needs a key." and one.tab.visible("#keyuse")
        tell(one, "cirray_wrong")
        one.tab.wait("document.querySelector('#keyreason').textContent.includes('not known')")
        tell(one, key)
        one.gallery()
        one.tab.wait(LOADED)
        one.tab.click("#grid .use")
        one.search("make it blue")
        one.tab.wait(LOADED)
        one.tab.click("#grid .open")
        one.tab.wait("document.querySelector('#largeframe img')?.naturalWidth > 0")
        kept = "[sessionStorage.length, localStorage.length, document.cookie, location.href.includes('cirray_')]"
        assert one.tab.js(kept) == [1, 0, "", False]


def test_a_key_that_was_revoked_is_asked_for_again_and_closing_the_question_says_why(user, file):
    one, key = user(), made(file, "shop")
    one.tab.wait(ASKED)
    tell(one, key)
    one.gallery()
    one.tab.click("#grid .use")
    one.write("make it blue")
    one.tab.wait("document.body.innerText.toLowerCase().includes('try one of these')")  # no request is under way
    run_keys(KeysRun(file=str(file), revoke="shop"))
    time.sleep(module.LOOK_S + 0.05)
    one.tab.press("Enter")
    one.tab.wait(ASKED)
    one.tab.click("#keycancel")
    one.tab.wait("!document.querySelector('#problem').hidden")
    assert "not known" in one.tab.text("#complaint")
    other = made(file, "other")
    time.sleep(module.LOOK_S + 0.05)
    one.tab.press("Enter")
    one.tab.click("#submit")
    one.tab.wait(ASKED)
    tell(one, other)
    one.answers("make it blue")
