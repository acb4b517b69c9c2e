"""LoRA adapters against peft itself: `make test-hf`. Both ways, and equal logits."""

import dataclasses

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from promot_t5x.checkpoints.adapters import open_adapter
from promot_t5x.checkpoints.finding import open_stored
from promot_t5x.checkpoints.formats import peft_lora
from promot_t5x.checkpoints.formats.t5x_writing import write_inline
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.cli import main
from promot_t5x.network import T5GemmaConfig, Transformer
from promot_t5x.network.lora import LoRA, adapters_of, is_adapter
from promot_t5x.network.parameters import param_shapes
from promot_t5x.network.transformer import T5Config

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),  # peft's own
    # transformers says of every T5 that its embeddings are tied, and peft warns of what follows.
    pytest.mark.filterwarnings("ignore:(Model|Input and output).*(tied|tie_word):UserWarning"),
]

TOLERANCE = 2e-5  # of the largest magnitude
CONFIG = T5Config(
    vocab_size=384,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=3,
    num_decoder_layers=2,
    mlp_activations=("gelu", "linear"),
    dropout_rate=0.0,
)
INPUTS = np.random.default_rng(0).integers(3, 384, (3, 20), np.int32)
TARGETS = np.random.default_rng(1).integers(3, 384, (3, 9), np.int32)


def random_params(config):
    rng = np.random.default_rng(2)
    return {
        path: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32)
        for path, leaf in flatten_dict(param_shapes(config), sep="/").items()
    }


def our_logits(config, params):
    shifted = np.pad(TARGETS, ((0, 0), (1, 0)))[:, :-1]

    @jax.jit
    def logits(params):
        return Transformer(config).apply(
            {"params": params}, INPUTS, shifted, TARGETS, enable_dropout=False
        )

    return np.asarray(logits(unflatten_dict(params, sep="/")))


def their_logits(model):
    with torch.no_grad():
        return model.eval()(
            input_ids=torch.tensor(INPUTS, dtype=torch.long),
            attention_mask=torch.ones(INPUTS.shape, dtype=torch.long),
            labels=torch.tensor(TARGETS, dtype=torch.long),
        ).logits.numpy()


def assert_close(found, expected):
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def their_model(place):
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(place, dtype=torch.float32)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(parameters, the same as a directory of Hugging Face's)."""
    directory = tmp_path_factory.mktemp("base")
    params = random_params(CONFIG)
    write_inline(epath.Path(directory / "checkpoint_1"), unflatten_dict(params, sep="/"), 1)
    words = ["convert", str(directory / "checkpoint_1"), str(directory / "hf"), "--to", "hf"]
    assert main.main(words) == 0
    return params, directory / "hf"


@pytest.mark.parametrize(
    "kernels", [[".*/kernel"], [".*attention/(query|value)/kernel"], ["encoder/layers_1/.*/kernel"]]
)
def test_what_is_exported_gives_equal_logits_under_peft(base, kernels, tmp_path):
    params, place = base
    adapted = CONFIG.replace(lora=LoRA(rank=3, alpha=5, kernels=kernels))
    parts = adapters_of(random_params(adapted))
    peft_lora.save(tmp_path, adapted.lora, parts, config=adapted)
    model = peft.PeftModel.from_pretrained(their_model(place), str(tmp_path))
    expected = our_logits(adapted, {**params, **parts})
    assert_close(their_logits(model), expected)
    assert_close(their_logits(model.merge_and_unload()), expected)
    # And read again, it is what it was.
    again = open_adapter(tmp_path, CONFIG)
    nonzero = {path: array for path, array in again.arrays.items() if array.any()}
    assert nonzero.keys() == parts.keys()
    for path, array in nonzero.items():
        assert array.tobytes() == parts[path].tobytes(), path


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"r": 3, "lora_alpha": 7, "target_modules": ["q", "v"]},
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": True},
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q", "wi_0", "wo"],
            "rank_pattern": {"wo": 5},
            "alpha_pattern": {"q": 3},
            "layers_to_transform": [1],
            "layers_pattern": "block",
        },
    ],
)
def test_what_peft_saves_gives_equal_logits_here(base, settings, scanned, tmp_path):
    _, place = base
    torch.manual_seed(0)
    model = peft.get_peft_model(
        their_model(place), peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **settings)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path)
    config = CONFIG.replace(scan_layers=scanned)
    found = open_adapter(tmp_path, config)
    weights = open_checkpoint(place, config)
    shapes = flatten_dict(param_shapes(config), sep="/")
    whole = {**weights.read(shapes), **found.arrays}
    expected = their_logits(model)
    assert_close(our_logits(config.replace(lora=found.lora), whole), expected)
    assert np.abs(our_logits(config, weights.read(shapes)) - expected).max() > 1e-2


def test_t5gemma_goes_both_ways(tmp_path):
    directory = epath.Path(__file__).parents[1] / "golden" / "hf_t5gemma"
    base = open_stored(directory).shape.config()
    assert isinstance(base, T5GemmaConfig)
    adapted = dataclasses.replace(base, dropout_rate=0.0, lora=LoRA(rank=2, kernels=[".*/kernel"]))
    parts = adapters_of(random_params(adapted))
    assert all(map(is_adapter, parts))
    peft_lora.save(tmp_path, adapted.lora, parts, config=adapted)
    model = peft.PeftModel.from_pretrained(their_model(str(directory)), str(tmp_path))
    loaded = peft.get_peft_model_state_dict(model)
    assert len(loaded) == len(parts)
    again = open_adapter(tmp_path, dataclasses.replace(base, scan_layers=False))
    for path, array in again.arrays.items():
        assert array.tobytes() == parts[path].tobytes(), path
