"""Demonstrations of a whole run: of each seed in training, of several draws in the suite."""

import json

import pytest
import run_helpers

pytestmark = pytest.mark.slow

TASKS = """\
from promot_t5x.tasks import jsonl, register, text_task

for name in ("run_colors", "run_facts"):
    files = {{split: "{directory}/" + split + ".jsonl" for split in ("train", "validation")}}
    source = jsonl(files["train"], validation=files["validation"])
    register(text_task(name=name, source=source, inputs=name + " {{q}}:", target="{{a}}"))
"""
STANDARD = """\
from __gin__ import dynamic_registration
from promot_t5x.runs import promot
from promot_t5x.runs import stages
STAGES = [@standard/stages.Stage()]
ROWS = [@pretrained/promot.Row(), @standard/promot.Row()]
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = run_helpers.Lab(tmp_path_factory.mktemp("shots"))
    for split, numbers in (("train", range(24)), ("validation", range(24, 30))):
        rows = [{"q": f"{n}", "a": "abc"[n % 3]} for n in numbers]
        lab.write(f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    lab.write("shot_tasks.py", TASKS.format(directory=lab.directory))
    lab.write("suite.gin", run_helpers.SUITE.format("run_facts_1shot"))
    lab.write("standard.gin", STANDARD)
    return lab


def words(lab, *files, **macros):
    given = {
        "MODEL_DIR": lab.directory / "run",
        "INITIAL_CHECKPOINT_PATH": None,
        "MIXTURE_OR_TASK_MODULE": lab.directory / "shot_tasks.py",
        "MIXTURE_OR_TASK_NAME": "run_colors_1shot",
        "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 4},
        "TRAIN_STEPS": 2,
        **macros,
    }
    return lab.words("promot", "promot", "prompt", "standard.gin", *files, **given)


@pytest.fixture(scope="module")
def run(lab):
    run_helpers.succeed(words(lab, "suite.gin", SEEDS=[0, 1], SUITE_SHOT_SEEDS=[5]))
    return lab.directory / "run"


def test_each_seed_trains_on_demonstrations_of_its_own(run):
    hashes = set()
    for seed in (0, 1):
        manifest = run / f"seed_{seed}" / "standard" / "checkpoint_2" / "manifest.json"
        (examples,) = json.loads(manifest.read_text())["metadata"]["data"]["examples"].values()
        assert examples["examples"] == 24
        hashes.add(examples["content_hash"])
    assert len(hashes) == 2


def test_the_suite_is_asked_after_other_demonstrations_too(run):
    shown = {}
    for seed, row in ((0, run), (1, run / "seed_1")):
        label = "standard_fine_tuning" if seed else "pretrained"
        for place in ("", "shot_seed_5"):
            answers = row / "comparison" / label / place / "inference_eval"
            records = run_helpers.json_lines(answers / "run_facts_1shot-000000.jsonl")
            summary = json.loads((answers / "run_facts_1shot-000000.json").read_text())
            assert summary["seeds"]["shots"] == int(place.removeprefix("shot_seed_") or 0)
            shown[label, place] = [record["shots"] for record in records]
    # Every row is asked after the same ones, and each draw has others.
    for place in ("", "shot_seed_5"):
        assert shown["pretrained", place] == shown["standard_fine_tuning", place]
    assert len({str(each) for each in shown.values()}) == 2
    printed = run_helpers.succeed(["report", str(run)])
    assert "Asked after other demonstrations" in printed


def test_more_draws_may_be_asked_for_later(lab, run):
    before = run_helpers.tree(run / "comparison" / "pretrained" / "inference_eval")
    out = run_helpers.succeed(words(lab, "suite.gin", SEEDS=[0, 1], SUITE_SHOT_SEEDS=[5, 6]))
    assert out.count("finished before") == 2
    assert run_helpers.tree(run / "comparison" / "pretrained" / "inference_eval") == before
    for row in (run / "comparison" / "pretrained", run / "seed_1" / "comparison"):
        assert list(row.rglob("shot_seed_6/inference_eval/run_facts_1shot-000000.json"))


@pytest.mark.parametrize(
    ("files", "seeds", "said"),
    [
        ((), [5], "there is no SUITE"),
        (("suite.gin",), [0], "draws the same demonstrations twice"),
        (("suite.gin",), [5, 5], "draws the same demonstrations twice"),
        (("plain.gin",), [5], "no task of the suite shows demonstrations"),
    ],
)
def test_draws_that_make_no_difference_are_refused(lab, files, seeds, said):
    lab.write("plain.gin", run_helpers.SUITE.format("run_facts"))
    again = {"MODEL_DIR": lab.directory / "refused", "SUITE_SHOT_SEEDS": seeds}
    done = run_helpers.here(words(lab, *files, **again))
    assert done.status == 2
    assert said in done.err
