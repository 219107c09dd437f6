"""Two services side by side: the page of one asks the other, which lets it."""

import pytest
import tiny_service

from cirray.core.errors import DataError
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.search_engine import SearchEngine
from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs
from cirray.serving.keys import run_keys
from cirray.serving.keys_config import KeysRun
from cirray.serving.service import DirectService

pytestmark = pytest.mark.timeout(120)
ASKED = "?image=plain/00&text=make%20it%20blue&beside=new"
IDS = "[...document.querySelectorAll('#othergrid .cell')].map(cell => cell.dataset.id)"
CAME = f"{IDS}.length && !document.querySelector('#othernote').textContent.includes('searching')"
LOADED = "[...document.querySelectorAll('#othergrid .cell img')].some(image => image.naturalWidth)"


@pytest.fixture(scope="module")
def other(other_site, tmp_path_factory):
    """A service of another model over the pictures of the first one, which notes the keys that it is shown."""
    root = tmp_path_factory.mktemp("new")
    pictures = tiny_service.write_pictures(root / "pictures", 70, False)
    checkpoint = tiny_service.write_checkpoint(root / "checkpoint", seed=3)
    run_index(IndexRun(checkpoint=checkpoint, images=str(pictures), out=str(root / "index")))
    engine = SearchEngine.open(checkpoint, str(root / "index"))
    with other_site(engine) as made:
        made.engine, made.keys = engine, set()
        yield made


@pytest.fixture
def pair(site, other):
    """Lets the two be told what they are started with; yields what stands in the way of the other one."""
    before = site.app

    def start(keys="", url="", app=None, **args):
        there = {"new": url or other.url.rstrip("/")}
        site.app = make_api(lambda: site.service, ServeArgs(max_body_mb=1, compare=there, keys=keys))
        inner = app or make_api(lambda: other.service, ServeArgs(**{"origins": (site.url.rstrip("/"),), **args}))

        async def noted(scope, receive, send):
            other.keys |= {value.decode() for name, value in scope.get("headers", ()) if name == b"authorization"}
            await inner(scope, receive, send)

        other.app = noted

    yield start
    site.app = before
    other.keys.clear()
    other.reset()


def key(tmp_path, name):
    place = str(tmp_path / f"{name}.json")
    return place, run_keys(KeysRun(file=place, add=name)).split("\n")[0]


def tell(one, text):
    one.tab.js("document.querySelector('#key').focus()")
    one.tab.type(text)
    one.tab.press("Enter")


def note(one, name="othernote"):
    one.tab.wait(f"!/^(searching …)?$/.test(document.querySelector('#{name}').textContent)")
    return one.tab.text(f"#{name}")


def host(other):
    return other.url.split("/")[2]


def test_another_service_s_answers_and_pictures_stand_beside_its_own(pair, other, retriever, user, screen):
    pair()
    one = user(ASKED, screen)
    one.answers("make it blue")
    one.tab.wait(CAME)
    mine, theirs = (
        engine.search("make it blue", gallery_id="plain/00", k=12).ids for engine in (retriever, other.engine)
    )
    assert one.tab.js(IDS) == list(theirs) and one.shown()[2] == list(mine) and mine != theirs
    assert note(one) == f"{len({*mine} & {*theirs})} of 12 are answers of both"
    one.tab.wait(LOADED)
    assert one.tab.text("#beside option:checked") == "new (another service)"
    assert one.tab.js("document.documentElement.scrollWidth <= innerWidth")
    one.tab.click("#othergrid .open")
    one.tab.wait("document.querySelector('#largeframe img')?.naturalWidth")
    assert one.tab.js("document.querySelector('#largeframe').dataset.source").startswith(other.url)


def test_a_picture_that_the_other_service_does_not_know_is_sent_to_it(pair, other, crowd, user):
    pair()
    other.service = crowd
    one = user(ASKED)
    one.answers("make it blue")
    one.tab.wait(CAME)
    assert crowd.asked[-1] == ("upload", "make it blue") and one.tab.js(IDS)[0].startswith("all/")


class Refusing(DirectService):
    async def answer(self, query):
        raise DataError("The gallery is asleep.")


async def strange(scope, receive, send):
    headers = [(b"access-control-allow-origin", b"*"), (b"access-control-allow-headers", b"content-type")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"[]"})


@pytest.mark.parametrize("fault", ["origins", "gone", "refuses", "strange"])
def test_another_service_that_fails_is_told_on_its_side_alone(pair, site, other, user, fault):
    away = "http://127.0.0.1:65533"
    pair(**{"origins": {"origins": ()}, "gone": {"url": away}, "strange": {"app": strange}}.get(fault, {}))
    other.service = Refusing(other.engine) if fault == "refuses" else other.service
    one = user(ASKED)
    one.answers("make it blue")
    place = away.removeprefix("http://") if fault == "gone" else host(other)
    assert note(one) == {
        "refuses": "The gallery is asleep.", "strange": "The other service sent an answer that cannot be read.",
    }.get(
        fault, f"The service at {place} cannot be reached from here: it is not running, or its `origins` lacks "
        f"{site.url.rstrip('/')}.",
    )  # fmt: skip
    assert len(one.shown()[2]) == 12 and one.tab.js("document.querySelector('#problem').hidden")


def test_where_this_side_fails_the_other_one_s_answers_stand_and_this_one_says_why(pair, site, user):
    pair()
    one = user(ASKED)
    one.answers("make it blue")
    one.tab.wait(CAME)
    site.fails = 503
    one.write("add a star")
    one.tab.click("#submit")
    assert note(one, "homenote") == "The service is busy; try again in a moment."
    one.tab.wait(CAME)
    assert len(one.tab.js(IDS)) == 12 and note(one) == "12 best" and one.shown()[2] == []
    assert one.tab.js("document.querySelector('#problem').hidden")
    site.fails = 0
    one.tab.click("#submit")
    one.answers("add a star")
    assert one.tab.js("document.querySelector('#homenote').hidden")


def test_each_service_has_a_key_of_its_own_and_never_sees_the_other_s(pair, other, user, tmp_path):
    (here, own), (there, theirs) = key(tmp_path, "here"), key(tmp_path, "there")
    pair(here, app=make_api(lambda: other.service, ServeArgs(origins=("*",), keys=there)))
    one = user(ASKED)
    one.tab.wait("document.querySelector('#keybox').open")
    tell(one, own)
    one.answers("make it blue")
    asks = f"{host(other)}: This service needs a key"
    one.tab.wait(f"document.querySelector('#keyreason').textContent.startsWith('{asks}')")
    tell(one, theirs)
    one.tab.wait(CAME)
    one.tab.wait(LOADED)
    assert other.keys == {f"Bearer {theirs}"}
    assert one.tab.js("sessionStorage.getItem('cirray-key')") == own
