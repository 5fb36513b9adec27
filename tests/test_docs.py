"""Every code block of the documentation and every example of a docstring runs: Python in one namespace per page, shell
commands in a scratch folder.

How a page is written so that this works is in CONTRIBUTING.md; tests/doc_commands.py says which commands are run here.
"""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_commands import ELSEWHERE, LONGEST, ROOT, check, check_stand_in, commands, environment
from markdown_it import MarkdownIt
from sybil import Document, Example, Region
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser

import lstmkern

PAGES = sorted(
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md")
    for path in ROOT.glob(pattern)
    if path.is_file()
)
SHELL = ("console", "sh")
SHOWN = {"text", "cpp", "cuda", "json", "yaml", "toml", "diff", "bibtex", "make"}  # not run
DOCTEST = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run_shell(language: str):
    def evaluate(example: Example) -> None:
        for command in commands(example.parsed, language):
            check(command, Path.cwd())

    return evaluate


class OtherBlocks:
    """Blocks that are neither Python nor shell: only those of a known kind are allowed."""

    def __call__(self, document: Document):
        for region in FencedCodeBlockLexer(r"[^\n]*")(document):
            language = region.lexemes["language"].strip()
            directive = language.startswith("{")
            if not directive and language not in {*SHOWN, *SHELL, "python"}:
                yield Region(region.start, region.end, parsed=language, evaluator=self.refuse)

    @staticmethod
    def refuse(example: Example) -> str:
        allowed = ", ".join(["python", *SHELL, *sorted(SHOWN)])
        return f"a block in {example.parsed or 'no language'!r}: name one of {allowed}"


PARSERS = [
    PythonCodeBlockParser(doctest_optionflags=DOCTEST),
    *(CodeBlockParser(language, run_shell(language)) for language in SHELL),
    OtherBlocks(),
    SkipParser(),
]


def blocks(path: Path) -> list[Example]:
    return list(Document.parse(str(path), *PARSERS).examples())


def run_page(path: Path) -> int:
    """Run every block of a page in order; the number of blocks."""
    examples = blocks(path)
    for example in examples:
        example.evaluate()
    return len(examples)


@pytest.mark.parametrize("page", [path for path in PAGES if blocks(path)], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_of_a_page_runs(page, tmp_path):
    """In a process of its own: a page may change torch's settings or replace torch.nn's classes."""
    program = f"import test_docs, pathlib; test_docs.run_page(pathlib.Path({str(page)!r}))"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(ROOT / "tests"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3 * LONGEST,
    )
    assert ended.returncode == 0, ended.stdout[-6000:]


@pytest.mark.parametrize("module", [m.name for m in pkgutil.walk_packages(lstmkern.__path__, "lstmkern.")])
def test_examples_of_docstrings_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not module.endswith("__main__"):
        failed, _ = doctest.testmod(importlib.import_module(module), optionflags=DOCTEST)
        assert not failed, f"{failed} examples in the docstrings of {module} give something else"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_block_is_only_indented(page):
    """A block without a language is refused, because it is unclear whether it is to be run."""
    tokens = MarkdownIt("commonmark").parse(without_comments(page.read_text()))
    lines = [token.map[0] + 1 for token in tokens if token.type == "code_block"]
    assert not lines, f"fence the blocks of lines {lines} and name their language"


def without_comments(text: str) -> str:
    """``text`` with as many lines, HTML comments blank."""
    return re.sub(r"<!--.*?-->", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\nraise SystemError('seen')\n```\n", "seen"),
        ("```python\n>>> 1 + 1\n3\n```\n", "Expected"),
        ("```python\nx = 1\n```\n\n```console\n$ python -c 'raise SystemExit(3)'\n```\n", "exit code 3"),
        ("```sh\nrm -rf /tmp/nothing\n```\n", "no test runs"),
        ("```console\n$ make no-such-target\n```\n", "has no target"),
        ("```console\n$ make clean\n```\n", "neither .ci/run nor"),
        ("```\nno language\n```\n", "name one of"),
        ("```fortran\nEND\n```\n", "name one of"),
    ],
)
def test_a_wrong_block_is_noticed(text, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(BaseException, match=complaint):
        run_page(page)


def test_blocks_share_a_namespace_and_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nfrom pathlib import Path\nx = 2\n```\n\n```python\n>>> x + 1\n3\n```\n\n"
        '```console\n$ FILE=made python -c \'import os; open(os.environ["FILE"], "w")\' \\\n    && ls\nmade\n```\n\n'
        "```python\nassert Path('made').exists()\n```\n"
    )
    assert run_page(page) == 4


@pytest.mark.parametrize("pattern", [pattern for pattern, runs in ELSEWHERE.items() if "{" not in runs])
def test_what_stands_for_a_command_is_there(pattern):
    check_stand_in(f"a command like {pattern}", ELSEWHERE[pattern])
