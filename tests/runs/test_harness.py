"""What lm-evaluation-harness asks of a model, here without the harness (tests/hf has it)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import run_helpers

from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.decoding import likelihood
from promot_t5x.errors import UserError
from promot_t5x.runs.harness import HarnessModel

pytestmark = pytest.mark.slow


class Request(NamedTuple):
    """What the harness hands over of a question."""

    args: tuple
    task_name: str = "a_task"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    lab = run_helpers.Lab(tmp_path_factory.mktemp("harness"))
    run = lab.directory / "base"
    run_helpers.succeed(lab.words("train", "pretrain", "train", MODEL_DIR=run, TRAIN_STEPS=1))
    return {
        "gin_file": str(lab.directory / "bytes.gin"),
        "checkpoint_path": str(run / "checkpoint_1"),
        "inputs": 16,
        "targets": 6,
        "batch_size": 8,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def model(given):
    return HarnessModel(**given)


def test_likelihoods_are_those_of_the_continuations_tokens(model, given):
    """Without EOS; spaces between context and continuation belong to the latter."""
    asked = [("sign 7 ", "odd"), ("end", " of"), ("sign 14", " even")]
    found = model.loglikelihood([Request(pair) for pair in asked])
    lab_model = model._model
    params = open_checkpoint(given["checkpoint_path"]).read_tree()
    for (log_prob, greedy), (context, continuation) in zip(found, asked, strict=True):
        text = context.rstrip()
        target = np.array([[3 + b for b in (context[len(text) :] + continuation).encode()]])
        batch = {
            "encoder_input_tokens": jnp.array([[3 + b for b in text.encode()] + [1]]),
            "decoder_input_tokens": jnp.array(np.pad(target, ((0, 0), (1, 0)))[:, :-1]),
            "decoder_target_tokens": jnp.array(target),
            "decoder_loss_weights": jnp.ones_like(target),
        }
        wanted = likelihood.score(lab_model.module, params, batch)
        assert log_prob == pytest.approx(float(wanted[0]), abs=1e-4)
        assert greedy is False or greedy is True


def test_the_greedy_answer_is_said_to_be_greedy(model):
    (said,) = model.generate_until([Request(("sign 7", {"max_gen_toks": 3}))])
    first = said[:1]
    assert first.isascii()
    other = chr(ord(first) ^ 1)
    found = model.loglikelihood([Request(("sign 7", text)) for text in (first, other)])
    assert [greedy for _, greedy in found] == [True, False]
    assert found[0][0] > found[1][0]


def test_an_answer_ends_where_the_task_says(model):
    request = Request(("sign 7", {"max_gen_toks": 3}))
    (said,) = model.generate_until([request])
    assert 0 < len(said) <= 3
    cut = Request(("sign 7", {"max_gen_toks": 3, "until": [said[-1]]}))
    assert model.generate_until([cut]) == [said[: said.index(said[-1])]]


def test_a_long_context_loses_its_beginning(model):
    long, short = "x" * 40 + "0123456789abcde", "0123456789abcde"  # 15 bytes and EOS
    first, second = model.loglikelihood([Request((text, " odd")) for text in (long, short)])
    assert first[0] == pytest.approx(second[0], abs=1e-5)


def test_nothing_to_score_is_certain(model):
    found = model.loglikelihood([Request(("sign 7", "")), Request(("sign 7", " odd"))])
    assert found[0] == (0.0, True)
    assert found[1][0] < 0


def test_what_it_does_not_do_is_refused(model, given):
    with pytest.raises(UserError, match="'a_task' asks for samples"):
        model.generate_until([Request(("a", {"do_sample": True, "temperature": 0.7}))])
    with pytest.raises(UserError, match="'a_task' asks for the likelihood of whole documents"):
        model.loglikelihood_rolling([Request(("a",))])
    with pytest.raises(UserError, match=r"no 'prompt_fle'; .* Did you mean 'prompt_file'\?"):
        HarnessModel(**given, prompt_fle="x")
