"""Run several stages and compare what they left: `promot` is ProMoT from base to table.

The stages run in order, each from the base or from an earlier one; then every row's model
answers the target with its prompt and the in-context suite without any. What is finished is
never done again: after a kill the same command goes on where the run was.
"""

import dataclasses
import json
import re
from collections.abc import Sequence

import jax
from etils import epath

from promot_t5x import config, run_directory
from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.evaluate import EvalConfig, Evaluator, eval_run
from promot_t5x.files import write_atomically
from promot_t5x.models import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner
from promot_t5x.prompt import PROMPT_AXES
from promot_t5x.records import EvalRun, TaskResult
from promot_t5x.report import rows as report
from promot_t5x.stages import Stage
from promot_t5x.state import Tree, flatten, laid_out, unflatten, with_prompt
from promot_t5x.train import Trainer
from promot_t5x.weights import Weights

MAX_FORMAT_ANSWERS = 10  # a target with more distinct answers than this has no answer format


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One model of the comparison.

    **Attributes:**

    - `label`: what the table calls it.
    - `stage`: whose weights it has; none for the base's.
    - `prompts`: for each target, the stage whose prompt is attached, or none; the suite is always
      asked without a prompt.
    """

    label: str
    stage: str | None = None
    prompts: Sequence[str | None] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is measured on every row.

    **Attributes:**

    - `base`: the pretrained checkpoint, for rows without a stage.
    - `rows`: the models.
    - `targets`: the fine-tuned tasks.
    - `suite`: the in-context tasks; none leaves them out.
    """

    base: str | None
    rows: Sequence[Row]
    targets: Sequence[EvalConfig]
    suite: EvalConfig | None = None


def promot(
    *,
    model: EncoderDecoderModel,
    stages: Sequence[Stage],
    comparison: Comparison,
    model_dir: str,
    partitioner: Partitioner,
) -> list[report.ReportRow]:
    """Run `stages` in `model_dir` and print the comparison; `promot-t5x promot` calls this.

    **Raises** `UserError` for bad input to any stage before the first one starts.
    """
    directory = epath.Path(model_dir)
    by_name = {stage.name: stage for stage in stages}
    if len(by_name) != len(stages):
        raise UserError(f"Two stages share a name: {[stage.name for stage in stages]}.")
    weights = Weights(model, by_name, directory)
    trainers = []
    for index, stage in enumerate(stages):
        earlier = {s.name: s for s in stages[:index]}
        trainers.append(Trainer(model, stage, weights, partitioner, earlier))
    judge = Judge(model, comparison, by_name, weights, partitioner)
    run_directory.claim(directory, config.resolved_str())

    for trainer in trainers:
        trainer.run(directory / trainer.stage.name, run_directory.token_cache(directory))
    rows = [judge.row(row, directory / "comparison") for row in comparison.rows]

    text = report.table(rows)
    if jax.process_index() == 0:
        write_atomically(directory / "report.md", text + "\n")
        print(f"\n{text}\n\nScores in percent; the suite is asked without a prompt.")
        print(f"The table is in {directory}/report.md, the records in {directory}/comparison.")
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A target's questions, asked as they stand and, if any row does, behind a prompt."""

    name: str
    plain: Evaluator
    prompted: Evaluator | None


class Judge:
    """Evaluates rows; programs compiled for one row serve the others."""

    def __init__(
        self,
        model: EncoderDecoderModel,
        comparison: Comparison,
        stages: dict[str, Stage],
        weights: Weights,
        partitioner: Partitioner,
    ):
        self._model, self._comparison, self._stages = model, comparison, stages
        self._weights, self._partitioner = weights, partitioner
        for row in comparison.rows:
            self._check(row)
            weights.check(self._base_of(row), stages, "base")
        plain = model.without_prompt()
        self._targets = [
            Asked(
                name=target.mixture_or_task_name,
                plain=Evaluator(plain, target, partitioner),
                prompted=Evaluator(model, target, partitioner) if prompted else None,
            )
            for target, prompted in zip(comparison.targets, self._prompted(), strict=True)
        ]
        suite = comparison.suite
        self._suite = Evaluator(plain, suite, partitioner) if suite else None

    def _prompted(self) -> list[bool]:
        """For each target, whether any row asks it with a prompt."""
        columns = zip(*(row.prompts for row in self._comparison.rows if row.prompts), strict=True)
        asked = [any(prompts) for prompts in columns]
        return asked or [False] * len(self._comparison.targets)

    def _check(self, row: Row) -> None:
        for name in (row.stage, *row.prompts):
            if name is not None and name not in self._stages:
                raise UserError(
                    f"Row {row.label!r} of the comparison names the stage {name!r}, which is not "
                    f"in this run ({', '.join(self._stages)}).{did_you_mean(name, self._stages)}"
                )
        if row.prompts and len(row.prompts) != len(self._comparison.targets):
            raise UserError(
                f"Row {row.label!r} of the comparison has {len(row.prompts)} prompts for "
                f"{len(self._comparison.targets)} targets; name one (or None) for each."
            )

    def row(self, row: Row, directory: epath.Path) -> report.ReportRow:
        """Evaluate one row, or read what an earlier launch recorded of it."""
        directory = directory / re.sub(r"\W+", "_", row.label)
        done = directory / "row.json"
        if done.exists():
            return report.ReportRow(**json.loads(done.read_text()))
        params, origin = self._load(row)
        targets: list[TaskResult] = []
        for target, prompt in zip(self._targets, self._prompts_of(row), strict=True):
            targets += self._ask_target(target, row, directory, params, origin, prompt)
        suite: list[TaskResult] = []
        if self._suite is not None:
            run = eval_run(directory, 0, params, path=self._base_of(row), origin=origin)
            suite = self._ask(self._suite, f"[{row.label}] suite", params, run)
        result = report.ReportRow(
            label=row.label,
            targets={task.task: task.score for task in targets},
            suite={task.task: task.score for task in suite},
            target_format=target_format(targets, suite),
        )
        if jax.process_index() == 0:
            write_atomically(done, json.dumps(dataclasses.asdict(result), indent=1) + "\n")
        return result

    def _base_of(self, row: Row) -> str | None:
        return self._comparison.base if row.stage is None else row.stage

    def _prompts_of(self, row: Row) -> Sequence[str | None]:
        return row.prompts or [None] * len(self._targets)

    def _ask_target(
        self,
        target: "Asked",
        row: Row,
        directory: epath.Path,
        params: Tree,
        origin: str,
        prompt: str | None,
    ) -> list[TaskResult]:
        label, path = f"[{row.label}] {target.name}", self._base_of(row)
        if prompt is None:
            run = eval_run(directory, 0, params, path=path, origin=origin)
            return self._ask(target.plain, label, params, run)
        table, prompt_origin = self._weights.prompt(prompt, seed=0, base=None)
        placed = self._partitioner.place(table, self._partitioner.sharding(PROMPT_AXES))
        params = with_prompt(params, placed)
        run = eval_run(directory, 0, params, path=path, origin=origin, prompt_origin=prompt_origin)
        assert target.prompted is not None  # the rows were looked through for prompts
        return self._ask(target.prompted, label, params, run)

    def _load(self, row: Row) -> tuple[Tree, str]:
        """The row's model without a prompt, on the mesh, and where it came from."""
        model = self._model.without_prompt()
        wanted = laid_out(model.param_shapes(), model.param_axes(), self._partitioner)
        loaded = self._weights.read(self._base_of(row), flatten(wanted), seed=0)
        if jax.process_index() == 0:
            for line in loaded.summary():
                print(f"[{row.label}] {line}", flush=True)
        return unflatten(loaded.arrays), loaded.origin

    def _ask(
        self, evaluator: Evaluator, label: str, params: Tree, run: EvalRun
    ) -> list[TaskResult]:
        with self._partitioner.activate():
            return evaluator.run(params, label, run)


def target_format(targets: Sequence[TaskResult], suite: Sequence[TaskResult]) -> float | None:
    """Share, in percent, of the suite's answers that are answers of the target tasks.

    None where the targets have no answer format: more than `MAX_FORMAT_ANSWERS` answers.
    """
    answers = {str(record["target"]) for task in targets for record in task.records}
    predictions = [str(record["prediction"]) for task in suite for record in task.records]
    if not predictions or len(answers) > MAX_FORMAT_ANSWERS:
        return None
    return 100 * sum(prediction in answers for prediction in predictions) / len(predictions)
