"""The training step: packing, T5X's numbers, microbatches, meshes, what is frozen, its cost."""

import functools
import math

import jax
import numpy as np
import optax
import pytest
from data_fakes import bound, segments_of, store_of
from engine_helpers import (
    ALL_BUT_PROMPT,
    CONSTANT,
    EVERYTHING,
    LENGTHS,
    ONLY_PROMPT,
    PROMPT,
    QUICKLY,
    VOCAB_SIZE,
    Golden,
    Run,
    flat,
    losses,
    model_of,
    one_device_mesh,
    random_params,
    relative_error,
    small_adafactor,
    tiny_config,
    tiny_model,
    training_batches,
    two_stores,
    worst_error,
)
from scan_helpers import scan_params, unscan_params

from promot_t5x.data.batches import EvalBatches
from promot_t5x.data.sources import resolve_tasks
from promot_t5x.data.store import open_store
from promot_t5x.distributed.partitioning import AXES, Partitioner, standard_logical_axis_rules
from promot_t5x.models.objectives import SelectiveTokenMasking
from promot_t5x.network.lora import LORA_B, LoRA
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.training import adafactor, state, step
from promot_t5x.training.update_rules import l2_sp, mofo

pytestmark = pytest.mark.slow

SHALLOW = {"num_encoder_layers": 1, "num_decoder_layers": 1}


def quick(function):
    return jax.jit(function, compiler_options=QUICKLY)


def fake_examples():
    """Two tasks, each with a prompt of its own; what a packed row holds; the network's ids."""
    return *two_stores(), LENGTHS, {"inputs": 64, "targets": 32}, VOCAB_SIZE


@pytest.fixture
def real_examples(vocabulary):
    """Rows of RTE, every other one as a task of its own with a prompt of its own."""
    (task,) = resolve_tasks("rte", vocabulary, split="train")
    rows = open_store(task, "train", text_lengths={"inputs": 500, "targets": 8})
    examples = [tuple(side.tolist() for side in rows.example(i)) for i in range(24)]
    tasks = [bound("even", 0.5), bound("odd", 0.5, prompt_index=1)]
    stores = [store_of("even/train", examples[::2]), store_of("odd/train", examples[1::2])]
    return tasks, stores, {"inputs": 512, "targets": 8}, {"inputs": 1024, "targets": 64}, 4096


@pytest.mark.parametrize("source", ["fake", "real"])
def test_packed_and_unpacked_batches_have_one_loss_and_one_gradient(source, request):
    examples = fake_examples() if source == "fake" else request.getfixturevalue("real_examples")
    tasks, stores, unpacked_lengths, packed_lengths, vocab_size = examples
    shape = {"num_heads": 2, "head_dim": 16} if source == "real" else SHALLOW
    model = tiny_model(vocab_size=vocab_size, num_prompts=2, prompt_length=6, **shape)
    settings = {"vocab_size": vocab_size, "prompt_length": 6, "use_prompts": True}
    count = sum(map(len, stores))
    unpacked = EvalBatches(tasks, stores, batch_size=count, lengths=unpacked_lengths, **settings)
    packed = EvalBatches(
        tasks, stores, batch_size=count // 2, lengths=packed_lengths, pack=True, **settings
    )
    assert packed.num_batches == unpacked.num_batches == 1
    assert not any(
        any(cut.values()) for cut in (*packed.trimmed.values(), *unpacked.trimmed.values())
    )
    batches = packed.batch(0), unpacked.batch(0)
    assert sorted(segments_of(batches[0])) == sorted(segments_of(batches[1]))
    shared_rows = batches[0]["encoder_segment_ids"].max(axis=1) > 1
    assert shared_rows.sum() >= 3

    params = random_params(model)
    # A prompt that is large against the words, so that its part in every gradient shows.
    params = state.with_prompt(params, 2 * params["encoder"]["prompt"]["prompt"])
    gradients_of = quick(lambda p, batch: step.summed_gradients(model, p, {}, batch, None))
    (packed_gradients, packed_sums), (gradients, sums) = (
        gradients_of(params, {k: jax.numpy.asarray(v) for k, v in batch.items()})
        for batch in batches
    )
    packed_gradients, gradients = flat(packed_gradients), flat(gradients)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())
    assert all(np.abs(vectors).max() > 0 for vectors in gradients[PROMPT_PATH].reshape(12, -1))
    assert packed_sums.weight_sum == sums.weight_sum > 40
    loss_error = relative_error(packed_sums.total, sums.total)
    worst, path = worst_error(packed_gradients, gradients)
    print(f"{source}: loss {loss_error:.1e}, gradients {worst:.1e} ({path})")
    assert loss_error < 1e-5
    assert worst < 1e-5, path


def test_twenty_steps_on_a_mesh_are_those_of_t5x():
    golden = Golden("t5x_t5_1_1")
    settings = golden.described["adafactor"]
    rate = settings.pop("learning_rate")
    model = model_of(
        golden.config,
        z_loss=golden.described["z_loss"],
        label_smoothing=golden.described["label_smoothing"],
    )
    batch = flat(golden.tree("batch/unpacked/"))
    run = Run(
        model,
        golden.tree("params/"),
        batch,
        partitioner=Partitioner(num_partitions=2),
        optimizer=lambda learning_rate: adafactor.adafactor(learning_rate, **settings),
        schedule=lambda step: rate,
    )
    history = run.train([batch] * 20)
    np.testing.assert_allclose(losses(history), golden.arrays["train/losses"], rtol=1e-5)
    worst, path = worst_error(run.params, flat(golden.tree("train/params20/")))
    print(f"golden: parameters {worst:.1e} ({path})")
    assert worst < 2e-5, path
    assert worst_error(run.params, flat(golden.tree("params/")))[0] > 1e-3
    assert int(run.state.step) == 20


@pytest.mark.parametrize(
    ("factor", "pack"), [("NUM_REAL_TARGET_TOKENS", False), ("AVERAGE_PER_SEQUENCE", True)]
)
def test_microbatches_change_nothing_but_memory(factor, pack):
    model = tiny_model(loss_normalizing_factor=factor, **SHALLOW, **PROMPT)
    params = random_params(model)
    batches = training_batches(model.config, 2, pack=pack)
    for batch in batches:
        # A mean of means is not the mean where one of four parts has no targets at all.
        for rows in batch.values():
            rows[1::4] = 0
    histories, params_after = {}, {}
    for microbatches in (1, 2, 4) if factor == "NUM_REAL_TARGET_TOKENS" else (1, 4):
        run = Run(model, params, batches[0], optimizer=optax.sgd, microbatches=microbatches)
        histories[microbatches] = run.train(batches)
        params_after[microbatches] = run.params
    for microbatches, history in histories.items():
        for metrics, expected in zip(history, histories[1], strict=True):
            assert metrics == pytest.approx(expected, rel=2e-6), microbatches
        worst, path = worst_error(params_after[microbatches], params_after[1])
        assert worst < 1e-5, (microbatches, path)
    if factor == "NUM_REAL_TARGET_TOKENS":
        first = histories[1][0]
        assert first["loss_sum"] == pytest.approx(first["loss_per_nonpadding_target_token"])


@pytest.fixture(scope="module")
def one_device():
    """Five steps of everything on one device: (model, batches, losses, parameters)."""
    model = tiny_model(**SHALLOW, **PROMPT)
    batches = training_batches(model.config, 5)
    run = Run(model, random_params(model), batches[0])
    history = run.train(batches)
    return model, batches, losses(history), run.params


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((1, 8, 1), (1, 2)), ((1, 4, 2), (2, 2)), ((1, 1, 8), (2, 1)), ((2, 2, 2), (1, 1))],
)
def test_five_steps_on_eight_devices_are_those_on_one(one_device, shape, dims):
    model, batches, expected_losses, expected_params = one_device
    rules = standard_logical_axis_rules(*dims)
    mesh_shape = dict(zip(AXES, shape, strict=True))
    partitioner = Partitioner(mesh_shape=mesh_shape, logical_axis_rules=rules)
    run = Run(model, random_params(model), batches[0], partitioner=partitioner)
    got = losses(run.train(batches))
    worst, path = worst_error(run.params, expected_params)
    print(f"{shape}: losses {relative_error(got, expected_losses):.1e}, {worst:.1e} {path}")
    np.testing.assert_allclose(got, expected_losses, rtol=1e-5)
    assert worst < 1e-5, path
    embedding = run.state.trainable["token_embedder"]["embedding"]
    columns = 32 // shape[1] if dims[1] == 2 else 32
    assert embedding.sharding.shard_shape(embedding.shape) == (VOCAB_SIZE // shape[2], columns)


def test_methods_that_are_switched_off_leave_the_plain_steps_bit_for_bit(one_device):
    """All at once: STM, MoFO around L2-SP, patterns that freeze nothing, adapters whose B is 0."""
    model, batches, expected_losses, expected_params = one_device
    adapted = model.with_lora(LoRA(rank=2, kernels=[".*/kernel"]))
    params = flat(random_params(adapted))
    params |= flat(random_params(model))
    params |= {path: np.zeros_like(leaf) for path, leaf in params.items() if path.endswith(LORA_B)}
    pulled = functools.partial(l2_sp, optimizer=small_adafactor, weight=0.0)
    run = Run(
        adapted,
        state.unflatten(params),
        batches[0],
        trainable=["prompt", "encoder/(?!prompt/).*/kernel", "model"],
        optimizer=functools.partial(mofo, optimizer=pulled, share=1.0),
        objective=SelectiveTokenMasking(threshold=math.inf),
    )
    assert losses(run.train(batches)) == expected_losses
    different = {
        p for p, leaf in expected_params.items() if not np.array_equal(run.params[p], leaf)
    }
    assert not different


@pytest.mark.parametrize("trainable", [ONLY_PROMPT, ALL_BUT_PROMPT])
def test_what_is_frozen_keeps_every_bit(trainable):
    model = tiny_model(dropout_rate=0.1, **SHALLOW, **PROMPT)
    params = random_params(model)
    before = flat(params)
    batches = training_batches(model.config, 3)
    run = Run(model, params, batches[0], trainable=trainable)
    trains = set(flat(run.state.trainable))
    assert (trains == {PROMPT_PATH}) == (trainable == ONLY_PROMPT)
    run.train(batches)
    after = run.params
    moved = {path for path in before if after[path].tobytes() != before[path].tobytes()}
    assert moved == trains
    # The caller's own arrays are not the memory that the step writes to.
    assert all(leaf.tobytes() == before[path].tobytes() for path, leaf in flat(params).items())
    for slots in run.state.opt_state[1:]:
        assert set(flat(slots)) == trains
    held = state.count(run.state.opt_state)
    if trainable == ONLY_PROMPT:
        assert held <= state.count(run.state.trainable) + 4


def test_dropout_is_decided_by_seed_and_step():
    model = tiny_model(dropout_rate=0.5, **SHALLOW, **PROMPT)
    params = random_params(model)
    batch = training_batches(model.config, 1)[0]
    still = {"schedule": lambda step: 0.0, "optimizer": optax.sgd, "trainable": ONLY_PROMPT}
    run = Run(model, params, batch, **still)
    fresh = jax.tree.map(np.array, run.state)
    first, second = losses(run.train([batch] * 2))
    assert abs(first - second) > 1e-3 * first
    # A resumed run: the same weights, at step 1.
    placed = jax.tree.map(lambda a, now: jax.device_put(a, now.sharding), fresh, run.state)
    run.state = placed.replace(step=placed.step + 1)
    assert losses(run.train([batch])) == [second]
    other = Run(model, params, batch, random_seed=1, **still)
    assert losses(other.train([batch]))[0] not in (first, second)


def test_microbatches_draw_masks_of_their_own():
    model = tiny_model(dropout_rate=0.5, **SHALLOW)
    params = random_params(model)
    batch = training_batches(model.config, 1, batch_size=1)[0]
    twice = {name: jax.numpy.repeat(rows, 2, axis=0) for name, rows in batch.items()}
    one = {name: jax.numpy.asarray(rows) for name, rows in batch.items()}
    key = jax.random.key(3)

    @quick
    def total(batch, key):
        return step.accumulated_gradients(model, {}, params, batch, key, 2)[1].total

    single = quick(lambda key: model.loss_sums(params, one, key).total)
    alone = [float(single(jax.random.fold_in(key, index))) for index in (0, 1)]
    assert alone[0] != pytest.approx(alone[1], rel=1e-3)
    assert float(total(twice, key)) == pytest.approx(sum(alone), rel=1e-5)


def test_metrics_bear_the_names_of_t5x_and_follow_from_one_another():
    model = tiny_model(loss_normalizing_factor=100.0, **SHALLOW, **PROMPT)
    batches = training_batches(model.config, 2)
    rates = [float(CONSTANT(0)), 0.005]
    run = Run(
        model,
        random_params(model),
        batches[0],
        optimizer=optax.sgd,
        trainable=ONLY_PROMPT,
        schedule=lambda count: jax.numpy.where(count < 1, *rates),
    )
    before = run.params[PROMPT_PATH]
    history = run.train(batches[:1])
    update = run.params[PROMPT_PATH] - before
    history += run.train(batches[1:])
    assert set(history[0]) == {
        "loss", "loss_sum", "cross_ent_loss", "z_loss", "loss_per_nonpadding_target_token", "accuracy",  # noqa: E501
        "grad_norm", "learning_rate",
    }  # fmt: skip
    for metrics, rate, batch in zip(history, rates, batches, strict=True):
        tokens = batch["decoder_loss_weights"].sum()
        assert metrics["learning_rate"] == pytest.approx(rate)
        assert metrics["loss"] == pytest.approx(metrics["cross_ent_loss"] + metrics["z_loss"])
        per_token = metrics["loss_per_nonpadding_target_token"]
        assert per_token == metrics["loss"]
        assert per_token == pytest.approx(100 * metrics["loss_sum"] / tokens)
        assert metrics["z_loss"] > 0
        assert 0 <= metrics["accuracy"] <= 1
    # The norm is that of the trainable gradients alone, divided as the loss is.
    gradients, _ = quick(lambda *trees: step.summed_gradients(model, *trees, None))(
        *state.split(random_params(model), ONLY_PROMPT),
        {name: jax.numpy.asarray(rows) for name, rows in batches[0].items()},
    )
    gradient = flat(gradients)[PROMPT_PATH] / 100
    assert history[0]["grad_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
    np.testing.assert_allclose(update, -rates[0] * gradient, atol=1e-6)


def test_scanned_and_recomputed_layers_train_as_plain_ones():
    plain = tiny_model(**PROMPT)
    scanned = tiny_model(scan_layers=True, remat_policy="full", **PROMPT)
    params = random_params(plain)
    batches = training_batches(plain.config, 3)
    runs = [
        Run(plain, params, batches[0]),
        Run(scanned, scan_params(params), batches[0]),
    ]
    expected, got = (losses(run.train(batches)) for run in runs)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    unscanned = flat(unscan_params(runs[1].state.params))
    worst, path = worst_error(unscanned, runs[0].params)
    assert worst < 1e-5, path


@pytest.mark.parametrize("trainable", [ONLY_PROMPT, EVERYTHING])
def test_any_optax_optimizer_fits(trainable):
    model = tiny_model(loss_normalizing_factor="NUM_REAL_TARGET_TOKENS", **SHALLOW, **PROMPT)
    batch = training_batches(model.config, 1)[0]
    run = Run(
        model,
        random_params(model),
        batch,
        partitioner=Partitioner(num_partitions=2),
        trainable=trainable,
        optimizer=optax.adamw,
    )
    history = losses(run.train([batch] * 8))
    assert history[-1] < history[0]
    slots, leaves = run.state.opt_state[0], flat(run.state.trainable)
    assert set(flat(slots.mu)) == set(flat(slots.nu)) == set(leaves)
    assert int(slots.count) == int(run.state.step) == 8
    if trainable == EVERYTHING:
        embedding = run.state.trainable["token_embedder"]["embedding"]
        moments = run.state.opt_state[0].mu["token_embedder"]["embedding"]
        assert moments.sharding == embedding.sharding
        assert moments.sharding.shard_shape(moments.shape) == (VOCAB_SIZE // 2, 32)


def compiled_flops(config, trainable, *, batch_size=4, microbatches=1):
    """Floating-point operations of a compiled step; nothing is allocated or run."""
    model, optimizer = model_of(config), small_adafactor(learning_rate=CONSTANT)
    trains, frozen = state.split(model.param_shapes(), trainable)
    shapes = state.TrainState(
        step=jax.ShapeDtypeStruct((), np.int32),
        seed=jax.ShapeDtypeStruct((), np.int32),
        trainable=trains,
        frozen=frozen,
        opt_state=jax.eval_shape(optimizer.init, trains),
    )
    features = {
        "encoder_input_tokens": 128,
        "decoder_input_tokens": 8,
        "decoder_target_tokens": 8,
        "decoder_loss_weights": 8,
    }
    batch = {k: jax.ShapeDtypeStruct((batch_size, n), np.int32) for k, n in features.items()}
    train_step = step.make_train_step(model, optimizer, CONSTANT, microbatches=microbatches)
    with one_device_mesh().activate():
        compiled = jax.jit(train_step, donate_argnums=0).lower(shapes, batch).compile(QUICKLY)
    return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_frozen_model_costs_no_weight_gradients(microbatches):
    config = tiny_config(
        vocab_size=32128,
        emb_dim=512,
        num_heads=6,
        head_dim=64,
        mlp_dim=1024,
        num_prompts=1,
        prompt_length=20,
        **SHALLOW,
    )
    one, two = (
        compiled_flops(config, trainable, microbatches=microbatches)
        for trainable in (ONLY_PROMPT, ALL_BUT_PROMPT)
    )
    print(f"{microbatches=}: {one:.3g} / {two:.3g} = {one / two:.3f}")
    # Backward to the activations costs one forward pass, to the weights another: 2/3.
    assert 0.5 < one / two <= 0.75
