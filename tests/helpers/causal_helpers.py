"""Decoder-only networks of `transformers`, and their logits of whole sequences."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from promot_t5x.checkpoints.finding import open_stored
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.network import DecoderOnly
from promot_t5x.network.prompt import PROMPT_PATH

DIRECTORY = Path(__file__).parents[1] / "golden" / "hf_decoder_only"


def golden(kind):
    """Return (configuration, parameters) of the tiny model of a type."""
    config = open_stored(DIRECTORY / kind).shape.config().replace(dropout_rate=0.0)
    return config, open_checkpoint(DIRECTORY / kind, config).read_tree()


def prompted(kind, prompts=2, length=3, **changes):
    """Return the same with a table of prompts."""
    config, params = golden(kind)
    config = config.replace(num_prompts=prompts, prompt_length=length, **changes)
    table = np.random.default_rng(0).normal(size=(prompts, length, config.emb_dim)) * 0.3
    flat = {**flatten_dict(params, sep="/"), PROMPT_PATH: table.astype(np.float32)}
    return config, unflatten_dict(flat, sep="/")


def sequence_logits(config, params, ids, segment_ids=None, positions=None):
    """Return the logits after each token of whole sequences: nothing lies with the encoder."""
    ids, none = jnp.asarray(ids), jnp.zeros((len(ids), 0), jnp.int32)
    if segment_ids is None:
        segment_ids = jnp.ones_like(ids)
    return DecoderOnly(config).apply(
        {"params": params},
        none,
        ids,
        ids,
        none,
        segment_ids,
        None,
        positions,
        enable_dropout=False,
    )
