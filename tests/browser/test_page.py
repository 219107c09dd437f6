"""What people do on the search page, in a real browser: two screens, a failing and a slow service."""

import json
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.timeout(120)
MESSAGE = "!document.querySelector('#problem').hidden"
QUIET = "document.querySelector('#problem').hidden"


def test_back_after_an_upload_asks_the_upload_its_own_text_again(opened, site, upload):
    one = opened
    one.upload(upload)
    one.search("make it blue")
    first = one.shown()
    one.tab.click("#grid .use")
    one.search("add a star")
    assert one.shown()[:2] == [first[2][0], "add a star"]
    one.back()
    one.answers("make it blue")
    one.tab.wait("document.querySelector('#name').textContent === 'tall one.png'")
    assert one.shown() == first
    one.tab.click("#submit")
    one.tab.wait("document.querySelector('#submit').textContent === 'Search'")
    assert site.asked == [("upload", "make it blue"), (first[2][0], "add a star"), ("upload", "make it blue")]


def test_back_after_a_click_on_an_answer_returns_to_the_answers(opened):
    one = opened
    one.tab.click("#grid .use")
    one.search("make it blue")
    first = one.shown()
    one.tab.click("#grid .cell:nth-child(2) .use")
    one.tab.wait(f"document.querySelector('#name').textContent === {json.dumps(first[2][1])}")
    assert one.trail() == ["[make it blue]", "..."] and one.shown()[1] == ""
    one.back()
    one.tab.wait(f"document.querySelector('#name').textContent === {json.dumps(first[0])}")
    assert one.shown() == first and one.trail() == []


def test_the_whole_reference_is_seen_whatever_its_shape(opened, upload):
    one = opened
    for choose in (lambda: one.tab.click("#grid .use"), lambda: one.upload(upload)):
        choose()
        one.tab.wait("document.querySelector('#enlarge img')?.complete")
        picture, frame = one.tab.box("#enlarge img"), one.tab.box("#drop")
        assert frame["y"] <= picture["y"] and picture["y"] + picture["height"] <= frame["y"] + frame["height"]
        assert frame["x"] <= picture["x"] and picture["x"] + picture["width"] <= frame["x"] + frame["width"]
        assert one.tab.js("getComputedStyle(document.querySelector('#enlarge img')).objectFit") == "contain"
        assert picture["height"] > 200


def test_a_failure_is_said_in_sight_and_leaves_nothing_dead(opened, site):
    one = opened
    one.tab.click("#grid .use")
    one.search("make it blue")
    site.fails = 500
    one.write("add a star")
    one.tab.click("#submit")
    one.tab.wait(MESSAGE)
    assert "500" in one.tab.text("#complaint") and one.tab.visible("#complaint") and one.tab.visible("#again")
    assert one.shown()[2] == [] and one.tab.text("#title") == "“add a star”"
    site.fails = 0
    one.tab.click("#again")
    one.answers("add a star")
    assert one.tab.js(QUIET)
    one.tab.wait("getComputedStyle(document.querySelector('#grid')).opacity === '1'")
    one.tab.click("#grid .use")
    one.tab.wait("document.querySelectorAll('#trail button').length === 1")


def test_a_service_that_is_away_is_named_and_asked_again(user, site):
    site.fails = 503
    one = user()
    one.tab.wait(MESSAGE)
    assert "busy" in one.tab.text("#complaint")
    site.fails = 0
    one.tab.click("#again")
    one.gallery()
    one.tab.offline(True)
    one.tab.click("#grid .use")
    one.write("make it blue")
    one.tab.press("Enter")
    one.tab.wait(MESSAGE)
    assert "cannot be reached" in one.tab.text("#complaint")
    one.tab.offline(False)
    one.tab.click("#back")
    one.gallery()


def test_a_search_without_a_reference_or_a_text_says_what_is_missing(opened, site):
    one = opened
    assert one.tab.visible(".hint .wide") != one.tab.visible(".hint .narrow")  # one hint for each screen
    one.write("make it blue")
    one.tab.click("#submit")
    one.tab.wait(MESSAGE)
    assert "Pick a reference" in one.tab.text("#complaint") and one.tab.visible("#complaint")
    one.tab.press("Enter")
    one.tab.click("#grid .use")
    one.tab.wait(QUIET)
    one.write(" ")
    one.tab.press("Enter")
    one.tab.wait(MESSAGE)
    assert "Say what should be different" in one.tab.text("#complaint")
    assert one.tab.js("document.activeElement.id") == "text" and site.asked == []


@pytest.mark.parametrize(
    "name, data", [("notes.txt", b"a shopping list"), ("no.png", b"\x89PNG no"), ("empty.jpg", b"")]
)
def test_a_file_that_is_no_picture_is_refused_by_name_and_the_reference_stays(opened, tmp_path, name, data):
    one = opened
    one.tab.click("#grid .use")
    before = one.tab.text("#name")
    (tmp_path / name).write_bytes(data)
    one.tab.choose("#file", tmp_path / name)
    one.tab.wait(MESSAGE)
    assert name in one.tab.text("#complaint") and "JPEG" in one.tab.text("#complaint")
    assert one.tab.visible("#complaint") and one.tab.text("#name") == before
    one.tab.click("#dismiss")
    one.tab.wait(QUIET)


def test_a_picture_that_browsers_do_not_show_is_left_to_the_service(user, site, tmp_path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "scan.tiff")
    one = user()
    one.gallery()
    one.tab.choose("#file", tmp_path / "scan.tiff")
    one.tab.wait(MESSAGE)
    assert "cannot show" in one.tab.text("#complaint") and one.tab.text("#name") == "scan.tiff"
    assert one.tab.js("document.querySelector('#enlarge').matches('.blank')")
    one.search("make it blue")
    assert site.asked == [("upload", "make it blue")]


def test_a_drop_and_a_paste_without_a_picture_are_answered(user):
    one = user()
    one.gallery()
    one.tab.js(
        "const held = new DataTransfer(); held.setData('text/plain', 'words');"
        "document.body.dispatchEvent(new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: held}))"
    )
    one.tab.wait(MESSAGE)
    assert "no file" in one.tab.text("#complaint")
    one.tab.click("#dismiss")
    one.tab.js(
        "document.body.dispatchEvent(new ClipboardEvent('paste', {bubbles: true, clipboardData: new DataTransfer()}))"
    )
    one.tab.wait(MESSAGE)
    assert "clipboard" in one.tab.text("#complaint")


def test_an_upload_its_answers_and_a_text_half_written_outlive_a_reload(opened, site, upload):
    one = opened
    one.upload(upload)
    one.search("make it blue")
    first = one.shown()
    one.write("add a")
    one.tab.reload()
    one.answers("make it blue")
    one.tab.wait("document.querySelector('#enlarge img')?.naturalHeight === 900")
    assert one.shown() == [first[0], "add a", first[2]]
    assert site.asked == [("upload", "make it blue")] * 2


def test_an_upload_of_another_browser_is_reported_as_missing(user):
    one = user("?upload=nowhere&text=make%20it%20blue")
    one.tab.wait(MESSAGE)
    assert "no longer kept in this browser" in one.tab.text("#complaint")
    assert one.shown()[1] == "make it blue"


def test_a_link_opens_the_search_it_names_and_the_window_says_so(user, site):
    one = user(f"?image={quote('a b/pïc 01')}&text=make%20it%20blue&k=3")
    one.answers("make it blue")
    assert one.shown()[0] == "a b/pïc 01" and len(one.shown()[2]) == 3
    assert site.asked == [("a b/pïc 01", "make it blue")]
    title = one.tab.js("document.title")
    assert "make it blue" in title and "a b/pïc 01" in title
    one.tab.click("#back")
    one.gallery()
    assert "make it blue" not in one.tab.js("document.title")
    one.back()
    one.answers("make it blue")
    assert one.tab.js("document.title") == title


@pytest.mark.parametrize("k, wanted", [("-5", 12), ("0", 12), ("many", 12), ("2.5", 12), ("7", 7), ("100000", 50)])
def test_an_invalid_number_of_answers_in_the_address_still_gives_answers(user, k, wanted):
    one = user(f"?image=plain/00&text=make%20it%20blue&k={k}")
    one.answers("make it blue")
    assert len(one.shown()[2]) == wanted and one.tab.js(QUIET)
    assert one.tab.js("document.querySelector('#count').value") == str(wanted)


def test_a_picture_that_does_not_load_leaves_a_word_and_no_broken_image(user):
    one = user("?image=nowhere")
    one.tab.wait("document.querySelector('#enlarge.blank')")
    assert one.tab.js("document.querySelectorAll('#enlarge img').length") == 0
    assert one.tab.text("#name") == "nowhere"
    one.write("make it blue")
    one.tab.press("Enter")
    one.tab.wait(MESSAGE)
    assert "no image 'nowhere'" in one.tab.text("#complaint")
    assert one.tab.js("document.querySelector('#again').hidden")


def test_the_suggestions_are_the_data_sets_texts_about_the_picture_that_was_picked(opened, site):
    one = opened
    assert one.tab.js("document.querySelectorAll('#chips button').length") == 0
    one.tab.click("[data-id='a b/pïc 01'] .use")
    one.tab.wait("document.querySelectorAll('#chips button').length === 2")
    assert one.tab.text("#chips") == "make it redadd a star"
    one.tab.click("[data-id='a b/pïc 03'] .use")
    one.tab.wait("document.querySelector('#suggestions').hidden")
    one.tab.click("[data-id='a b/pïc 05'] .use")
    one.tab.wait("document.querySelectorAll('#chips button').length === 1")
    one.tab.click("#chips button")
    one.answers("turn it green")
    assert site.asked == [("a b/pïc 05", "turn it green")]
    one.tab.click("#clear")
    one.tab.wait("document.querySelector('#suggestions').hidden")


def test_a_first_answer_is_one_click_away(opened, site):
    one = opened
    one.tab.click("#tries button:nth-child(2)")
    one.answers("make it blue")
    assert one.shown()[:2] == ["plain/04", "make it blue"] and site.asked == [("plain/04", "make it blue")]
    one.back()
    one.gallery()
    assert one.shown()[:2] == ["", ""]


def tabs_to_the_first_answer(one):
    tabs = 0
    while not one.tab.js("document.activeElement === document.querySelector('#grid .open')"):
        one.tab.press("Tab")
        tabs += 1
        assert tabs < 20
    return tabs


def test_the_page_is_used_with_the_keyboard_alone(user):
    one = user("?image=plain/00")
    one.gallery()
    one.tab.js("document.querySelector('#text').focus()")
    one.tab.type("make it blue")
    one.tab.press("Enter")
    one.answers("make it blue")
    assert tabs_to_the_first_answer(one) <= 1
    one.tab.js("document.querySelector('#text').focus()")
    assert tabs_to_the_first_answer(one) <= 5  # search, count, what narrows, ways back
    first = one.shown()[2][0]
    one.tab.press("Enter")
    one.tab.wait("document.querySelector('#large').open")
    one.tab.press("Enter")
    one.tab.wait(f"document.querySelector('#name').textContent === {json.dumps(first)}")
    assert one.tab.js("document.activeElement.id") == "text"
    one.tab.type("add a star")
    one.tab.press("Enter")
    one.answers("add a star")


def test_the_suggestions_are_one_stop_of_the_tab_key_and_arrows_lead_through_them(user):
    one = user("?image=plain/00")
    one.tab.wait("document.querySelectorAll('#chips button').length === 2")
    one.tab.js("document.querySelector('#chips button').focus()")
    one.tab.press("ArrowRight")
    assert one.tab.js("document.activeElement.textContent") == "add a star"
    one.tab.press("Enter")
    one.answers("add a star")


def test_on_a_phone_every_target_fits_a_finger_and_no_field_makes_it_zoom(user, phone, upload):
    one = user("", phone)
    targets = (
        "[...document.querySelectorAll('button, select, textarea, input[type=range], label.link, a')]"
        ".filter(e => e.getClientRects().length && !e.disabled)"
        ".map(e => [e.id || e.className, e.getBoundingClientRect()])"
        ".filter(([, r]) => r.width < 43.9 || r.height < 43.9).map(([name, r]) => `${name} ${r.width}x${r.height}`)"
    )
    fonts = (
        "[...document.querySelectorAll('input, select, textarea')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    one.gallery()
    assert one.tab.js(targets) == []
    one.tab.click("[data-id='a b/pïc 01'] .use")
    one.tab.wait("document.querySelectorAll('#chips button').length === 2")
    assert one.tab.js(targets) == []
    one.search("make it blue")
    one.tab.click("#grid .use")
    one.tab.wait("document.querySelectorAll('#trail button').length === 1")
    assert one.tab.js(targets) == [] and min(one.tab.js(fonts)) >= 16
    one.tab.click("#grid .open")
    one.tab.wait("document.querySelector('#large').open")
    assert one.tab.js(targets) == []
    assert one.tab.js("document.documentElement.scrollWidth") <= 390


def test_a_late_answer_does_not_replace_a_newer_one_and_no_typing_is_lost(user, site):
    one = user()
    one.gallery()
    one.tab.click("#grid .use")
    site.delay = 1.0
    one.write("make it blue")
    one.tab.press("Enter")
    one.tab.wait("document.querySelector('#subtitle').textContent === 'searching …'")
    site.delay = 0.0
    one.write("add a star and more")
    one.search("add a star")
    one.write("turn it")
    one.tab.js("new Promise(done => setTimeout(done, 1300))")
    assert one.tab.text("#title") == "“add a star”" and one.shown()[1] == "turn it"
    one.back()
    one.answers("make it blue")


def test_a_picture_too_large_for_the_service_is_sent_smaller(user, site, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > 2**21
    one = user()
    one.gallery()
    one.upload(tmp_path / "noise.png")
    one.search("make it blue")
    assert site.asked == [("upload", "make it blue")]


CONTRAST = """(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
  const ground = e => { for (; e; e = e.parentElement) {
    const colour = rgb(getComputedStyle(e).backgroundColor);
    if (colour.length < 4 || colour[3] === 1) return colour; } return [255, 255, 255]; };
  const ratio = (one, other) => { const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
    return (a + .05) / (b + .05); };
  return [...document.querySelectorAll('body *')]
    .filter(e => e.getClientRects().length && !e.disabled && e.tagName !== 'OPTION')
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || e.placeholder)
    .map(e => [e.id || e.className || e.tagName, ratio(rgb(getComputedStyle(e).color), ground(e))])
    .filter(([, found]) => found < 4.5);
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_that_wcag_asks_for(user, scheme):
    one = user("?image=a%20b/p%C3%AFc%2001&text=make%20it%20blue")
    one.tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    one.answers("make it blue")
    one.tab.click("#grid .use")
    one.tab.wait("document.querySelector('#trail .pending')")
    one.tab.click("#submit")
    one.tab.wait(MESSAGE)
    assert one.tab.js("getComputedStyle(document.body).backgroundColor") == {
        "light": "rgb(246, 246, 249)", "dark": "rgb(16, 16, 24)"
    }[scheme]  # fmt: skip
    assert one.tab.js(CONTRAST) == []
    one.tab.click("#dismiss")
    one.tab.click("#back")
    one.gallery()
    one.tab.click("#grid .open")
    one.tab.wait("document.querySelector('#large').open")
    assert one.tab.js(CONTRAST) == []
