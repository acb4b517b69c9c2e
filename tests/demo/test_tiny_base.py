"""The shipped base: its card says what it is, its recipe makes its beginning, its scores hold."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import run_helpers

from promot_t5x import config
from promot_t5x.checkpoints import hashing
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.data import ragged, tokenization
from promot_t5x.tasks import registry
from promot_t5x.tasks.tiny import definitions, episodes
from promot_t5x.tasks.tiny.vocabulary import WordVocabulary
from tools import ship_demo_base

pytestmark = pytest.mark.slow

BASE = Path(str(ship_demo_base.BASE))
CARD = json.loads((BASE / "card.json").read_text())
LOG = [row for row in run_helpers.json_lines(BASE / "training.jsonl") if row["stage"] == "learn"]
STEPS = 3
# The recipe's first stage, for a few steps. Its 166,400 rows go through SeqIO in half a minute;
# here plain Python splits them into the same ids, which the store's hash proves.
BEGINNING = """
import sys
sys.path += ["tests/demo", "tests/helpers"]
import test_tiny_base
from promot_t5x import config
from promot_t5x.cli import ending
from promot_t5x.data import store
from promot_t5x.runs import train
store.tokenized = test_tiny_base.tokenized
run = config.configured(train.train)
config.parse(
    ["demo/pretrain.gin"],
    [
        "TRAIN_STEPS = %d",
        "MODEL_DIR = '%s'",
        "stages.Stage.evaluation = None",
        "train.train.model = %%MODEL",
        "train.train.stage = @stages.Stage()",
        "train.train.model_dir = %%MODEL_DIR",
        "train.train.partitioner = @partitioning.Partitioner()",
    ],
)
ending.run_and_exit(lambda: 0 if run() else 1)
"""


def tokenized(pipeline, rows):
    """What `tokenization.tokenized` yields for `tiny_pretrain`, by splitting words."""
    assert pipeline.task.name == "tiny_pretrain"
    split = pipeline.split
    vocabulary = WordVocabulary()
    size = definitions.PRETRAINING_SIZES[split]
    rows = episodes.pretraining_rows(size, seed=0, noise=0.1, split=split)
    chunk = {}
    for name in ("inputs", "targets"):
        ids = [[*vocabulary.encode(text), vocabulary.eos_id] for text in rows[name]]
        lengths = np.array([len(row) for row in ids], np.int64)
        chunk[name] = ragged.Ragged(np.concatenate(ids).astype(np.int32), lengths)
    yield chunk


def test_the_card_names_the_checkpoint():
    assert hashing.content_hash(open_checkpoint("tiny_world").read_tree()) == CARD["hash"]


def test_the_recipe_is_the_shipped_configuration():
    """What has been added to the configuration since has its default, and changes no number."""
    out = run_helpers.succeed(["promot", "--gin_file=demo/pretrain.gin", "--dry_run"])
    changed = config.describe_difference((BASE / "recipe.gin").read_text(), out)
    assert [line for line in changed if ": was not set, now " not in line] == []


def test_plain_python_splits_words_as_the_tasks_do():
    task = registry.get_task("tiny_pretrain").build(WordVocabulary())
    pipeline = tokenization.Pipeline(task, "validation", None)
    wanted = list(tokenization.tokenized(pipeline, None))
    (found,) = tokenized(pipeline, None)
    for name in ("inputs", "targets"):
        tokens = np.concatenate([chunk[name].tokens for chunk in wanted])
        lengths = np.concatenate([chunk[name].lengths for chunk in wanted])
        np.testing.assert_array_equal(found[name].tokens, tokens)
        np.testing.assert_array_equal(found[name].lengths, lengths)


def test_the_recipe_makes_the_beginning_of_the_training_log(tmp_path):
    """To rounding: in what order float32 numbers are summed is up to the processor and XLA.

    One processor's numbers differ from another's by 5e-7 in these steps.
    """
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING % (STEPS, tmp_path / "run")],
        cwd=Path(__file__).parents[2],
        env=plain_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (store,) = (tmp_path / "run" / "token_cache").glob("*/store.json")
    told = json.loads(store.read_text())
    assert told["content_hash"] == CARD["tokens"][told["name"]]
    found = run_helpers.losses(tmp_path / "run")
    wanted = [row["loss"] for row in LOG[:STEPS]]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def plain_environment():
    """A user's: the suite's own settings of XLA make other programs."""
    environment = run_helpers.environment()
    for name in [name for name in environment if name.startswith("JAX_")]:
        del environment[name]
    return {**environment, "JAX_PLATFORMS": "cpu"}


def test_the_base_reaches_its_scores():
    (suite,) = [name for name in ship_demo_base.SUITES if name.endswith("_1shot")]
    with run_helpers.compilation_cached():
        found = ship_demo_base.scores([suite])[suite]
    wanted = CARD["scores"][suite]
    assert found.keys() == wanted.keys()
    assert len(wanted) == 8
    # Of 200 questions a task; rounding on another machine may turn one over.
    assert {name: pytest.approx(score, abs=0.5) for name, score in wanted.items()} == found
    assert np.mean(list(wanted.values())) > 98
    zero = CARD["scores"]["tiny_icl_0shot"]
    assert np.mean(list(zero.values())) < 60
