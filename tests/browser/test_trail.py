"""Refining step by step: the trail, walking on it, sharing it, and where a reference may come from."""

import base64
import json
from urllib.parse import parse_qs, urlsplit

import pytest

pytestmark = pytest.mark.timeout(120)
COPIED = "document.querySelector('#share').textContent.startsWith('Copied')"


def refine(one, text, answer=1):
    one.tab.click(f"#grid .cell:nth-child({answer}) .use")
    one.search(text)


def share(one):
    """What "Copy link" writes to the clipboard."""
    one.tab.js("navigator.clipboard.writeText = async text => { window.copied = text }")
    one.tab.click("#share")
    one.tab.wait(COPIED)
    return one.tab.js("window.copied")


def test_the_trail_is_walked_back_and_forth_and_outlives_a_reload(user, site):
    one = user()
    one.gallery()
    refine(one, "make it blue")
    first = one.shown()
    one.tab.click("#grid .use")
    one.tab.click("#grid .cell:nth-child(3) .use")  # another mind before the next search: still one step
    assert one.trail() == ["[make it blue]", "..."]
    one.search("add a star")
    refine(one, "turn it green")
    third = one.shown()
    assert one.trail() == ["make it blue", "add a star", "[turn it green]"]
    asked = len(site.asked)
    one.tab.click("#trail li:nth-child(1) button")
    one.answers("make it blue")
    assert one.shown() == first and one.trail() == ["[make it blue]", "add a star", "turn it green"]
    one.tab.click("#trail li:nth-child(3) button")
    one.answers("turn it green")
    assert one.shown() == third and len(site.asked) == asked
    one.back()
    one.answers("make it blue")
    one.tab.reload()
    one.answers("make it blue")
    one.tab.wait("document.querySelectorAll('#trail button').length === 3")
    assert one.shown() == first
    one.search("make it red")  # another way from the first step: what came after it was another story
    assert one.trail() == []
    one.back()
    one.answers("make it blue")
    one.tab.wait("document.querySelectorAll('#trail button').length === 3")


def test_a_link_rebuilds_the_trail_for_others(user, screen):
    one = user("", screen)
    one.gallery()
    refine(one, "make it blue & 'bright' 100 %")
    refine(one, "add a star", 2)
    refine(one, "turn it green")
    one.tab.click("#trail li:nth-child(2) button")
    one.answers("add a star")
    shown, trail, link = one.shown(), one.trail(), share(one)
    assert trail == ["make it blue & 'bright' 100 %", "[add a star]", "turn it green"]
    assert link == one.tab.js("location.href")
    other = user(link.split("/", 3)[3], screen)
    other.answers("add a star")
    other.tab.wait("document.querySelectorAll('#trail button').length === 3")
    assert other.shown() == shown and other.trail() == trail
    other.tab.click("#trail li:nth-child(1) button")
    other.answers("make it blue & 'bright' 100 %")


def test_an_uploaded_picture_is_plainly_not_shared_and_later_steps_are(opened, upload, visit):
    one = opened
    one.upload(upload)
    one.search("make it blue")
    assert one.tab.js("document.querySelector('#share').hidden")
    assert "this browser only" in one.tab.text("#unshared")
    one.tab.js("document.querySelector('#unshared').scrollIntoView()")
    assert one.tab.visible("#unshared")
    refine(one, "add a star")
    assert one.tab.js("document.querySelector('#unshared').hidden")
    link = share(one)
    assert one.tab.text("#share") == "Copied, without your pictures"
    words = parse_qs(urlsplit(link).query)
    assert words["text"] == ["add a star"] and "upload" not in link and "step" not in words


@pytest.mark.parametrize(
    "address",
    ["?image=plain/00&text=blue&step=%00%ff&later=x&weight=9", "?step=image%3Dplain/00%26text%3Dred&text=", "?later=1"],
)
def test_a_link_that_was_cut_or_changed_opens_what_it_still_says(user, address):
    one = user(address)
    one.tab.wait("document.querySelector('#grid .cell') && !document.querySelector('#grid').inert")
    assert one.tab.js("document.querySelector('#problem').hidden") and one.trail() == []


def picture_event(kind, path):
    """A script that drops or pastes a file as a browser would hand it over."""
    data = base64.b64encode(path.read_bytes()).decode()
    made = {
        "drop": "new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: held})",
        "paste": "new ClipboardEvent('paste', {bubbles: true, cancelable: true, clipboardData: held})",
    }[kind]
    return (
        f"const bytes = Uint8Array.from(atob('{data}'), c => c.charCodeAt(0)); const held = new DataTransfer();"
        f"held.items.add(new File([bytes], '{kind}ped.png', {{type: 'image/png'}}));"
        f"document.body.dispatchEvent({made})"
    )


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_reference_is_dropped_or_pasted(user, site, upload, kind):
    one = user()
    one.gallery()
    one.tab.js(picture_event(kind, upload))
    one.tab.wait("document.querySelector('#enlarge img')?.naturalHeight === 900")
    assert one.tab.text("#name") == f"{kind}ped.png"
    one.search("make it blue")
    assert site.asked == [("upload", "make it blue")]


def test_an_answer_that_is_dragged_to_the_form_becomes_the_reference(user):
    one = user()
    one.gallery()
    refine(one, "make it blue")
    wanted = one.shown()[2][2]
    one.tab.js(
        "const held = new DataTransfer();"
        "document.querySelectorAll('#grid .cell')[2].dispatchEvent("
        "  new DragEvent('dragstart', {bubbles: true, dataTransfer: held}));"
        "document.querySelector('#drop').dispatchEvent("
        "  new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: held}))"
    )
    one.tab.wait(f"document.querySelector('#name').textContent === {json.dumps(wanted)}")
    assert one.trail() == ["[make it blue]", "..."]
