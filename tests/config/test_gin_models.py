"""The shipped model files: each one describes the model that its name promises."""

import dataclasses
import functools
import math
import re

import gin
import jax
import pytest

from promot_t5x import config
from promot_t5x.checkpoints import pretrained_names
from promot_t5x.errors import UserError
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.network import transformer
from promot_t5x.network.config import NetworkConfig
from promot_t5x.network.parameters import param_shapes
from promot_t5x.runs import promot

pytestmark = pytest.mark.slow

GIN = config.gin_root()
SIZES = ("small", "base", "large", "xl", "xxl")

# From the public models' parameter shapes.
T5_1_0 = (60_506_624, 222_903_552, 737_668_096, 2_851_598_336, 11_307_321_344)
T5_1_1 = (76_961_152, 247_577_856, 783_150_080, 2_849_757_184, 11_135_332_352)
MT5 = (300_176_768, 582_401_280, 1_229_581_312, 3_742_619_648, 12_921_057_280)
# mT5's, with umT5's larger vocabulary and a bias in every layer.
UMT5 = (306_601_984, 592_043_520, 3_768_356_864, 12_972_531_712)
BYT5 = (299_637_760, 581_653_248, 1_228_183_552, 3_737_801_728, 12_906_899_328)
PARAMETERS = {
    **{
        f"t5_1_0_{size}": count
        for size, count in zip(("small", "base", "large", "3b", "11b"), T5_1_0, strict=True)
    },
    **{
        f"{family}_{size}": count
        for family in ("t5_1_1", "t5_1_1_lm_adapted", "flan_t5")
        for size, count in zip(SIZES, T5_1_1, strict=True)
    },
    **{
        f"{family}_{size}": count
        for family in ("mt5", "mt5_lm_adapted")
        for size, count in zip(SIZES, MT5, strict=True)
    },
    **{
        f"umt5_{size}": count
        for size, count in zip(("small", "base", "xl", "xxl"), UMT5, strict=True)
    },
    **{f"byt5_{size}": count for size, count in zip(SIZES, BYT5, strict=True)},
}
# By hand from the dimensions: layers of attention, gated MLP and norms, an embedding a stack.
T5GEMMA = {
    "t5gemma_s_s": 312_517_632,
    "t5gemma_b_b": 591_490_560,
    "t5gemma_l_l": 1_241_761_792,
    "t5gemma_ml_ml": 2_200_345_344,
    "t5gemma_xl_xl": 3_766_980_608,
    "t5gemma_2b_2b": 5_596_853_760,
    "t5gemma_9b_2b": 12_292_375_296,
    "t5gemma_9b_9b": 20_333_401_088,
}
# Those of the released models.
DECODER_ONLY = {
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_263_168,
    "llama3_8b": 8_030_261_248,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
}
# A vocabulary that needs no file, and nothing else of models/byte_vocabulary.gin.
BYTES = ("VOCABULARY = @vocabularies.byte_level()", "NUM_EMBEDDINGS = 384")
SHARED = {
    *("t5_1_0", "t5_1_1", "mt5", "umt5", "byt5", "t5gemma"),
    *("gemma", "gemma2", "gemma3", "llama3", "qwen2_5", "qwen3"),
    *("model", "encoder_decoder", "decoder_only", "byte_vocabulary"),
}


def model_of(*, model: EncoderDecoderModel) -> EncoderDecoderModel:
    return model


def read(*names: str, bindings: tuple[str, ...] = ()) -> None:
    files = [f"models/{name}.gin" for name in names]
    config.configured(model_of)
    config.parse(
        files, ["model_of.model = %MODEL", "DROPOUT_RATE = 0.1", *bindings], search_paths=[]
    )
    config.check([model_of])


def network_config() -> transformer.T5Config:
    return gin.get_configurable(transformer.T5Config)()


def test_every_model_file_is_in_the_table():
    assert {path.stem for path in GIN.glob("models/*.gin")} == {
        *(*PARAMETERS, *T5GEMMA, *DECODER_ONLY),
        *SHARED,
    }


@functools.cache
def parameters(shape: NetworkConfig) -> int:
    """Parameters of the network, which is built without making any of them."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(shape)))


def extrapolated(shape: NetworkConfig) -> int:
    """The same count from one and two layers: layers are alike, and tracing 48 takes seconds."""
    one = dataclasses.replace(shape, **dict.fromkeys(shape.depths, 1))
    found = parameters(one)
    for depth in shape.depths:
        layer = parameters(dataclasses.replace(one, **{depth: 2})) - parameters(one)
        found += (getattr(shape, depth) - 1) * layer
    return found


@pytest.mark.parametrize("name", PARAMETERS)
def test_model_file_has_its_parameter_count(name):
    read(name)
    assert extrapolated(network_config()) == PARAMETERS[name]


@pytest.mark.parametrize("name", [*T5GEMMA, *DECODER_ONLY])
def test_models_of_gemmas_layers_have_their_parameter_count(name):
    read(name, bindings=BYTES[:1])
    shape = config.configured(model_of)().config
    count = {**T5GEMMA, **DECODER_ONLY}[name]
    assert extrapolated(shape) == count
    header = (GIN / f"models/{name}.gin").read_text(encoding="utf-8")
    assert f"{count:,} parameters" in header


def test_decoder_only_models_are_asked_with_the_bos_that_they_have():
    for name, bos in (("gemma2_2b", True), ("llama3_8b", True), ("qwen3_8b", False)):
        read(name, bindings=BYTES)
        model = config.configured(model_of)()
        assert (model.dialect.bos, model.dialect.eos, model.start_id) == (bos, False, None)
        assert model.dialect.answer_start == model.task_format.answer_separator
    read("gemma2_2b", "byte_vocabulary", bindings=("PREFIX_MASK = True", "PROMPT_LENGTH = 5"))
    model = config.configured(model_of)()
    assert (model.dialect.bos, model.dialect.eos) == (False, True)
    assert (model.config.prefix_mask, model.config.full_attention_period) == (True, 2)


def test_t5gemma_begins_with_bos():
    read("t5gemma_s_s", bindings=BYTES)
    model = config.configured(model_of)()
    assert (model.decoder_start, model.dialect.bos, model.dialect.eos) == ("bos", True, False)
    with pytest.raises(UserError, match="ByteVocabulary has none: give the model's own VOCAB"):
        _ = model.start_id
    read("t5gemma_s_s", "byte_vocabulary")
    model = config.configured(model_of)()
    assert (model.start_id, model.dialect.bos, model.dialect.eos) == (0, False, True)


def test_a_whole_network_has_the_extrapolated_count():
    read("t5_1_0_small")
    assert parameters(network_config()) == PARAMETERS["t5_1_0_small"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_header_gives_the_count_and_the_checkpoint(name):
    text = (GIN / f"models/{name}.gin").read_text(encoding="utf-8")
    assert f"{PARAMETERS[name]:,} parameters" in text
    stated = re.search(r"weights: '(\w+)', which is\n#   (gs://\S+/checkpoint_\d{6,7})\n", text)
    assert pretrained_names.PUBLIC[stated[1]][0] == stated[2]


def test_families_differ_in_activation_logits_and_vocabulary():
    read("t5_1_0_small")
    first = network_config()
    read("t5_1_1_small")
    gated = network_config()
    assert (first.mlp_activations, first.logits_via_embedding) == (("relu",), True)
    assert (gated.mlp_activations, gated.logits_via_embedding) == (("gelu", "linear"), False)
    path = "vocabularies.sentencepiece.path"
    assert "cc_all.32000.100extra" in gin.query_parameter(path)
    read("mt5_small")
    assert "mc4.250000.100extra" in gin.query_parameter(path)
    assert not network_config().relative_bias_per_layer
    read("umt5_small")
    assert "umt5.256000" in gin.query_parameter(path)
    assert network_config().relative_bias_per_layer


def test_overridden_vocabulary_leaves_nothing_behind():
    read("mt5_small", "byte_vocabulary", bindings=("ACTIVATION_DTYPE = 'float32'",))
    text = config.resolved_str()
    assert "sentencepiece" not in text
    assert network_config().vocab_size == 384
    model = config.configured(model_of)()
    assert model.input_vocabulary.vocab_size == 384
    assert model.config.dtype == "float32"


def test_prompt_macros_reach_the_network():
    read("t5_1_1_small", bindings=("NUM_PROMPTS = 2", "PROMPT_LENGTH = 5"))
    assert network_config().num_virtual_ids == 10


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_model_is_asked_in_the_dialect_that_it_was_trained_to(name):
    read(name, bindings=BYTES)
    dialect = config.configured(model_of)().dialect
    if "lm_adapted" in name or name.startswith("byt5"):
        assert (dialect.kind, dialect.sentinel) == ("lm", "none")
    elif name.startswith("flan"):
        assert (dialect.kind, dialect.sentinel) == ("instruction", "none")
    else:
        assert (dialect.kind, dialect.sentinel) == ("span_corruption", "both")


def test_dialect_and_format_can_be_bound():
    bindings = (
        "SENTINEL = 'targets'",
        "format.Format.separator = '|'",
        "format.Format.shot_seed = 4",
    )
    read("mt5_small", bindings=(*BYTES, *bindings))
    model = config.configured(model_of)()
    assert model.dialect.sentinel == "targets"
    assert (model.task_format.separator, model.task_format.shot_seed) == ("|", 4)
    assert model.without_prompt().dialect == model.dialect


@pytest.mark.parametrize(("shots", "length"), [(0, 1152), (1, 2304), (4, 5632)])
def test_suites_of_the_paper_are_asked_of_every_row(shots, length):
    files = ["models/t5_1_1_small.gin", "models/byte_vocabulary.gin", "runs/promot.gin"]
    given = {
        "MODEL_DIR": "/tmp/run",
        "MIXTURE_OR_TASK_NAME": "rte",
        "INITIAL_CHECKPOINT_PATH": "/tmp/base",
        "TASK_FEATURE_LENGTHS": {"inputs": 512, "targets": 8},
    }
    bindings = [f"{name} = {value!r}" for name, value in given.items()]
    config.configured(promot.promot)
    config.parse([*files, f"suites/icl_{shots}shot.gin"], bindings, search_paths=[])
    config.check([promot.promot])
    suite = gin.get_configurable(promot.Comparison)().suite
    assert (suite.mixture_or_task_name, suite.split) == (f"icl_{shots}shot", None)
    assert suite.task_feature_lengths == {"inputs": length}
    assert suite.batch_size == 64
    assert gin.query_parameter("format.Format.article_tokens") == 1024


def test_rows_of_the_papers_runs_have_labels_of_their_own():
    labels: list[str] = []
    for path in sorted(GIN.glob("paper/*_*.gin")):
        config.configured(promot.promot)
        config.parse([f"paper/{path.name}"], ["MODEL_DIR = '/tmp/run'", *BYTES], search_paths=[])
        config.check([promot.promot])
        comparison = gin.get_configurable(promot.Comparison)()
        labels += [row.label for row in comparison.rows if row.label != "pretrained"]
        # A target is reported on the split that its definition scores.
        assert {target.split for target in comparison.targets} == {None}
        gin.clear_config()
    assert "RTE: ProMoT" in labels
    assert "mT5 XL, RTE: ProMoT" in labels
    assert len(labels) == len(set(labels)) == 14 * 3 + 4 + 2 * 2
