"""`tasks check`, `show`, `stats` and runs on answers that no model could give, and on templates."""

import json
import operator

import pytest

from promot_t5x.cli import main as cli
from promot_t5x.data import lazy
from promot_t5x.data.questions import read_questions
from promot_t5x.data.sources import resolve_tasks
from promot_t5x.errors import UserError
from promot_t5x.tasks import (
    Candidates,
    Mixture,
    Rouge,
    jsonl,
    register,
    registry,
    text_task,
)
from promot_t5x.tasks.dialects import Dialect
from promot_t5x.tasks.normal_form import changed

ANSWERS = ["plain words", "a < b", "x {y}", "½ cup", "new\nline", "two  spaces"]
FORMS = ["plain words", "a  ⁇  b", "x  ⁇ y ⁇", "1⁄2 cup", "new line", "two spaces"]
GIN = """\
from __gin__ import dynamic_registration
include 'models/t5_1_1_small.gin'
from promot_t5x.data import vocabularies
VOCABULARY = @vocabularies.sentencepiece()
vocabularies.sentencepiece.path = '{path}'
vocabularies.sentencepiece.extra_ids = 100
NUM_EMBEDDINGS = 256
"""


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A gin file with a vocabulary that, like T5's, lacks `<`, braces and line breaks."""
    import sentencepiece

    directory = tmp_path_factory.mktemp("pieces")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["plain words cup new line two spaces a b x y 1⁄2 0 3"] * 50),
        model_prefix=str(directory / "small"),
        vocab_size=45,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (directory / "small.gin").write_text(GIN.format(path=directory / "small.model"))
    return directory / "small.gin"


@pytest.fixture(scope="module")
def vocabulary(pieces):
    return lazy.import_seqio().SentencePieceVocabulary(str(pieces.with_suffix(".model")), 100)


def task(directory, name, rows, **settings):
    path = directory / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"name": name, "source": jsonl(path), "inputs": "{q}", "target": "{a}", **settings}
    return register(text_task(**given))


def run(capsys, *words):
    status = cli.main(["tasks", *map(str, words)])
    return status, *capsys.readouterr()


def test_answers_that_the_vocabulary_cannot_write_are_named(vocabulary):
    assert changed(vocabulary, ANSWERS) == list(zip(ANSWERS, FORMS, strict=True))[1:]
    assert changed(lazy.import_seqio().ByteVocabulary(), ANSWERS) == []


def test_check_show_stats_and_runs_say_what_cannot_be_written(pieces, vocabulary, tmp_path, capsys):
    questions = ("two", "words", "cup", "line", "new", "spaces")
    rows = [{"q": q, "a": answer} for q, answer in zip(questions, ANSWERS, strict=True)]
    task(tmp_path, "unwritable", rows)
    task(tmp_path, "unwritable_normal", rows, normal_form=True)
    model = f"--gin_file={pieces}"
    said = "the vocabulary cannot write 5 of 6 right answers (83.3%): 'a < b' as 'a  ⁇  b', "
    status, out, _ = run(capsys, "check", "unwritable", model, "--n", 100)
    assert status == 1
    assert said in out
    assert "a model without a fault would score 16.6667" in out
    status, out, _ = run(capsys, "check", "unwritable_normal", model)
    assert status == 0
    assert "exact_match 100 for its own answers" in out
    assert said in out
    status, out, _ = run(capsys, "stats", "unwritable", model)
    assert status == 0
    assert said in out
    status, out, _ = run(capsys, "show", "unwritable", model, "--n", 2)
    assert out.count("which the vocabulary can only write as:") == 1
    assert "which the vocabulary can only write as:\na  ⁇  b\n" in out
    # Without a model there is no vocabulary to ask.
    assert run(capsys, "check", "unwritable")[0] == 0


def test_labels_are_compared_in_their_normal_form(vocabulary, tmp_path):
    rows = [{"q": "x", "a": 0}, {"q": "y", "a": 1}]
    task(tmp_path, "normal_labels", rows, labels=("a < b", "a b"), normal_form=True)
    (bound,) = resolve_tasks("normal_labels", vocabulary)
    questions = read_questions(bound, "train", limit=None, token_budget=20, answer_length=20)
    process = bound.task.postprocess_fn
    wanted = [process(q.answer, example=q.example, is_target=True) for q in questions]
    read = [process(text, example=q.example) for q, text in zip(questions, FORMS[1:3], strict=True)]
    assert wanted == ["a < b", "a b"]
    assert read[0] == "a < b"
    assert read[1] != "a b"


# ------------------------------------------------------------------------------- lengths


def test_check_says_which_share_of_answers_is_cut_and_passes_an_outlier(tmp_path, capsys):
    byte_model = ["--gin_file=models/t5_1_1_small.gin", "--gin_file=models/byte_vocabulary.gin"]
    rows = [{"q": str(n), "a": "x" * (3 if n else 9)} for n in range(200)]
    task(tmp_path, "one_long_answer", rows, output_length=5)
    status, out, _ = run(capsys, "check", "one_long_answer", *byte_model)
    assert status == 0
    assert "output_length 5 cuts 1 of 200 answers (0.5%) short" in out
    task(tmp_path, "many_long_answers", rows, output_length=3)
    status, out, _ = run(capsys, "check", "many_long_answers", *byte_model)
    assert status == 1
    assert "output_length is only 3, which cuts 200 of 200 answers (100.0%) short" in out
    status, out, _ = run(capsys, "stats", "one_long_answer", *byte_model)
    assert "answers over output_length 5: 1 (0.5%)" in out


def test_the_longest_label_always_fits(tmp_path, capsys):
    byte_model = ["--gin_file=models/t5_1_1_small.gin", "--gin_file=models/byte_vocabulary.gin"]
    rows = [{"q": str(n), "a": n % 2} for n in range(4)]
    task(tmp_path, "long_labels", rows, labels=("Neither", "True"), output_length=8)
    # A sentinel, seven bytes and the end of text are nine.
    status, out, _ = run(capsys, "check", "long_labels", *byte_model)
    assert status == 0, out
    definition = registry.get_task("long_labels")
    vocabulary = lazy.import_seqio().ByteVocabulary(extra_ids=125)
    both = Dialect(kind="span_corruption", sentinel="both")
    assert [definition.answer_limit(vocabulary, each) for each in (both, Dialect())] == [9, 8]


def same(targets, predictions):
    return {"same": 100.0 * sum(map(operator.eq, targets, predictions)) / len(targets)}


def test_candidates_are_checked_by_their_likelihoods(tmp_path, capsys):
    rows = [{"q": str(n), "all": ["a long answer of the row", "b"], "r": n % 2} for n in range(4)]
    target = Candidates(texts="all", label="r")
    task(tmp_path, "chosen", rows, target=target, output_length=2)
    status, out, _ = run(
        capsys,
        "check",
        "chosen",
        "--gin_file=models/t5_1_1_small.gin",
        "--gin_file=models/byte_vocabulary.gin",
    )
    assert status == 0, out
    assert "acc 100 for its right candidates, 0 for wrong ones" in out
    task(tmp_path, "chosen_in_vain", rows, target=target, metrics=[same])
    status, out, _ = run(capsys, "check", "chosen_in_vain")
    assert status == 1
    assert "its right candidates score same 0 instead of 100" in out
    assert "take the likelihoods of candidates, as MultipleChoice() and" in out
    assert "scored against: {'answer': 'b', 'right': 1" in run(capsys, "show", "chosen")[1]


def test_check_takes_names_of_tasks_and_mixtures(tmp_path, capsys):
    rows = [{"q": str(n), "a": str(n)} for n in range(5)]
    for name in ("named_one", "named_two"):
        task(tmp_path, name, rows)
    register(Mixture(name="named_both", description="", rates={"named_one": 1.0, "named_two": 1.0}))
    status, out, _ = run(capsys, "check", "named_both")
    assert status == 0
    assert out.startswith("named_both: no problems\n  named_one: train 5 examples read")
    assert "\n  named_two: " in out


def test_right_answers_that_the_metric_itself_gives_less_are_no_problem(tmp_path, capsys):
    rows = [{"q": "a", "a": "word"}, {"q": "b", "a": "two words"}]
    task(tmp_path, "short_summaries", rows, metrics=[Rouge()])
    status, out, _ = run(capsys, "check", "short_summaries")
    assert status == 0
    assert "rouge2 of these answers is 50 at best" in out


# ------------------------------------------------------------------------------ templates


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("{q!r:>10}", "asks for {q!r:>10}: a template takes a field as it is, {q}"),
        ("{q:.2f}", "asks for {q:.2f}"),
        ("{q!s}", "asks for {q!s}"),
        ("{}", "has a placeholder without a name, {}"),
        ("{ }", "has a placeholder without a name"),
        ("{q", "cannot be read: expected '}'"),
        ("q}", "cannot be read: Single '}'"),
    ],
)
@pytest.mark.parametrize("place", ["inputs", "target", "example_id"])
def test_placeholders_that_are_more_or_less_than_a_field_are_refused(place, inputs, said):
    settings = {"inputs": "{q}", "target": "{a}", place: inputs}
    with pytest.raises(UserError) as caught:
        text_task(name="t", source=jsonl("x"), **settings)
    assert said in str(caught.value)


def test_a_demonstration_that_cannot_be_drawn_is_one_sentence(tmp_path, capsys):
    rows = [{"q": "same", "a": "1"}, {"q": "same", "a": "2"}, {"q": "other", "a": "3"}]
    task(tmp_path, "few_demonstrations", rows)
    status, _out, err = run(capsys, "show", "few_demonstrations", "--shots", 2)
    assert status == 2
    assert err == (
        "promot-t5x: error: The examples of task 'few_demonstrations_2shot', split 'train', "
        "cannot be read: "
        "task 'few_demonstrations': 2 demonstrations were asked for, but only 1 different rows can be "  # noqa: E501
        "shown to example 'few_demonstrations-1' (of 3 read).\n"
    )


def test_a_mixture_whose_source_has_no_counts_says_so(tmp_path):
    seqio = lazy.import_seqio()
    import tensorflow as tf

    def rows(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensors({"inputs": "a", "targets": "b"})

    vocabulary = seqio.ByteVocabulary()
    seqio.TaskRegistry.add(
        "uncounted",
        source=seqio.FunctionDataSource(rows, splits=["train"]),
        preprocessors=[seqio.preprocessors.tokenize],
        output_features={name: seqio.Feature(vocabulary) for name in ("inputs", "targets")},
    )
    seqio.MixtureRegistry.add("uncounted_mix", [("uncounted", seqio.mixing_rate_num_examples)])
    try:
        with pytest.raises(
            UserError, match="The rate of task 'uncounted' in mixture .* as a number"
        ):
            resolve_tasks("uncounted_mix", vocabulary)
    finally:
        seqio.MixtureRegistry.remove("uncounted_mix")
        seqio.TaskRegistry.remove("uncounted")


# ------------------------------------------------------------------- limits from the data


def test_a_limit_of_answers_comes_from_the_training_answers(tmp_path, capsys):
    from promot_t5x import decoding
    from promot_t5x.data.sources import BoundTask
    from promot_t5x.distributed.partitioning import Partitioner
    from promot_t5x.evaluation import evaluator as evaluate
    from promot_t5x.models.encoder_decoder import EncoderDecoderModel
    from promot_t5x.network import transformer
    from promot_t5x.planning.planned_runs import answer_length

    # Of 200 answers of 1 to 200 letters, 99% take at most 199 tokens with their EOS.
    rows = [{"q": str(n), "a": "x" * n} for n in range(1, 201)]
    task(tmp_path, "measured_answers", rows, output_length=None)
    vocabulary = lazy.import_seqio().ByteVocabulary(125)
    shape = transformer.T5Config(
        vocab_size=384,
        emb_dim=8,
        num_heads=1,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=8,
        mlp_dim=8,
    )
    model = EncoderDecoderModel(
        module=transformer.Transformer(config=shape),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
    )
    config = evaluate.EvalConfig(
        mixture_or_task_name="measured_answers",
        split="train",
        task_feature_lengths={"inputs": 16},
        batch_size=8,
        method=decoding.Greedy(),
    )
    evaluator = evaluate.Evaluator(model, config, Partitioner(num_partitions=1))
    (bound,) = evaluator.tasks
    assert isinstance(bound, BoundTask)
    assert evaluator.questions.answer_length(bound) == 200
    said = "measured_answers: an answer may take 200 tokens, which is room for 99% of the first 200"
    assert capsys.readouterr().out.count(said) == 1
    assert evaluator.questions.answer_length(bound) == 200
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="set TASK_FEATURE_LENGTHS\\['targets'\\]"):
        answer_length(config)
