"""The evaluation of a comparison's models: the targets with their prompts, the suite without."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.data import tokenization
from promot_t5x.distributed import preemption, processes
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.evaluation.eval_config import EvalConfig
from promot_t5x.evaluation.evaluator import Evaluator, eval_run
from promot_t5x.evaluation.records import TaskResult
from promot_t5x.files import read_json, write_atomically
from promot_t5x.models.model import Model
from promot_t5x.network.prompt import PROMPT_AXES
from promot_t5x.report import rows as report
from promot_t5x.runs.comparison import Comparison, Row, row_directory, stages_in
from promot_t5x.runs.stages import Stage
from promot_t5x.runs.weights import Loaded, Weights
from promot_t5x.training.state import Tree, flatten, laid_out, unflatten, with_prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatorPair:
    """The evaluators of the same tasks without a prompt and, if any row needs it, with one."""

    name: str
    plain: Evaluator
    prompted: Evaluator | None

    def for_prompt(self, attaches: bool) -> Evaluator:
        """Return the evaluator of a row that attaches a prompt, or none."""
        return self.prompted if attaches and self.prompted is not None else self.plain


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LoadedRow:
    """A row's model on the mesh, and where it and its answers belong."""

    label: str
    directory: epath.Path
    base: str | None
    model: Loaded
    weights: Weights
    selection_split: Mapping[str, str]


class ComparisonEvaluator:
    """Evaluates the rows of a comparison; programs compiled for one row serve the others.

    **Arguments:**

    - `model`: with the prompt table of the run.
    - `comparison`: rows, targets and suite.
    - `stages`: of the run, by name.
    - `weights`: finds the pretrained checkpoint.
    - `partitioner`: the mesh.

    **Raises:** `UserError` for rows and tasks that do not fit together.
    """

    def __init__(
        self,
        model: Model,
        comparison: Comparison,
        stages: Mapping[str, Stage],
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
            EvaluatorPair(
                name=target.name,
                plain=Evaluator(plain, target, partitioner),
                prompted=Evaluator(model, target, partitioner) if prompted else None,
            )
            for target, prompted in zip(comparison.targets, self._prompted(), strict=True)
        ]
        self._suite = None if comparison.suite is None else self._asking(comparison.suite, model)
        self._redrawn = {
            seed: self._asking(comparison.suite, model.with_shot_seed(seed))
            for seed in comparison.suite_shot_seeds
            if comparison.suite is not None
        }
        self._check_tasks()
        self._check_shot_seeds()

    def _asking(self, suite: EvalConfig, model: Model) -> EvaluatorPair:
        prompted = None
        if any(self._prompt_of(stages_in(row.suite_prompt)) for row in self._comparison.rows):
            prompted = Evaluator(model, suite, self._partitioner, prompt_index=0)
        plain = Evaluator(model.without_prompt(), suite, self._partitioner)
        return EvaluatorPair(name="suite", plain=plain, prompted=prompted)

    def check(self) -> None:
        """Read the questions of targets and suite; raises as `Evaluator.check` does."""
        for pair in [*self._targets, *([self._suite] if self._suite else [])]:
            pair.plain.check(f"[{pair.name}]")

    def evaluate(
        self, row: Row, home: epath.Path, weights: Weights, seed: int | None = None
    ) -> report.ReportRow:
        """Evaluate a row, or read what an earlier launch recorded of the same checkpoints.

        **Arguments:**

        - `home`: the directory of the row's run, which holds its stages and `comparison/`.
        - `weights`: finds the stages of that run.
        - `seed`: of that run, where there are several.

        **Returns:** the scores, as `row.json` holds them.
        """
        directory = row_directory(home, row)
        results = {name: self._result(home, name) for name in sorted(row.stages)}
        chosen = {name: result.step for name, result in results.items()}
        position = list(self._comparison.rows).index(row)
        if (recorded := _recorded(directory, chosen, list(self._redrawn))) is not None:
            if recorded.position != position:  # other rows have come before it
                recorded = _written(dataclasses.replace(recorded, position=position), directory)
            return recorded
        preemption.stop_if_reached()
        label = f"[{row.label}]" if seed is None else f"[{row.label}, seed {seed}]"
        loaded = _LoadedRow(
            label=label,
            directory=directory,
            base=self._base_of(row),
            model=self._load(row, weights, label),
            weights=weights,
            selection_split=_selection_split(list(results.values())),
        )
        targets = [
            result
            for number, pair in enumerate(self._targets)
            for result in self._answer(loaded, pair, row.attached(number))
        ]
        to_suite = stages_in(row.suite_prompt)
        suite = self._answer(loaded, self._suite, to_suite) if self._suite else []
        for shot_seed, pair in self._redrawn.items():
            place = directory / f"{report.REDRAWN}{shot_seed}"
            said = f"{label} demonstrations {shot_seed}:"
            redrawn = dataclasses.replace(loaded, directory=place, label=said)
            self._answer(redrawn, pair, to_suite)
        asked = [*targets, *suite]
        made = report.ReportRow(
            label=row.label,
            seed=seed,
            targets={task.task: task.score for task in targets},
            suite={task.task: task.score for task in suite},
            position=position,
            stage=row.stage,
            share=row.shares[0] if row.shares else None,
            checkpoints=chosen,
            split={task.task: task.split for task in asked},
            selection_split={t.task: loaded.selection_split.get(t.task) for t in asked},
            shot_seeds=list(self._redrawn),
        )
        return _written(made, directory)

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
        for names in [*map(stages_in, row.prompts), stages_in(row.suite_prompt)]:
            prompts = [name for name in names if self._stages[name].prompt is not None]
            if len(prompts) > 1:
                raise UserError(
                    f"Row {row.label!r} of the comparison attaches the prompts of {prompts} at "
                    "once; a question has one prompt in front of it."
                )

    def _check_tasks(self) -> None:
        """Refuse a task that is asked twice: a row keeps one file of answers per task."""
        pairs = [*self._targets, *([self._suite] if self._suite else [])]
        names = [task.name for pair in pairs for task in pair.plain.tasks]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"The comparison would ask {name!r} twice and keep its answers once: it is in "
                    f"two of the targets or in a target and SUITE; leave it out of one of them."
                )

    def _check_shot_seeds(self) -> None:
        seeds = list(self._comparison.suite_shot_seeds)
        own = self._model.task_format.shot_seed
        if own in seeds or len(set(seeds)) < len(seeds):
            raise UserError(
                f"SUITE_SHOT_SEEDS = {seeds} draws the same demonstrations twice: the suite is "
                f"asked with format.Format.shot_seed = {own} anyway; name each other seed once."
            )
        if self._suite is not None and seeds:
            tasks = self._suite.plain.tasks
            if not any(tokenization.shows_demonstrations(task.task) for task in tasks):
                raise UserError(
                    f"SUITE_SHOT_SEEDS = {seeds}: no task of the suite shows demonstrations that "
                    f"are drawn ({', '.join(task.name for task in tasks)})."
                )

    def _prompted(self) -> list[bool]:
        """For each target, whether any row attaches a prompt to it."""
        return [
            any(self._prompt_of(row.attached(number)) for row in self._comparison.rows)
            for number in range(len(self._comparison.targets))
        ]

    def _result(self, home: epath.Path, name: str) -> StageResult:
        result = StageResult.read(home / name)
        assert result is not None, f"the stages of {home} run before its rows"
        return result

    def _base_of(self, row: Row) -> str | None:
        return self._comparison.base if row.stage is None else row.stage

    def _prompt_of(self, attached: Sequence[str]) -> str | None:
        """Return the stage whose prompt is attached, of those that a row names."""
        return next((name for name in attached if self._stages[name].prompt is not None), None)

    def _load(self, row: Row, weights: Weights, label: str) -> Loaded:
        """Read the row's model without a prompt onto the mesh."""
        model = self._model.without_prompt()
        wanted = laid_out(model.param_shapes(), model.param_axes(), self._partitioner)
        loaded = self._read(self._base_of(row), wanted, weights, label)
        if not row.shares:
            return loaded
        (share,) = row.shares
        base = self._read(self._comparison.base, wanted, weights, label)
        mixed = _interpolated(loaded.arrays, base.arrays, share)
        origin = f"{share:g} of {loaded.origin}; {1 - share:g} of {base.origin}"
        return Loaded(arrays=mixed, origins=dict.fromkeys(mixed, origin))

    def _read(self, base: str | None, wanted: Tree, weights: Weights, label: str) -> Loaded:
        loaded = weights.read(base, flatten(wanted), seed=0)
        if processes.is_primary():
            for line in loaded.summary():
                print(f"{label} {line}", flush=True)
        return loaded

    def _answer(
        self, loaded: _LoadedRow, pair: EvaluatorPair, attached: Sequence[str]
    ) -> list[TaskResult]:
        """Evaluate a row's model on the tasks of a pair, with what stages have to attach."""
        model = loaded.model
        for name in attached:
            if self._stages[name].adapter is not None and not loaded.weights.holds_adapter(
                loaded.base, name
            ):
                model = loaded.weights.with_adapter(model, name)
        params, prompt_origin = unflatten(model.arrays), None
        prompt = self._prompt_of(attached)
        if prompt is not None:
            table, prompt_origin = loaded.weights.prompt(prompt, seed=0, base=None)
            sharding = self._partitioner.sharding(PROMPT_AXES)
            params = with_prompt(params, self._partitioner.place(table, sharding))
        run = eval_run(
            loaded.directory,
            0,
            params,
            path=loaded.base,
            origin=model.origin,
            prompt_origin=prompt_origin,
            selection_split=loaded.selection_split,
        )
        with self._partitioner.activate():
            evaluator = pair.for_prompt(prompt is not None)
            return evaluator.run(params, f"{loaded.label} {pair.name}", run)


def _interpolated(
    tuned: Mapping[str, jax.Array], base: Mapping[str, jax.Array], share: float
) -> dict[str, jax.Array]:
    """Return share · tuned + (1 − share) · base of each array, in place of `tuned`."""

    def mix(tuned: Any, base: Any, share: Any) -> Any:
        return jax.tree.map(lambda t, b: share * t + (1.0 - share) * b, tuned, base)

    formats = jax.tree.map(lambda array: array.format, dict(tuned))
    mixed: dict[str, jax.Array] = jax.jit(mix, out_shardings=formats, donate_argnums=0)(
        dict(tuned), dict(base), share
    )
    return mixed


def _recorded(
    directory: epath.Path, chosen: Mapping[str, int], shot_seeds: Sequence[int]
) -> report.ReportRow | None:
    """Return the row on file, unless it is of other checkpoints or lacks some demonstrations."""
    path = directory / report.FILE
    if not path.exists():
        return None
    row = read_json(path, report.ReportRow)
    # An older version's rows do not name their checkpoints, and its stages never went on.
    is_whole = set(shot_seeds) <= set(row.shot_seeds)
    return row if is_whole and row.checkpoints in ({}, chosen) else None


def _written(row: report.ReportRow, directory: epath.Path) -> report.ReportRow:
    if processes.is_primary():
        write_atomically(
            directory / report.FILE, json.dumps(dataclasses.asdict(row), indent=1) + "\n"
        )
    return row


def _selection_split(results: Sequence[StageResult]) -> dict[str, str]:
    """By task, the splits on which any of the stages chose its checkpoint, joined by `+`."""
    splits: dict[str, set[str]] = {}
    for result in results:
        for task, split in result.selection_split.items():
            splits.setdefault(task, set()).add(split)
    return {task: "+".join(sorted(several)) for task, several in splits.items()}
