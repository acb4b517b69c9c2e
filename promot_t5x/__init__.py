"""Two-stage fine-tuning of T5-family models that keeps their in-context abilities (ProMoT).

Stage one trains a soft prompt with the model frozen, stage two trains the model behind that prompt,
and the prompt is then removed. Runs are gin configurations; `promot-t5x --help` lists the commands.
The names that this module shows are the ones to build on from Python. Each is imported when it is
first used, so that `import promot_t5x` costs nothing.

Read `runs` first (what a run does, in order), then `data`, `training`, `models` and `network`
(where a batch comes from and what a step does with it), then `evaluation`, `decoding` and `report`
(what is measured), then `checkpoints` and `distributed`.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from promot_t5x.checkpoints import open_checkpoint as open_checkpoint
    from promot_t5x.decoding import BeamSearch as BeamSearch
    from promot_t5x.decoding import Greedy as Greedy
    from promot_t5x.decoding import Likelihood as Likelihood
    from promot_t5x.decoding import RankClassification as RankClassification
    from promot_t5x.decoding import Sampling as Sampling
    from promot_t5x.distributed.partitioning import Partitioner as Partitioner
    from promot_t5x.errors import UserError as UserError
    from promot_t5x.evaluation.evaluator import EvalConfig as EvalConfig
    from promot_t5x.models import DecoderOnlyModel as DecoderOnlyModel
    from promot_t5x.models import EncoderDecoderModel as EncoderDecoderModel
    from promot_t5x.network import DecoderOnly as DecoderOnly
    from promot_t5x.network import DecoderOnlyConfig as DecoderOnlyConfig
    from promot_t5x.network import T5Config as T5Config
    from promot_t5x.network import Transformer as Transformer
    from promot_t5x.runs.stages import Stage as Stage
    from promot_t5x.tasks import Mixture as Mixture
    from promot_t5x.tasks import TaskDef as TaskDef
    from promot_t5x.tasks import jsonl as jsonl
    from promot_t5x.tasks import register as register
    from promot_t5x.tasks import text_task as text_task

_DEFINED_IN = {
    "BeamSearch": "decoding",
    "DecoderOnly": "network",
    "DecoderOnlyConfig": "network",
    "DecoderOnlyModel": "models",
    "EncoderDecoderModel": "models",
    "EvalConfig": "evaluation.evaluator",
    "Greedy": "decoding",
    "Likelihood": "decoding",
    "Mixture": "tasks",
    "Partitioner": "distributed.partitioning",
    "RankClassification": "decoding",
    "Sampling": "decoding",
    "Stage": "runs.stages",
    "T5Config": "network",
    "TaskDef": "tasks",
    "Transformer": "network",
    "UserError": "errors",
    "jsonl": "tasks",
    "open_checkpoint": "checkpoints",
    "register": "tasks",
    "text_task": "tasks",
}

_TASKS = Path(__file__).parent / "tasks"
if not _TASKS.is_dir():
    raise ImportError(
        f"{_TASKS} is no directory: this copy was unpacked without its symbolic links. Clone the "
        "repository with git (on Windows with core.symlinks=true), or unpack the archive with a "
        "program that keeps links."
    )


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)


def __dir__() -> list[str]:
    return sorted(["__version__", *_DEFINED_IN])
