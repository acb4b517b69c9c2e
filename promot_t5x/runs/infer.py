"""Answer inputs of the user's own: a JSONL file, a text file or standard input in, JSONL out.

The output has one line per input, in the order of the inputs. In a directory it is resumable: what
has been answered when a run is killed is not answered again.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from promot_t5x import config
from promot_t5x.config import validation
from promot_t5x.data import vocabularies
from promot_t5x.data.questions import trim
from promot_t5x.distributed import processes
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError, did_you_mean, listed
from promot_t5x.evaluation.answering import (
    Answer,
    Answerer,
    EncodedQuestion,
    primary_process_result,
)
from promot_t5x.evaluation.journal import Journal
from promot_t5x.files import write_json_lines
from promot_t5x.models.model import Model
from promot_t5x.network.prompt import prompt_ids
from promot_t5x.paths import user_path
from promot_t5x.runs import compiled_programs, preflight, run_directory
from promot_t5x.runs.eval import Checkpoint, load, with_prompt_table
from promot_t5x.runs.weights import Weights, adapter_paths
from promot_t5x.tasks import dialects, files

OUTPUT_FILE = "answers.jsonl"
STANDARD_INPUT = "-"
FIELD = "inputs"
ANSWERED = ("output", "prediction", "log_prob", "decodes", "inputs_cut")
LONG_INPUTS = ("refuse", "cut")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferConfig:
    """The inputs that are answered, and how answers are decoded.

    **Attributes:**

    - `input_file`: `.jsonl`, each line an object with the text field `inputs`; any other name is
      a text file, each line an input; `-` is standard input, of either kind.
    - `task_feature_lengths`: the longest `inputs` (soft prompt included) and the longest answer,
      `targets`, in tokens.
    - `batch_size`: inputs decoded together.
    - `method`: `decoding.Greedy`, `decoding.Sampling` or `decoding.BeamSearch`.
    - `all_decodes`: give every hypothesis of `method`, besides the best.
    - `long_inputs`: what becomes of an input that does not fit: `refuse` names it and answers
      none, `cut` answers what fits of it and says so in its line.
    - `prompt_index`: which of the prompts is attached, where there are several.
    """

    input_file: str
    task_feature_lengths: Mapping[str, int]
    batch_size: int
    method: Any
    all_decodes: bool = False
    long_inputs: str = "refuse"
    prompt_index: int = 0

    def __post_init__(self) -> None:
        validation.check_feature_lengths(self.task_feature_lengths)
        validation.check_positive("InferConfig.batch_size", self.batch_size)
        validation.check_made("DECODING", self.method)
        if not hasattr(self.method, "num_decodes"):
            raise UserError(
                f"DECODING = {type(self.method).__name__} compares given answers and writes none: "
                "`infer` takes decoding.Greedy, Sampling or BeamSearch."
            )
        if self.long_inputs not in LONG_INPUTS:
            raise UserError(
                f"LONG_INPUTS = {self.long_inputs!r} must be one of {', '.join(LONG_INPUTS)}."
                f"{did_you_mean(self.long_inputs, LONG_INPUTS)}"
            )


def infer(
    *,
    model: Model,
    checkpoint_path: str,
    prompt_path: str | None = None,
    adapter_path: str | Sequence[str] | None = None,
    questions: InferConfig,
    output_dir: str | None,
    partitioner: Partitioner,
    frozen_dtype: str = "float32",
) -> None:
    """Answer every input of a file; `promot-t5x infer` calls this.

    **Arguments:**

    - `model`: the network with its vocabulary; without a prompt table it takes the file's.
    - `checkpoint_path`: a checkpoint of any format; a prompt in it is left behind.
    - `prompt_path`: a prompt file to attach, or none to ask without one.
    - `adapter_path`: an adapter to attach, or several, of stages or of peft; none has none.
    - `questions`: the inputs, and how answers are decoded.
    - `partitioner`: the mesh.
    - `frozen_dtype`: storage of the weights, as `stages.Stage` has it.
    - `output_dir`: gets `answers.jsonl` and `config.gin`; without it the answers go to standard
      output when all are there.

    **Raises:** `UserError` for bad input, before anything is decoded.
    """
    preflight.infer(
        model=model,
        checkpoint_path=checkpoint_path,
        questions=questions,
        output_dir=output_dir,
        prompt_path=prompt_path,
        adapter_path=adapter_path,
        frozen_dtype=frozen_dtype,
    )
    model = with_prompt_table(model, prompt_path) if prompt_path else model.without_prompt()
    weights = Weights(model)
    weights.check(checkpoint_path, {}, "base")
    weights.check(prompt_path, {}, "prompt")
    adapters = adapter_paths(adapter_path)
    for adapter in adapters:
        weights.check(adapter, {}, "adapter")
    rows = primary_process_result(lambda: read_rows(questions.input_file))
    encoded, cut = _encode(model, questions, rows)
    kept = questions.method.num_decodes if questions.all_decodes else 1
    answerer = Answerer(model, questions.method, questions.batch_size, partitioner, kept=kept)
    answerer.plan(encoded)
    directory = None if output_dir is None else user_path(output_dir, "INFER_OUTPUT_DIR")
    if directory is not None:
        run_directory.claim(directory, config.resolved_str(), macro="INFER_OUTPUT_DIR")

    checkpoint = Checkpoint(path=checkpoint_path, label="", step=0)
    home = directory or epath.Path(".")
    params, run = load(
        weights, checkpoint, prompt_path, adapters, home, model, partitioner, frozen_dtype
    )
    journal = None
    if directory is not None:
        journal = Journal(directory / f"{OUTPUT_FILE}.partial", answerer.identity(run.weights))
    with compiled_programs.kept(directory), partitioner.activate():
        answers, _ = answerer.answers(params, "infer", journal)
    if not processes.is_primary():
        return
    lines = [
        {**row, **_answered(model, answer, was_cut, questions.all_decodes)}
        for row, answer, was_cut in zip(rows, answers, cut, strict=True)
    ]
    if directory is None or journal is None:
        for line in lines:
            print(json.dumps(line, ensure_ascii=False))
        return
    write_json_lines(directory / OUTPUT_FILE, lines)
    journal.remove()
    print(f"{len(lines):,} answers are in {directory / OUTPUT_FILE}")


def read_rows(input_file: str) -> list[Row]:
    """Return the inputs of a file, each with whatever other fields its line has.

    **Raises:** `UserError`, with the line's number, for a line that is no input.
    """
    if input_file == STANDARD_INPUT:
        lines, name = sys.stdin.read().split("\n"), "standard input"
        as_json = next((line for line in lines if line.strip()), "").lstrip().startswith("{")
    else:
        path, name = user_path(input_file, "INPUT_FILE"), input_file
        if not path.is_file():
            raise UserError(f"INPUT_FILE = {input_file!r}: there is no such file.")
        lines = files.lines(name, files.content(os.fspath(path)))
        as_json = files.is_json(path.name)
        if as_json and (rows := files.json_array(lines)) is not None:
            return [_checked(row, f"{name}, item {n}") for n, row in enumerate(rows, 1)]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"INPUT_FILE: {name} holds no inputs.")
    numbered = [(f"{name}, line {number}", line) for number, line in enumerate(lines, 1)]
    if as_json:
        return [_row(line, where) for where, line in numbered if line.strip()]
    for where, line in numbered:
        if not line.strip():
            raise UserError(f"INPUT_FILE: {where} is blank; every line is an input.")
    return [{FIELD: line} for line in lines]


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"INPUT_FILE: {where} is not JSON: {error}.") from None
    return _checked(row, where)


def _checked(row: Any, where: str) -> Row:
    """Return a row that is an input, and that its answer can be written beside."""
    if not isinstance(row, dict) or not isinstance(row.get(FIELD), str):
        said = json.dumps(row, ensure_ascii=True)[:80]
        raise UserError(f"INPUT_FILE: {where} is no object with a text field {FIELD!r}: {said!r}.")
    if taken := sorted(set(row) & set(ANSWERED)):
        raise UserError(
            f"INPUT_FILE: {where} has a field {taken[0]!r}, which is what an answer is called; "
            "give it another name."
        )
    for field, value in row.items():
        if half := files.lone_surrogate(json.dumps({field: value}, ensure_ascii=False)):
            raise UserError(
                f"INPUT_FILE: {where} holds half a character, {half}, in its field {field!r}, "
                "which no file can hold: correct it."
            )
    return row


def _encode(
    model: Model, questions: InferConfig, rows: Sequence[Row]
) -> tuple[list[EncodedQuestion], list[bool]]:
    """Return the inputs as the model gets them, and which of them were cut."""
    vocabulary, lengths = model.vocabulary, questions.task_feature_lengths
    vocabularies.check(vocabulary)
    prompt = np.zeros(0, np.int32)
    if model.config.num_virtual_ids:
        if questions.prompt_index >= model.config.num_prompts:
            raise UserError(
                f"InferConfig.prompt_index = {questions.prompt_index}, but there are "
                f"{model.config.num_prompts} prompts (NUM_PROMPTS), counted from 0."
            )
        prompt = np.asarray(prompt_ids(model.config, questions.prompt_index), np.int32)
    text_budget = lengths["inputs"] - len(prompt)
    if text_budget < 1:
        raise UserError(
            f"A prompt of {len(prompt)} vectors leaves no room for text in "
            f"TASK_FEATURE_LENGTHS['inputs'] = {lengths['inputs']}, which includes the prompt."
        )
    texts = [dialects.question_ids(vocabulary, model.dialect, row[FIELD]) for row in rows]
    cut = [len(text) > text_budget for text in texts]
    if any(cut) and questions.long_inputs == "refuse":
        long = [i for i, was_cut in enumerate(cut) if was_cut]
        named = listed([f"{i + 1} ({len(texts[i]) + len(prompt):,})" for i in long])
        raise UserError(
            f"{len(long):,} of {len(rows):,} inputs have more tokens than TASK_FEATURE_LENGTHS["
            f"'inputs'] = {lengths['inputs']}; by line (and tokens): {named}. Raise it, or "
            "set LONG_INPUTS = 'cut' to answer what fits of them."
        )
    encoded = [
        EncodedQuestion(
            inputs=np.concatenate([prompt, trim(text, text_budget, vocabulary.eos_id)]),
            limit=lengths["targets"],
            number=row,
        )
        for row, text in enumerate(texts)
    ]
    return encoded, cut


def _answered(model: Model, answer: Answer, was_cut: bool, all_decodes: bool) -> dict[str, Any]:
    """Return what an answer adds to its input's line."""
    decodes = []
    for ids, log_prob in zip(answer["ids"], answer["log_probs"], strict=True):
        output = dialects.decode(model.vocabulary, ids)
        prediction = model.dialect.read(output)
        decodes.append({"output": output, "prediction": prediction, "log_prob": log_prob})
    found = {**decodes[0], **({"decodes": decodes} if all_decodes else {})}
    return {**found, "inputs_cut": True} if was_cut else found
