"""What `promot-t5x` can do: one entry per command, with the page that `--help` shows.

Imports nothing heavy: `promot-t5x --help` must answer at once.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Macro:
    """A value that a run file takes: `--gin.NAME=VALUE`."""

    name: str
    meaning: str
    default: str | None = None


@dataclass(frozen=True, kw_only=True)
class Command:
    """One thing that the command line does.

    **Attributes:**

    - `name`, `help`: as listed by `promot-t5x --help`.
    - `target`: `module:function`, imported only when the command runs.
    - `takes_gin`: gin configures the function, which is called without arguments; otherwise it is
      called with the rest of the command line and shows its own help.
    - `check`: `module:function`, which refuses values that the function would refuse, before there
      are devices; it takes the function's arguments but the partitioner.
    - `trains`: takes `--profile`, which traces training steps.
    - `run_files`: the shipped gin files that configure the function, commonest first.
    - `description`: a paragraph, and where the results go.
    - `macros`: the common settings.
    - `examples`: command lines.
    """

    name: str
    help: str
    target: str
    takes_gin: bool = True
    check: str = ""
    trains: bool = False
    run_files: tuple[str, ...] = ()
    description: str = ""
    macros: tuple[Macro, ...] = ()
    examples: tuple[str, ...] = ()


_MODEL_DIR = Macro(
    name="MODEL_DIR", meaning="the run's own directory, local or gs://; results go there"
)
_BASE = Macro(
    name="INITIAL_CHECKPOINT_PATH",
    meaning="pretrained checkpoint, by path or name; None: random weights",
)
_TASK = Macro(
    name="MIXTURE_OR_TASK_NAME",
    meaning="the task to fine-tune on; `promot-t5x tasks list` shows them",
)
_LENGTHS = Macro(
    name="TASK_FEATURE_LENGTHS",
    meaning="tokens of inputs (the soft prompt included) and targets",
)
_BATCH = Macro(name="BATCH_SIZE", meaning="global batch size", default="64")
_DROPOUT = Macro(name="DROPOUT_RATE", meaning="dropout while weights train", default="0.1")
_PROMPT_LENGTH = Macro(name="PROMPT_LENGTH", meaning="soft prompt length in tokens", default="100")

OVERVIEW = """\
Fine-tunes a T5-family model on one task without losing what it can do on all the others
(ProMoT): stage one trains a soft prompt with the model frozen, stage two trains the model
with that prompt attached and frozen, and the prompt is then removed.\
"""

COMMANDS = (
    Command(
        name="train",
        help="run one stage: prompt tuning, fine-tuning, or a stage of your own",
        target="promot_t5x.runs.train:train",
        check="promot_t5x.runs.preflight:train",
        trains=True,
        run_files=(
            "runs/finetune.gin",
            "runs/prompt_tune.gin",
            "runs/stage_two.gin",
            "runs/pretrain.gin",
        ),
        description="""\
Runs one stage: trains what the stage says (a prompt, the model, or both) from a checkpoint on
a task, and keeps the checkpoint that is best on the task's validation split. Interrupted, the
same command resumes from the newest checkpoint; finished, it does nothing.

Results, under MODEL_DIR: config.gin (the configuration, as --dry_run prints it),
checkpoint_<step>/, train/ (metrics), inference_eval/ (one answer per line).\
""",
        macros=(
            _MODEL_DIR,
            _BASE,
            _TASK,
            _LENGTHS,
            Macro(name="TRAIN_STEPS", meaning="updates of this run", default="1000"),
            Macro(name="LEARNING_RATE", meaning="of the model's weights", default="0.001"),
            _BATCH,
            _DROPOUT,
        ),
        examples=(
            """\
promot-t5x train --gin_file=models/mt5_xl.gin --gin_file=runs/finetune.gin \\
    --gin.MODEL_DIR='"/data/rte"' --gin.MIXTURE_OR_TASK_NAME='"rte"' \\
    --gin.INITIAL_CHECKPOINT_PATH='"/data/mt5_xl/checkpoint_1000000"' \\
    --gin.TASK_FEATURE_LENGTHS="{'inputs': 512, 'targets': 16}\"""",
            """\
promot-t5x train --gin_file=/data/rte/config.gin --gin.MODEL_DIR='"/data/rte_low"' \\
    --gin.BATCH_SIZE=16 --dry_run""",
        ),
    ),
    Command(
        name="promot",
        help="run the whole experiment: both stages, the baseline and the comparison",
        target="promot_t5x.runs.promot:promot",
        check="promot_t5x.runs.preflight:promot",
        trains=True,
        run_files=(
            "runs/promot.gin",
            "runs/multitask.gin",
            "runs/sequential.gin",
            "runs/joint.gin",
            "runs/fixed_random_prompt.gin",
            "runs/rivals.gin",
        ),
        description="""\
Runs the stages of a method in order, then measures every model of the comparison: on the
fine-tuned task with its prompt, and on the in-context tasks without any. Stages that have
finished are not repeated; after an interruption the same command resumes the run.

Results, under MODEL_DIR: report.md (the table), <stage>/ (as `train` writes
them), comparison/ (one answer per line for every model and task), config.gin.\
""",
        macros=(_MODEL_DIR, _BASE, _TASK, _LENGTHS, _PROMPT_LENGTH, _BATCH, _DROPOUT),
        examples=(
            "promot-t5x promot --gin_file=demo/promot.gin",
            """\
promot-t5x promot --gin_file=models/mt5_xxl.gin --gin_file=runs/promot.gin \\
    --gin.MODEL_DIR='"/data/promot_rte"' --gin.MIXTURE_OR_TASK_NAME='"rte"' \\
    --gin.INITIAL_CHECKPOINT_PATH='"/data/mt5_xxl/checkpoint_1000000"' \\
    --gin.TASK_FEATURE_LENGTHS="{'inputs': 512, 'targets': 16}\"""",
        ),
    ),
    Command(
        name="eval",
        help="evaluate checkpoints on tasks, with or without the soft prompt",
        target="promot_t5x.runs.eval:evaluate",
        check="promot_t5x.runs.preflight:evaluate",
        run_files=("runs/eval.gin",),
        description="""\
Decodes checkpoints' answers to the examples of tasks or mixtures and scores them. Interrupted,
the same command resumes: what has been answered is not asked again.

Results, under EVAL_OUTPUT_DIR: config.gin and inference_eval/ with <task>-<step>.jsonl (one answer
per line), <task>-<step>.json (scores and provenance) and <task>-metrics.jsonl; a directory
for each, with its own inference_eval/, where there are several checkpoints or both prompt modes.\
""",
        macros=(
            Macro(
                name="CHECKPOINT_PATH", meaning="the checkpoint to evaluate, or several in a list"
            ),
            Macro(name="EVAL_OUTPUT_DIR", meaning="directory of the results"),
            Macro(
                name="MIXTURE_OR_TASK_NAME",
                meaning="task or mixture, or several; `promot-t5x tasks list` shows them",
            ),
            _LENGTHS,
            Macro(
                name="CHECKPOINT_MODE",
                meaning="'all': every checkpoint in those directories",
                default="'specific'",
            ),
            Macro(name="PROMPT_FILE", meaning="the soft prompt to attach", default="None"),
            Macro(
                name="PROMPT_MODE",
                meaning="with a prompt: 'kept' (so by default), 'removed' or 'both'",
                default="None",
            ),
        ),
        examples=(
            """\
promot-t5x eval --gin_file=models/mt5_xl.gin --gin_file=runs/eval.gin \\
    --gin.CHECKPOINT_PATH='"/data/rte/checkpoint_1000"' --gin.EVAL_OUTPUT_DIR='"/data/out"' \\
    --gin.MIXTURE_OR_TASK_NAME='"rte"' --gin.TASK_FEATURE_LENGTHS="{'inputs': 512}\"""",
            """\
promot-t5x eval --gin_file=models/mt5_xl.gin --gin_file=runs/eval.gin \\
    --gin.CHECKPOINT_PATH='"/data/promot_rte/stage_two"' --gin.CHECKPOINT_MODE='"all"' \\
    --gin.EVAL_OUTPUT_DIR='"/data/curve"' --gin.MIXTURE_OR_TASK_NAME='"icl_1shot"' \\
    --gin.SPLIT=None --gin.TASK_FEATURE_LENGTHS="{'inputs': 2304}\"""",
        ),
    ),
    Command(
        name="infer",
        help="answer the questions of a file",
        target="promot_t5x.runs.infer:infer",
        check="promot_t5x.runs.preflight:infer",
        run_files=("runs/infer.gin",),
        description="""\
Answers a file: JSONL (text field `inputs`), text (one question per line), or standard input ('-').
Writes one line per question, in their order: its fields, the answer as the model put it (`output`),
as it is read in the model's prompt format (`prediction`), and its `log_prob`. Interrupted, the same
command resumes.

Results, under INFER_OUTPUT_DIR: answers.jsonl, config.gin; where it is None, the answers go to
standard output.\
""",
        macros=(
            Macro(name="CHECKPOINT_PATH", meaning="the checkpoint"),
            Macro(name="INPUT_FILE", meaning="the questions"),
            Macro(
                name="INFER_OUTPUT_DIR", meaning="directory of the answers; None: standard output"
            ),
            _LENGTHS,
            Macro(name="PROMPT_FILE", meaning="the soft prompt to attach", default="None"),
            Macro(
                name="ALL_DECODES",
                meaning="every beam or sample, besides the best",
                default="False",
            ),
            Macro(
                name="LONG_INPUTS",
                meaning="'cut' answers what fits of an input that is too long",
                default="'refuse'",
            ),
        ),
        examples=(
            """\
promot-t5x infer --gin_file=models/mt5_xl.gin --gin_file=runs/infer.gin \\
    --gin.CHECKPOINT_PATH='"/data/promot_rte/stage_two"' --gin.INPUT_FILE='"ask.txt"' \\
    --gin.INFER_OUTPUT_DIR='"answers"' \\
    --gin.TASK_FEATURE_LENGTHS="{'inputs': 512, 'targets': 64}\"""",
        ),
    ),
    Command(
        name="report",
        help="compare recorded runs: tables, intervals, tests, plots, changed answers",
        target="promot_t5x.cli.report:main",
        takes_gin=False,
    ),
    Command(
        name="sweep",
        help="run a configuration over lists of values; report each method's frontier",
        target="promot_t5x.cli.sweep:main",
        takes_gin=False,
    ),
    Command(
        name="status",
        help="show where a run is: its owner, its stages and steps, its last save, the time left",
        target="promot_t5x.cli.status:main",
        takes_gin=False,
    ),
    Command(
        name="score",
        help="recompute scores from the records of evaluations, without a model",
        target="promot_t5x.cli.score:main",
        takes_gin=False,
    ),
    Command(
        name="convert",
        help="convert checkpoints between the formats of T5X, Hugging Face and this project",
        target="promot_t5x.cli.convert:main",
        takes_gin=False,
    ),
    Command(
        name="lm_eval",
        help="run lm-evaluation-harness's tasks on a checkpoint: its own flags, --model promot_t5x",
        target="promot_t5x.cli.lm_eval:main",
        takes_gin=False,
    ),
    Command(
        name="launch",
        help="start a run on TPU slices, GKE, Slurm, or in several processes here",
        target="promot_t5x.cli.launch:main",
        takes_gin=False,
    ),
    Command(
        name="tasks",
        help="list, show, measure, check and prepare tasks and mixtures",
        target="promot_t5x.cli.tasks:main",
        takes_gin=False,
    ),
    Command(
        name="gin_path",
        help="print the directory of the shipped gin files, for upstream T5X",
        target="promot_t5x.cli.gin_path:main",
        takes_gin=False,
    ),
    Command(
        name="plan",
        help="compile a run for a TPU slice that is not there: memory, time and cost",
        target="promot_t5x.cli.plan:main",
        takes_gin=False,
    ),
    Command(
        name="paper",
        help="the paper's rows: list, plan and run them, compare its numbers with yours",
        target="promot_t5x.cli.paper:main",
        takes_gin=False,
    ),
    Command(
        name="ckpt",
        help="inspect, compare and verify checkpoints",
        target="promot_t5x.cli.ckpt:main",
        takes_gin=False,
    ),
    Command(
        name="prompt",
        help="inspect, export and import soft prompts",
        target="promot_t5x.cli.prompt:main",
        takes_gin=False,
    ),
    Command(
        name="completion",
        help="print the script that makes bash, zsh or fish complete all of these",
        target="promot_t5x.cli.completion:main",
        takes_gin=False,
    ),
    Command(
        name="bench",
        help="measure throughput, and the speed-up of each design choice",
        target="promot_t5x.cli.bench:main",
        takes_gin=False,
    ),
)
