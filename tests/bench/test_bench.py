"""`promot-t5x bench` at a size that shows nothing of speed: what it compares does the same."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import tiny_config

from promot_t5x.bench import data, saves, training
from promot_t5x.bench import decoding as bench
from promot_t5x.cli import bench as main
from promot_t5x.decoding import decoder as decoding
from promot_t5x.errors import UserError

pytestmark = pytest.mark.slow

SMALL = dataclasses.replace(
    tiny_config(num_encoder_layers=1, num_decoder_layers=1), vocab_size=training.CONFIG.vocab_size
)


@pytest.fixture
def small(monkeypatch):
    """Every network and every length small."""
    for module in (training, bench, saves):
        monkeypatch.setattr(module, "CONFIG", SMALL)
    monkeypatch.setattr(bench, "SHALLOW", SMALL)
    monkeypatch.setattr(bench, "INPUT_LENGTH", 16)
    monkeypatch.setattr(bench, "OUTPUT_LENGTH", 6)
    monkeypatch.setattr(bench, "FEW_STEPS", 1)
    monkeypatch.setattr(bench, "MANY_STEPS", 6)
    lengths = {"cb": (16, 2), "xsum": (40, 4)}
    monkeypatch.setattr(bench, "SUITE", lengths)
    monkeypatch.setattr(bench, "SHORT", lengths["cb"])
    monkeypatch.setattr(bench, "LONG", lengths["xsum"])
    stages = {name: training.STAGES[name] for name in ("LoRA, q and v", "standard")}
    monkeypatch.setattr(training, "STAGES", stages)
    monkeypatch.setattr(saves, "REPEATS", 1)
    monkeypatch.setattr(data, "KINDS", ("tfds",))


@pytest.mark.parametrize("projected_once", [False, True])
def test_beams_decode_the_same_however_they_read_the_encoder(small, projected_once):
    module, params = bench._network(SMALL)
    tokens = jnp.asarray(bench._ids(np.random.default_rng(0), 32)).reshape(2, 16)
    limit = jnp.int32(bench.MANY_STEPS)
    shared = bench._shared(module, params, tokens, limit)
    repeated = bench._repeated(module, params, tokens, limit, projected_once=projected_once)
    np.testing.assert_array_equal(shared.ids, repeated.ids)
    np.testing.assert_allclose(shared.scores, repeated.scores, rtol=1e-4)


def test_batches_as_they_come_hold_every_example_once():
    decoder = decoding.Decoder(bench._network(SMALL)[0], batch_size=4)
    batches = bench._as_they_come(decoder, [5, 200, 7, 9, 3], [2, 4, 2, 2, 2])
    assert np.concatenate([batch.rows for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert [(batch.input_length, batch.limit) for batch in batches] == [(256, 4), (128, 2)]


@pytest.mark.parametrize(
    ("table", "shown"),
    [
        ("training", ["LoRA, q and v / standard, packed =", "standard: packed / unpacked ="]),
        ("saves", ["stage one ", "stage two ", "of a step: finite check "]),
        ("data", ["200 pairs", "tfds, unpacked ", "tfds, packed "]),
        ("decoding", ["repeated for each beam:", "in buckets / as they come =", " compilations"]),
    ],
)
def test_every_table_is_printed(small, capsys, table, shown):
    flags = ["--only", table, "--steps", "1", "--batch_size", "8", "--rows", "200"]
    assert main.main(flags) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in shown), printed
    assert "None" not in printed


def test_a_batch_that_the_devices_cannot_share_is_refused(capsys):
    with pytest.raises(UserError, match=r"--batch_size = 4 .* use 8"):
        main.main(["--batch_size", "4"])
    assert capsys.readouterr().out == ""
