"""The built site in headless Chromium: every page at the width of a phone and of a desktop, and the search.

Pages are served from this machine; a request to another host fails the check. Screenshots are kept for looking at.
"""

import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from pages import SITE
from playwright.sync_api import sync_playwright

SCREENSHOTS = SITE.parent / "docs-screenshots"
WIDTHS = {"phone": (390, 844), "desktop": (1440, 900)}
HIGHEST = 8000  # pixels of a page that a screenshot shows
# What a reader may look for, and a page that must be among the results.
SEARCHES = {
    "lengths": "guides/variable-lengths.html",
    "replace_modules": "api/convert.html",
    "bidirectional": "api/functional.html",
    "gradcheck": "api/verify.html",
    "install": "start.html",
}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Nothing: a failed request fails a check."""


@pytest.fixture(scope="session")
def address():
    """Where the site is served: http://127.0.0.1:PORT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def chromium():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.fail("Chromium is missing: run `apt-get install chromium`", pytrace=False)
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root, as continuous integration does; the pages are our own.
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=os.getuid() != 0)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, address):
    """open_page(name, size, color_scheme): a page and the list of what went wrong while it loaded."""
    contexts = []

    def make(name, size=WIDTHS["desktop"], color_scheme="light"):
        viewport = {"width": size[0], "height": size[1]}
        context = chromium.new_context(viewport=viewport, color_scheme=color_scheme, reduced_motion="reduce")
        contexts.append(context)
        page, problems = context.new_page(), []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(f"{request.url}: {request.failure}"))
        page.on("response", lambda r: problems.append(f"{r.url}: {r.status}") if r.status >= 400 else None)
        page.on("request", lambda r: problems.append(f"{r.url}: another host") if foreign(r.url) else None)
        page.goto(f"{address}/{name}", wait_until="load")
        if page.locator(".math").count():
            page.evaluate("() => MathJax.startup.promise")
        return page, problems

    def foreign(url):
        return urlsplit(url).scheme in ("http", "https") and not url.startswith(address + "/")

    yield make
    for context in contexts:
        context.close()


def names():
    return [p.relative_to(SITE).as_posix() for p in sorted(SITE.rglob("*.html"))] or ["index.html"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", names())
def test_page_renders(name, width, open_page):
    page, problems = open_page(name, WIDTHS[width])
    assert not problems, "\n".join(problems)
    assert name == "search.html" or page.locator("article h1").first.is_visible()

    formulas = page.locator(".math")
    assert formulas.count() or name != "api/layers.html", "the layers are described without a formula"
    assert page.locator(".math mjx-container").count() == formulas.count(), "a formula is not rendered"
    assert not page.locator("mjx-merror, [data-mjx-error]").count(), "MathJax does not understand a formula"

    page.evaluate("() => document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    page.wait_for_function("() => [...document.images].every(image => image.complete)")
    assert not page.evaluate("() => [...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
    assert not page.evaluate("() => [...document.querySelectorAll('article img')].filter(i => !i.alt).map(i => i.src)")

    path = SCREENSHOTS / width / (name.removesuffix(".html").replace("/", "-") + ".png")
    shown = min(page.evaluate("() => document.documentElement.scrollHeight"), HIGHEST)
    page.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": WIDTHS[width][0], "height": shown})

    wide = page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1], f"the page is {wide[0]} pixels wide in a window of {wide[1]}: {too_wide(page)}"


def too_wide(page) -> list[str]:
    """The elements that reach past the window and are not inside one that scrolls."""
    return page.evaluate(
        """() => [...document.querySelectorAll('article *')].filter(e => {
            if (e.getBoundingClientRect().right <= window.innerWidth) return false;
            for (let p = e.parentElement; p; p = p.parentElement)
                if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)) return false;
            return true;
        }).map(e => e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 60)).slice(0, 5)"""
    )


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_colors_follow_the_system(color_scheme, open_page):
    page, problems = open_page("index.html", color_scheme=color_scheme)
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    red, green, blue = (int(value) for value in background.removeprefix("rgb(").removesuffix(")").split(","))
    assert (red + green + blue > 3 * 128) == (color_scheme == "light"), background
    page.screenshot(path=SCREENSHOTS / f"index-{color_scheme}.png")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("words", SEARCHES)
def test_search_finds(words, open_page):
    """From the box that every page has, as a reader would."""
    page, problems = open_page("index.html")
    page.locator("input.sidebar-search").fill(words)
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results ul.search li a")
    page.wait_for_function(
        "() => document.querySelector('#search-results .search-summary').textContent.includes('found')"
    )
    found = page.locator("#search-results ul.search li a").evaluate_all("links => links.map(a => a.href)")
    assert any(urlsplit(link).path.lstrip("/") == SEARCHES[words] for link in found), found
    assert not problems, "\n".join(problems)


def test_search_for_nothing_that_is_there_says_so(open_page):
    page, _ = open_page("search.html?q=xylophonequartz")
    page.wait_for_function("() => document.querySelector('#search-results p')?.textContent.includes('did not match')")
    assert not page.locator("#search-results ul.search li").count()
