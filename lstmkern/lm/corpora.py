"""Where texts come from: files and folders of the user, and the source code of Python's standard library."""

from __future__ import annotations

import ast
import codecs
import functools
import os
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError

SOURCE = "the source of Python's standard library"
DOCSTRINGS = "the docstrings of Python's standard library"
SHORTEST = 20  # fewest characters of a docstring that is used
# Byte order marks, which editors on Windows write before a text. UTF-32 comes first: its mark starts like UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Document:
    """A text with its class; the label "" means none."""

    text: str
    label: str = ""


def read_file(path: str | Path) -> str:
    """Read a text file in UTF-8, or in the encoding that its byte order mark says.

    Raises:
        InputError: it cannot be read, or is not text.
    """
    text = _decode(Path(path))
    if text is None:
        raise InputError(f"{path} is not UTF-8 text")
    return text


def read_text(path: str | Path) -> str:
    """Read a text file, or all text files in a folder and its subfolders, sorted by path.

    Raises:
        InputError: there is no such file or folder, it contains no text, or the file is not text.
    """
    return "\n".join(text for _, text in _texts(Path(path)))


def read_documents(path: str | Path) -> list[Document]:
    """Read documents: the text files of a folder, or the paragraphs of a file, which blank lines separate.

    Args:
        path: a file or folder. The label of a folder's document is the name of the subfolder that it is in.

    Raises:
        InputError: as for ``read_text``.
    """
    path = Path(path)
    texts = _texts(path)
    if not path.is_dir():
        return [Document(part) for part in texts[0][1].split("\n\n") if part.strip()]
    return [Document(text, file.relative_to(path).parts[0] if file.parent != path else "") for file, text in texts]


def _texts(path: Path) -> list[tuple[Path, str]]:
    """(file, text) of every non-empty text file of ``path``."""
    if path.is_dir():
        found = [(file, text) for file in _files(path) if (text := _decode(file)) and text.strip()]
        if not found:
            raise InputError(f"there is no text in {path}")
        return found
    if not path.exists():
        raise InputError(f"no such text: {path}")
    text = read_file(path)
    if not text.strip():
        raise InputError(f"{path} is empty")
    return [(path, text)]


def _files(folder: Path) -> Iterator[Path]:
    """The files in ``folder`` and its subfolders, sorted, without hidden files and byte code."""
    for name, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__pycache__")
        yield from (Path(name, file) for file in sorted(files) if not file.startswith("."))


def _decode(file: Path) -> str | None:
    """The text of ``file`` without its byte order mark, or None if it is not text."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.replace("\r\n", "\n")


def _standard_library() -> Iterator[tuple[Path, str]]:
    """(relative path, source code) of the standard library's modules, without tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(root)
        if not left_out.intersection(inside.parts) and (text := _decode(file)):
            yield inside, text


def standard_library_source() -> str:
    """The source code of the standard library's top-level modules, sorted by name."""
    return "\n".join(text for inside, text in _standard_library() if len(inside.parts) == 1)


@functools.cache
def standard_library_docstrings() -> tuple[Document, ...]:
    """The docstrings of the standard library that have at least 20 characters.

    The label is the top-level package or module. A docstring that occurs several times is included once, with the label
    of its first occurrence.
    """
    labels: dict[str, str] = {}
    documented = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for inside, source in _standard_library():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes in old modules
            try:
                tree = ast.parse(source)
            except (SyntaxError, ValueError):
                continue  # some packages contain samples that are not Python 3
        nodes = [tree]
        while nodes:
            node = nodes.pop()
            nodes += (child for child in node.body if isinstance(child, documented))
            if (text := ast.get_docstring(node)) and len(text) >= SHORTEST:
                labels.setdefault(text, inside.parts[0].removesuffix(".py"))
    return tuple(Document(text, label) for text, label in labels.items())
