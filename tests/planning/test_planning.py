"""Planning without a compiler: slices by name, programs as text, FLOPs, rooflines, settings."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from promot_t5x import config, decoding
from promot_t5x.cli import main
from promot_t5x.data.batch_rows import Shape
from promot_t5x.errors import UserError
from promot_t5x.planning import (
    cache,
    chips,
    compiler,
    estimates,
    flops,
    hlo,
    planned_runs,
    roofline,
    settings_search,
    table,
)
from promot_t5x.planning.estimates import Estimate

pytestmark = pytest.mark.slow

PAPER = sorted(
    path.stem
    for path in (config.gin_root() / "paper").glob("*.gin")
    if path.stem not in ("settings", "rte", "enfr", "snli", "openbookqa")
)


# ------------------------------------------------------------------------ slices


@pytest.mark.parametrize(
    ("name", "kind", "count", "grid"),
    [
        ("v4-8", "v4", 4, (2, 2, 1)),
        ("v4-128", "v4", 64, (4, 4, 4)),
        ("v5p-128", "v5p", 64, (4, 4, 4)),
        ("v5litepod-16", "v5e", 16, (4, 4)),
        ("v5e-1", "v5e", 1, (1, 1)),
        ("v6e-8", "v6e", 8, (2, 4)),
    ],
)
def test_slices_go_by_the_names_of_cloud_tpu(name, kind, count, grid):
    found = chips.find_slice(name)
    assert (found.chip.name, found.chips, found.grid) == (kind, count, grid)
    assert chips.find_slice(found.name) == found


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("v4-7", "v4-8, v4-16"),
        ("v5e-3", "v5e-1, v5e-4"),
        ("v5litepod", "v5e-16"),
        ("v7x-8", "v6e"),
        ("h100-8", "v4"),
    ],
)
def test_a_slice_that_is_not_offered_is_an_error_that_lists_those_that_are(name, hint):
    with pytest.raises(UserError, match=hint):
        chips.find_slice(name)


def test_slices_of_a_kind_come_smallest_first_and_several_have_one_name():
    counts = [each.chips for each in chips.sizes_of(chips.CHIPS["v5e"])]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert chips.find_slice("v5p-8", 2).name == "2x v5p-8"
    assert chips.find_slice("v5p-8", 2).chips == 8


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("… required for HLO temporaries (180.00G) exceeds available HBM (30.75G).", 180 * 2**30),
        ("… Used 20.52G of 15.75G hbm. Exceeded hbm capacity by 4.78G.", int(20.52 * 2**30)),
        ("RESOURCE_EXHAUSTED: something else", None),
    ],
)
def test_out_of_memory_says_how_much_it_takes(message, size):
    assert compiler.needed(message) == size


# ------------------------------------------------------------------------ programs as text

PROGRAM = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%slice_of_layer (p: bf16[24,1024,512], i: s32[]) -> bf16[1024,512] {
  %p = bf16[24,1024,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %one = bf16[1,1024,512]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,1024,512}
  ROOT %b = bf16[1024,512]{1,0:T(8,128)(2,1)} bitcast(%one)
}

%all-reduce-scatter.1 (q: f32[64,128]) -> f32[16,128] {
  %q = f32[64,128]{1,0} parameter(0)
  %whole = f32[64,128]{1,0} all-reduce(%q), replica_groups=[2,4]<=[8], to_apply=%add
  %at = s32[] constant(0)
  ROOT %part = f32[16,128]{1,0} dynamic-slice(%whole, %at, %at), dynamic_slice_sizes={16,128}
}

%body (state: (s32[], bf16[24,1024,512], f32[256])) -> (s32[], bf16[24,1024,512], f32[256]) {
  %state = (s32[]{:T(128)}, bf16[24,1024,512]{2,1,0:T(8,128)(2,1)}, f32[256]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %stack = bf16[24,1024,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %v = f32[256]{0} get-tuple-element(%state), index=2
  %layer = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} fusion(%stack, %i), kind=kLoop, calls=%slice_of_layer
  %r = f32[256]{0} all-reduce(%v), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %next = (s32[]{:T(128)}, bf16[24,1024,512]{2,1,0:T(8,128)(2,1)}, f32[256]{0}) tuple(%i, %stack, %r)
}

%condition (state: (s32[], bf16[24,1024,512], f32[256])) -> pred[] {
  %state = (s32[]{:T(128)}, bf16[24,1024,512]{2,1,0:T(8,128)(2,1)}, f32[256]{0}) parameter(0)
  %bound = s32[]{:T(128)} constant(24)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %more = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

ENTRY %main (a: bf16[24,1024,512], v: f32[256], w: f32[64,128]) -> f32[512,128] {
  %a = bf16[24,1024,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %v = f32[256]{0} parameter(1)
  %w = f32[64,128]{1,0} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %t = (s32[]{:T(128)}, bf16[24,1024,512]{2,1,0:T(8,128)(2,1)}, /*index=2*/f32[256]{0}) tuple(%zero, %a, %v)
  %loop = (s32[]{:T(128)}, bf16[24,1024,512]{2,1,0:T(8,128)(2,1)}, /*index=2*/f32[256]{0}) while(%t), condition=%condition, body=%body
  %start = ((f32[64,128]{1,0}), f32[512,128]{1,0}, s32[]{:S(2)}) all-gather-start(%w), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a','b'}, dimensions={0}
  %done = f32[512,128]{1,0} all-gather-done(%start)
  %p = f32[64,128]{1,0} collective-permute(%w), source_target_pairs={{0,4},{4,0}}
  %rs = f32[16,128]{1,0} fusion(%w), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out = f32[512,128]{1,0} copy(%done)
}
"""  # noqa: E501


def test_traffic_multiplies_loops_and_counts_what_a_ring_sends():
    found = hlo.traffic(PROGRAM, chips_per_slice=4)
    matrix = 64 * 128 * 4
    assert found.sent_bytes == {
        hlo.Collective("all-reduce", 2, False): 24 * 2 * 256 * 4 * 1 / 2,
        hlo.Collective("all-gather", 8, True): matrix * 7,
        hlo.Collective("collective-permute", 2, True): matrix,
        hlo.Collective("reduce-scatter", 4, False): matrix * 3 / 4,
    }
    assert found.calls[hlo.Collective("all-reduce", 2, False)] == 24
    layer = 1024 * 512 * 2  # each turn reads one layer of the stack into the chip's own memory
    counter = 4
    loop = 24 * (layer + counter + 2 * 256 * 4)
    once = (matrix + 8 * matrix) + 2 * matrix + (matrix + matrix // 4) + 2 * 8 * matrix
    assert found.hbm_bytes == loop + once


def test_what_is_only_tiled_anew_inside_a_fusion_is_not_read():
    """As the compiler does with int8 stacks, whose bytes lie alike in both tilings."""
    tiled = """\
%copy_fusion (q: bf16[24,1024,512]) -> bf16[24,1024,512] {
  %q = bf16[24,1024,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %copy = bf16[24,1024,512]{2,1,0:T(16,128)(2,1)} copy(%q)
}

%slice_of_layer"""
    use = """\
  %again = bf16[24,1024,512]{2,1,0:T(16,128)(2,1)} fusion(%p), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%copy_fusion
  %one = bf16[1,1024,512]{2,1,0:T(16,128)(2,1)} dynamic-slice(%again,"""  # noqa: E501
    once = "  %one = bf16[1,1024,512]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p,"
    text = PROGRAM.replace("%slice_of_layer", tiled, 1).replace(once, use)
    assert text.count("%again") == 2
    assert hlo.traffic(text, chips_per_slice=4) == hlo.traffic(PROGRAM, chips_per_slice=4)


OVERLAPPED = """\
%first (p: f32[64,128]) -> (f32[64,128], f32[256,128]) {
  %p = f32[64,128]{1,0} parameter(0)
  %g = f32[256,128]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %t = (f32[64,128]{1,0}, f32[256,128]{1,0}) tuple(%p, %g)
}

%last (p: f32[64,128], into: f32[256,128]) -> f32[256,128] {
  %p = f32[64,128]{1,0} parameter(0)
  %into = f32[256,128]{1,0} parameter(1)
  ROOT %g = f32[256,128]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
}

ENTRY %main (w: f32[64,128]) -> f32[256,128] {
  %w = f32[64,128]{1,0} parameter(0)
  %async-collective-start = (f32[64,128]{1,0}, f32[256,128]{1,0}) fusion(%w), kind=kCustom, calls=%first
  %source = f32[64,128]{1,0} get-tuple-element(%async-collective-start), index=0
  %target = f32[256,128]{1,0} get-tuple-element(%async-collective-start), index=1
  %token = token[] after-all()
  %sent = (f32[64,128]{1,0}, u32[], token[]) send(%w, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %async-collective-done = f32[256,128]{1,0} fusion(%source, %target), kind=kCustom, calls=%last
}
"""  # noqa: E501


def test_a_collective_that_overlaps_other_work_counts_once_and_slices_talk_by_the_runtime():
    found = hlo.traffic(OVERLAPPED, chips_per_slice=4)
    matrix = 64 * 128 * 4
    assert found.sent_bytes == {
        hlo.Collective("all-gather", 4, False): 3 * matrix,
        hlo.Collective("all-reduce", 2, True): 2 * matrix / 2,
    }
    assert found.hbm_bytes == matrix + 4 * matrix + matrix


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [0, 2]),
        ("replica_groups=[2,4]<=[8], x", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=4] {'a'}, x", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x", [0, 2]),
        ("replica_groups={}", []),
    ],
)
def test_groups_of_devices_in_every_notation(text, group):
    assert hlo.replica_group(text) == group


# ------------------------------------------------------------------------ rooflines


def test_a_roofline_is_bound_by_the_slowest_resource():
    slice_ = chips.find_slice("v5e-4")
    near, far = hlo.Collective("all-reduce", 4, False), hlo.Collective("all-reduce", 2, True)

    def line(work=0.0, moved=0.0, sent=None):
        traffic = hlo.Traffic(hbm_bytes=moved, sent_bytes=sent or {}, calls={})
        return roofline.roofline(slice_, flops.Flops(forward=work, recomputed=work), traffic)

    second = 4 * slice_.chip.peak_flops
    busy = line(work=second, moved=819e9)
    assert (busy.seconds, busy.bound, busy.model_flops_utilisation) == (2, "compute", 0.5)
    assert line(work=1.0, moved=819e9).bound == "HBM"
    assert line(sent={near: 1e11}).seconds == pytest.approx(1)
    across = line(work=1.0, sent={far: 1e11})
    assert (across.seconds, across.bound) == (pytest.approx(32), "interconnect")


# ------------------------------------------------------------------------ runs, tables, search


@pytest.mark.parametrize("name", PAPER)
def test_a_run_of_the_paper_has_the_papers_settings(name):
    run = planned_runs.read([f"paper/{name}.gin"], [], [])
    model, target = name.split("_xl" if "_xl_" in name else "_xxl")[0], name
    assert run.model.config.vocab_size == {"mt5": 250112, "t5_1_1": 32128, "flan_t5": 32128}[model]
    assert run.model.config.emb_dim == (2048 if "_xl_" in name else 4096)
    assert run.model.config.scan_layers
    assert run.model.config.remat_policy == "full"
    assert run.model.prompt_shape[:2] == (2 if "multitask" in target else 1, 100)
    assert run.model.label_smoothing == run.model.config.dropout_rate == 0.1
    for stage in run.stages:
        data = stage.train_dataset
        assert data.batch_size == 64
        assert data.pack == "batch"
        assert data.task_feature_lengths["inputs"] >= 612
        prompted, adapted = (list(stage.trainable) == [part] for part in ("prompt", "adapter"))
        steps = 10000 if "multitask" in name else 5000
        assert stage.train_steps == (steps if prompted or adapted else 1000)
        assert stage.frozen_dtype == ("bfloat16" if prompted or adapted else "float32")
        assert float(stage.learning_rate(0)) == pytest.approx(0.2 if prompted else 0.001)
    if "lora" in name:
        one, two = run.stages
        assert (one.adapter.rank, one.prompt) == (int(name[-1]), None)
        assert two.adapter == "stage_one"
    for asked in run.asked:
        assert asked.questions.method == decoding.BeamSearch(num_decodes=4)
    assert "icl_1shot" in [asked.questions.mixture_or_task_name for asked in run.asked]


def test_programs_are_those_of_the_run_and_equal_ones_come_once():
    run = planned_runs.read(["paper/mt5_xl_rte.gin"], ["NUM_PARTITIONS = 2"], [])
    found = planned_runs.programs(run, jax.devices())
    assert [each.name for each in found] == [
        "stage_one",
        "stage_two",
        "standard",
        "stage_one validation",
        "stage_two validation",
        "standard validation",
        "ask rte",
        "ask rte with prompt",
        "ask icl_1shot",
    ]
    one, two, _standard = found[:3]
    weights = 3_742_619_648
    assert one.parameter_bytes == pytest.approx(2 * weights / 2, rel=1e-3)
    assert two.parameter_bytes == pytest.approx(4 * weights / 2, rel=1e-3)
    assert one.optimizer_bytes < 1e6 < two.optimizer_bytes
    assert one.flops.model == pytest.approx(two.flops.model * 2 / 3, rel=0.05)
    assert (one.steps, two.steps, found[-1].steps) == (5000, 1000, None)
    assert [each.name for each in planned_runs.chosen(found, ["standard"])] == ["standard"]
    with pytest.raises(UserError, match="Did you mean 'standard'"):
        planned_runs.chosen(found, ["standart"])


@pytest.mark.parametrize(
    ("run", "extra", "names"),
    [
        ("finetune", [], ["train", "train validation"]),
        ("prompt_tune", [], ["stage_one", "stage_one validation"]),
        ("eval", [], ["ask rte"]),
        (
            "eval",
            ["PROMPT_FILE = 'prompt.npz'", "NUM_PROMPTS = 1", "PROMPT_LENGTH = 4"],
            ["ask rte with prompt"],
        ),
    ],
)
def test_runs_of_every_verb_can_be_planned(run, extra, names):
    lengths = "TASK_FEATURE_LENGTHS = {'inputs': 64, 'targets': 8}"
    bindings = ["MIXTURE_OR_TASK_NAME = 'rte'", lengths, "SCAN_LAYERS = True", *extra]
    found = planned_runs.read(["models/t5_1_1_small.gin", f"runs/{run}.gin"], bindings, [])
    assert [each.name for each in planned_runs.programs(found, jax.devices())] == names


PACKED, UNPACKED = ["NUM_PARTITIONS = 2"], ["NUM_PARTITIONS = 2", "PACK = False"]


def test_a_packed_step_is_planned_at_its_shape_and_without_one_at_its_largest():
    def stage_two(packed, bindings=PACKED):
        run = planned_runs.read(["paper/mt5_xl_rte.gin"], bindings, [], packed)
        return run, planned_runs.programs(run, jax.devices())[1].flops.model

    whole, packed = stage_two(None), stage_two(Shape(24, 612, 16))
    assert packed[1] == pytest.approx(whole[1] * 24 / 64, rel=0.05)
    assert packed[0].text != whole[0].text  # so that neither is remembered as the other
    assert whole[1] == stage_two(None, UNPACKED)[1]
    with pytest.raises(UserError, match="stage 'stage_one': a batch = 6 is not divisible"):
        stage_two(Shape(6, 612, 16))
    with pytest.raises(UserError, match="no stage of this run packs its batches"):
        stage_two(Shape(24, 612, 16), UNPACKED)
    with pytest.raises(UserError, match="PACK must be False, True or 'batch', got 'rows'"):
        stage_two(None, ["PACK = 'rows'"])


def test_adapters_are_counted_and_their_evaluation_has_them_where_they_train():
    found = {
        each.name: each
        for each in planned_runs.programs(
            planned_runs.read(["paper/mt5_xxl_enfr_lora_r4.gin"], ["NUM_PARTITIONS = 1"], []),
            jax.devices()[:1],
        )
    }
    assert list(found) == [
        "stage_one",
        "stage_two",
        "stage_one validation",
        "stage_two validation",
        "ask wmt14_enfr",
        "ask icl_1shot",
    ]
    one, two = found["stage_one"], found["stage_two"]
    asked, plain = found["stage_two validation"], found["ask wmt14_enfr"]
    # A and B of 3 x 24 attentions' queries and values, of 4096 to 4096, rank 4, float32.
    adapters = 4 * 2 * 3 * 24 * 4 * (4096 + 4096)
    assert asked.parameter_bytes - plain.parameter_bytes == adapters
    assert two.parameter_bytes - plain.parameter_bytes == adapters
    assert (
        2 * (one.parameter_bytes - adapters) == plain.parameter_bytes
    )  # a frozen base in bfloat16
    slots = one.optimizer_bytes  # a second moment of each number, and what counts
    assert adapters < slots < adapters + 2**20
    assert one.flops.backward < 0.6 * two.flops.backward

    # What is known without compiling: what is held, and the operations at peak.
    slice_ = chips.find_slice("v5p-8")
    least = estimates.bounds(one, slice_, "", print)
    assert (least.total_bytes, least.fits) == (one.parameter_bytes + slots, True)
    assert least.roofline.seconds == one.flops.executed / (4 * slice_.chip.peak_flops)
    assert table.row(least, slice_)[3:5] == ("", f"{least.total_bytes / chips.GIB:.2f} of 95.74")
    assert not estimates.bounds(two, chips.find_slice("v5e-1"), "", print).fits


def test_a_suite_asked_while_a_model_trains_is_a_program_beside_its_optimizer():
    bindings = ["NUM_PARTITIONS = 2", "SUITE_EVAL_PERIOD = 100"]
    found = planned_runs.programs(
        planned_runs.read(["paper/mt5_xl_rte.gin"], bindings, []), jax.devices()
    )
    named = {each.name: each for each in found}
    suite, stage, comparison = (
        named[name] for name in ("stage_two suite", "stage_two", "ask icl_1shot")
    )
    assert suite.waiting_bytes == stage.optimizer_bytes > 0 == comparison.waiting_bytes
    assert suite.parameter_bytes == comparison.parameter_bytes < stage.parameter_bytes
    # What standard fine-tuning asks is the same program; stage one changes nothing to ask about.
    assert [name for name in named if name.endswith(" suite")] == ["stage_two suite"]


def test_a_configuration_that_is_no_run_is_an_error():
    with pytest.raises(UserError, match="binds 0 of"):
        planned_runs.read(["models/mt5_small.gin"], ["DROPOUT_RATE = 0.1"], [])


def estimate(name, *, fits=True, steps=1000):
    traffic = hlo.Traffic(
        hbm_bytes=1e9, sent_bytes={hlo.Collective("all-reduce", 4, False): 2e9}, calls={}
    )
    traffic = hlo.Traffic(
        hbm_bytes=1e9, sent_bytes=traffic.sent_bytes, calls=dict.fromkeys(traffic.sent_bytes, 3)
    )
    work = flops.Flops(forward=1e15, backward=1e15)
    slice_ = chips.find_slice("v5e-4")
    return Estimate(
        program=name,
        slice_name=slice_.name,
        parameter_bytes=2**30,
        optimizer_bytes=2**20,
        temporary_bytes=3 * 2**30 if fits else 0,
        total_bytes=(4 if fits else 20) * 2**30,
        fits=fits,
        flops=work,
        traffic=traffic if fits else None,
        roofline=roofline.roofline(slice_, work, traffic) if fits else None,
        steps=steps,
        compile_seconds=1.0,
    )


def trial(*estimates, bindings=()):
    run = planned_runs.read(["paper/mt5_xl_rte.gin"], [], [])
    slice_ = chips.find_slice("v5e-4")
    return settings_search.Trial(slice_=slice_, bindings=bindings, run=run, estimates=estimates)


def test_what_does_not_fit_is_a_row_of_the_table():
    rows = [table.row(each, chips.find_slice("v5e-4")) for each in (estimate("a", fits=False),)]
    assert rows[0][4] == "20.00 of 15.75: too large"
    assert not trial(estimate("a"), estimate("b", fits=False)).fits
    row = table.row(estimate("a"), chips.find_slice("v5e-4"))
    assert row[:5] == ("a", "1.00", "0.0010", "3.00", "4.00 of 15.75")
    assert row[5:9] == ("2,000.0", "2,538 ms", "100%", "compute")
    assert row[9:] == ("1,000", "42m18s", "2.8")
    assert json.dumps(table.data(estimate("a")))
    assert json.dumps(table.data(estimate("b", fits=False)))


def test_the_best_trial_is_the_fastest_that_fits():
    fast, slow = trial(estimate("a", steps=10)), trial(estimate("a", steps=20))
    broken = trial(estimate("a", fits=False))
    assert fast.seconds < slow.seconds < broken.seconds == np.inf
    flags = trial(
        bindings=("NUM_PARTITIONS = 4", "REMAT_POLICY = 'full'", f"{settings_search.OVER_DATA} = 2")
    )
    assert flags.flags == (
        "--gin.NUM_PARTITIONS=4 --gin.REMAT_POLICY='\"full\"' "
        f"--gin_bindings='{settings_search.OVER_DATA} = 2'"
    )


def test_what_was_tried_is_a_table_and_what_is_impossible_stands_below_it():
    over = (f"{settings_search.OVER_DATA} = 2",)
    refused = dataclasses.replace(trial(bindings=("NUM_PARTITIONS = 4",)), refused="no " * 60)
    tried = [trial(estimate("a"), bindings=over), trial(estimate("b", fits=False)), refused]
    head, *rows, why = table.trials([*tried, refused]).splitlines()
    assert head.split() == ["settings", "HBM", "a", "chip", "least", "time"]
    assert rows[0].split("  ")[:2] == ["v5e-4", over[0].rpartition(".")[2]]
    assert [row.rpartition("  ")[2].strip() for row in rows] == [
        "42m18s", "does not fit", "impossible", "impossible"
    ]  # fmt: skip
    assert max(map(len, rows)) < 80
    assert why == f"Impossible: {refused.refused}"


@pytest.mark.parametrize("set_", ["XDG_CACHE_HOME", "HOME"])
def test_plans_are_remembered_by_everything_that_they_depend_on(tmp_path, monkeypatch, set_):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(set_, str(tmp_path))
    name = cache.key("config", "program", (4, 4))
    assert cache.load(name) is None
    cache.save(name, {"total": 1.5})
    assert cache.load(name) == {"total": 1.5}
    assert cache.key("config", "program", (4, 8)) != name
    (path,) = tmp_path.rglob("*.json.gz")
    path.write_bytes(path.read_bytes()[:-9])
    assert cache.load(name) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology=v4-8"], "needs a configuration"),
        (["--gin_file=paper/mt5_xl_rte.gin"], "either --topology"),
        (["--gin_file=paper/mt5_xl_rte.gin", "--topology=v4-8", "--fit=v4"], "either --topology"),
        (["--gin_file=paper/mt5_xl_rte.gin", "--topology=v4-9"], "no such slice"),
        (["--gin_file=x.gin", "--topology=v4-8", "--packed=24x612"], "--packed=24x612: give rows"),
        (["--gin_file=x.gin", "--topology=v4-8", "--packed=0x6x6"], "--packed=0x6x6: give rows"),
        (["--gin_file=paper/mt5_xl_rte.gin", "--fit=v4", "--search"], "leave out --search"),
        (["--gin_file=x", "--topolgy=v4-8"], "unrecognized"),
    ],
)
def test_bad_flags_are_one_line(words, message, capsys):
    assert main.main(["plan", *words]) == 2
    assert message in capsys.readouterr().err
