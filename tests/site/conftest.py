"""Checks of the built site. `make docs` and `make docs-check` run them by name; `make test` does not collect them."""

import pytest
from pages import SITE, Page


@pytest.fixture(scope="session")
def site() -> dict[str, Page]:
    """Every page by its path in the site."""
    pages = {page.name: page for page in map(Page, sorted(SITE.rglob("*.html")))}
    assert "index.html" in pages, "the site is not built: run `make docs`"
    return pages
