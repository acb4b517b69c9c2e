"""ProMoT on real RTE rows, from the files of TensorFlow Datasets to the table, as one process."""

import json
import statistics

import pytest
import run_helpers
from real_rows import SAMPLES

pytestmark = pytest.mark.slow

STEPS = 20
MODEL = """\
from __gin__ import dynamic_registration

include 'models/t5_1_1.gin'
include 'models/byte_vocabulary.gin'

EMBED_DIM = 32
NUM_HEADS = 4
HEAD_DIM = 8
MLP_DIM = 64
NUM_ENCODER_LAYERS = 1
NUM_DECODER_LAYERS = 1
ACTIVATION_DTYPE = 'float32'
"""
SETTINGS = f"""\
from __gin__ import dynamic_registration

from promot_t5x import decoding
from promot_t5x.evaluation import evaluator as evaluate

INITIAL_CHECKPOINT_PATH = None
MIXTURE_OR_TASK_NAME = 'rte'
TASK_FEATURE_LENGTHS = {{'inputs': 128, 'targets': 8}}
BATCH_SIZE = 16
EVAL_BATCH_SIZE = 50
DROPOUT_RATE = 0.0
LABEL_SMOOTHING = 0.0
DECODING = @decoding.Greedy()
PROMPT_LENGTH = 8
PROMPT_STEPS = {STEPS}
PROMPT_EVAL_PERIOD = {STEPS}
TRAIN_STEPS = {STEPS}
EVAL_PERIOD = {STEPS}
LEARNING_RATE = 0.01
# Room for every question's bytes, so that none is cut.
target/evaluate.EvalConfig.task_feature_lengths = {{'inputs': 864, 'targets': 8}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, real_rows):
    directory = tmp_path_factory.mktemp("rte")
    lab = run_helpers.Lab(directory)
    lab.write("small.gin", MODEL)
    lab.write("rte.gin", SETTINGS)
    words = lab.words("promot", "promot", "rte", model="small", MODEL_DIR=directory / "run")
    done = run_helpers.process([*words, f"--tfds_data_dir={real_rows}"], cwd=directory)
    assert done.status == 0, done.err
    return directory / "run"


@pytest.mark.parametrize("stage", ["stage_one", "stage_two", "standard"])
def test_loss_falls(run, stage):
    losses = run_helpers.losses(run / stage)
    assert len(losses) == STEPS
    assert statistics.mean(losses[-10:]) < statistics.mean(losses[:10])


def test_every_validation_row_is_scored(run):
    for row in ("pretrained", "prompt_tuning", "standard_fine_tuning", "ProMoT"):
        answers = run / "comparison" / row / "inference_eval"
        records = run_helpers.json_lines(answers / "rte-000000.jsonl")
        assert len({record["id"] for record in records}) == len(records) == 100
        assert {record["target"] for record in records} == {"True", "False"}
        right = sum(record["prediction"] == record["target"] for record in records)
        (metrics,) = run_helpers.json_lines(answers / "rte-metrics.jsonl")
        assert metrics["accuracy"] == right
    assert (run / "report.md").read_text().count("\n| ") == 1 + 1 + 4


def test_records_hold_the_template(run):
    """The paper's words around the rows of the file that the data set was made of."""
    start, stop = json.loads((SAMPLES / "splits.json").read_text())["super_glue_rte"]["splits"][
        "validation"
    ]
    rows = run_helpers.json_lines(SAMPLES / "super_glue_rte.jsonl")[start:stop]
    wanted = {
        str(row["idx"]): (
            f"{row['premise']} question: {row['hypothesis']} Is it true or false? answer:",
            ("True", "False")[row["label"]],
        )
        for row in rows
    }
    records = run_helpers.json_lines(run / "comparison/ProMoT/inference_eval/rte-000000.jsonl")
    assert {r["id"]: (r["inputs"], r["target"]) for r in records} == wanted
