"""Fixtures of many tests: pairs of torch.nn's module and ours with equal weights, the error bound."""

import os

# Before lstmkern is imported: tests of many threads need them on a machine with few CPUs too.
os.environ.setdefault("LSTMKERN_NUM_THREADS", "16")

import pytest
import torch
from pairs import KINDS

import lstmkern
from lstmkern import _extension

# `make test-asan` lets layers of any size use a team of this many threads, so that every test tests teams too.
_extension.fix_threads(int(os.environ.get("LSTMKERN_TEST_TEAM", 0)))


def pytest_terminal_summary(terminalreporter):
    """Print what tests have recorded with record_property, also in other processes."""
    reports = (r for outcome in ("passed", "failed") for r in terminalreporter.stats.get(outcome, []))
    for report in reports:
        for title, text in report.user_properties:
            terminalreporter.write_line(f"\n{title}\n{text}")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def text_file(here):
    """Write text.txt, a small text, into the working directory."""
    from language import source_text

    (here / "text.txt").write_text(source_text(80))


@pytest.fixture(scope="module")
def small():
    """A small corpus, its training and its validation batches; see language.py."""
    from language import small_corpus

    return small_corpus()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def pair():
    """pair(kind, input_size, hidden_size, ...): torch.nn's module and ours, with the same weights."""

    def make(kind, *sizes, **options):
        name, kind_options = KINDS[kind]
        theirs = getattr(torch.nn, name)(*sizes, **kind_options, **options)
        ours = getattr(lstmkern, name)(*sizes, **kind_options, **options)
        ours.load_state_dict(theirs.state_dict())
        return theirs, ours

    return make


def _flatten(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [leaf for branch in tree for leaf in _flatten(branch)]


@pytest.fixture
def as_good_as_torch():
    """as_good_as_torch(ours, theirs, exact): our error against fp64 is at most twice torch's and a few eps."""

    def check(ours, theirs, exact):
        ours, theirs, exact = _flatten(ours), _flatten(theirs), _flatten(exact)
        assert len(ours) == len(theirs) == len(exact)
        for k, (a, b, e) in enumerate(zip(ours, theirs, exact, strict=True)):
            assert a.shape == b.shape and a.dtype == b.dtype, f"{k}: {a.shape} {a.dtype}, torch {b.shape} {b.dtype}"
            if not a.numel():
                continue
            e = e.double()
            error, peer = (a.double() - e).abs().max(), (b.double() - e).abs().max()
            bound = 2 * peer + 8 * torch.finfo(a.dtype).eps * e.abs().max()
            assert error <= bound, f"{k}: error {error:.3g}, torch {peer:.3g}, bound {bound:.3g}"

    return check
