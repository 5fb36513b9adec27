"""The pages of the built site as parsed HTML."""

from functools import cached_property
from pathlib import Path

from bs4 import BeautifulSoup

SITE = Path(__file__).resolve().parents[2] / "build" / "docs"


class Page:
    """One HTML file of the site."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.relative_to(SITE).as_posix()

    @cached_property
    def html(self) -> BeautifulSoup:
        return BeautifulSoup(self.path.read_text(encoding="utf-8"), "html.parser")

    @cached_property
    def ids(self) -> set[str]:
        """What a link's fragment may name."""
        return {tag["id"] for tag in self.html.find_all(id=True)} | {
            tag["name"] for tag in self.html.find_all("a", attrs={"name": True})
        }

    @property
    def article(self) -> BeautifulSoup:
        """The page without navigation."""
        return self.html.find("article") or self.html
