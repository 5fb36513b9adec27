"""The memory of a call, ours and torch.nn's, each in a separate process (see growth.py).

peak: how far the resident memory rises during the call, above that of modules, input and code. saved: what autograd
keeps between forward and backward.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import track

from lstmkern.bench.cases import Case, Contest
from lstmkern.bench.measure import quiet

THREADS = 1  # number of threads of a measured call


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def memory_of(case: Case, ours: bool) -> dict[str, int]:
    """{"peak": bytes, "saved": bytes} of one call. This process must not have run another case before."""
    with quiet(THREADS):
        tiny = Contest(replace(case, T=1, N=1, I=4, H=4))  # loads code, which the first call of a process does
        (tiny.ours if ours else tiny.theirs)()
        contest = Contest(case)
        run = contest.ours if ours else contest.theirs
        parameters = {p.untyped_storage().data_ptr() for module in contest.modules for p in module.parameters()}
        saved = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        run()
        peak = _resident("VmHWM") - before
        if case.train:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                run()
    return {"peak": peak, "saved": sum(saved.values())}


def _memory_job(job: tuple[Case, bool]) -> dict[str, int]:
    return memory_of(*job)


def measure_memory(cases: Sequence[Case]) -> list[dict]:
    """[{"ours": memory_of, "torch": memory_of}] for ``cases``, each call in a fresh process; [] except on Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return []
    server = multiprocessing.get_context("forkserver")  # forks a process that has imported torch and run nothing
    server.set_forkserver_preload(["benchmarks.memory"])
    jobs = [(case, ours) for case in cases for ours in (True, False)]
    with server.Pool(1, maxtasksperchild=1) as pool:
        found = list(track(pool.imap(_memory_job, jobs, chunksize=1), "memory", len(jobs), transient=True))
    return [{"ours": ours, "torch": theirs} for ours, theirs in zip(found[::2], found[1::2], strict=True)]
