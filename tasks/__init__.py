"""What models are trained and measured on: task definitions, templates and metrics.

`registry` holds the definitions by name, `targets` the tasks that are fine-tuned, `suite` those
that are asked in context, `standard` and `multilingual` what is reported besides, `tiny` a small
made-up world that needs no data at all. For a task of your own, take what you need from here:

    from promot_t5x.tasks import jsonl, register, text_task

Importing this package imports no TensorFlow; building a task's data set does.
"""

from promot_t5x.tasks.answers import LabelAtStart, Until, first_word
from promot_t5x.tasks.bleu import Bleu
from promot_t5x.tasks.chrf import Chrf
from promot_t5x.tasks.exact_match import squad, trivia_qa
from promot_t5x.tasks.extracted import Extracted
from promot_t5x.tasks.metrics import accuracy, macro_f1
from promot_t5x.tasks.own import text_task
from promot_t5x.tasks.ranking import Continuation, MultipleChoice
from promot_t5x.tasks.registry import Mixture, TaskDef, register
from promot_t5x.tasks.rouge import Rouge
from promot_t5x.tasks.sources import csv, hugging_face, jsonl, parquet, tfds, tsv
from promot_t5x.tasks.templates import Candidates, Choice, Template

__all__ = [
    "Bleu",
    "Candidates",
    "Choice",
    "Chrf",
    "Continuation",
    "Extracted",
    "LabelAtStart",
    "Mixture",
    "MultipleChoice",
    "Rouge",
    "TaskDef",
    "Template",
    "Until",
    "accuracy",
    "csv",
    "first_word",
    "hugging_face",
    "jsonl",
    "macro_f1",
    "parquet",
    "register",
    "squad",
    "text_task",
    "tfds",
    "trivia_qa",
    "tsv",
]
