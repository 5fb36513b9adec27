"""Relative links of the Markdown files lead to files of the repository, and to headings that are there."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from doc_commands import ROOT
from markdown_it import MarkdownIt

FOLDERS = ("", ".github", "benchmarks", "csrc", "docs", "lstmkern", "tests")
FILES = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).glob("**/*.md" if folder else "*.md") if path.is_file()
)


def inline_tokens(path: Path):
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text()):
        yield token
        yield from token.children or ()


def links(path: Path) -> list[str]:
    """Targets of the links and images of a Markdown file."""
    targets = [token.attrs.get("href") or token.attrs.get("src") for token in inline_tokens(path)]
    return [str(target) for target in targets if target]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub and MyST give to headings: in lower case, without punctuation, hyphens for spaces."""
    found, tokens = set(), list(inline_tokens(path))
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            title = "".join(child.content for child in tokens[i + 1].children if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            number = sum(1 for other in found if re.fullmatch(re.escape(slug) + r"(-\d+)?", other))
            found.add(f"{slug}-{number}" if number else slug)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(file):
    broken = []
    for link in links(file):
        url = urlsplit(link)
        if url.scheme or url.netloc:
            continue
        target = (file.parent / unquote(url.path)).resolve() if url.path else file
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(f"{link}: no such file")
        elif url.fragment and target.suffix == ".md" and unquote(url.fragment) not in anchors(target):
            broken.append(f"{link}: no such heading in {target.relative_to(ROOT)}")
    assert not broken, "\n".join(broken)


def test_headings_have_github_anchors(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# What bounds a layer?\n\n## `LSTM` and torch.nn\n\n## Twice\n\n## Twice\n")
    assert anchors(page) == {"what-bounds-a-layer", "lstm-and-torchnn", "twice", "twice-1"}
