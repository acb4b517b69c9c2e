"""`kill -9` in every part of a run: the same command, given again, ends where a straight run ends.

One run is left alone. The other one is killed ten times: at every phase of a save, between the
stages, while it evaluates, at random; then it gets SIGTERM. After each
death all that is on disk must be the straight run's, and in the end all that training determines,
byte for byte.
"""

import json
import random
import signal

import fork_helpers
import pytest
import run_helpers
from fork_helpers import Death

from promot_t5x import errors
from promot_t5x.checkpoints.steps import complete_steps

pytestmark = pytest.mark.slow

STEPS, PERIOD = 20, 2
STAGES = ("stage_one", "stage_two")
# What may differ: wall-clock times, and how orbax names and dates its files.
FREE = ("timing.jsonl", "launches.jsonl", "events.out.tfevents", "/state/", "_CHECKPOINT_METADATA")

MODULE = "promot_t5x.checkpoints.saving"
SAVER = f"{MODULE}:Checkpoints"
SAVING = [  # the phases of a save, in order, and of the removals and scores that follow it
    Death(f"{MODULE}:find_damage"),  # orbax has committed; nothing is verified
    Death(f"{MODULE}:write_manifest"),  # verified, and does not count yet
    Death(f"{MODULE}:write_manifest", after=True),  # counts, and is still marked as pending
    Death(f"{SAVER}._remove"),
    Death("promot_t5x.evaluation.evaluator:Evaluator.run"),
    Death(f"{SAVER}.add_metrics"),
]
ENDING = [
    Death("promot_t5x.checkpoints.prompt_file:save_prompt"),
    Death("promot_t5x.checkpoints.stage_result:StageResult.write", after=True),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(straight, interrupted, trials): two finished runs, and how each launch of one ended."""
    directory = tmp_path_factory.mktemp("resume")
    lab = run_helpers.Lab(directory)
    base, model_dir, straight = (directory / name for name in ("base", "run", "straight"))
    lab.write("two_stages.gin", run_helpers.TWO_STAGES)
    words = lab.words(
        "promot",
        "promot",
        "prompt",
        "two_stages.gin",
        MODEL_DIR=model_dir,
        INITIAL_CHECKPOINT_PATH=base / "checkpoint_1",
        DROPOUT_RATE=0.1,
        PACK="batch",
        TASK_FEATURE_LENGTHS={"inputs": 32, "targets": 6},
        TRAIN_STEPS=STEPS,
        EVAL_PERIOD=PERIOD,
        PROMPT_FROZEN_DTYPE="int8",
        PROMPT_STEPS=STEPS,
        PROMPT_EVAL_PERIOD=PERIOD,
    )
    rng, trials = random.Random(0), []
    server = fork_helpers.shared()

    def trial(status=-signal.SIGKILL, **how):
        ended = server.run(words, programs=(programs, False), **how)
        trials.append((how, ended))
        assert ended.status == status, (how, ended)
        compare_what_is_there(model_dir, straight)

    pretrain = lab.words("train", "pretrain", "train", MODEL_DIR=base, TRAIN_STEPS=1)
    assert server.run(pretrain).status == 0
    programs = directory / "programs"  # a dozen launches would trace the same again and again
    programs.mkdir()
    ended = server.run(words, archive=archive_of(straight), programs=(programs, True))
    assert ended.status == 0, ended.said
    # A run's directory is part of its configuration, so both have the same one, in turn.
    model_dir.rename(straight)

    for death in SAVING + ENDING:
        trial(death=death)
    place = model_dir / "stage_two"
    trial(sign=place / "train" / "metrics.jsonl", delay=rng.uniform(0, 0.1))
    trial(
        errors.EXIT_START_AGAIN,
        sign=next_records(place),
        delay=rng.uniform(0, 0.05),
        number=signal.SIGTERM,
    )
    assert not (place / "stage.json").exists()
    trial(death=Death("promot_t5x.runs.comparison_evaluator:ComparisonEvaluator.evaluate", call=2))
    trial(status=0)
    return straight, model_dir, trials


def archive_of(straight):
    """Where the straight run's checkpoints are that it has removed."""
    return straight.with_name("archive")


def next_records(stage):
    """A file that the stage will write when it has evaluated a checkpoint, and not at its end."""
    newest = max(complete_steps(stage), default=0)
    steps = range(PERIOD, STEPS - PERIOD, PERIOD)
    names = {step: stage / "inference_eval" / f"run_signs-{step:06}.jsonl" for step in steps}
    return next(path for step, path in names.items() if step > newest and not path.exists())


def compare_what_is_there(model_dir, straight):
    """Whatever a killed run has left and may go on from is the straight run's, to the byte."""
    for stage in STAGES:
        for step in complete_steps(model_dir / stage):
            name = f"{stage}/checkpoint_{step}"
            places = [p for p in (straight, archive_of(straight)) if (p / name).exists()]
            assert places or step % PERIOD, name  # only SIGTERM saves between two periods
            for place in places:
                run_helpers.assert_same_arrays(
                    run_helpers.checkpoint_arrays(model_dir / name),
                    run_helpers.checkpoint_arrays(place / name),
                )
        metrics = model_dir / stage / "train" / "metrics.jsonl"
        if metrics.exists():
            wanted = (straight / stage / "train" / "metrics.jsonl").read_text()
            assert wanted.startswith(metrics.read_text())


def test_there_were_enough_deaths_and_each_left_something_to_go_on_from(runs):
    _, _, trials = runs
    assert sum(ended.status == -signal.SIGKILL for _, ended in trials) >= 10
    stops = [ended.said for _, ended in trials if ended.status == errors.EXIT_START_AGAIN]
    assert len(stops) == 1
    assert "start it again to resume" in stops[0]
    assert sum("resumes after step" in ended.said for _, ended in trials) >= 5
    assert not any("is damaged" in ended.said for _, ended in trials)
    assert "step compiled" not in trials[-1][1].said


def test_every_array_of_every_checkpoint(runs):
    """The parameters, the optimizer's slots and the step, in all checkpoints that were kept."""
    straight, interrupted, _ = runs
    for stage in STAGES:
        kept = sorted(path.name for path in (straight / stage).glob("checkpoint_*"))
        assert f"checkpoint_{STEPS}" in kept
        assert sorted(path.name for path in (interrupted / stage).glob("checkpoint_*")) == kept
        for name in kept:
            wanted = run_helpers.checkpoint_arrays(straight / stage / name)
            assert any(path.startswith("state/opt_state/") for path in wanted)
            run_helpers.assert_same_arrays(
                run_helpers.checkpoint_arrays(interrupted / stage / name), wanted
            )


def test_every_other_file(runs):
    """Metrics, records, the prompt, the report: the same files with the same bytes."""
    straight, interrupted = (determined(run_helpers.tree(directory)) for directory in runs[:2])
    assert straight.keys() == interrupted.keys()
    assert {"report.md", "stage_one/prompt.npz", "stage_two/train/metrics.jsonl"} <= straight.keys()
    for name, content in straight.items():
        assert interrupted[name] == content, name


def determined(tree: dict[str, bytes]) -> dict[str, bytes]:
    """What training alone determines; of a manifest, all but what it says of orbax's files."""
    found = {}
    for name, content in tree.items():
        if name.endswith("/manifest.json") and "/state/" not in name:
            manifest = json.loads(content)
            content = json.dumps([manifest["arrays"], manifest["metadata"]]).encode()
        if "/inference_eval/" in name and name.endswith(".json"):
            content = json.dumps({**json.loads(content), "timings": None}).encode()
        if not any(part in name for part in FREE):
            found[name] = content
    return found


def test_metrics_have_one_line_a_step(runs):
    for directory in runs[:2]:
        for stage in STAGES:
            rows = run_helpers.json_lines(directory / stage / "train" / "metrics.jsonl")
            assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
            assert len({row["loss"] for row in rows}) == STEPS
