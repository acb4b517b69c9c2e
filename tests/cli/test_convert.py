"""Converting checkpoints: every format into every other bit for bit, and what is in the way."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from checkpoint_helpers import read_params, unpack
from etils import epath
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from promot_t5x.checkpoints import pretrained_names
from promot_t5x.checkpoints.conversion import FORMATS, conversion, writers
from promot_t5x.checkpoints.finding import open_stored
from promot_t5x.checkpoints.formats import hugging_face, layouts, safetensors, shape, t5x
from promot_t5x.checkpoints.formats.layouts import BIAS, Layout
from promot_t5x.checkpoints.formats.t5x_writing import write_inline
from promot_t5x.checkpoints.hashing import content_hash
from promot_t5x.checkpoints.prompt_file import PromptInfo, save_prompt
from promot_t5x.checkpoints.saving import Checkpoints
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.checkpoints.steps import complete_steps
from promot_t5x.cli import main
from promot_t5x.errors import EXIT_IN_USE, EXIT_NOT_SAVED, EXIT_USER_ERROR, UserError
from promot_t5x.network import quantization

GOLDEN = Path(__file__).parents[1] / "golden"
PROMPT = "encoder/prompt/prompt"


def convert(source, destination, to, *flags):
    assert main.main(["convert", str(source), str(destination), "--to", to, *flags]) == 0


def refused(capsys, source, destination, to, *flags):
    """The message of a conversion that does not begin."""
    capsys.readouterr()
    assert main.main(["convert", str(source), str(destination), "--to", to, *flags]) == 2
    _out, err = capsys.readouterr()
    assert err.startswith("promot-t5x: error: ")
    assert "Traceback" not in err
    return err


def read(path, **options):
    return flatten_dict(read_params(path, **options), sep="/")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert found[path].dtype == array.dtype, path
        assert found[path].shape == array.shape, path
        assert np.asarray(found[path]).tobytes() == np.asarray(array).tobytes(), path


@pytest.fixture(scope="module")
def t5x_checkpoints(tmp_path_factory):
    """checkpoint_7 as T5X wrote it in each of its formats; not to be changed."""
    places = {}
    for kind in ("legacy", "orbax"):
        places[kind] = tmp_path_factory.mktemp(kind) / "checkpoint_7"
        unpack(f"t5x_checkpoint_{kind}", places[kind].parent)
    return places


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "t5x_t5_1_1.npz") as arrays:
        start = "params/"
        return {n.removeprefix(start): arrays[n] for n in arrays.files if n.startswith(start)}


@pytest.fixture(scope="module")
def written(t5x_checkpoints, tmp_path_factory):
    """The golden parameters at step 7 in each format, written here from T5X's legacy one."""
    root = tmp_path_factory.mktemp("written")
    for to in FORMATS:
        convert(t5x_checkpoints["legacy"], root / to, to)
    return {to: root / to if to == "hf" else root / to / "checkpoint_7" for to in FORMATS}


# ------------------------------------------------------------------------ every format


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_written_reads_back_bit_for_bit(written, golden, to):
    assert_same(read(written[to]), golden)


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("to", FORMATS)
def test_every_format_into_every_other(written, golden, tmp_path, source, to):
    convert(written[source], tmp_path / "checkpoint_3", to)
    assert_same(read(tmp_path / "checkpoint_3"), golden)
    step = conversion.open_for_conversion(str(tmp_path / "checkpoint_3")).step
    assert step == (0 if to == "hf" else 3)


def test_legacy_files_are_like_t5xs(written, t5x_checkpoints, golden):
    def leaves(directory):
        tree = serialization.msgpack_restore((directory / "checkpoint").read_bytes())
        assert tree["version"] == 3
        assert set(tree) == {"version", "optimizer"}
        assert set(tree["optimizer"]) == {"target", "state"}
        is_spec = lambda _, node: "driver" in node  # noqa: E731
        return flatten_dict(tree["optimizer"], is_leaf=is_spec, sep="/", keep_empty_nodes=True)

    ours, theirs = leaves(written["t5x-legacy"]), leaves(t5x_checkpoints["legacy"])
    for path in golden:
        assert ours[f"target/{path}"] == theirs[f"target/{path}"]
        name = "target." + path.replace("/", ".")
        metadata = [
            json.loads((directory / name / ".zarray").read_text())
            for directory in (written["t5x-legacy"], t5x_checkpoints["legacy"])
        ]
        assert metadata[0] == metadata[1]
    step = ours["state/step"]
    assert (step, step.dtype, step.shape) == (7, np.int32, ())
    state = serialization.msgpack_restore((written["t5x-legacy"] / "checkpoint").read_bytes())
    assert state["optimizer"]["state"]["param_states"] == {}


@pytest.mark.parametrize("to", ["t5x", "promot"])
def test_orbax_itself_reads_what_is_written_without_it(written, golden, to):
    directory = written[to]
    tree = ocp.PyTreeCheckpointer().restore(directory / "state")
    found = flatten_dict(tree, sep="/", keep_empty_nodes=True)
    assert int(found.pop("state/step")) == 7
    if to == "t5x":
        assert tree["state"].pop("param_states") == {}
    parameters = {p.removeprefix("target/"): a for p, a in found.items() if p.startswith("target/")}
    assert_same(parameters, golden)
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint")
    manager = ocp.CheckpointManager(directory.parent, options=options, item_names=("state",))
    assert manager.all_steps() == [7]
    metadata = json.loads((directory / "state" / "_METADATA").read_text())
    assert metadata["use_ocdbt"]
    assert not metadata["use_zarr3"]
    assert (directory / "commit_success.txt").exists()


def test_hugging_face_files_have_the_names_of_transformers(written):
    names = set(safetensors.open_file(epath.Path(written["hf"] / "model.safetensors")))
    theirs = epath.Path(GOLDEN / "hf_mt5" / "model.safetensors")
    assert names == {*safetensors.open_file(theirs), "lm_head.weight"}
    config = json.loads((written["hf"] / "config.json").read_text())
    told = json.loads((GOLDEN / "hf_mt5" / "config.json").read_text())
    for name in ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers",
                 "vocab_size", "feed_forward_proj", "dense_act_fn", "is_gated_act",
                 "relative_attention_num_buckets", "decoder_start_token_id"):  # fmt: skip
        assert config[name] == told[name], name
    assert (config["model_type"], config["tie_word_embeddings"]) == ("t5", False)
    assert json.loads((written["hf"] / "generation_config.json").read_text())["eos_token_id"] == 1


def test_hugging_face_in_shards_and_back_with_its_other_settings(tmp_path, monkeypatch):
    source = shutil.copytree(GOLDEN / "hf_t5_1_0", tmp_path / "source")
    config = source / "config.json"
    changed = {**json.loads(config.read_text()), "dropout_rate": 0.25}
    config.write_text(json.dumps(changed))
    for name in ("spiece.model", "tokenizer.json"):
        (source / name).write_text(name)
    monkeypatch.setattr(hugging_face, "SHARD_BYTES", 100_000)
    convert(source, tmp_path / "again", "hf")
    again = tmp_path / "again"
    assert_same(read(again), read(GOLDEN / "hf_t5_1_0"))
    index = json.loads((again / "model.safetensors.index.json").read_text())
    files = sorted(again.glob("*.safetensors"))
    assert len(files) == 3
    assert {f.name for f in files} == set(index["weight_map"].values())
    assert files[0].name == "model-00001-of-00003.safetensors"
    told = json.loads((again / "config.json").read_text())
    assert (told["dropout_rate"], told["tie_word_embeddings"]) == (0.25, True)
    assert (again / "spiece.model").read_text() == "spiece.model"
    assert (again / "tokenizer.json").exists()


def test_tokenizer_of_another_place(tmp_path, capsys):
    model = tmp_path / "sentencepiece.model"
    model.write_bytes(b"pieces")
    convert(GOLDEN / "hf_mt5", tmp_path / "hf", "hf", "--tokenizer", str(model))
    assert (tmp_path / "hf" / "spiece.model").read_bytes() == b"pieces"
    convert(GOLDEN / "hf_mt5", tmp_path / "plain", "hf")
    assert "without tokenizer files" in capsys.readouterr().err
    assert "no tokenizer files at" in refused(
        capsys, GOLDEN / "hf_mt5", tmp_path / "x", "hf", "--tokenizer", str(tmp_path / "none")
    )


@pytest.mark.parametrize("to", FORMATS)
def test_rounding_to_bfloat16(written, golden, tmp_path, to):
    convert(written["promot"], tmp_path / "checkpoint_1", to, "--dtype", "bfloat16")
    assert_same(
        read(tmp_path / "checkpoint_1"),
        {path: array.astype(ml_dtypes.bfloat16) for path, array in golden.items()},
    )
    if to == "hf":
        assert (
            json.loads((tmp_path / "checkpoint_1" / "config.json").read_text())["dtype"]
            == "bfloat16"
        )


# ------------------------------------------------------------------------ T5X's layouts


@pytest.mark.parametrize("to", ["t5x", "t5x-legacy"])
def test_scalable_t5_and_back(written, golden, tmp_path, to):
    convert(written["hf"], tmp_path / "checkpoint_1", to, "--scanned")
    stored = open_stored(tmp_path / "checkpoint_1").shapes
    assert stored["encoder/encoder/attention/query/kernel"].shape == (32, 2, 4, 8)
    assert stored["decoder/decoder/self_attention/out/kernel"].shape == (4, 2, 8, 32)
    assert stored[f"decoder/decoder/{BIAS}"].shape == (4, 2, 32)
    convert(tmp_path / "checkpoint_1", tmp_path / "back", "promot", "--bias", "shared")
    assert_same(read(tmp_path / "back"), golden)
    shared = Layout(scanned=False, bias_per_layer=False)
    assert_same(read(tmp_path / "checkpoint_1", layout=shared), golden)


def test_biases_of_layers_that_differ_cannot_be_shared(golden, tmp_path, capsys):
    source = open_stored(GOLDEN / "hf_mt5")
    laid = layouts.Relaid(source, Layout(bias_per_layer=True))
    params = laid.read(dict(laid.shapes))
    params[f"decoder/layers_1/{BIAS}"] = params[f"decoder/layers_1/{BIAS}"] + 1
    save(tmp_path / "umt5", params, 4)
    err = refused(capsys, tmp_path / "umt5", tmp_path / "x", "t5x", "--bias", "shared")
    assert "decoder's layers have relative position biases that differ" in err
    convert(tmp_path / "umt5", tmp_path / "hf", "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["UMT5ForConditionalGeneration"]
    assert_same(read(tmp_path / "hf"), params)


# ------------------------------------------------------------------------ optimizer slots


def state_of(path):
    source, absent = t5x.whole_state(open_stored(path))
    return source.read(dict(source.shapes)), absent


def test_slots_go_between_t5xs_formats(t5x_checkpoints, tmp_path):
    originals = {kind: state_of(place)[0] for kind, place in t5x_checkpoints.items()}
    assert any("/v_row" in path for path in originals["legacy"])
    assert_same(originals["legacy"], originals["orbax"])
    convert(t5x_checkpoints["legacy"], tmp_path / "orbax", "t5x", "--optimizer_state")
    convert(t5x_checkpoints["orbax"], tmp_path / "legacy", "t5x-legacy", "--optimizer_state")
    for place in ("orbax", "legacy"):
        assert_same(state_of(tmp_path / place / "checkpoint_7")[0], originals["legacy"])
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "orbax/checkpoint_7/state")
    assert_same(flatten_dict(tree, sep="/"), originals["legacy"])

    def inline(directory):
        tree = serialization.msgpack_restore((directory / "checkpoint").read_bytes())
        leaves = flatten_dict(tree["optimizer"], sep="/")
        return {path for path, leaf in leaves.items() if isinstance(leaf, np.ndarray)}

    # T5X looks for a slot where it would have put it, and nowhere else.
    assert inline(tmp_path / "legacy/checkpoint_7") == inline(t5x_checkpoints["legacy"])


def test_absent_slots_and_float_steps(tmp_path):
    target = {"a": {"kernel": np.ones((3, 2), np.float32)}, "p": np.zeros(2, np.float32)}
    slots = {"a": {"kernel": None}, "p": {"v": np.ones(2, np.float32), "m": None}}
    tree = {"target": target, "state": {"step": np.float32(1100000.0), "param_states": slots}}
    (tmp_path / "checkpoint_5").mkdir()
    data = serialization.msgpack_serialize({"version": 3, "optimizer": tree})
    (tmp_path / "checkpoint_5" / "checkpoint").write_bytes(data)
    arrays, absent = state_of(tmp_path / "checkpoint_5")
    assert arrays["state/step"].dtype == np.int32
    assert arrays["state/step"] == 1_100_000
    assert absent == ["state/param_states/a/kernel", "state/param_states/p/m"]
    convert(tmp_path / "checkpoint_5", tmp_path / "l", "t5x-legacy", "--optimizer_state")
    again, absent_again = state_of(tmp_path / "l" / "checkpoint_1100000")
    assert_same(again, arrays)
    assert absent_again == absent
    convert(tmp_path / "checkpoint_5", tmp_path / "o", "t5x", "--optimizer_state")
    assert_same(state_of(tmp_path / "o" / "checkpoint_1100000")[0], arrays)


@pytest.mark.parametrize(
    ("source", "to", "flags", "said"),
    [
        ("hf", "t5x", (), "between T5X's two formats"),
        ("t5x", "hf", (), "between T5X's two formats"),
        ("t5x", "t5x-legacy", ("--dtype", "bfloat16"), "copies everything as it is"),
    ],
)
def test_slots_go_nowhere_else(written, tmp_path, capsys, source, to, flags, said):
    err = refused(capsys, written[source], tmp_path / "x", to, "--optimizer_state", *flags)
    assert said in err
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------ prompts and stages


def save(directory, params, step, **metadata):
    tree = unflatten_dict(params, sep="/")
    with Checkpoints(directory, keep=None) as saver:
        opt_state = optax.sgd(0.1).init(tree)
        saver.save(step, trainable=tree, opt_state=opt_state, metadata=metadata)


@pytest.fixture(scope="module")
def run(golden, tmp_path_factory):
    """A run of two stages from the golden base: its directory, the prompt, the trained encoder."""
    root = tmp_path_factory.mktemp("run")
    base = root / "base" / "checkpoint_7"
    convert(GOLDEN / "hf_mt5", base, "t5x-legacy")
    prompt = np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32)
    save(root / "stage_one", {PROMPT: prompt}, 10, base_path=str(base))
    trained = {p: a + 1 for p, a in read(base).items() if p.startswith("encoder/")}
    for step in (20, 30):
        save(root / "stage_two", {**trained, PROMPT: prompt}, step, base_path="stage_one")
    for name, step in (("stage_one", 10), ("stage_two", 20)):
        path = epath.Path(root / name)
        StageResult(directory=path, step=step, score=None).write()
    return root, prompt, trained


@pytest.mark.parametrize("to", ["promot", "t5x", "t5x-legacy"])
def test_stages_are_completed_with_their_bases_and_keep_the_prompt(run, tmp_path, capsys, to):
    root, prompt, trained = run
    convert(root / "stage_two", tmp_path, to)
    expected = {**read(root / "base" / "checkpoint_7"), **trained, PROMPT: prompt}
    assert_same(read(tmp_path / "checkpoint_20"), expected)
    out = capsys.readouterr().out
    for part in (
        "stage_two/checkpoint_20 over",
        "stage_one/checkpoint_10 over",
        "base/checkpoint_7",
    ):
        assert part in out


def test_a_removed_prompt_leaves_an_ordinary_t5(run, tmp_path):
    root, _, trained = run
    convert(root / "stage_two" / "checkpoint_30", tmp_path / "t5", "t5x", "--remove_prompt")
    assert_same(
        read(tmp_path / "t5" / "checkpoint_30"),
        {**read(root / "base" / "checkpoint_7"), **trained},
    )
    convert(root / "stage_one", tmp_path / "one", "hf", "--remove_prompt")
    assert_same(read(tmp_path / "one"), read(GOLDEN / "hf_mt5"))
    assert not list((tmp_path / "one").glob("prompt*"))


def test_prompts_become_adapters_of_peft(run, tmp_path):
    root, prompt, _ = run
    convert(root / "stage_one", tmp_path / "hf", "hf")
    assert_same(read(tmp_path / "hf"), read(GOLDEN / "hf_mt5"))
    for number in range(2):
        adapter = tmp_path / "hf" / writers.ADAPTER / f"prompt_{number}"
        path = epath.Path(adapter / "adapter_model.safetensors")
        tensors = safetensors.open_file(path)
        assert list(tensors) == ["prompt_embeddings"]
        np.testing.assert_array_equal(tensors["prompt_embeddings"][...], prompt[number])
        told = json.loads((adapter / "adapter_config.json").read_text())
        assert (told["peft_type"], told["task_type"]) == ("PROMPT_TUNING", "SEQ_2_SEQ_LM")
        assert (told["num_virtual_tokens"], told["token_dim"]) == (5, 32)
        assert told["num_transformer_submodules"] == 1


@pytest.fixture(scope="module")
def frozen(run, tmp_path_factory):
    """A run whose second stage trained the whole model behind its first stage's frozen prompt."""
    root = tmp_path_factory.mktemp("frozen")
    base = run[0] / "base" / "checkpoint_7"
    prompt = np.random.default_rng(1).normal(size=(1, 5, 32)).astype(np.float32)
    save(root / "stage_one", {PROMPT: prompt}, 10, base_path=str(base), prompt_path="Uniform()")
    StageResult(directory=epath.Path(root / "stage_one"), step=10, score=None).write()
    model = {path: array + 1 for path, array in read(base).items()}
    save(root / "stage_two", model, 20, base_path=str(base), prompt_path="stage_one")
    save(root / "plain", model, 20, base_path="stage_one", prompt_path=None)
    save(root / "older", model, 20, base_path=str(base), frozen_hash="0" * 32)
    return root, prompt, model


def test_a_prompt_that_was_frozen_comes_along(frozen, tmp_path, capsys):
    root, prompt, model = frozen
    convert(root / "stage_two", tmp_path / "hf", "hf")
    assert_same(read(tmp_path / "hf"), model)
    tensors = safetensors.open_file(
        epath.Path(tmp_path / "hf" / writers.ADAPTER / "adapter_model.safetensors")
    )
    np.testing.assert_array_equal(tensors["prompt_embeddings"][...], prompt[0])
    assert f"over the prompt of {root}/stage_one/checkpoint_10" in capsys.readouterr().out
    convert(root / "stage_two", tmp_path / "t5x", "t5x")
    assert_same(read(tmp_path / "t5x/checkpoint_20"), {**model, PROMPT: prompt})
    convert(root / "stage_two", tmp_path / "bare", "hf", "--remove_prompt")
    assert not (tmp_path / "bare" / writers.ADAPTER).exists()
    assert "no prompt comes along" not in capsys.readouterr().err


def test_a_frozen_prompt_of_a_file_and_none(frozen, tmp_path, capsys):
    root, prompt, model = frozen
    file = tmp_path / "prompt.npz"
    save_prompt(file, prompt, PromptInfo(tasks=("a",)))
    save(tmp_path / "run/second", model, 3, base_path=None, prompt_path=str(file))
    convert(tmp_path / "run/second", tmp_path / "t5x", "t5x")
    assert_same(read(tmp_path / "t5x/checkpoint_3"), {**model, PROMPT: prompt})
    file.unlink()
    err = refused(capsys, tmp_path / "run/second", tmp_path / "x", "t5x")
    assert f"{str(file)!r}, which cannot be read" in err
    assert "--remove_prompt leaves it behind" in err
    convert(tmp_path / "run/second", tmp_path / "bare", "t5x", "--remove_prompt")
    assert_same(read(tmp_path / "bare/checkpoint_3"), model)
    for stage, note in (("plain", False), ("older", True)):
        capsys.readouterr()
        convert(root / stage, tmp_path / stage, "t5x")
        assert_same(read(tmp_path / stage / "checkpoint_20"), model)
        assert ("no prompt comes along" in capsys.readouterr().err) == note
    wide = np.zeros((1, 2, 64), np.float32)
    save_prompt(file, wide, PromptInfo(tasks=("a",)))
    err = refused(capsys, tmp_path / "run/second", tmp_path / "x", "t5x")
    assert "its vectors have another width than the model's 32" in err


def test_stages_whose_base_is_gone_or_another(run, tmp_path, capsys, golden):
    prompt = {PROMPT: np.zeros((1, 2, 32), np.float32)}
    save(tmp_path / "a", prompt, 1, base_path=str(tmp_path / "nowhere"))
    assert "its base cannot be read" in refused(capsys, tmp_path / "a", tmp_path / "x", "t5x")
    save(tmp_path / "b", prompt, 1, base_path=None)
    assert "no base to complete it with" in refused(capsys, tmp_path / "b", tmp_path / "x", "t5x")
    wide = {PROMPT: np.zeros((1, 2, 64), np.float32)}
    save(tmp_path / "c", wide, 1, base_path=str(run[0] / "base" / "checkpoint_7"))
    assert "was not trained on what" in refused(capsys, tmp_path / "c", tmp_path / "x", "t5x")


def test_a_base_that_has_changed_since_is_noticed(run, tmp_path, capsys):
    base = run[0] / "base" / "checkpoint_7"
    prompt = {PROMPT: np.zeros((1, 2, 32), np.float32)}
    exact = read(base)
    for dtype in ("float32", "bfloat16", "int8"):  # as stages may freeze it
        wanted = quantization.stored_shapes(exact, dtype)
        frozen_hash = content_hash(quantization.cast(exact, wanted))
        told = {"base_path": str(base), "frozen_hash": frozen_hash}
        save(tmp_path / dtype, prompt, 1, **told)
        convert(tmp_path / dtype, tmp_path / f"{dtype}_t5x", "t5x")
    save(tmp_path / "other", prompt, 1, base_path=str(base), frozen_hash="0" * 32)
    err = refused(capsys, tmp_path / "other", tmp_path / "x", "t5x")
    assert f"{base} is not what" in err
    assert "another than the 0000" in err
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------------ what stands in the way


def test_nothing_is_overwritten(written, tmp_path, capsys):
    (tmp_path / "checkpoint_7").mkdir()
    err = refused(capsys, written["t5x"], tmp_path, "promot")
    assert f"{tmp_path}/checkpoint_7 exists already" in err
    assert "exists already" in refused(capsys, written["t5x"], tmp_path, "hf")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_7"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name the checkpoint to convert"),
        (["{src}"], "promot-t5x convert SRC DST --to {promot,t5x,t5x-legacy,hf,peft}"),
        (["{src}", "x", "--to", "gguf"], "invalid choice: 'gguf'"),
        (["{src}", "x", "--to", "hf", "--scanned"], "--to hf has none"),
        (["{src}", "x", "--to", "t5x", "--scanned", "--bias", "shared"], "bias in every layer"),
        (["{src}", "gs://bucket/x", "--to", "t5x"], "gsutil"),
        (["no/such/place", "x", "--to", "t5x"], "does not exist"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    words, said, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("{src}", str(GOLDEN / "hf_mt5")) for word in words]
    assert main.main(["convert", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_known_beforehand(written, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    for flags in ((), ("--optimizer_state",)):
        err = refused(capsys, written["t5x"], tmp_path / "x", "t5x-legacy", *flags)
        assert "has 0.0 GB free; the checkpoint needs 0.0 GB" in err
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("harm", "to", "said"),
    [
        (lambda a: a["decoder/decoder_norm/scale"].__setitem__(0, np.nan), "hf", "not finite"),
        (lambda a: a["decoder/decoder_norm/scale"].__setitem__(0, np.inf), "t5x", "not finite"),
        (lambda a: a.update(scale=np.ones(3, np.int64)), "promot", "scale (int64)"),
        (
            lambda a: a.update({"encoder/extra/kernel": np.ones((2, 2), np.float32)}),
            "hf",
            "1 arrays are no part of it (encoder/extra/kernel)",
        ),
        (lambda a: a.pop("decoder/decoder_norm/scale"), "hf", "1 arrays are missing (decoder/"),
    ],
    ids="nan inf integers extra missing".split(),
)
def test_what_is_wrong_with_a_checkpoint_is_blamed_on_it(golden, tmp_path, capsys, harm, to, said):
    arrays = {path: array.copy() for path, array in golden.items()}
    harm(arrays)
    source = tmp_path / "source" / "checkpoint_7"
    write_inline(epath.Path(source), unflatten_dict(arrays, sep="/"), 7)
    err = refused(capsys, source, tmp_path / "new" / "x", to)
    assert f"error: {source} " in err
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_destination_that_cannot_be_written(written, tmp_path, capsys, monkeypatch):
    def full(self, arrays):
        raise OSError("No space left on device")

    monkeypatch.setattr(writers.PromotTarget, "add", full)
    words = ["convert", str(written["hf"]), str(tmp_path / "x"), "--to", "promot"]
    assert main.main(words) == EXIT_NOT_SAVED
    err = capsys.readouterr().err
    assert "x/checkpoint_0 could not be written: No space left on device" in err
    assert not list(tmp_path.iterdir())


def test_a_killed_conversion_leaves_nothing_that_counts(tmp_path, golden):
    """SIGKILL between two batches; the same command then begins anew."""
    code = (
        "import os, signal, sys\n"
        "from promot_t5x.cli.main import main\n"
        "from promot_t5x.checkpoints.conversion import conversion\n"
        "original = conversion.layouts.batches\n"
        "conversion.layouts.batches = lambda s, w: original(s, w, 1)\n"
        "class Progress:\n"
        "    def __init__(self, *_): self.updates = 0\n"
        "    def update(self, *_):\n"
        "        self.updates += 1\n"
        "        if self.updates == 20: os.kill(os.getpid(), signal.SIGKILL)\n"
        "import promot_t5x.cli.convert_checkpoint\n"
        "promot_t5x.cli.convert_checkpoint.Progress = Progress\n"
        "main(sys.argv[1:])\n"
    )
    words = ["convert", str(GOLDEN / "hf_mt5"), str(tmp_path / "out"), "--to", "promot"]
    killed = subprocess.run([sys.executable, "-c", code, *words], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    left = [p.name for p in (tmp_path / "out").iterdir()]
    assert left == ["checkpoint_0.incomplete"]
    assert complete_steps(tmp_path / "out") == []
    assert main.main(words) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["checkpoint_0"]
    assert_same(read(tmp_path / "out"), read(GOLDEN / "hf_mt5"))


def test_a_second_conversion_to_the_same_place_is_refused(tmp_path, golden, capsys, monkeypatch):
    words = ["convert", str(GOLDEN / "hf_mt5"), str(tmp_path / "out"), "--to", "promot"]
    original, others = conversion.layouts.batches, []

    def batches(source, wanted):
        if not others:  # while the first one writes
            others.append(main.main(words))
        return original(source, wanted)

    monkeypatch.setattr(conversion.layouts, "batches", batches)
    assert main.main(words) == 0
    assert others == [EXIT_IN_USE]
    err = capsys.readouterr().err
    assert "out/checkpoint_0 is being written by another conversion" in err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["checkpoint_0"]
    assert_same(read(tmp_path / "out"), read(GOLDEN / "hf_mt5"))


def test_a_conversion_that_was_slower_leaves_what_the_other_wrote(tmp_path, golden, monkeypatch):
    words = ["convert", str(GOLDEN / "hf_mt5"), str(tmp_path / "out"), "--to", "promot"]
    original, others = conversion._lock, []

    def lock(*arguments):
        if not others:  # between the look at the destination and the lock
            others.append(None)
            assert main.main(words) == 0
        return original(*arguments)

    monkeypatch.setattr(conversion, "_lock", lock)
    assert main.main(words) == EXIT_USER_ERROR
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["checkpoint_0"]
    assert_same(read(tmp_path / "out"), read(GOLDEN / "hf_mt5"))


# ------------------------------------------------------------------------ what is told


def test_names(capsys):
    assert main.main(["convert", "--list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert tuple(lines) == pretrained_names.NAMES
    bucket = "gs://t5-data/pretrained_models/t5x"
    assert lines["mt5_xxl"] == f"{bucket}/mt5_xxl/checkpoint_1000000"
    assert lines["t5_1_1_lm100k_xl"] == f"{bucket}/t5_1_1_lm100k_xl/checkpoint_1100000"
    assert lines["flan_t5_small"] == f"{bucket}/flan_t5_small/checkpoint_1198000"
    assert lines["mt5_lm_adapted_xl"] == f"{bucket}/mt5_lm_adapted/xl/checkpoint_1100000"
    assert len(pretrained_names.resolve("umt5_small")) == 3
    assert len(pretrained_names.PUBLIC) == 5 * 7 + 4


def test_shapes_as_gin_macros(written, capsys):
    for to in FORMATS:
        assert main.main(["convert", str(written[to]), "--gin"]) == 0
        lines = capsys.readouterr().out.splitlines()
        for line in (
            "NUM_EMBEDDINGS = 384",
            "HEAD_DIM = 8",
            "MLP_ACTIVATIONS = ('gelu', 'linear')",
        ):
            assert line in lines


def test_activations_of_a_runs_configuration():
    assert shape.activation_of("A = 1\nMLP_ACTIVATIONS = ('silu', 'linear')\n") == "silu"
    assert shape.activation_of("") is None


def test_own_checkpoints_written_by_a_conversion_are_verified(written, tmp_path):
    copy = shutil.copytree(written["promot"], tmp_path / "checkpoint_7")
    file = max((copy / "state").rglob("d/*"), key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="checkpoint_7 is damaged"):
        read_params(copy)


@pytest.mark.parametrize(
    ("shape", "limit", "expected"),
    [
        ((4, 6), 96, [4, 6]),
        ((4, 6), 48, [2, 6]),
        ((5, 6), 48, [1, 6]),
        ((5, 8), 16, [1, 4]),
        ((3,), 4, [1]),
        ((), 4, []),
    ],
)
def test_chunks_divide_an_array(shape, limit, expected):
    from promot_t5x.checkpoints.formats.write_arrays import chunk_shape

    assert chunk_shape(shape, 4, limit) == expected
