"""The built site without a browser: links, anchors, images, titles, and an entry for everything that is public."""

import importlib
import inspect
import pkgutil
from urllib.parse import unquote, urlsplit

import pytest
from pages import SITE
from sphinx.util.inventory import InventoryFile

import lstmkern

# Modules of lstmkern that are not described: what is between the layers and the ops, what torch is told about the ops,
# the files of the command line, and the output of the language models' commands. Any release may change them.
INTERNAL = {
    "autocast", "autograd", "command", "disable", "distributed", "dynamo", "flops", "leaf", "ops", "per_sample",
    "pictures", "recurrent",
    "lm.climb", "lm.output", "lm.progress", "lm.report", "lm.throughput",
}  # fmt: skip


def outgoing(page):
    """(attribute's value, URL) of every link, image, script and style sheet of a page."""
    for tag, attribute in (("a", "href"), ("link", "href"), ("img", "src"), ("script", "src")):
        for found in page.html.find_all(tag, attrs={attribute: True}):
            yield found[attribute], urlsplit(found[attribute])


def test_internal_links_and_anchors_resolve(site):
    broken = []
    for page in site.values():
        for link, url in outgoing(page):
            if url.scheme or url.netloc:
                continue
            if not url.path:
                name = page.name
            else:
                target = (page.path.parent / unquote(url.path)).resolve()
                if not target.is_file():
                    broken.append(f"{page.name}: {link}: no such file")
                    continue
                name = target.relative_to(SITE).as_posix()
            generated = name in ("genindex.html", "py-modindex.html", "search.html")
            if url.fragment and name in site and not generated and unquote(url.fragment) not in site[name].ids:
                broken.append(f"{page.name}: {link}: no such anchor")
    assert not broken, "\n".join(broken)


def test_nothing_is_loaded_from_another_host(site):
    loaded = [
        f"{page.name}: {found['src']}"
        for page in site.values()
        for found in page.html.find_all(["script", "img", "iframe"], src=True)
        if urlsplit(found["src"]).netloc
    ]
    loaded += [
        f"{page.name}: {found['href']}"
        for page in site.values()
        for found in page.html.find_all("link", href=True)
        if urlsplit(found["href"]).netloc and "canonical" not in found.get("rel", [])
    ]
    assert not loaded, "\n".join(loaded)


def test_external_links_are_https(site):
    """They are listed in build/docs-external-links.txt, but not fetched: a build must not depend on a network."""
    found = {(url.scheme, link) for page in site.values() for link, url in outgoing(page) if url.netloc}
    (SITE.parent / "docs-external-links.txt").write_text("".join(f"{link}\n" for _, link in sorted(found)))
    assert not [link for scheme, link in found if scheme != "https"]


def test_images_have_a_text(site):
    silent = [
        f"{page.name}: {image['src']}"
        for page in site.values()
        for image in page.article.find_all("img")
        if not image.get("alt", "").strip() or image["alt"] == image["src"]
    ]
    assert not silent, "give these images a text, ![like this](...):\n" + "\n".join(silent)


def test_every_page_has_one_heading_a_title_and_a_description(site):
    titles = {}
    for name, page in site.items():
        if name in ("genindex.html", "py-modindex.html", "search.html"):
            continue
        assert len(page.article.find_all("h1")) == 1, f"{name}: a page has one heading of the first level"
        description = page.html.find("meta", attrs={"name": "description"})
        assert description and description["content"].strip(), f"{name}: no description"
        titles.setdefault(page.html.title.string, []).append(name)
    assert not [pages for pages in titles.values() if len(pages) > 1], titles


def modules():
    """The modules of lstmkern that the site describes."""
    for found in pkgutil.walk_packages(lstmkern.__path__, "lstmkern."):
        name = found.name.removeprefix("lstmkern.")
        private = any(part.startswith("_") for part in name.split("."))
        internal = any(name == other or name.startswith(other + ".") for other in INTERNAL)
        if not private and not internal and not found.ispkg:
            yield importlib.import_module(found.name)


def public_names():
    """Full name of every public class and function, under the name that users import it by."""
    exported = {id(getattr(lstmkern, name)): name for name in lstmkern.__all__}
    for module in modules():
        for name, thing in vars(module).items():
            if name.startswith("_") or not (inspect.isclass(thing) or inspect.isfunction(thing)):
                continue
            if thing.__module__ == module.__name__:
                yield f"lstmkern.{exported[id(thing)]}" if id(thing) in exported else f"{module.__name__}.{name}"


# Building blocks of public functions, which are importable for the package's own use.
PARTS = ("lstmkern.functional.", "lstmkern.modules.", "lstmkern.cells.", "lstmkern.recomputing.")


def test_everything_public_is_described():
    inventory = InventoryFile.loads((SITE / "objects.inv").read_bytes(), uri="").data
    described = {name for role in ("py:class", "py:function", "py:exception") for name in inventory.get(role, {})}
    missing = sorted(name for name in public_names() if name not in described and not name.startswith(PARTS))
    assert not missing, "give these a docstring and a place in docs/api: " + ", ".join(missing)


@pytest.mark.parametrize("name", ["lstmkern.LSTM", "lstmkern.functional.lstm", "lstmkern.replace_modules"])
def test_descriptions_are_not_empty(site, name):
    found = [page.html.find(id=name) for page in site.values() if page.html.find(id=name)]
    assert len(found) == 1
    assert len(found[0].find_next_sibling("dd").get_text().split()) > 10
