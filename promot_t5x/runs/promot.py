"""Run several stages and compare what they left: `promot` is ProMoT from base to table.

The stages run in order, each from the base or from an earlier one; then every row's model
answers the target with its prompt and the in-context suite without any. What is finished is
never done again: after a kill the same command goes on where the run was.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from promot_t5x import config
from promot_t5x.distributed import preemption
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.evaluation.evaluator import EvalConfig, Evaluator, eval_run
from promot_t5x.evaluation.records import EvalRun, TaskResult
from promot_t5x.files import write_atomically
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.network.prompt import PROMPT_AXES
from promot_t5x.paths import user_path
from promot_t5x.report import rows as report
from promot_t5x.report.output import show_run
from promot_t5x.runs import preflight, run_directory
from promot_t5x.runs.stages import Stage
from promot_t5x.runs.train import Trainer
from promot_t5x.runs.weights import Weights
from promot_t5x.training.state import Tree, flatten, laid_out, unflatten, with_prompt

SEEDS = ("SEEDS", "promot.promot.seeds")  # what the configuration calls them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One model of the comparison.

    **Attributes:**

    - `label`: what the table calls it.
    - `stage`: whose weights it has; none for the base's.
    - `prompts`: for each target, the stage whose prompt is attached, or none.
    - `suite_prompt`: the stage whose prompt is attached to the suite too, where the row is to show
      what the prompt holds; the method removes it.
    """

    label: str
    stage: str | None = None
    prompts: Sequence[str | None] = ()
    suite_prompt: str | None = None

    @property
    def stages(self) -> set[str]:
        """The stages that the row's answers depend on."""
        return {s for s in (self.stage, *self.prompts, self.suite_prompt) if s is not None}


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
    seeds: Sequence[int] | None = None,
) -> list[report.ReportRow]:
    """Run `stages` in `model_dir` and print the comparison; `promot-t5x promot` calls this.

    **Arguments:**

    - `seeds`: run the stages once with each of these in place of their own seeds, in
      `<model_dir>/seed_<n>`; more may be added later.

    **Raises** `UserError` for bad input to any stage before the first one starts.
    """
    preflight.promot(
        model=model, stages=stages, comparison=comparison, model_dir=model_dir, seeds=seeds
    )
    directory = user_path(model_dir, "MODEL_DIR")
    by_name = {stage.name: stage for stage in stages}
    weights = Weights(model, by_name, directory)
    trainers = []
    for index, stage in enumerate(stages):
        earlier = {s.name: s for s in stages[:index]}
        trainers.append(Trainer(model, stage, weights, partitioner, earlier))
    judge = Judge(model, comparison, by_name, weights, partitioner)
    run_directory.claim(directory, config.resolved_str(), may_change=SEEDS)

    tokens = run_directory.token_cache(directory)
    if seeds is None:
        for trainer in trainers:
            preemption.stop_if_reached()
            trainer.run(directory / trainer.stage.name, tokens)
        rows = [judge.row(row, directory / "comparison", weights) for row in comparison.rows]
    else:
        # What no stage has changed is the same for every seed.
        fixed = [row for row in comparison.rows if not row.stages]
        rows = [judge.row(row, directory / "comparison", weights) for row in fixed]
        for seed in seeds:
            home = directory / f"seed_{seed}"
            seeded = Weights(model, {s.name: s.with_seed(seed) for s in stages}, home)
            for trainer in trainers:
                preemption.stop_if_reached()
                trainer.seeded(seed, seeded).run(home / trainer.stage.name, tokens)
            rows += [
                judge.row(row, home / "comparison", seeded, seed)
                for row in comparison.rows
                if row.stages
            ]

    if jax.process_index() == 0:
        show_run(directory)
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
        self._partitioner = partitioner
        for row in comparison.rows:
            self._check(row)
            weights.check(self._base_of(row), stages, "base")
        plain = model.without_prompt()
        self._targets = [
            Asked(
                name=target.name,
                plain=Evaluator(plain, target, partitioner),
                prompted=Evaluator(model, target, partitioner) if prompted else None,
            )
            for target, prompted in zip(comparison.targets, self._prompted(), strict=True)
        ]
        suite = comparison.suite
        self._suite = Evaluator(plain, suite, partitioner) if suite else None
        self._prompted_suite = None
        if suite and any(row.suite_prompt for row in comparison.rows):
            self._prompted_suite = Evaluator(model, suite, partitioner, prompt_index=0)
        self._check_tasks()

    def _check_tasks(self) -> None:
        """A row keeps one file of answers a task."""
        asked = [target.plain for target in self._targets]
        asked += [self._suite] if self._suite else []
        names = [task.name for evaluator in asked for task in evaluator.tasks]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"The comparison would ask {name!r} twice and keep its answers once: it is in "
                    f"two of the targets or in a target and SUITE; leave it out of one of them."
                )

    def _prompted(self) -> list[bool]:
        """For each target, whether any row asks it with a prompt."""
        columns = zip(*(row.prompts for row in self._comparison.rows if row.prompts), strict=True)
        asked = [any(prompts) for prompts in columns]
        return asked or [False] * len(self._comparison.targets)

    def _check(self, row: Row) -> None:
        for name in sorted(row.stages):
            if name not in self._stages:
                raise UserError(
                    f"Row {row.label!r} of the comparison names the stage {name!r}, which is not "
                    f"in this run ({', '.join(self._stages)}).{did_you_mean(name, self._stages)}"
                )
        if row.prompts and len(row.prompts) != len(self._comparison.targets):
            raise UserError(
                f"Row {row.label!r} of the comparison has {len(row.prompts)} prompts for "
                f"{len(self._comparison.targets)} targets; name one (or None) for each."
            )

    def row(
        self, row: Row, directory: epath.Path, weights: Weights, seed: int | None = None
    ) -> report.ReportRow:
        """Evaluate one row, or read what an earlier launch recorded of it.

        **Arguments:**

        - `weights`: finds the stages of the row's run.
        - `seed`: of that run, where there are several.
        """
        directory = directory / re.sub(r"\W+", "_", row.label)
        done = directory / "row.json"
        if done.exists():
            return report.ReportRow(**json.loads(done.read_text()))
        preemption.stop_if_reached()
        label = f"[{row.label}]" if seed is None else f"[{row.label}, seed {seed}]"
        params, origin = self._load(row, weights, label)
        told: dict[str, Any] = {"path": self._base_of(row), "origin": origin}

        def ask(
            what: str, plain: Evaluator, prompted: Evaluator | None, prompt: str | None
        ) -> list[TaskResult]:
            if prompt is None:
                run = eval_run(directory, 0, params, **told)
                return self._ask(plain, f"{label} {what}", params, run)
            assert prompted is not None  # the rows were looked through for prompts
            table, prompt_origin = weights.prompt(prompt, seed=0, base=None)
            placed = self._partitioner.place(table, self._partitioner.sharding(PROMPT_AXES))
            behind = with_prompt(params, placed)
            run = eval_run(directory, 0, behind, **told, prompt_origin=prompt_origin)
            return self._ask(prompted, f"{label} {what}", behind, run)

        targets: list[TaskResult] = []
        for target, prompt in zip(self._targets, self._prompts_of(row), strict=True):
            targets += ask(target.name, target.plain, target.prompted, prompt)
        suite: list[TaskResult] = []
        if self._suite is not None:
            suite = ask("suite", self._suite, self._prompted_suite, row.suite_prompt)
        result = report.ReportRow(
            label=row.label,
            seed=seed,
            targets={task.task: task.score for task in targets},
            suite={task.task: task.score for task in suite},
            position=list(self._comparison.rows).index(row),
            stage=row.stage,
        )
        if jax.process_index() == 0:
            write_atomically(done, json.dumps(dataclasses.asdict(result), indent=1) + "\n")
        return result

    def _base_of(self, row: Row) -> str | None:
        return self._comparison.base if row.stage is None else row.stage

    def _prompts_of(self, row: Row) -> Sequence[str | None]:
        return row.prompts or [None] * len(self._targets)

    def _load(self, row: Row, weights: Weights, label: str) -> tuple[Tree, str]:
        """The row's model without a prompt, on the mesh, and where it came from."""
        model = self._model.without_prompt()
        wanted = laid_out(model.param_shapes(), model.param_axes(), self._partitioner)
        loaded = weights.read(self._base_of(row), flatten(wanted), seed=0)
        if jax.process_index() == 0:
            for line in loaded.summary():
                print(f"{label} {line}", flush=True)
        return unflatten(loaded.arrays), loaded.origin

    def _ask(
        self, evaluator: Evaluator, label: str, params: Tree, run: EvalRun
    ) -> list[TaskResult]:
        with self._partitioner.activate():
            return evaluator.run(params, label, run)
