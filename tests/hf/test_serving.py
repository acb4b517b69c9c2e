"""What was trained under CTranslate2 and lm-evaluation-harness themselves: `make test-hf`."""

import json
import re

import ctranslate2
import numpy as np
import pytest
import run_helpers
import tokenizers
import transformers
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from promot_t5x.checkpoints.formats.t5x_writing import write_inline
from promot_t5x.data import vocabularies
from promot_t5x.network.parameters import param_shapes
from promot_t5x.network.transformer import T5Config
from promot_t5x.tasks import dialects, registry

BYTES = {
    "vocab_size": 384, "emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32,
    "num_encoder_layers": 1, "num_decoder_layers": 1, "mlp_activations": ("gelu", "linear"),
    "dropout_rate": 0.0,
}  # fmt: skip
# The families that CTranslate2 has a loader for, and their gin macros.
FAMILIES = {
    "t5_1_1": ({}, {"LOGITS_VIA_EMBEDDING": False}),
    "byte_t5_1_0": ({"logits_via_embedding": True}, {"LOGITS_VIA_EMBEDDING": True}),
    "mt5": ({}, {"LOGITS_VIA_EMBEDDING": False}),
}
QUESTIONS = ["sign 7", "end 14 of all", "a", "which number is larger, 3 or 5?", "éü 9"]


def checkpoint(directory, changes):
    config = T5Config(**{**BYTES, **changes})
    rng = np.random.default_rng(3)
    shapes = flatten_dict(param_shapes(config), sep="/")
    # Far apart, so that no two tokens are about as likely.
    params = {p: rng.normal(scale=0.5, size=s.shape).astype(np.float32) for p, s in shapes.items()}
    write_inline(epath.Path(directory / "checkpoint_1"), unflatten_dict(params, sep="/"), 1)
    return directory / "checkpoint_1"


def exported(source, directory, tokenizer, model_type=None):
    """`convert --to hf`, with the tokenizer that the vocabulary is under transformers."""
    run_helpers.succeed(["convert", str(source), str(directory), "--to", "hf"])
    tokenizer.save_pretrained(directory)
    if model_type:
        path = directory / "config.json"
        config = json.loads(path.read_text()) | {
            "model_type": model_type,
            "architectures": ["MT5ForConditionalGeneration"],
        }
        path.write_text(json.dumps(config))
    return directory


def inferred(lab, source, questions, *files, model="bytes", **macros):
    (lab.directory / "ask.txt").write_text("\n".join(questions) + "\n")
    lab.write("greedy.gin", "from __gin__ import dynamic_registration\n"
              "from promot_t5x import decoding\nDECODING = @decoding.Greedy()\n")  # fmt: skip
    out = run_helpers.succeed(
        [
            "infer",
            f"--gin_search_paths={lab.directory}",
            f"--gin_file={model}.gin" if "/" not in model else f"--gin_file={model}",
            "--gin_file=runs/infer.gin",
            "--gin_file=greedy.gin",
            *(
                f"--gin.{name}={run_helpers.gin_value(value)}"
                for name, value in {
                    "CHECKPOINT_PATH": str(source),
                    "INPUT_FILE": lab.directory / "ask.txt",
                    "INFER_OUTPUT_DIR": None,
                    "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 12},
                    **macros,
                }.items()
            ),
        ]
    )
    return [json.loads(line)["output"] for line in out.splitlines() if line.startswith("{")]


def translated(place, compute_type, tokenizer, questions):
    converter = ctranslate2.converters.TransformersConverter(str(place))
    directory = place.with_name(f"{place.name}_{compute_type}")
    converter.convert(str(directory), quantization=compute_type, force=True)
    translator = ctranslate2.Translator(str(directory), device="cpu", compute_type=compute_type)
    asked = [tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) for text in questions]
    found = translator.translate_batch(
        asked, beam_size=1, max_decoding_length=12, replace_unknowns=False
    )
    return [tokenizer.convert_tokens_to_ids(each.hypotheses[0]) for each in found]


@pytest.mark.parametrize("family", FAMILIES)
def test_random_models_answer_under_ctranslate2_as_infer_does(family, tmp_path):
    changes, macros = FAMILIES[family]
    source = checkpoint(tmp_path, changes)
    tokenizer = transformers.ByT5Tokenizer()
    place = exported(source, tmp_path / "hf", tokenizer, "mt5" if family == "mt5" else None)
    lab = run_helpers.Lab(tmp_path)
    ours = inferred(lab, source, QUESTIONS, **macros)
    ids = translated(place, "float32", tokenizer, QUESTIONS)
    theirs = [dialects.decode(vocabularies.byte_level(), row) for row in ids]
    assert len(set(ours)) > 1
    assert theirs == ours


def test_the_demonstrations_base_answers_under_ctranslate2_as_infer_does(tmp_path):
    from promot_t5x.tasks.tiny.vocabulary import WordVocabulary

    vocabulary = WordVocabulary()
    words = {vocabulary.decode([i]) if i > 1 else f"<{i}>": i for i in range(416)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, vocabulary.decode([2])))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <1>", special_tokens=[("<1>", 1)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<0>", eos_token="<1>", unk_token=vocabulary.decode([2])
    )
    place = exported("tiny_world", tmp_path / "hf", tokenizer)
    lab = run_helpers.Lab(tmp_path)
    questions = [
        vocabulary.decode([i for i in row["inputs"].tolist() if i > 1])
        for name in ("cb", "qa_short", "trans_a", "sum_keys")
        for row in registry.get_task(f"tiny_icl_{name}_1shot")
        .build(vocabulary)
        .get_dataset(sequence_length=None, split="validation", shuffle=False)
        .take(10)
        .as_numpy_iterator()
    ]
    ours = inferred(lab, "tiny_world", questions, model="demo/model.gin")
    # Of 40; eight bits may turn an answer over.
    for compute_type, least in (("float32", 40), ("int8", 38)):
        ids = translated(place, compute_type, tokenizer, questions)
        theirs = [vocabulary.decode([i for i in row if i > 1]) for row in ids]
        equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
        assert equal >= least, (compute_type, equal)


TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
metric_list:
  - metric: {metric}
"""


@pytest.mark.filterwarnings("ignore")  # the harness and its data sets warn of themselves
def test_the_harness_asks_our_model_as_it_asks_its_export(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    # Tied: the harness ties the weights of each T5 that it loads, T5 1.1's too.
    source = checkpoint(tmp_path, {"logits_via_embedding": True})
    place = exported(source, tmp_path / "hf", transformers.ByT5Tokenizer())
    run_helpers.Lab(tmp_path)
    rows = [{"question": text, "answer": "odd", "choices": ["odd", "even"]} for text in QUESTIONS]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, kind, more, metric in (
        ("ours_generate", "generate_until",
         'generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}', "exact_match"),
        ("ours_choose", "multiple_choice", "doc_to_choice: choices", "acc"),
    ):  # fmt: skip
        text = TASK.format(name=name, kind=kind, data=data, more=more, metric=metric)
        (tasks / f"{name}.yaml").write_text(text)
    ours = {"gin_file": f"{tmp_path}/bytes.gin", "checkpoint_path": str(source), "inputs": 64}
    theirs = {"pretrained": str(place), "dtype": "float32", "backend": "seq2seq"}
    found = {}
    for model, arguments in (("promot_t5x", ours), ("hf", theirs)):
        words = [
            "lm_eval", "run", "--model", model, "--model_args", json.dumps(arguments),
            "--tasks", "ours_generate,ours_choose", "--include_path", str(tasks),
            "--batch_size", "4", "--device", "cpu", "--log_samples",
            "--output_path", str(tmp_path / model),
        ]  # fmt: skip
        done = run_helpers.process(words)
        assert done.status == 0, done.err[-3000:]
        for path in (tmp_path / model).rglob("samples_*.jsonl"):
            task = path.name.split("_2")[0].removeprefix("samples_")
            samples = sorted(run_helpers.json_lines(path), key=lambda row: row["doc_id"])
            found[model, task] = [row["resps"] for row in samples]
    # transformers leaves sentinels out, and the harness gives it a context's length more.
    ours, theirs = (
        [re.sub(r"<extra_id_\d+>|\s", "", row[0][0]) for row in found[model, "ours_generate"]]
        for model in ("promot_t5x", "hf")
    )
    assert all(ours)
    assert sum(map(len, ours)) > 12
    assert [text[: len(said)] for said, text in zip(ours, theirs, strict=True)] == ours
    both = zip(found["promot_t5x", "ours_choose"], found["hf", "ours_choose"], strict=True)
    for mine, other in both:
        for (likelihood, greedy), (expected, also) in zip(
            (row[0] for row in mine), (row[0] for row in other), strict=True
        ):
            assert float(likelihood) == pytest.approx(float(expected), abs=1e-3)
            assert str(greedy) == str(also)
