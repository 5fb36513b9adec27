"""How many CPUs this process may use: affinity mask, quotas of cgroups, LSTMKERN_NUM_THREADS."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lstmkern import _extension
from lstmkern.command import main

ROOT = Path(__file__).resolve().parent.parent
V2, V1 = "0::{}\n", "4:memory:/other\n3:cpu,cpuacct:{}\n0::/\n"
MOUNT_V2 = "40 30 0:20 {} {} rw,relatime shared:9 master:1 - cgroup2 cgroup rw,nsdelegate\n"
MOUNT_V1 = "41 30 0:21 {} {} rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n"
OTHERS = (
    "30 1 0:5 / / rw - ext4 /dev/sda rw\n42 30 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\nbroken - \n"
)


@pytest.fixture
def machine(tmp_path):
    """machine(group, mounts, {file: content}): the root of a file system of a pretended Linux."""

    def make(group, mounts, files):
        proc = tmp_path / "proc" / "self"
        proc.mkdir(parents=True)
        (proc / "cgroup").write_text(group)
        (proc / "mountinfo").write_text(OTHERS + mounts)
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return str(tmp_path)

    return make


def v1(folder, quota, period=100000):
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


G = "sys/fs/cgroup"
CASES = {
    # A host: the group below the mount, and all of its ancestors.
    "v2": (V2.format("/a/b"), MOUNT_V2.format("/", "/" + G), {f"{G}/a/b/cpu.max": "200000 100000\n"}, 2),
    "v2 ancestor": (
        V2.format("/a/b/c"),
        MOUNT_V2.format("/", "/" + G),
        {
            f"{G}/a/b/c/cpu.max": "600000 100000\n",
            f"{G}/a/cpu.max": "300000 100000\n",
            f"{G}/a/b/cpu.max": "max 100000\n",
        },
        3,
    ),
    "v2 fraction": (V2.format("/a"), MOUNT_V2.format("/", "/" + G), {f"{G}/a/cpu.max": "250001 100000\n"}, 3),
    "v2 below one": (V2.format("/a"), MOUNT_V2.format("/", "/" + G), {f"{G}/a/cpu.max": "1000 100000\n"}, 1),
    "v2 other period": (V2.format("/a"), MOUNT_V2.format("/", "/" + G), {f"{G}/a/cpu.max": "20000 10000"}, 2),
    "v2 without a quota": (V2.format("/a"), MOUNT_V2.format("/", "/" + G), {f"{G}/a/cpu.max": "max 100000\n"}, 8),
    "v2 more than the mask": (V2.format("/a"), MOUNT_V2.format("/", "/" + G), {f"{G}/a/cpu.max": "1600000 100000"}, 8),
    "v2 sibling": (V2.format("/a"), MOUNT_V2.format("/", "/" + G), {f"{G}/ab/cpu.max": "200000 100000\n"}, 8),
    # A container with a namespace of its own sees its group as the root.
    "v2 namespace": (V2.format("/"), MOUNT_V2.format("/", "/" + G), {f"{G}/cpu.max": "200000 100000\n"}, 2),
    "v2 outside the namespace": (
        V2.format("/../x"),
        MOUNT_V2.format("/..", "/" + G),
        {f"{G}/cpu.max": "200000 100000\n"},
        2,
    ),
    # A container without one: its group's path on the host, mounted as the root of the hierarchy.
    "v2 container": (
        V2.format("/docker/77"),
        MOUNT_V2.format("/docker/77", "/" + G),
        {f"{G}/cpu.max": "200000 100000\n"},
        2,
    ),
    "v2 group inside a container": (
        V2.format("/docker/77/x"),
        MOUNT_V2.format("/docker/77", "/" + G),
        {f"{G}/cpu.max": "400000 100000\n", f"{G}/x/cpu.max": "200000 100000\n"},
        2,
    ),
    "v2 host's path": (V2.format("/docker/77"), MOUNT_V2.format("/", "/" + G), {f"{G}/cpu.max": "200000 100000\n"}, 2),
    "v2 other container": (
        V2.format("/docker/778"),
        MOUNT_V2.format("/docker/77", "/" + G),
        {f"{G}/8/cpu.max": "100000 100000", f"{G}/cpu.max": "200000 100000"},
        2,
    ),
    "v2 mount with a space": (
        V2.format("/a b"),
        MOUNT_V2.format("/", r"/my\040groups"),
        {"my groups/a b/cpu.max": "2 1"},
        2,
    ),
    "v1": (V1.format("/a"), MOUNT_V1.format("/", f"/{G}/cpu"), v1(f"{G}/cpu/a", 150000), 2),
    "v1 without a quota": (V1.format("/a"), MOUNT_V1.format("/", f"/{G}/cpu"), v1(f"{G}/cpu/a", -1), 8),
    "v1 container": (
        V1.format("/docker/7"),
        MOUNT_V1.format("/docker/7", f"/{G}/cpu"),
        v1(f"{G}/cpu", 40000, 20000),
        2,
    ),
    "v1 ancestor": (
        V1.format("/a/b"),
        MOUNT_V1.format("/", f"/{G}/cpu"),
        {**v1(f"{G}/cpu/a/b", -1), **v1(f"{G}/cpu/a", 300000)},
        3,
    ),
    "v1 and v2": (
        V1.format("/a"),
        MOUNT_V1.format("/", f"/{G}/cpu") + MOUNT_V2.format("/", f"/{G}/unified"),
        {**v1(f"{G}/cpu/a", 300000), f"{G}/unified/cpu.max": "max 100000\n"},
        3,
    ),
    "no groups": ("", "", {}, 8),
    "nonsense": (V2.format("/a"), MOUNT_V2.format("/", "/" + G), {f"{G}/a/cpu.max": "many few\n"}, 8),
}


@pytest.mark.parametrize("case", CASES)
def test_quota(machine, case):
    group, mounts, files, expected = CASES[case]
    limits = _extension.read_cpus(machine(group, mounts, files), 8)
    assert limits["mask"] == 8 and limits["found"] == limits["threads"] == expected
    if expected == 8:
        assert limits["from"] == "affinity mask"
    else:
        assert limits["from"].startswith("cgroup quota of ")
        assert any(limits["from"].endswith(" CPUs in /" + name.rpartition("/")[0]) for name in files)


def test_quota_of_a_group_that_the_mask_undercuts(machine):
    group, mounts, files, _ = CASES["v2 ancestor"]
    limits = _extension.read_cpus(machine(group, mounts, files), 2)
    assert (limits["found"], limits["from"]) == (2, "affinity mask")


def test_variable_replaces_what_was_found(machine):
    root = machine(*CASES["v2"][:3])
    for threads in (1, 2, 3, 64):
        limits = _extension.read_cpus(root, 8, str(threads))
        assert (limits["found"], limits["threads"]) == (2, threads)
        assert limits["from"] == f"cgroup quota of 2 CPUs in /{G}/a/b; LSTMKERN_NUM_THREADS={threads}"


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "2 ", " 2", "+2", "0x2", "65537", "9" * 30])
def test_bad_variable(machine, value):
    with pytest.raises(ValueError, match="LSTMKERN_NUM_THREADS=.*: set it to the most threads"):
        _extension.read_cpus(machine("", "", {}), 8, value)


# Of this machine, in a process of its own: the limits are read once.


def run(code, **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


def limits_after(code="", **environment):
    done = run(f"{code}\nfrom lstmkern import _extension\nprint(repr(_extension.CPUS))", **environment)
    assert done.returncode == 0, done.stderr
    return eval(done.stdout)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_affinity_of_this_process():
    mask = sorted(os.sched_getaffinity(0))
    whole = limits_after(LSTMKERN_NUM_THREADS="")
    assert whole["mask"] == len(mask) and 1 <= whole["threads"] == whole["found"] <= len(mask)
    one = limits_after(f"import os; os.sched_setaffinity(0, {{{mask[-1]}}})", LSTMKERN_NUM_THREADS="")
    assert one == {"mask": 1, "found": 1, "threads": 1, "from": "affinity mask"}


def test_bad_variable_at_import():
    done = run(
        "try:\n    import lstmkern\nexcept ValueError as error:\n    print(error)\n"
        "import os; os.environ['LSTMKERN_NUM_THREADS'] = '3'\n"
        "import lstmkern; print(lstmkern._extension.CPUS['threads'])",
        LSTMKERN_NUM_THREADS="none",
    )
    assert done.returncode == 0, done.stderr
    said, threads = done.stdout.splitlines()
    assert said.startswith("LSTMKERN_NUM_THREADS=none: set it to") and threads == "3"


def test_info_tells_the_limit(monkeypatch, capsys):
    monkeypatch.setattr(
        _extension, "CPUS", {"mask": 8, "found": 2, "threads": 2, "from": "cgroup quota of 1.5 CPUs in /x"}
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "CPUs                        2 (cgroup quota of 1.5 CPUs in /x)\n" in out
    assert "threads                     2 (torch: 64)\n" in out
