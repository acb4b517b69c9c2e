"""The command line: pages, flags, errors and exit statuses."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import gin_helpers
import pytest

from promot_t5x import config
from promot_t5x.cli import main
from promot_t5x.cli.commands import COMMANDS, Command

DEVICES = r"promot-t5x: devices: .*\n"  # what a run says as it starts
HEADER = "from __gin__ import dynamic_registration\nimport gin_helpers\n"
RUN = HEADER + (
    "gin_helpers.drill:\n    model = %MODEL\n    batch_size = %BATCH_SIZE\n"
    "MODEL = @gin_helpers.Model()\ngin_helpers.Model.width = 7\nBATCH_SIZE = %gin.REQUIRED\n"
)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Commands that run gin_helpers's functions; the current directory holds run.gin."""
    targets = {"train": "drill"} | {
        name: name for name in ("letters", "interrupted", "broken", "greedy", "throttled")
    }
    commands = tuple(
        Command(name=name, help="a test", target=f"gin_helpers:{target}", macros=COMMANDS[0].macros)
        for name, target in targets.items()
    )
    monkeypatch.setattr(main, "COMMANDS", commands)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gin_helpers.calls.clear()
    (tmp_path / "run.gin").write_text(RUN)
    (tmp_path / "empty.gin").write_text("")
    return tmp_path


def gin_commands():
    return [command for command in COMMANDS if command.takes_gin]


# -------------------------------------------------------------------------------- pages


def test_help_imports_nothing_heavy():
    # `lm_eval --help` is the page of the package that it runs.
    names = [command.name for command in COMMANDS if command.name != "lm_eval"]
    pages = [["--help"], *([name, "--help"] for name in names)]
    code = (
        "import sys; from promot_t5x.cli.main import main\n"
        f"for words in {pages!r}:\n"
        "  try: status = main(words)\n"
        "  except SystemExit as exit: status = exit.code\n"
        "  if heavy := {'jax', 'tensorflow', 'seqio'} & set(sys.modules):\n"
        "    sys.exit(f'{words} imported {heavy}')\n"
        "  if status: sys.exit(f'{words} ended with {status}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage: promot-t5x") == len(pages)


def test_overview_names_every_command(capsys):
    assert main.main([]) == 0
    page = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command.name} " in page


@pytest.mark.parametrize("command", gin_commands(), ids=lambda command: command.name)
def test_page_has_flags_values_examples_and_results(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main([command.name, "--help"])
    page = capsys.readouterr().out
    assert stop.value.code == 0
    for wanted in ("--gin_file", "--gin.NAME", "--dry_run", "Results, under", "examples:"):
        assert wanted in page
    for macro in command.macros:
        assert re.search(rf"{macro.name} +{re.escape(macro.meaning)}", page)
    assert max(map(len, page.splitlines())) <= 100


@pytest.mark.parametrize("command", gin_commands(), ids=lambda command: command.name)
def test_pages_tell_the_truth_about_the_shipped_files(command):
    """Every shipped file that an example names exists and takes the values that the page lists."""
    shipped = [
        name
        for example in command.examples
        for name in re.findall(r"--gin_file=((?:models|runs|demo)/\S+)", example)
    ]
    texts = []
    for name in shipped:
        config.parse([name])
        texts.append(config.resolved_str())
    together = "\n".join(texts)
    for macro in command.macros:
        found = re.findall(rf"^{macro.name} = (.*)$", together, re.MULTILINE)
        assert found, macro.name
        if macro.default is None:
            assert "%gin.REQUIRED" in found, macro.name
        else:
            assert macro.default in found, macro.name


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_its_function(command):
    assert callable(main._load(command.target))


def test_version(capsys):
    assert main.main(["--version"]) == 0
    assert re.match(r"promot-t5x \d+\.\d+", capsys.readouterr().out)


# ------------------------------------------------------------------------------ gin commands


def test_gin_flags_reach_the_function_and_nothing_else_is_printed(lab, capsys):
    assert main.main(["train", "--gin_file=run.gin", "--gin.BATCH_SIZE=4"]) == 0
    assert gin_helpers.calls[0]["batch_size"] == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(DEVICES, err)


def test_flags_repeat_and_later_ones_win(lab):
    (lab / "more.gin").write_text("BATCH_SIZE = 1\n")
    words = ["train", "--gin_file", "run.gin", "--gin_file", "more.gin"]
    assert main.main([*words, "--gin.BATCH_SIZE=2", "--gin_bindings=BATCH_SIZE = 3"]) == 0
    assert main.main([*words, "--gin_bindings", "gin_helpers.drill.label = 'a = b'"]) == 0
    assert [call["batch_size"] for call in gin_helpers.calls] == [3, 1]
    assert gin_helpers.calls[1]["label"] == "a = b"


def test_search_paths(lab, capsys):
    (lab / "a").mkdir()
    (lab / "a/found.gin").write_text("include 'run.gin'\nBATCH_SIZE = 9\n")
    assert main.main(["train", "--gin_file=found.gin", "--gin_search_paths=b,a"]) == 0
    assert gin_helpers.calls[0]["batch_size"] == 9


def test_dry_run_prints_what_would_run_and_stops(lab, capsys):
    words = ["train", "--gin_file=run.gin", "--gin.BATCH_SIZE=4", "--dry_run"]
    assert main.main(words) == 0
    first = capsys.readouterr().out
    assert gin_helpers.calls == []
    assert "BATCH_SIZE = 4  # command line\n" in first
    assert "gin_helpers.drill.batch_size = %BATCH_SIZE  # run.gin:5\n" in first
    (lab / "again.gin").write_text(first)
    assert main.main(["train", "--gin_file=again.gin", "--dry_run"]) == 0
    again = capsys.readouterr().out
    assert "BATCH_SIZE = 4  # " in again
    assert [line.partition("  # ")[0] for line in again.splitlines()] == [
        line.partition("  # ")[0] for line in first.splitlines()
    ]


def test_dry_run_checks_too(lab, capsys):
    assert main.main(["train", "--gin_file=run.gin", "--gin.BACTH_SIZE=4", "--dry_run"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Did you mean 'BATCH_SIZE'?" in err


def test_gin_files_may_import_modules_of_the_current_directory(lab):
    (lab / "users_module_of_test_cli.py").write_text(
        "def model():\n    import gin_helpers\n    return gin_helpers.Model(11)\n"
    )
    (lab / "mine.gin").write_text(
        "from __gin__ import dynamic_registration\nimport users_module_of_test_cli\n"
        "include 'run.gin'\nMODEL = @users_module_of_test_cli.model()\nBATCH_SIZE = 1\n"
    )
    assert main.main(["train", "--gin_file=mine.gin"]) == 0
    assert gin_helpers.calls[0]["width"] == 11


def test_tfds_data_dir_is_known_before_anything_is_imported(lab, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "elsewhere")
    words = ["train", "--gin_file=run.gin", "--gin.BATCH_SIZE=4", "--tfds_data_dir=/data/tfds"]
    assert main.main(words) == 0
    assert os.environ["TFDS_DATA_DIR"] == "/data/tfds"


# --------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tarin"], "there is no command 'tarin'. Did you mean 'train'?"),
        (["--gin_file=run.gin"], "name a command before --gin_file=run.gin"),
        (["train"], "train needs a configuration: --gin_file=FILE"),
        (["train", "--gin_flie=x"], "'--gin_flie=x'. Did you mean '--gin_file'?"),
        (["train", "run.gin"], "train does not take 'run.gin'"),
        (["train", "--gin.BATCH_SIZE"], "write --gin.BATCH_SIZE=VALUE"),
        (["train", "--gin_file"], "expected one argument"),
        (["train", "--gin_file=ran.gin"], "Did you mean 'run.gin'?"),
        (["train", "--gin_file=run.gin"], "BATCH_SIZE must be given"),
        (["train", "--gin_file=run.gin", "--gin.BATCH_SIZE=big"], "needs quotes"),
    ],
)
def test_user_errors_are_one_message_and_status_2(lab, capsys, words, said):
    assert main.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("promot-t5x: error: ")
    assert said in err
    assert "Traceback" not in err


def test_user_error_of_the_run_is_shown_without_gins_remarks(lab, capsys):
    words = [
        "train",
        "--gin_file=run.gin",
        "--gin.BATCH_SIZE=4",
        "--gin_bindings=gin_helpers.drill.steps = -1",
    ]
    assert main.main(words) == 2
    err = re.sub(DEVICES, "", capsys.readouterr().err)
    assert err == "promot-t5x: error: steps is -1; it must not be negative.\n"


def test_interruption(lab, capsys):
    assert main.main(["interrupted", "--gin_file=empty.gin"]) == 130
    assert re.sub(DEVICES, "", capsys.readouterr().err) == "promot-t5x: interrupted\n"


def test_a_fault_of_the_program_is_one_message_and_a_log(lab, capsys):
    assert main.main(["broken", "--gin_file=empty.gin"]) == 1
    err = capsys.readouterr().err
    assert "RuntimeError: a fault" in err
    assert "Traceback (most" not in err
    log = Path(re.search(r"The traceback is in (\S+\.log);", err)[1])
    assert log.is_relative_to(lab)
    text = log.read_text()
    assert text.startswith("promot-t5x broken --gin_file=empty.gin\n")
    assert 'raise RuntimeError("a fault")' in text


def test_too_little_memory_is_said_with_what_helps(lab, capsys):
    assert main.main(["greedy", "--gin_file=empty.gin"]) == 2
    err = capsys.readouterr().err
    assert "the memory of the devices is too small for this: " in err
    assert "BATCH_SIZE" in err
    assert "Traceback" not in err


def test_a_bucket_that_throttles_is_not_the_devices_memory(lab, capsys):
    """A launcher starts a run again after status 1, and never after 2."""
    assert main.main(["throttled", "--gin_file=empty.gin"]) == 1
    assert "memory" not in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_fault():
    program = shlex.join([sys.executable, "-m", "promot_t5x"])
    command = f"{program} tasks list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


# ------------------------------------------------------------------------------ tasks list


def test_tasks_list(capsys):
    assert main.main(["tasks", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"rte +\S", line) for line in lines)
    assert main.main(["tasks", "list", "rte*"]) == 0
    assert all(line.startswith("rte") for line in capsys.readouterr().out.splitlines())


def test_tasks_list_without_a_match(capsys):
    assert main.main(["tasks", "list", "no_such_*"]) == 1
