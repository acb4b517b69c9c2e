"""`promot-t5x tasks`: list, show, stats, check, prepare, and their exit statuses."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from real_rows import SAMPLES

from promot_t5x.cli import main
from promot_t5x.data import lazy, prepared
from promot_t5x.errors import UserError

pytestmark = pytest.mark.slow

BYTES = ["--gin_file=models/t5_1_1_small.gin", "--gin_file=models/byte_vocabulary.gin"]


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to look up a host fails the test."""

    def refuse(*arguments, **options):
        raise AssertionError(f"the network was asked for {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.fixture
def real_data(real_rows):
    # Set again for each test: others in this file read from directories of their own.
    seqio = lazy.import_seqio()
    seqio.set_tfds_data_dir_override(str(real_rows))
    yield
    seqio.set_tfds_data_dir_override(None)


def run(capsys, *words):
    """Exit status, standard output and standard error of `promot-t5x tasks …`."""
    status = main.main(["tasks", *words])
    return status, *capsys.readouterr()


def rows_of(name, split):
    bounds = json.loads((SAMPLES / "splits.json").read_text())[name]["splits"][split]
    return [json.loads(line) for line in (SAMPLES / f"{name}.jsonl").read_text().splitlines()][
        slice(*bounds)
    ]


def module(directory, name, text, train=12, validation=4):
    """A user's module in `directory`, beside the rows that it reads."""
    for split, count in (("train", train), ("dev", validation)):
        rows = [{"report": f"Clouds over town {n}.", "label": n % 2} for n in range(count)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{split}.jsonl").write_text(lines)
    imports = "import seqio\nimport tensorflow as tf\n" if "seqio" in text else ""
    imports += "from promot_t5x.tasks import jsonl, register, text_task\n"
    (directory / f"{name}.py").write_text(imports + text)
    return str(directory / f"{name}.py")


def text_task(directory, name, **changes):
    settings = {
        "name": repr(name),
        "source": f"jsonl('{directory}/train.jsonl', validation='{directory}/dev.jsonl')",
        "inputs": "'Report: {report} Will it rain? answer:'",
        "target": "'{label}'",
        "labels": "('no', 'yes')",
    } | changes
    return f"register(text_task({', '.join(f'{k}={v}' for k, v in settings.items())}))\n"


SEQIO_TASK = """
def rows(split, shuffle_files, seed=None):
    return tf.data.Dataset.range(3).map(
        lambda n: {"inputs": "double " + tf.strings.as_string(n),
                   "targets": tf.strings.as_string(n * 2)})

def half_right(targets, predictions):
    return {"share": sum(t == p for t, p in zip(targets, predictions)) / len(targets)}

seqio.TaskRegistry.add(
    "NAME", source=seqio.FunctionDataSource(rows, splits=["train"]),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={f: seqio.Feature(seqio.ByteVocabulary(125)) for f in ("inputs", "targets")},
    metric_fns=[METRIC])
"""


# -------------------------------------------------------------------------------- list


def test_list_imports_nothing_heavy_and_opens_nothing():
    """So it answers within a second."""
    code = (
        "import sys, socket; socket.getaddrinfo = None\n"
        "from promot_t5x.cli.main import main\n"
        "status = main(['tasks', 'list'])\n"
        "heavy = {'jax', 'tensorflow', 'gin', 'scipy', 'seqio', 'sacrebleu'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == sorted(names)
    wanted = {"rte", "rte_1shot", "wmt14_enfr", "snli", "openbookqa", "icl_1shot", "icl_4shot"}
    assert wanted < set(names)


def test_list_takes_a_pattern_and_says_when_nothing_matches(capsys):
    status, out, _ = run(capsys, "list", "icl_*4shot")
    assert status == 0
    assert len(out.splitlines()) == 9
    assert run(capsys, "list", "rto") == (
        1,
        "",
        "no task or mixture matches 'rto'. Did you mean 'rte'?\n",
    )


def test_list_names_the_tasks_of_a_users_module(tmp_path, capsys):
    text = text_task(tmp_path, "listed_ours") + SEQIO_TASK.replace("NAME", "listed_theirs").replace(
        "METRIC", "half_right"
    )
    mine = module(tmp_path, "listed_tasks", text)
    status, out, _ = run(capsys, "list", "listed_*", "--module", mine)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["listed_ours", "listed_theirs"]


# -------------------------------------------------------------------------------- show


def test_show_prints_exactly_what_is_asked(real_data, capsys):
    row = {str(row["idx"]): row for row in rows_of("super_glue_rte", "validation")}
    train = {str(row["idx"]): row for row in rows_of("super_glue_rte", "train")}
    status, out, _ = run(capsys, "show", "rte", "--shots", "1", "--n", "2")
    assert status == 0
    pages = re.findall(
        r"── \d: id (\S+) ─+\ndemonstrations: ids (\S+)\nasked, (\d+) words:\n(.*?)\n\n"
        r"target, 1 words:\n(\w+)\n",
        out,
        re.DOTALL,
    )
    assert len(pages) == 2
    template = "{premise} question: {hypothesis} Is it true or false? answer:"
    for asked_id, shot_id, words, text, answer in pages:
        shot, query = train[shot_id], row[asked_id]
        label = ["True", "False"][shot["label"]]
        assert text == f"{template.format(**shot)} {label}\n\n{template.format(**query)}"
        assert int(words) == len(text.split())
        assert answer == ["True", "False"][query["label"]]


def test_show_with_a_model_counts_its_tokens_and_speaks_its_dialect(real_data, capsys):
    words = ["show", "triviaqa", "--n", "1", "--shots", "0", *BYTES]
    status, out, _ = run(capsys, *words, "--dialect", "span_corruption")
    assert status == 0
    assert "dialect span_corruption, sentinel both" in out
    text = re.search(r"asked, (\d+) tokens:\n(Q: .* A: <extra_id_0>)\n", out)
    # A byte a letter, one token for the sentinel and its space, one for the EOS.
    assert int(text[1]) == len(text[2].removesuffix(" <extra_id_0>").encode()) + 2
    assert re.search(r"target, \d+ tokens:\n<extra_id_0> \w", out)
    assert "scored against: ['" in out
    assert "does not keep" not in out
    status, out, _ = run(capsys, *words, "--dialect", "instruction")
    assert status == 0
    assert "<extra_id_0>" not in out
    status, out, _ = run(capsys, *words, "--dialect", "span_corruption:targets")
    assert out.count("<extra_id_0>") == 1


def test_show_says_which_demonstrations_did_not_fit(real_data, capsys):
    words = ["show", "wic", "--n", "1", "--shots", "4", *BYTES, "--inputs_length"]
    status, out, _ = run(capsys, *words, "100000")
    assert status == 0
    assert "did not fit" not in out
    whole = int(re.search(r"asked, (\d+) tokens", out)[1])
    status, out, _ = run(capsys, *words, str(whole - 1))
    assert status == 0
    assert "demonstrations that did not fit: 1\n" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show"], "required: name. See `promot-t5x tasks show --help`"),
        (["shaw", "rte"], "invalid choice: 'shaw'"),
        (["show", "rto"], "No task or mixture is named 'rto'"),
        (["show", "rte", "--shots", "x"], "'x' is not a number"),
        (["show", "rte", "--n", "0"], "0 is not a number above 0"),
        (["show", "rte_1shot", "--shots", "2"], "takes no other number of demonstrations"),
        (["show", "rte", "--dialect", "flan"], "must be one of span_corruption, lm, instruction"),
        (["show", "rte", "--dialect", "lm:both"], "has no sentinels"),
        (["show", "rte", "--split", "tset"], "has no split 'tset'"),
        (["show", "rte", "--inputs_length", "9"], "name its --gin_file too"),
        (["show", "rte", "--gin_file=models/t5_1_1_smal.gin"], "t5_1_1_smal.gin"),
        (["stats", "rte", "--over", "5,many"], "'many' is not a number"),
        (["check", "no_such_module_of_mine"], "no_such_module_of_mine"),
        (["prepare", "rto"], "there is no task or mixture 'rto'. Did you mean 'rte'?"),
    ],
)
def test_bad_input_is_one_message_and_status_2(words, said, capsys):
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith("promot-t5x: error: ")
    assert said in err


# ------------------------------------------------------------------------------- stats


def test_stats_measures_lengths_and_labels(real_data, capsys):
    status, out, _ = run(capsys, "stats", "cb", "--over", "40,60")
    rows = rows_of("super_glue_cb", "validation")
    template = "{premise} question: {hypothesis} Is it true or false or neither? answer:"
    lengths = sorted(len(template.format(**row).split()) for row in rows)
    assert status == 0
    assert "cb, validation: 56 examples, lengths in words\n" in out
    numbers = re.search(r"questions((?: +\d+)+)\n", out)[1].split()
    # mean, p50, p90, p95, p99, max; a percentile is a length that there is.
    assert numbers[0] == f"{sum(lengths) / 56:.0f}"
    assert numbers[-1] == str(lengths[-1])
    for shown, share in zip(numbers[1:-1], (0.50, 0.90, 0.95, 0.99), strict=True):
        assert sum(length <= int(shown) for length in lengths) >= share * 55
        assert int(shown) in lengths
    for over in (40, 60):
        count = sum(length > over for length in lengths)
        assert f"questions over {over}: {count} ({count / 56:.1%})" in out
    assert "labels: 'False' 28 (50.0%), 'True' 23 (41.1%), 'Neither' 5 (8.9%)" in out


def test_stats_of_a_mixture_in_tokens_and_of_the_first_rows_only(tmp_path, capsys):
    text = text_task(tmp_path, "counted_one") + text_task(
        tmp_path, "counted_two", labels="None", target="'{report}'"
    )
    text += "from promot_t5x.tasks import Mixture\n"
    text += "register(Mixture(name='counted', description='', rates={'counted_one': 1.0, "
    text += "'counted_two': 1.0}))\n"
    mine = module(tmp_path, "counted_tasks", text, train=500)
    words = ["stats", "counted", "--split", "train", "--n", "40", "--module", mine, *BYTES]
    status, out, _ = run(capsys, *words, "--dialect", "lm")
    assert status == 0
    assert "counted_one, train: 40 examples, lengths in tokens" in out
    assert "labels: 'no' 20 (50.0%), 'yes' 20 (50.0%)" in out
    assert "counted_two, train" in out
    assert "different answers: 40" in out
    longest = len("Report: Clouds over town 10. Will it rain? answer:") + 1
    assert re.search(rf"questions +\d+ +{longest} .* {longest}\n", out)


# ------------------------------------------------------------------------------- check


def test_check_passes_a_sound_module(tmp_path, capsys):
    text = text_task(tmp_path, "sound") + SEQIO_TASK.replace("NAME", "sound_seqio").replace(
        "METRIC", "half_right"
    )
    mine = module(tmp_path, "sound_tasks", text)
    status, out, err = run(capsys, "check", mine)
    assert (status, err) == (0, "")
    assert out.startswith(f"{mine}: no problems\n")
    assert "  sound: train 12, validation 4 examples read; labels no, yes; " in out
    assert "accuracy 100 for its own answers, 0 for empty ones" in out
    assert "  sound_seqio: train 3 examples read; share 1 for its own answers" in out


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("unread", {"source": "jsonl('absent.jsonl')"}, "the train rows cannot be read"),
        ("same_ids", {"example_id": "'one'"}, "ids of 'train' are not unique: 'one' (12 times)"),
        ("no_field", {"inputs": "'{raport}'"}, "needs the field raport of its rows, which have"),
        ("few_labels", {"labels": "('no',)"}, "cannot be read"),
        ("idle_label", {"labels": "('no', 'yes', 'so')"}, "no row of 'train' has the label so"),
        ("loud", {"postprocess": "str.upper"}, "score accuracy 0 instead of 100"),
        ("lenient", {"postprocess": "lambda t: 'no'"}, "empty answers score accuracy 50 instead"),
        ("raising", {"postprocess": "lambda t: t[0]"}, "scoring empty answers fails: IndexError"),
        ("empty", {"inputs": "' '"}, "has rows with an empty question"),
        ("shotless", {"shots_split": "'validation'"}, None),
    ],
)
def test_check_names_what_is_wrong(name, changes, said, tmp_path, capsys):
    mine = module(tmp_path, f"{name}_tasks", text_task(tmp_path, name, **changes))
    status, out, err = run(capsys, "check", mine)
    assert err == ""
    if said is None:
        assert status == 0, out
    else:
        assert status == 1
        assert f"\n- {name}: " in out
        assert said in out


def test_check_looks_at_plain_seqio_tasks_and_at_answers_that_are_too_long(tmp_path, capsys):
    text = SEQIO_TASK.replace("NAME", "bad_seqio").replace(
        "METRIC", "lambda targets, predictions: {'share': 0.5}"
    )
    text += SEQIO_TASK.replace("NAME", "unscored_seqio").replace("[METRIC]", "[]")
    text += text_task(tmp_path, "long_answers", output_length="1", labels="None")
    status, out, _ = run(capsys, "check", module(tmp_path, "mixed_tasks", text), *BYTES)
    assert status == 1
    assert "3 problems" in out
    assert "- bad_seqio: its own answers score share 0.5, no better than empty ones (0.5)" in out
    assert "- unscored_seqio: it has no metric functions over predictions" in out
    assert "- long_answers: its longest answer has 2 tokens, but output_length is only 1" in out


def test_check_of_a_module_without_tasks(tmp_path, capsys):
    mine = module(tmp_path, "tasks_of_none", "")
    status, out, _ = run(capsys, "check", mine)
    assert status == 1
    assert "it registers no task" in out


# ----------------------------------------------------------------------------- prepare


class PromotCounts(tfds.core.GeneratorBasedBuilder):
    """Numbers from 0 on: a data set that needs no download."""

    VERSION = tfds.core.Version("1.0.0")
    interrupted = False

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for n in range(5):
            if self.interrupted and n == 3:
                raise ConnectionError("the line went dead")
            yield n, {"text": f"number {n}"}


@pytest.fixture
def counts(tmp_path, monkeypatch):
    """A user's module over `promot_counts`, and the empty directory that TFDS reads from."""
    import seqio

    name = f"counts_{tmp_path.name}".replace("-", "_")
    text = "from promot_t5x.tasks import tfds\n" + text_task(
        tmp_path,
        name,
        source="tfds('promot_counts:1.0.0', ['train'])",
        inputs="'{text} next:'",
        target="'{text}'",
        labels="None",
    )
    seqio.set_tfds_data_dir_override(str(tmp_path / "tfds"))
    yield name, module(tmp_path, name, text), tmp_path / "tfds"
    seqio.set_tfds_data_dir_override(None)


def test_prepare_makes_what_is_missing_once(counts, no_network, capsys):
    name, mine, directory = counts
    status, out, err = run(capsys, "show", name, "--module", mine)
    assert (status, out) == (2, "")
    assert f"`promot-t5x tasks prepare {name} --tfds_data_dir={directory}`" in err
    status, out, _ = run(capsys, "prepare", name, f"{name}_4shot", "--module", mine)
    assert status == 0
    assert "[1/1] promot_counts:1.0.0: preparing in" in out
    assert "done: train 5" in out
    status, out, _ = run(capsys, "prepare", name, "--module", mine)
    assert status == 0
    assert "prepared already in" in out
    status, out, _ = run(capsys, "show", name, "--module", mine, "--n", "5")
    assert status == 0
    assert out.count("── ") == 5


def test_prepare_goes_on_after_an_interruption(counts, no_network, monkeypatch, capsys):
    name, mine, _directory = counts
    monkeypatch.setattr(PromotCounts, "interrupted", True)
    status, _, err = run(capsys, "prepare", name, "--module", mine)
    assert status == 2
    assert "ConnectionError: the line went dead" in err
    assert "the same command goes on" in err
    monkeypatch.setattr(PromotCounts, "interrupted", False)
    status, out, _ = run(capsys, "prepare", name, "--module", mine)
    assert status == 0
    assert "done: train 5" in out


def test_prepare_without_a_network_says_so_at_once(tmp_path, monkeypatch, capsys):
    import seqio

    for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)

    asked = []

    def offline(host, *arguments, **options):
        asked.append(host)
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    seqio.set_tfds_data_dir_override(str(tmp_path))
    try:
        status, _, err = run(capsys, "prepare", "openbookqa")
    finally:
        seqio.set_tfds_data_dir_override(None)
    assert status == 2
    assert asked
    assert len(asked) == len(set(asked)), "nothing is tried again"
    assert "openbookqa:0.1.0 is not prepared and cannot be downloaded: this machine cannot" in err
    assert not list(tmp_path.iterdir())


def test_prepare_finds_every_data_set_of_a_mixture_prepared(real_data, no_network, capsys):
    status, out, _ = run(capsys, "prepare", "icl_4shot", "rte_shuffled_labels")
    assert status == 0
    lines = out.splitlines()
    assert len(lines) == 9
    assert all("prepared already in" in line for line in lines)
    assert lines[0].startswith("[1/9] super_glue/cb:1.0.2")
    assert lines[-1].startswith("[9/9] super_glue/rte:1.0.2")


def test_prepare_of_a_task_that_downloads_nothing(no_network, capsys):
    status, out, _ = run(capsys, "prepare", "tiny_rte")
    assert (status, out) == (
        0,
        "nothing to prepare: these tasks read no data set that is downloaded\n",
    )


@pytest.mark.parametrize("builder", ["snly:1.1.0", "super_glue/ret:1.0.2", "snli:0.0.1"])
def test_a_data_set_that_does_not_exist_is_one_message(builder, tmp_path, no_network, capsys):
    name = re.sub(r"\W", "_", builder)
    source = f"tfds('{builder}', ['train'])"
    text = "from promot_t5x.tasks import tfds\n" + text_task(tmp_path, name, source=source)
    mine = module(tmp_path, f"tasks_of_{name}", text)
    for words in (["prepare", name], ["show", name]):
        status, _, err = run(capsys, *words, "--module", mine)
        assert status == 2
        assert f"TensorFlow Datasets cannot make the data set '{builder}'" in err


def test_tfds_data_dir_is_known_before_tfds_is_imported(tmp_path):
    words = ["show", "rte", f"--tfds_data_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "promot_t5x", "tasks", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"TFDS_DATA_DIR": "/elsewhere"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"there is no {tmp_path}/super_glue/rte/1.0.2" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_that_lacks_data_names_the_command_and_writes_nothing(tmp_path):
    words = ["--gin_file=runs/finetune.gin", "--gin.INITIAL_CHECKPOINT_PATH=None"]
    words += [f"--gin.MODEL_DIR='{tmp_path}/run'", "--gin.MIXTURE_OR_TASK_NAME='rte_wmt14_enfr'"]
    words += ["--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 8}"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "promot_t5x",
            "train",
            *BYTES,
            *words,
            f"--tfds_data_dir={tmp_path}",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert f"`promot-t5x tasks prepare rte --tfds_data_dir={tmp_path}`" in done.stderr
    assert not list(tmp_path.iterdir())


def test_data_sets_within_a_source_within_a_source_are_found(tmp_path):
    seqio = lazy.import_seqio()
    inner = seqio.TfdsDataSource("snli:1.1.0", tfds_data_dir=str(tmp_path), splits=["train"])
    outer = seqio.experimental.FewshotDataSource(inner, num_shots=1)
    (found,) = prepared.data_sets(outer)
    assert (found.name, found.data_dir) == ("snli:1.1.0", str(tmp_path))
    with pytest.raises(UserError, match="Task 'mine' reads the data set snli:1.1.0, which is not"):
        prepared.check("mine", outer, "train")
    by_split = seqio.TfdsDataSource(
        splits={
            "train": seqio.TfdsSplit(dataset="snli:1.1.0", split="train"),
            "test": seqio.TfdsSplit(dataset="super_glue/cb:1.0.2", split="validation"),
        }
    )
    assert [each.name for each in prepared.data_sets(by_split, "test")] == ["super_glue/cb:1.0.2"]
    assert len(prepared.data_sets(by_split)) == 2
    assert prepared.data_sets(seqio.TfdsDataSource("huggingface:xsum", splits=["train"])) == []
