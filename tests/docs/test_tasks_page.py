"""docs/tasks.md: its tables equal the definitions, and its examples run as they stand."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import run_helpers

from promot_t5x.cli import main
from promot_t5x.tasks import multilingual as languages
from promot_t5x.tasks import registry
from promot_t5x.tasks.format import Format
from promot_t5x.tasks.sources import HuggingFace
from promot_t5x.tasks.templates import Candidates, Choice

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text()
# The page trains T5 1.1 small; here the network is smaller, and questions are asked greedily.
SMALL = {
    "EMBED_DIM": 16,
    "NUM_HEADS": 2,
    "HEAD_DIM": 8,
    "MLP_DIM": 16,
    "NUM_ENCODER_LAYERS": 1,
    "NUM_DECODER_LAYERS": 1,
    "BATCH_SIZE": 8,
}
SHRUNK = [f"--gin.{name}={value}" for name, value in SMALL.items()]
SHRUNK += ["--gin.DECODING=@decoding.Greedy()"]


def blocks(language, heading):
    """The fenced blocks of a language in the section of that heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def table(heading):
    """The rows of a section's table, cells without the marks of code."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def command(capsys, text, *more):
    """Run one command line of the page; its standard output."""
    words = shlex.split(text.replace("\\\n", " "))
    assert words[0] == "promot-t5x"
    assert main.main([*words[1:], *more]) == 0
    return capsys.readouterr().out


def run(text, *more):
    """As `command`, in a process of its own, with one device as a reader has."""
    words = shlex.split(text.replace("\\\n", " "))
    done = subprocess.run(
        [sys.executable, "-m", "promot_t5x", *words[1:], *more],
        capture_output=True,
        text=True,
        env=run_helpers.environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_table_of_tasks_is_the_definitions():
    rows = table("What there is")
    # Asked of a new process: other tests have registered tasks of their own in this one.
    command = [sys.executable, "-m", "promot_t5x", "tasks", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    named = {
        name for name in (line.split()[0] for line in listed.splitlines()) if registry.is_task(name)
    }
    elsewhere = {row[0] for row in table("Standard tasks")} | set(multilingual())
    wanted = {name for name in named if not re.search(r"_\dshot$|^tiny_|^wikilingua_", name)}
    assert elsewhere <= named
    wanted -= elsewhere
    assert {row[0] for row in rows} == wanted
    for name, data_set, question, answer, scored, scores in rows:
        task = registry.get_task(name)
        template = task.template
        assert question == template.question.replace("{br}", " "), name
        words = template.answer
        assert answer == (", ".join(words.words) if isinstance(words, Choice) else words), name
        assert scored == task.scored_split, name
        gold = [words.words[0]] if isinstance(words, Choice) else ["a b c d e"]
        assert scores == ", ".join(task.score(gold, gold)), name
        factory = getattr(task.source, "source", task.source)
        assert data_set == factory.name, name


def multilingual():
    """Names of the multilingual tasks -> their row of the page's table."""
    found = {}
    for row in table("Multilingual tasks"):
        names = row[0].replace("`", "").split(", ") if row[0].startswith("flores") else [row[0]]
        for name in names:
            start, _, codes = name.partition("{")
            start, placeholder, end = start.partition("<code>")
            if placeholder:
                codes = ",".join(languages.FLORES)
            for code in codes.rstrip("}").split(","):
                found[f"{start}{code}{end}"] = row
    return found


def test_the_table_of_standard_tasks_is_the_definitions():
    for name, data_set, question, answer, scored, scores in table("Standard tasks"):
        task = registry.get_task(name)
        assert question == task.template.question.replace("\n", r"\n"), name
        words = task.template.answer
        if isinstance(words, Candidates):
            words = words.texts if isinstance(words.texts, str) else "` or `".join(words.texts)
        assert answer == words, name
        assert scored == task.scored_split, name
        assert scores == ", ".join(s for metric in task.metrics for s in metric.scores), name
        hub = isinstance(task.source, HuggingFace)
        read = f"{task.source.arguments[0]}` (hub)" if hub else task.source.name
        assert data_set == read, name
    assert {row[0] for row in table("Standard tasks")} >= set(registry.get_mixture("lm_eval").rates)


def test_the_table_of_multilingual_tasks_is_the_definitions():
    for name, (_, data_set, question, answer, scored, scores) in multilingual().items():
        task = registry.get_task(name)
        code = task.language if name.startswith("wikilingua") else name.rsplit("_", 1)[1]
        language = task.description.removeprefix("WikiLingua: how-tos in ").split(",")[0]

        def filled(text, code=code, language=language):
            replaced = text.replace("<code>", code).replace("<Language>", language)
            return replaced.replace("<language>", language.lower())

        assert scored == task.scored_split, name
        assert scores == ", ".join(s for metric in task.metrics for s in metric.scores) or (
            name.startswith("flores")
        ), name
        if name.startswith("flores"):
            assert [part.arguments[0] for _, part in task.source.parts] == ["facebook/flores"] * 2
            continue
        assert filled(data_set) == task.source.name, name
        assert filled(question) == task.template.question.replace("{br}", " "), name
        words = task.template.answer
        assert filled(answer) == (", ".join(words.words) if isinstance(words, Choice) else words)


def test_the_table_of_defaults_is_the_format():
    fields = {field.name: repr(field.default) for field in dataclasses.fields(Format)}
    assert {row[0]: row[1] for row in table("Where the paper is silent")} == fields


def test_mixtures_and_languages_of_the_page_exist():
    names = [n for n in registry.names("wikilingua_*") if not re.search(r"_\dshot$", n)]
    # Into English, and in the language itself.
    assert len(names) == 2 * 17
    eight = [row[0] for row in table("What there is")][-8:]
    assert list(registry.get_mixture("icl").rates) == eight
    assert all(registry.is_mixture(f"icl_{name}_4shot") for name in eight)
    assert list(registry.get_mixture("rte_wmt14_enfr").rates) == ["rte", "wmt14_enfr"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The directory that a reader of the page would have."""
    directory = tmp_path_factory.mktemp("own")
    section = "A task of your own"
    for name, text in zip(("train.jsonl", "dev.jsonl"), blocks("json", section), strict=True):
        (directory / name).write_text(text)
    (module,) = blocks("python", section)
    (directory / "my_tasks.py").write_text(module)
    (plain,) = blocks("python", "A task in plain SeqIO")
    (directory / "my_seqio_tasks.py").write_text(plain)
    return directory


def test_a_task_of_ones_own_is_checked_shown_trained_and_scored(own, monkeypatch, capsys):
    monkeypatch.chdir(own)
    assert len((own / "my_tasks.py").read_text().splitlines()) <= 15
    check, show, train = re.findall(
        r"^promot-t5x (?:.*\\\n)*.*", blocks("sh", "A task of your own")[0], re.M
    )
    said = command(capsys, check)
    assert "no problems" in said
    assert "train 4, validation 2 examples read" in said
    assert "accuracy 100 for its own answers, 0 for empty ones" in said
    shown = command(capsys, show)
    query = "Review: Even the popcorn was dull. Did they like it? answer:\n"
    demonstration = r"Review: [A-Z].*\. Did they like it\? answer: (yes|no)\n\n"
    assert re.search(demonstration + re.escape(query), shown)
    run(train, *SHRUNK)
    (record, *_) = (own / "run/inference_eval/reviews-metrics.jsonl").read_text().splitlines()
    assert json.loads(record)["step"] == 2
    assert "accuracy" in json.loads(record)
    answers = (own / "run/inference_eval/reviews-000002.jsonl").read_text().splitlines()
    assert [json.loads(line)["target"] for line in answers] == ["yes", "no"]

    # The plain SeqIO task of the page, measured on the model just trained.
    assert "exact 100 for its own answers" in command(
        capsys, "promot-t5x tasks check my_seqio_tasks.py"
    )
    files = " ".join(re.findall(r"--gin_file=models/\S+", train))
    asked = (
        f"promot-t5x eval {files} --gin_file=runs/eval.gin --gin.CHECKPOINT_PATH='\"run\"' "
        "--gin.MIXTURE_OR_TASK_MODULE='\"my_seqio_tasks.py\"' "
        "--gin.MIXTURE_OR_TASK_NAME='\"doubles\"' --gin.EVAL_OUTPUT_DIR='\"out\"' "
        '--gin.TASK_FEATURE_LENGTHS=\'{"inputs": 16, "targets": 4}\''
    )
    assert re.search(r"doubles  exact [\d.]+  \(10 examples\)", run(asked, *SHRUNK))
    lines = (own / "out/inference_eval/doubles-000002.jsonl").read_text().splitlines()
    assert [json.loads(line)["target"] for line in lines] == [str(2 * n) for n in range(10)]


def test_a_choice_that_the_paper_leaves_open_is_changed_as_the_page_says(own, monkeypatch, capsys):
    monkeypatch.chdir(own)
    words = (
        "promot-t5x tasks show reviews --module my_tasks.py --shots 2 --n 1 --dialect lm "
        "--gin_file=models/t5_1_1_small.gin --gin_file=models/byte_vocabulary.gin"
    )
    assert "answer: yes ## Review" not in command(capsys, words)
    changed = command(capsys, words, "--gin_bindings=format.Format.separator = ' ## '")
    assert len(re.findall(r"answer: (?:yes|no) ## Review", changed)) == 2
    # Nothing but what the page itself says: `format.Format.balanced_shots = True`.
    (binding,) = re.findall(r'--gin_bindings="(format\.Format\.\w+ = \w+)"', PAGE)
    balanced = command(capsys, words, f"--gin_bindings={binding}")
    shots = re.findall(r"answer: (yes|no)\n", balanced)
    assert sorted(shots) == ["no", "yes"]
