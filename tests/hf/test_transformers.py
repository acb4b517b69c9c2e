"""Against transformers and peft themselves: `make test-hf`.

Every variant goes both ways, through the command line, and must give equal logits.
"""

import causal_helpers
import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from promot_t5x.checkpoints.formats import hf_decoder_only
from promot_t5x.checkpoints.formats.peft import save_adapters
from promot_t5x.checkpoints.formats.t5x_writing import write_inline
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.cli import main
from promot_t5x.network.parameters import param_shapes
from promot_t5x.network.prompt import PROMPT_PATH, prompt_ids
from promot_t5x.network.transformer import T5Config, Transformer

TOLERANCE = 2e-5  # of the largest magnitude
SIZES = {
    "vocab_size": 384,
    "emb_dim": 32,
    "num_heads": 4,
    "head_dim": 8,
    "mlp_dim": 64,
    "num_encoder_layers": 3,
    "num_decoder_layers": 2,
    "dropout_rate": 0.0,
}
GATED = {"mlp_activations": ("gelu", "linear")}
# What a family is here, and the class that transformers has for it.
FAMILIES = {
    "t5_1_0": ({"mlp_activations": ("relu",), "logits_via_embedding": True}, "T5"),
    "t5_1_1": (GATED, "T5"),
    "mt5": ({**GATED, "vocab_size": 250112, "emb_dim": 8}, "MT5"),
    "umt5": ({**GATED, "relative_bias_per_layer": True}, "UMT5"),
}
# transformers' own settings of a family, as its published models have them.
THEIRS = {
    "t5_1_0": {"feed_forward_proj": "relu"},
    "t5_1_1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "umt5": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def config_of(family):
    return T5Config(**{**SIZES, **FAMILIES[family][0]})


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)
    return {
        path: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32)
        for path, leaf in flatten_dict(param_shapes(config), sep="/").items()
    }


def batch(seed=0):
    """(inputs, padded with 0; targets, without padding)."""
    rng = np.random.default_rng(seed)
    inputs = rng.integers(3, 384, (3, 20), np.int32)
    inputs[1, 12:] = inputs[2, 3:] = 0
    return inputs, rng.integers(3, 384, (3, 9), np.int32)


def our_logits(config, params, inputs, targets):
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]

    @jax.jit
    def logits(params):
        return Transformer(config).apply(
            {"params": params}, inputs, shifted, targets, enable_dropout=False
        )

    return np.asarray(logits(params))


def their_logits(model, inputs, targets):
    with torch.no_grad():
        return model.eval()(
            input_ids=torch.tensor(inputs, dtype=torch.long),
            attention_mask=torch.tensor(inputs > 0),
            labels=torch.tensor(targets, dtype=torch.long),
        ).logits.numpy()


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def convert(source, destination, to, *flags):
    assert main.main(["convert", str(source), str(destination), "--to", to, *flags]) == 0


def exported(config, params, directory, *flags):
    """Parameters as a Hugging Face directory, by way of a checkpoint."""
    write_inline(epath.Path(directory / "checkpoint_1"), unflatten_dict(params, sep="/"), 1)
    convert(directory / "checkpoint_1", directory / "hf", "hf", *flags)
    return directory / "hf"


def test_exported_models_give_equal_logits(family, tmp_path):
    config = config_of(family)
    params = random_params(config)
    place = exported(config, params, tmp_path)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(place, dtype=torch.float32)
    assert type(model).__name__ == f"{FAMILIES[family][1]}ForConditionalGeneration"
    inputs, targets = batch()
    expected = our_logits(config, unflatten_dict(params, sep="/"), inputs, targets)
    assert_close(their_logits(model, inputs, targets), expected)


def test_exported_models_decode_the_same(family, tmp_path):
    from promot_t5x import decoding
    from promot_t5x.decoding import decoder

    config = config_of(family)
    params = random_params(config, seed=1)
    place = exported(config, params, tmp_path)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(place, dtype=torch.float32).eval()
    inputs, _ = batch(1)
    tokens = torch.tensor(inputs, dtype=torch.long)
    theirs = model.generate(
        input_ids=tokens, attention_mask=tokens > 0, max_new_tokens=8, do_sample=False, num_beams=1
    ).numpy()[:, 1:]
    module, tree = Transformer(config), unflatten_dict(params, sep="/")
    ours = decoder.decode(
        module, tree, inputs, max_decode_length=8, method=decoding.Greedy(), eos_id=1
    ).ids[:, 0]
    np.testing.assert_array_equal(np.asarray(ours)[:, : theirs.shape[1]], theirs)


@pytest.mark.parametrize("kind", hf_decoder_only.MODEL_TYPES)
def test_exported_decoder_only_models_give_equal_logits(kind, tmp_path):
    golden = epath.Path(__file__).parents[1] / "golden" / "hf_decoder_only" / kind
    convert(golden, tmp_path / "ours", "promot")
    convert(tmp_path / "ours", tmp_path / "hf", "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, attn_implementation="eager"
    )
    assert type(model).__name__ == hf_decoder_only.MODEL_TYPES[kind]
    with np.load(golden / "expected.npz") as expected, torch.no_grad():
        ids, real = (torch.tensor(expected[name]) for name in ("ids", "real"))
        found = model.eval()(input_ids=ids, attention_mask=real).logits.numpy()
        assert_close(found, expected["logits"])


def test_an_exported_t5gemma_gives_equal_logits(tmp_path):
    golden = epath.Path(__file__).parents[1] / "golden" / "hf_t5gemma"
    convert(golden, tmp_path / "ours", "promot")
    convert(tmp_path / "ours", tmp_path / "hf", "hf")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, attn_implementation="eager"
    )
    # Version 5 lets the encoder see a token more on either side than the released models did.
    model.model.encoder.config.sliding_window -= 1
    with np.load(golden / "expected.npz") as expected, torch.no_grad():
        inputs, shifted, weights = (
            torch.tensor(expected[name]) for name in ("inputs", "decoder_inputs", "weights")
        )
        found = model.eval()(
            input_ids=inputs,
            attention_mask=(inputs > 0).long(),
            decoder_input_ids=shifted,
            decoder_attention_mask=weights,
        ).logits.numpy()
        assert_close(found, expected["logits"])


@pytest.mark.parametrize("shard_size", ["5GB", "60KB"])
def test_models_that_transformers_wrote_give_equal_logits(family, shard_size, tmp_path):
    config = config_of(family)
    name = FAMILIES[family][1]
    theirs = getattr(transformers, f"{name}Config")(
        vocab_size=config.vocab_size,
        d_model=config.emb_dim,
        d_kv=config.head_dim,
        d_ff=config.mlp_dim,
        num_layers=config.num_encoder_layers,
        num_decoder_layers=config.num_decoder_layers,
        num_heads=config.num_heads,
        decoder_start_token_id=0,
        **THEIRS[family],
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(theirs)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if family != "t5_1_0":  # a head of its own, as the published models have it
        head = torch.nn.init.normal_(torch.empty_like(model.lm_head.weight), std=0.3)
        model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard_size)
    sharded = (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    assert sharded == (shard_size == "60KB")

    inputs, targets = batch(2)
    expected = their_logits(model, inputs, targets)
    source = open_checkpoint(tmp_path / "theirs", config)  # agrees with the network's
    assert source.shapes.keys() == flatten_dict(param_shapes(config), sep="/").keys()
    params = open_checkpoint(tmp_path / "theirs").read_tree()
    assert_close(our_logits(config, params, inputs, targets), expected)

    # And back: what transformers reads of our export is its own model.
    convert(tmp_path / "theirs", tmp_path / "again", "hf")
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(their_logits(again, inputs, targets), expected)


def test_a_model_without_a_head_of_its_own(tmp_path):
    """mT5 whose head is tied and whose outputs are not scaled, as transformers 5 makes it."""
    theirs = transformers.MT5Config(
        vocab_size=384, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MT5ForConditionalGeneration(theirs)
    model.save_pretrained(tmp_path)
    config = T5Config(**{**SIZES, **GATED, "num_encoder_layers": 2, "num_decoder_layers": 2})
    inputs, targets = batch(3)
    found = our_logits(config, open_checkpoint(tmp_path).read_tree(), inputs, targets)
    assert_close(found, their_logits(model, inputs, targets))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft's own
def test_exported_prompts_give_equal_logits_under_peft(family, tmp_path):
    config = config_of(family).replace(num_prompts=2, prompt_length=6)
    params = random_params(config, seed=4)
    place = exported(config, params, tmp_path)
    inputs, targets = batch(4)
    tree = unflatten_dict(params, sep="/")
    for number in range(2):
        ids = np.broadcast_to(prompt_ids(config, number), (3, 6))
        expected = our_logits(config, tree, np.concatenate([ids, inputs], axis=1), targets)
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(place, dtype=torch.float32)
        prompted = peft.PeftModel.from_pretrained(
            model, str(place / f"prompt_adapter/prompt_{number}")
        )
        assert len(prompted.prompt_tokens["default"]) == 6  # none for the decoder
        vectors = prompted.get_prompt_embedding_to_save("default").numpy()
        np.testing.assert_array_equal(vectors, params[PROMPT_PATH][number])
        assert_close(their_logits(prompted, inputs, targets), expected)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_a_prompt_of_a_decoder_only_model_gives_equal_logits_under_peft(tmp_path):
    config, params = causal_helpers.prompted("qwen3", prompts=1, length=5)
    table = params["encoder"]["prompt"]["prompt"]
    (place,) = save_adapters(tmp_path / "prompt", table, ["prompt_0"], causal=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        causal_helpers.DIRECTORY / "qwen3", dtype=torch.float32
    )
    prompted = peft.PeftModel.from_pretrained(model, str(place))
    ids = np.random.default_rng(0).integers(2, 48, (3, 9)).astype(np.int32)
    with torch.no_grad():
        expected = prompted(torch.tensor(ids)).logits.numpy()
    whole = np.concatenate([np.broadcast_to(prompt_ids(config, 0), (3, 5)), ids], axis=1)
    assert_close(causal_helpers.sequence_logits(config, params, whole), expected)


def test_exported_in_bfloat16(tmp_path):
    config = config_of("t5_1_1")
    place = exported(config, random_params(config), tmp_path, "--dtype", "bfloat16")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(place, dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
