"""The compiled loops of the resident tiers stay within their limits, and the counts in the disassembly are right."""

import pytest

from benchmarks import nvcc, sass
from benchmarks.common_path import CommonPath
from benchmarks.disassembly import Instruction, parse
from benchmarks.step_loop import StepLoop, identity, key

# A small kernel in the format of nvdisasm. Its weights: R4..R11 are loaded before the step loop and kept; R20..R23
# are loaded from shared memory in an inner loop.
LISTING = """\
	.target	sm_90a
	.section	.text.small,"ax",@progbits
        .type           small,@function
small:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.128 R8, desc[UR4][R2.64+0x10] ;
.L_x_0:
        /*0030*/                   STS.128 [R3], R4 ;
        /*0040*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0050*/                   CS2R R40, SRZ ;
.L_x_2:
        /*0060*/                   LDG.E.STRONG.GPU R2, desc[UR4][R2.64] ;
        /*0070*/                   ISETP.GE.AND P1, PT, R2, R3, PT ;
        /*0080*/              @!P1 BRA `(.L_x_2) ;
        /*0090*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00a0*/                   LDS.U8 R12, [R3] ;
        /*00b0*/                   LDS.64 R14, [R3+0x8] ;
        /*00c0*/                   PRMT R12, R12, 0x7604, R14 ;
        /*00d0*/                   HMMA.16816.F32.BF16 R40, R4, R12.reuse, RZ ;
        /*00e0*/                   HMMA.16816.F32.BF16 R44, R8, R12, RZ ;
        /*00f0*/               @P2 BRA `(.L_x_3) ;
        /*0100*/                   LDSM.16.M88.4 R12, [R3+0x20] ;
        /*0110*/                   HMMA.16816.F32.BF16 R40, R4, R12, R40 ;
        /*0120*/                   NOP ;
        /*0130*/                   HMMA.16816.F32.BF16 R44, R8, R12.reuse, R44 ;
        /*0140*/                   HMMA.16816.F32.BF16 R40, R4, R14, R40 ;
        /*0150*/                   HMMA.16816.F32.BF16 R44, R8, R14, R44 ;
.L_x_3:
        /*0160*/                   LDS.128 R20, [R16] ;
        /*0170*/                   LDS R24, [R17] ;
        /*0180*/                   HMMA.16816.F32.BF16 R40, R20, R24, R40 ;
        /*0190*/              @!P3 BRA `(.L_x_3) ;
        /*01a0*/               @P4 BRA `(.L_x_4) ;
        /*01b0*/                   MUFU.EX2 R40, R40 ;
        /*01c0*/                   STG.E.U16 desc[UR4][R2.64], R40 ;
.L_x_4:
        /*01d0*/               @P5 BRA `(.L_x_5) ;
        /*01e0*/                   MUFU.EX2 R44, R44 ;
        /*01f0*/                   MUFU.RCP R44, R44 ;
        /*0200*/                   STG.E.U16 desc[UR4][R2.64], R44 ;
.L_x_5:
        /*0210*/                   MEMBAR.ALL.GPU ;
        /*0220*/                   ERRBAR ;
        /*0230*/                   CCTL.IVALL ;
        /*0240*/                   LDL R18, [R1] ;
        /*0250*/               @P6 EXIT ;
        /*0260*/                   BRA `(.L_x_1) ;
.L_x_6:
        /*0270*/                   BRA `(.L_x_6) ;
        /*0280*/                   NOP ;
"""


@pytest.fixture
def small():
    (function,) = parse(LISTING)
    return function


def test_loops_are_found_by_their_structure(small):
    blocks, _, outermost = small.loops()
    first = {small.instructions[blocks[loop.header][0]].address: loop for loop in outermost}
    assert set(first) == {0x30, 0x50}  # the loop after the end is unreachable
    inner = {small.instructions[blocks[loop.header][0]].address for loop in first[0x50].inner}
    assert inner == {0x60, 0x160}


def test_step_loop_is_measured(small):
    step = StepLoop(small, fp32=False)
    assert [small.instructions[i].address for i in step.all] == list(range(0x50, 0x270, 0x10))
    found = step.measure()
    expected = {
        "instructions": 34,
        "instructions_k_loop": 12,  # from 0xa0, through PRMT, to 0x150
        "instructions_shared_loop": 4,
        "HMMA": 7,
        "kept": 6,
        "kept_fragments": 2,
        "shared": 1,
        "LDS": {"U8": 1, "32": 1, "64": 1, "128": 1, "LDSM": 1},
        "LDL": 1,
        "STL": 0,
        "branches": 6,
        "branches_k_loop": 1,
        "branches_shared_loop": 0,
        "MEMBAR": {"MEMBAR.ALL.GPU": 1},
        "L1_flush": 1,
        "ERRBAR": 1,
        "barriers": {"BAR.SYNC.DEFER_BLOCKING": 1},
        "global_loads": 1,
        "global_stores": 2,
        "chain": 3,  # HMMAs at 0xd0, 0x110 and 0x140
        "loads_waited_for": 0,
        "groups": 3,  # at 0xd0, at 0x110 with R12 from LDSM, at 0x140 with R14 from LDSM
        "group_period": 3.5,
        "between_groups": 1.5,
        "per_group": 2.0,
    }
    assert {name: found[name] for name in expected} == expected


def test_common_path(small):
    path = CommonPath(StepLoop(small, fp32=False)).count()
    # All except the loop that waits (3 instructions); with one element also without the 3 of the second element.
    assert (path["executed"], path["executed_one"]) == (31, 28)
    assert path["inner_loops"] == [
        {"kind": "wait", "instructions": 3, "multiplications": 0, "copies": 0},
        {"kind": "multiply", "instructions": 4, "multiplications": 1, "copies": 0},
    ]


@pytest.mark.parametrize(
    "change, what",
    [
        (("@P2 BRA `(.L_x_3)", "NOP"), {"branches_k_loop": 0, "branches": 5, "instructions_k_loop": 12}),
        (("LDS.U8", "LDS.U16"), {"LDS": {"U16": 1, "32": 1, "64": 1, "128": 1, "LDSM": 1}}),
        (("@!P3 BRA `(.L_x_3)", "@!P3 BRA `(.L_x_4)"), {"instructions_shared_loop": 0, "shared": 1}),
        (("LDSM.16.M88.4 R12", "LDSM.16.M88.2 R14"), {"groups": 2}),  # R12 still has the value of 0xc0
        (("LDS.64 R14, [R3+0x8]", "LDS.64 R8, [R3+0x8]"), {"kept": 3, "shared": 4}),  # R8 is no longer kept
        (("CCTL.IVALL", "CCTL.IVALL.CTA"), {"L1_flush": 1}),
        (("MEMBAR.ALL.GPU", "MEMBAR.ALL.CTA"), {"MEMBAR": {"MEMBAR.ALL.CTA": 1}}),
    ],
)
def test_changes_show(change, what):
    assert change[0] in LISTING
    (function,) = parse(LISTING.replace(*change))
    found = StepLoop(function, fp32=False).measure()
    assert {name: found[name] for name in what} == what


def test_fp32_multiplications():
    """FFMAs with a kept weight count; those of the cell, which have no factor from shared memory, do not."""
    text = LISTING.replace("HMMA.16816.F32.BF16 R40, R4, R12.reuse, RZ", "FFMA R40, R4, R12.reuse, RZ")
    text = text.replace("HMMA.16816.F32.BF16 R44, R8, R12, RZ", "FFMA R44, R12, R8, R44")
    text = text.replace("MUFU.EX2 R40, R40", "FFMA R40, R41, R42, R40")
    (function,) = parse(text)
    step = StepLoop(function, fp32=True)
    assert [function.instructions[i].address for i in step.kept] == [0xD0, 0xE0]
    assert not step.shared


@pytest.mark.parametrize(
    "text, registers",
    [
        ("LDS.128 R20, [R16]", range(20, 24)),
        ("LDSM.16.M88 R8, [R3]", range(8, 9)),
        ("LDSM.16.MT88.4 R8, [R3]", range(8, 12)),
        ("HMMA.16816.F32 R4, R8, R12, R4", range(4, 8)),
        ("IMAD.WIDE.U32 R2, R4, R5, R6", range(2, 4)),
        ("IADD3 R3, P0, R4, R5, RZ", range(3, 4)),
        ("SHFL.BFLY PT, R7, R8, 0x1, 0x1f", range(7, 8)),
        ("ISETP.GE.AND P0, PT, R8, R9, PT", range(0)),
        ("STS.128 [R8], R4", range(0)),
        ("STG.E desc[UR4][R2.64], R4", range(0)),
        ("CS2R R40, SRZ", range(40, 42)),
    ],
)
def test_registers_written(text, registers):
    opcode, operands = text.split(" ", 1)
    assert list(Instruction(0, "", opcode, operands.split(", ")).writes()) == list(registers)


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "_ZN8lstmkern4cuda43_GLOBAL__N__a0a110ec_10_cluster_cu_e2cad31412cluster_loopINS0_12BackwardPassILNS_4CellE3ENS0_"
            "3f16EEELi2EEEvNT_9ArgumentsE",
            "cluster backward GRU float16 2",
        ),
        (
            "_ZN8lstmkern4cuda39_GLOBAL__N__2022e1b9_7_grid_cu_c0ed76ac9grid_loopINS0_11ForwardPassILNS_4CellE2ENS0_4bf16EEE"
            "Li4EEEvNT_9ArgumentsENS1_9GridStateINS7_5ValueEEE",
            "grid forward LSTM bfloat16 4",
        ),
        ("_ZN1a9grid_loopINS0_11ForwardPassILNS_4CellE2EfEELi1ELi8EEEvNT_9ArgumentsE", "grid forward LSTM float32 1 8"),
        ("_ZN8lstmkern4cuda12pack_weightsINS0_11ForwardPassILNS_4CellE2EfEEEEvNT_9ArgumentsEiPNS0_7Bytes16E", None),
    ],
)  # fmt: skip
def test_kernel_names(name, expected):
    kernel = identity(name)
    assert (kernel and key(kernel)) == expected


def test_results_file():
    """The committed numbers are complete: every loop of both tiers, and the numbers before for comparison."""
    results = sass.json.loads(sass.RESULTS.read_text())
    assert "before" in results
    for result in results.values():
        kinds = {tuple(x[k] for k in ("tier", "pass", "cell", "dtype")) for x in result["loops"].values()}
        assert len(kinds) == 2 * 2 * 2 * 3
        assert sass.summary(result["loops"], results["before"]["loops"]) and sass.table(result["loops"])
        assert sass.json.loads(sass.to_json({"before": result})) == {"before": result}


@pytest.mark.skipif(nvcc.missing() is not None, reason=str(nvcc.missing()))
@pytest.mark.parametrize("tier", sass.TIERS)
def test_loops_are_tight(tier, record_property):
    """No spill, no local memory, no byte load, no branch in the k-loops; for clusters no device-wide fence and no L1
    flush.

    Every kernel has a trap, with which a wait that would not end stops.
    """
    source = sass.ROOT / "csrc" / "cuda" / f"{tier}.cu"
    loops = sass.measure_file(source)
    record_property(f"{tier}_loop for {nvcc.ARCH}", sass.table(loops))
    kinds = {tuple(x[k] for k in ("pass", "cell", "dtype")) for x in loops.values()}
    assert len(kinds) == 2 * 2 * 3, "not all loops were found"
    named = [name for name in sass.resources(nvcc.compiled(source)[1]) if f"{tier}_loop" in name]
    assert len(loops) == len(named), "loops with the same key"
    functions = [f for f in parse(nvcc.disassembled(nvcc.compiled(source)[0])) if f.name in named]
    traps = [f.name for f in functions if any(x.opcode.startswith("BPT.TRAP") for x in f.instructions)]
    assert len(functions) == len(traps) == len(named)
    for name, loop in loops.items():
        steps = loop["kept"] and loop["shared"]
        assert steps, f"{name}: the k-loops were not found"
    # Prefetched values are not used or copied at once. The loads where a sequence begins or ends are: at most 9 of 26.
    # With plain copies in advance() (resident_forward.h) they would be 11 of 26 or more, and 4 of 8 forward.
    late = {n: (x["loads_waited_for"], x["loads_of_values"]) for n, x in loops.items()}
    assert all(5 * waited <= 2 * loads for waited, loads in late.values()), late
    found = {name: sass.violations(loop) for name, loop in loops.items()}
    assert not any(found.values()), "\n" + "\n".join(f"{n}: {', '.join(v)}" for n, v in found.items() if v)
