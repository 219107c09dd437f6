"""Thousands of photographs of all shapes on the page: rows, scrolling, large pictures, the keyboard, screen readers."""

import json

import pytest

pytestmark = pytest.mark.timeout(120)
MESSAGE = "!document.querySelector('#problem').hidden"
CELLS = (
    "[...document.querySelectorAll('#grid .cell')].map(e => [e.dataset.id, e.getBoundingClientRect(),"
    " e.querySelector('.frame').getBoundingClientRect()])"
    ".map(([id, c, f]) => ({id, x: c.x, y: c.y, right: c.right, bottom: c.bottom, ratio: f.width / f.height}))"
)
READ = "Number(document.querySelector('#grid').style.height.replace('px', ''))"
PLACES = "[...document.querySelectorAll('#grid .cell')].map(e => Number(e.ariaPosInSet))"


@pytest.fixture
def crowded(user, site, crowd, screen):
    site.service = crowd
    one = user("", screen)
    one.gallery()
    return one


@pytest.fixture
def many(user, site, crowd):
    site.service = crowd
    one = user()
    one.gallery()
    return one


def scroll_to_end(one, rounds=80):
    """Scroll as far as the gallery goes, waiting for pictures at each end."""
    for _ in range(rounds):
        height = one.tab.js(READ)
        one.tab.js("scrollTo(0, document.documentElement.scrollHeight)")
        if one.tab.js(f"({PLACES}).includes(10000)"):
            return
        one.tab.wait(f"{READ} > {height} || ({PLACES}).includes(10000)")
    raise AssertionError("the gallery never ended")


def weight_of_page(one):
    """Elements in the document and bytes of the scripts' values, after garbage collection."""
    one.tab.send("HeapProfiler.collectGarbage")
    return one.tab.js("document.querySelectorAll('*').length"), one.tab.send("Runtime.getHeapUsage")["usedSize"]


def test_ten_thousand_pictures_are_scrolled_through_and_memory_stays_flat(user, site, crowd, phone):
    site.service = crowd
    one = user("", phone)
    one.gallery()
    elements, begin = weight_of_page(one)
    scroll_to_end(one)
    assert one.tab.js("[...document.querySelectorAll('#grid .cell')].at(-1).dataset.id") == "all/09999"
    many, end = weight_of_page(one)
    assert many < elements + 400 and end < begin + 6_000_000
    one.tab.wait("[...document.querySelectorAll('#grid .cell:last-child img')].every(image => image.naturalWidth)")
    one.tab.js("scrollTo(0, 0)")
    one.tab.wait("document.querySelector('[data-id=\"all/00000\"]')")


def test_pictures_keep_their_shapes_in_rows_that_do_not_overlap(crowded):
    one = crowded
    cells = one.tab.js(CELLS)
    shapes = (40 / 32, 32 / 40, 3.0, 0.45, 1.0, 3.0, 30 / 45)  # 2:9 stands in a cell of 0.45
    for cell in cells:
        assert cell["ratio"] == pytest.approx(shapes[int(cell["id"][4:]) % 7], rel=0.03)
    for before, after in zip(cells, cells[1:], strict=False):
        assert after["x"] >= before["right"] + 5 or after["y"] >= before["bottom"] + 5
    assert one.tab.js("getComputedStyle(document.querySelector('#grid .frame img')).objectFit") == "contain"
    assert one.tab.js("document.documentElement.scrollWidth <= innerWidth")
    rights = [one["right"] for one, after in zip(cells, cells[1:], strict=False) if after["x"] < one["x"]]
    assert len(rights) > 3 and max(rights) - min(rights) < 1.5


def test_thumbnails_far_below_are_not_loaded(many):
    one = many
    one.tab.wait("document.querySelector('#grid img')?.naturalWidth")
    loaded = "performance.getEntriesByType('resource').filter(e => e.name.includes('/v1/images/')).length"
    before = one.tab.js(loaded)
    assert 8 < before < 100
    one.tab.js("scrollTo(0, 3000)")
    one.tab.wait(f"{loaded} > {before}")


def test_back_returns_to_the_place_deep_in_the_gallery(crowded):
    one = crowded
    for _ in range(2):
        height = one.tab.js(READ)
        one.tab.js("scrollTo(0, document.documentElement.scrollHeight)")
        one.tab.wait(f"{READ} > {height}")
    one.tab.js("scrollTo(0, 9000)")
    shown = "e => e.getBoundingClientRect().top > 200 && e.getBoundingClientRect().top < innerHeight"
    one.tab.wait(f"[...document.querySelectorAll('#grid .cell')].some({shown})")
    seen = one.tab.js(f"[...document.querySelectorAll('#grid .cell')].find({shown}).dataset.id")
    one.tab.click(f"[data-id='{seen}'] .use")
    one.search("make it blue")
    assert one.tab.js("document.querySelector('#title').getBoundingClientRect().top") >= 0
    one.back()
    one.tab.wait(
        f"document.querySelector('#grid:not(.answers) [data-id={json.dumps(seen)}]')?.getBoundingClientRect().top > 0"
    )
    one.tab.reload()
    one.tab.wait(
        f"document.querySelector('#grid:not(.answers) [data-id={json.dumps(seen)}]')?.getBoundingClientRect().top > 0"
    )


def test_a_page_of_the_gallery_that_fails_is_asked_again(many, site):
    one = many
    height = one.tab.js(READ)
    site.fails = 500
    one.tab.js("scrollTo(0, document.documentElement.scrollHeight)")
    one.tab.wait(MESSAGE)
    assert one.tab.visible("#more")
    site.fails = 0
    one.tab.click("#again")
    one.tab.wait(f"{READ} > {height}")
    assert one.tab.js("document.querySelector('#problem').hidden && document.querySelector('#more').hidden")


def test_arrows_lead_through_the_gallery_which_is_one_stop_of_the_tab_key(many):
    one = many
    assert one.tab.js("document.querySelectorAll('#grid [tabindex=\"0\"]').length") == 2
    one.tab.js("document.querySelector('#grid .open').focus()")
    focused = "document.activeElement.closest('.cell').dataset.id"
    one.tab.press("ArrowRight")
    assert one.tab.js(focused) == "all/00001"
    one.tab.press("Tab")
    assert one.tab.js("document.activeElement.className") == "use" and one.tab.js(focused) == "all/00001"
    top = one.tab.js(f"document.querySelector('[data-id=\"{one.tab.js(focused)}\"]').style.top")
    one.tab.press("ArrowDown")
    assert one.tab.js("document.activeElement.className") == "use"
    assert one.tab.js("document.activeElement.closest('.cell').style.top") != top
    one.tab.press("ArrowUp")
    assert one.tab.js("document.activeElement.closest('.cell').style.top") == top
    one.tab.press("End")
    last = one.tab.js(focused)
    assert int(last[4:]) >= 99 and one.tab.visible(f"[data-id='{last}'] .use")
    one.tab.press("Home")
    assert one.tab.js(focused) == "all/00000" and one.tab.visible("[data-id='all/00000'] .use")


def test_a_screen_reader_is_told_the_place_among_all_pictures_and_what_a_button_does(many):
    one = many
    one.tab.js("scrollTo(0, 6000)")
    one.tab.wait(f"({PLACES})[0] > 1")
    tree = one.tab.send("Accessibility.getFullAXTree")["nodes"]
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node.get("ignored")]
    assert ("list", "Gallery") in found and ("heading", "Gallery") in found
    places = one.tab.js(PLACES)
    assert places == list(range(places[0], places[0] + len(places)))
    assert one.tab.js("document.querySelector('#grid .cell').ariaSetSize") == "10000"
    name = f"all/{places[0] - 1:05d}"
    assert ("button", f"Open {name} large") in found and ("button", f"Use {name}") in found
    assert ("status", "") in [(role, "") for role, _ in found]


def test_a_click_shows_the_picture_large_and_arrows_lead_to_those_beside_it(opened):
    one = opened
    small = one.tab.box("#grid .frame img")
    ids = one.shown()[2]
    one.tab.click("#grid .open")
    one.tab.wait("document.querySelector('#largeframe img')?.src.endsWith('size=large')")
    assert one.tab.box("#largeframe img")["height"] > 1.5 * small["height"]
    assert ids[0] in one.tab.text("#largename") and "1 of 70" in one.tab.text("#largename")
    assert one.tab.visible("#refine") and one.tab.js("document.querySelector('#previous').disabled")
    one.tab.press("ArrowRight")
    one.tab.wait(f"document.querySelector('#largename').textContent.includes({json.dumps(ids[1])})")
    one.tab.press("Escape")
    one.tab.wait("!document.querySelector('#large').open")
    one.tab.wait(f"document.activeElement.closest('.cell')?.dataset.id === {json.dumps(ids[1])}")
    assert one.shown()[0] == ""  # looking is not picking
    one.tab.click("#grid .cell:nth-child(3) .open")
    one.tab.click("#refine")
    one.tab.wait(f"document.querySelector('#name').textContent === {json.dumps(ids[2])}")
    one.tab.click("#enlarge")
    one.tab.wait(f"document.querySelector('#largename').textContent === {json.dumps(ids[2])}")
    assert not one.tab.visible("#refine")


def test_an_answer_opens_large_and_is_refined_from_there(opened, upload):
    one = opened
    one.upload(upload)
    one.tab.click("#enlarge")
    one.tab.wait("document.querySelector('#largeframe img')?.naturalHeight === 900")
    one.tab.click("#close")
    one.search("make it blue")
    ids = one.shown()[2]
    one.tab.click("#grid .open")
    one.tab.wait("document.querySelector('#large').open")
    assert "answer 1" in one.tab.text("#largename")
    one.tab.click("#next")
    one.tab.wait(f"document.querySelector('#largename').textContent.includes({json.dumps(ids[1])})")
    one.tab.click("#refine")
    one.tab.wait(f"document.querySelector('#name').textContent === {json.dumps(ids[1])}")
    assert one.trail() == ["[make it blue]", "..."]


def test_nothing_covers_an_answer_and_a_finger_leaves_no_trace(opened):
    one = opened
    one.tab.click("#grid .use")
    one.search("make it blue")
    uncovered = (
        "[...document.querySelectorAll('#grid .open')].slice(0, 2).map(open => {"
        "const r = open.querySelector('.frame img').getBoundingClientRect();"
        "return [.06, .5, .94].every(x => [.06, .5, .94].every(y =>"
        "document.elementFromPoint(r.x + x * r.width, r.y + y * r.height)?.tagName === 'IMG'))})"
    )
    one.tab.js("document.querySelector('#grid').scrollIntoView()")
    assert one.tab.js(uncovered) == [True, True]
    one.tab.click("#grid .use")
    one.tab.wait("document.querySelectorAll('#trail button').length === 1")
    one.tab.js("document.querySelector('#grid').scrollIntoView()")
    assert one.tab.js(uncovered) == [True, True]


def test_another_width_keeps_the_pictures_that_are_read(many):
    one = many
    one.tab.js("scrollTo(0, 3000)")
    top = "[...document.querySelectorAll('#grid .cell')].find(e => e.getBoundingClientRect().bottom > 0).dataset.id"
    one.tab.wait(f"({PLACES}).length && {top} !== 'all/00000'")
    before = int(one.tab.js(top)[4:])
    one.tab.send("Emulation.setDeviceMetricsOverride", width=1000, height=800, deviceScaleFactor=1, mobile=False)
    one.tab.wait("document.querySelector('#grid').clientWidth < 700")
    one.tab.js("new Promise(done => setTimeout(done, 200))")
    assert abs(int(one.tab.js(top)[4:]) - before) <= 6


def test_on_a_fine_screen_thumbnails_are_asked_for_larger_and_small_drawings_are_not(many):
    sizes = "[[256, 192], [512, 400], [48, 48], [0, 0]].map(([width, height]) => view.sharp({width, height}))"
    asked = f"import('./static/view.js').then(view => {sizes}.join())"
    for scale, expected in ((1, ",,,"), (2, "medium,,,"), (3, "medium,medium,,")):
        many.tab.send(
            "Emulation.setDeviceMetricsOverride", width=1000, height=800, deviceScaleFactor=scale, mobile=False
        )
        assert many.tab.js(asked) == expected
