"""How many threads a call may use, and which: its share of the CPUs, and one where teams lost more than they saved."""

import threading

import pytest

from lstmkern import _extension
from lstmkern._extension import add_calls, alone_ended, region_for, team_ended, threads_for

MOST = _extension.CPUS["threads"]
WORK = 1e6
REGION, OWN = True, False  # the team: a parallel region, or our own threads
pytestmark = pytest.mark.skipif(MOST < 2, reason="needs LSTMKERN_NUM_THREADS of 2 or more")


@pytest.fixture
def thread():
    """thread(f): what f returns, in a new thread. What teams save and lose is counted for each thread."""

    def run(f):
        results = []
        caller = threading.Thread(target=lambda: results.append(f()))
        caller.start()
        caller.join()
        return results[0]

    return run


def test_share_of_the_cpus(thread):
    assert threads_for(WORK, MOST + 1) == MOST and threads_for(WORK, 1) == 1
    for others in (1, 2, MOST - 1, MOST, 10 * MOST):
        add_calls(others)
        shares = threads_for(WORK, MOST), threads_for(WORK, 1)
        add_calls(-others)
        assert shares == (max(1, MOST // (others + 1)), 1)


def test_alone_after_a_loss(thread):
    def after(lost):
        team_ended(WORK, OWN, 2, 100, lost)
        return threads_for(WORK, 2)

    assert thread(lambda: after(51)) == 1
    assert thread(lambda: after(49)) == 2
    assert thread(lambda: after(0)) == 2


def test_larger_teams_save_more(thread):
    def after(threads):
        team_ended(WORK, OWN, threads, 100, 60)
        return threads_for(WORK, 2)

    assert thread(lambda: after(2)) == 1 and thread(lambda: after(3)) == 2


def test_what_teams_saved_pays_for_a_loss(thread):
    def after(*teams):
        for total, lost in teams:
            team_ended(WORK, OWN, 2, total, lost)
        return threads_for(WORK, 2)

    assert thread(lambda: after((100, 100))) == 1
    assert thread(lambda: after((0.008, 0), (0.007, 0.007))) == 2
    assert thread(lambda: after((0.008, 0), (0.007, 0.007), (100, 100))) == 1
    assert thread(lambda: after((1000, 0), (100, 100))) == 1  # no more than 10 ms are paid


def test_a_try_begins_with_an_advance(thread):
    def after(*losses):
        for lost in losses:
            team_ended(WORK, OWN, 2, lost, lost)
            while threads_for(WORK, 2) == 1:
                pass
        team_ended(WORK, OWN, 2, 0.008, 0.008)
        return threads_for(WORK, 2)

    assert thread(lambda: after()) == 1
    assert thread(lambda: after(0.0085)) == 2


def test_what_calls_took_alone_counts_more_than_waiting(thread):
    """A team of two with calls of 1 s, of which the caller waited 0.6: alone, 0.8 s by that."""

    def after(alone, seconds=0.0, work=WORK):
        team_ended(WORK, OWN, 2, 0.0051, 0.0051)
        alone_ended(work, alone)
        while threads_for(WORK, 2) == 1:
            pass
        if seconds:
            team_ended(WORK, OWN, 2, seconds, 0)
        team_ended(WORK, OWN, 2, 1, 0.6)
        return threads_for(WORK, 2)

    assert thread(lambda: after(0.9)) == 1 and thread(lambda: after(1.1)) == 2
    assert thread(lambda: after(0.66, work=WORK * 0.6)) == 2 and thread(lambda: after(0.66)) == 1
    assert thread(lambda: after(1.1, seconds=20)) == 1, "forgotten after 10 s of teams"


def test_our_own_threads_where_regions_wait(thread):
    """After the calls that measure how long they take alone."""

    def after(*teams):
        for total, lost in teams:
            team_ended(WORK, REGION, 2, total, lost)
        alone = threads_for(WORK, 2) == 1
        while threads_for(WORK, 2) == 1:
            pass
        return region_for(WORK), alone

    assert thread(lambda: after((1, 0.24))) == (True, False)
    assert thread(lambda: after((1, 0.26))) == (False, True)
    assert thread(lambda: after((1, 0.2), (0.01, 0.01))) == (True, False)  # it has saved 10 ms
    assert thread(lambda: after((1, 0.2), (0.02, 0.02))) == (False, True)


def test_regions_and_our_own_threads_have_different_accounts(thread):
    def after():
        team_ended(WORK, OWN, 2, 100, 100)
        alone = region_for(WORK), threads_for(WORK, 2)
        team_ended(WORK, REGION, 2, 100, 100)
        return *alone, region_for(WORK), region_for(WORK * 100)

    assert thread(after) == (True, 1, False, True)


def test_regions_are_tried_again(thread):
    def after():
        team_ended(WORK, REGION, 2, 0.0068, 0.0068)  # 5.1 ms more than it may wait
        before = region_for(WORK)
        while not region_for(WORK):
            pass
        return before

    assert thread(after) is False


def test_only_calls_of_about_the_same_work_on_this_thread_are_alone(thread):
    def after():
        team_ended(WORK, OWN, 2, 100, 100)
        return [threads_for(work, 2) for work in (0, 1, WORK / 100, WORK, WORK * 100, 1e300, float("inf"))]

    assert thread(after) == [2, 2, 2, 1, 2, 2, 2]
    assert thread(lambda: threads_for(WORK, 2)) == 2


def test_a_loss_is_over_after_a_while(thread):
    def after():
        team_ended(WORK, OWN, 2, 0.0051, 0.0051)  # more than the first advance
        while threads_for(WORK, 2) == 1:
            pass
        return threads_for(WORK, 2)

    assert thread(after) == 2
