"""The page in a real browser: no console error, no missing picture, nothing fetched, no sideways scrolling, in every medium."""

import shutil

import pytest

from tests.report.browser import Browser
from tests.report.conftest import report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on the PATH: apt-get install chromium")
MEDIA = {"light": {}, "dark": {"dark": True}, "phone": {"width": 390}, "print": {"media": "print", "width": 700, "dark": True}}
MISSING = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    assert CHROMIUM
    with Browser(CHROMIUM, tmp_path_factory.mktemp("chromium")) as found:
        yield found


def test_the_page_opens_without_an_error_and_shows_every_picture(browser, membership, attribution, other_membership):
    for run, split in ((membership, "heldout"), (attribution, "test_generated")):
        flags = ["--published"] + ([f"--compare={other_membership.workdir}"] if run is membership else [])
        report(run, split, *flags)
        backgrounds = {}
        for name, medium in MEDIA.items():
            browser.log.clear()
            browser.open(run.workdir / "report" / "index.html", **medium)
            assert browser.value("document.images.length") == 24
            assert browser.value(MISSING) == 0
            assert browser.value("document.documentElement.scrollWidth <= window.innerWidth"), name
            assert browser.log == []
            backgrounds[name] = browser.value("getComputedStyle(document.body).backgroundColor")
        assert backgrounds["light"] == backgrounds["phone"] == backgrounds["print"] != backgrounds["dark"]


def test_an_error_would_have_been_seen(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<img src='data:image/png;base64,AAAA'><script>console.error('x')</script><img src='missing.png'>")
    browser.log.clear()
    browser.open(page)
    assert browser.value(MISSING) == 2 and len(browser.log) >= 2
