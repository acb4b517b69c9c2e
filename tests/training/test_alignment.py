"""Gradient alignment: the cosines are those of whole gradients, and runs write them down."""

import math

import jax
import numpy as np
import pytest
import run_helpers
from engine_helpers import one_device_mesh
from scan_helpers import scan_params

from promot_t5x.errors import UserError
from promot_t5x.models import encoder_decoder
from promot_t5x.network import transformer
from promot_t5x.network.config import T5Config
from promot_t5x.runs.stages import DatasetConfig
from promot_t5x.tasks.tiny.vocabulary import WordVocabulary
from promot_t5x.training import alignment

pytestmark = pytest.mark.slow

DATA = DatasetConfig(
    mixture_or_task_name="tiny_rte",
    task_feature_lengths={"inputs": 24, "targets": 3},
    split="validation",
    batch_size=8,
)


@pytest.fixture(scope="module")
def model():
    config = T5Config(
        vocab_size=416,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=24,
        num_encoder_layers=1,
        num_decoder_layers=2,
        dtype="float32",
        num_prompts=1,
        prompt_length=3,
    )
    words = WordVocabulary()
    return encoder_decoder.EncoderDecoderModel(
        module=transformer.Transformer(config=config),
        input_vocabulary=words,
        output_vocabulary=words,
    )


@pytest.fixture(scope="module")
def params(model):
    return jax.tree.map(np.asarray, model.initial_params(jax.random.key(0)))


def measure(model, params, shuffled="tiny_rte_shuffled_labels", **settings):
    settings = {"num_batches": 2, **settings}
    config = alignment.AlignmentConfig(shuffled=shuffled, batch_size=8, **settings)
    return alignment.Alignment(model, config, DATA, one_device_mesh())


@pytest.fixture(scope="module")
def measured(model, params):
    """What measures two batches, compiled once."""
    return measure(model, params)


def test_cosines_are_those_of_the_whole_gradient(model, params, measured):
    found = {block: each.value for block, each in measured.measure(params, None, 0).items()}
    assert list(found) == ["MLP", "query", "key", "value"]

    def whole(which):
        """The gradient of everything, batch for batch, in the last decoder layer."""
        gradient = jax.jit(jax.grad(lambda p, b: model.loss_sums(p, b).total))
        grads = [gradient(params, pair[which]) for pair in measured._batches[0]]
        return jax.tree.map(lambda *g: np.sum(g, axis=0), *grads)["decoder"]["layers_1"]

    true, shuffled = whole(0), whole(1)

    def cosine(*paths):
        a, b = (
            np.concatenate([np.ravel(tree[x][y]["kernel"]) for x, y in paths])
            for tree in (true, shuffled)
        )
        return a @ b / np.sqrt((a @ a) * (b @ b))

    mlp = [("mlp", name) for name in true["mlp"]]
    assert len(mlp) in (2, 3)
    assert found["MLP"] == pytest.approx(cosine(*mlp), rel=1e-4)
    for block in ("query", "key", "value"):
        both = [(f"{kind}_attention", block) for kind in ("self", "encoder_decoder")]
        assert found[block] == pytest.approx(cosine(*both), rel=1e-4)
    assert all(-1 < value < 1 for value in found.values())


def test_scanned_layers_give_the_same(model, params, measured):
    scanned = model._with(scan_layers=True)
    stacked = scan_params(params)
    found = measure(scanned, stacked).measure(stacked, None, 0)
    expected = measured.measure(params, None, 0)
    for block, each in found.items():
        assert each == pytest.approx(expected[block], rel=1e-3)


def test_a_task_is_aligned_with_itself(model, params):
    found = measure(model, params, shuffled="tiny_rte").measure(params, None, 0)
    for each in found.values():
        assert each == pytest.approx((1.0, 0.0), abs=1e-6)


def test_a_seed_draws_rows_and_the_error_is_the_jackknifes(params, measured, monkeypatch):
    rows = [measured._read(None, seed)[0] for seed in range(4)]
    assert len({each["encoder_input_tokens"].tobytes() for each, _ in rows}) == 4
    # Of two batches each is left out once: half of what their own cosines differ by.
    found = measured.measure(params, None, 5)
    alone = []
    for pair in measured._batches[5]:
        monkeypatch.setattr(measured, "_batches", {5: [pair]})
        alone.append(measured.measure(params, None, 5))
    for block, each in found.items():
        assert math.isnan(alone[0][block].standard_error)
        apart = abs(alone[0][block].value - alone[1][block].value)
        assert each.standard_error == pytest.approx(apart / 2, rel=1e-2, abs=1e-6)
        assert apart > 0


def test_only_a_task_that_asks_the_same_is_compared(model, params):
    with pytest.raises(UserError, match="'tiny_enfr' does not ask what 'tiny_rte' asks"):
        measure(model, params, shuffled="tiny_enfr").measure(params, None, 0)
    with pytest.raises(UserError, match="have 1 and 2 tasks"):
        measure(model, params, shuffled="tiny_rte_enfr")
    with pytest.raises(UserError, match="Did you mean 'tiny_rte_shuffled_labels'"):
        measure(model, params, shuffled="tiny_rte_shuffled_label")
    with pytest.raises(UserError, match="num_batches"):
        alignment.AlignmentConfig(shuffled="tiny_rte", num_batches=0)


def test_a_run_measures_at_the_start_and_with_every_score(tmp_path):
    lab = run_helpers.Lab(tmp_path)
    words = lab.words(
        "train",
        "finetune",
        "train",
        "analyses/gradient_alignment.gin",
        model="words",
        MODEL_DIR=tmp_path / "run",
        INITIAL_CHECKPOINT_PATH=None,
        MIXTURE_OR_TASK_NAME="tiny_rte",
        SHUFFLED_TASK="tiny_rte_shuffled_labels",
        TASK_FEATURE_LENGTHS={"inputs": 24, "targets": 3},
        ALIGNMENT_BATCHES=2,
        ALIGNMENT_STEPS=[1],
    )
    out = run_helpers.succeed(words)
    rows = run_helpers.json_lines(tmp_path / "run" / alignment.FILE)
    assert [row["step"] for row in rows] == [0, 1, 2, 4]
    blocks = {"MLP", "query", "key", "value"}
    assert all(row.keys() == {"step", "standard_error", *blocks} for row in rows)
    assert all(row["standard_error"].keys() == blocks for row in rows)
    assert f"step 4: gradient alignment MLP {rows[-1]['MLP']:.2f}" in out
