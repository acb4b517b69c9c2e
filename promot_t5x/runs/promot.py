"""Run the whole experiment: the stages, the baseline, and the comparison of what they left.

The stages run in order, each from the pretrained checkpoint or from an earlier stage; then every
row's model answers the target with its prompt and the in-context suite without any. What is
finished is never done again: after a kill the same command resumes the run, and with more stages,
rows or seeds it does what these add.
"""

from collections.abc import Mapping, Sequence

from etils import epath

from promot_t5x import config
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.distributed import preemption, processes
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.models.model import Model
from promot_t5x.paths import user_path
from promot_t5x.report import rows as report
from promot_t5x.report.output import show_run
from promot_t5x.runs import compiled_programs, goodput, preflight, run_directory
from promot_t5x.runs.comparison import Comparison as Comparison
from promot_t5x.runs.comparison import Row as Row
from promot_t5x.runs.comparison import row_directory
from promot_t5x.runs.comparison_evaluator import ComparisonEvaluator
from promot_t5x.runs.growth import check_growth, trained_steps
from promot_t5x.runs.loggers import Logger, attach, running, send
from promot_t5x.runs.outlook import Outlook
from promot_t5x.runs.stages import Stage
from promot_t5x.runs.train import Trainer
from promot_t5x.runs.weights import Weights

# What a run may be asked for later, as the configuration calls it.
MORE = (
    *("SEEDS", "promot.promot.seeds"),
    *("SUITE_SHOT_SEEDS", "promot.Comparison.suite_shot_seeds"),
)
# What it may have more of, as the configuration calls it.
LONGER = ("STAGES", "promot.promot.stages", "ROWS", "promot.Comparison.rows")


def promot(
    *,
    model: Model,
    stages: Sequence[Stage],
    comparison: Comparison,
    model_dir: str,
    partitioner: Partitioner,
    seeds: Sequence[int] | None = None,
    loggers: Sequence[Logger] = (),
) -> list[report.ReportRow]:
    """Run `stages` in `model_dir` and print the comparison; `promot-t5x promot` calls this.

    **Arguments:**

    - `model`: the network with its vocabulary and loss, and the prompts' size.
    - `stages`: in the order in which they run.
    - `comparison`: the models and tasks of the table.
    - `model_dir`: the run's own directory.
    - `partitioner`: the mesh.
    - `seeds`: run the stages once with each of these in place of their own seeds, in
      `<model_dir>/seed_<n>`; more may be added later.
    - `loggers`: of `runs.loggers`, get the numbers besides TensorBoard and JSON lines.

    **Returns:** the rows of the table, those of each seed one after the other.

    **Raises:** `UserError` for bad input to any stage, before the first one starts.
    """
    with goodput.accounted():
        return _promot(model, stages, comparison, model_dir, partitioner, seeds, loggers)


def _promot(
    model: Model,
    stages: Sequence[Stage],
    comparison: Comparison,
    model_dir: str,
    partitioner: Partitioner,
    seeds: Sequence[int] | None,
    loggers: Sequence[Logger],
) -> list[report.ReportRow]:
    preflight.promot(
        model=model,
        stages=stages,
        comparison=comparison,
        model_dir=model_dir,
        seeds=seeds,
        loggers=loggers,
    )
    directory = user_path(model_dir, "MODEL_DIR")
    by_name = {stage.name: stage for stage in stages}
    weights = Weights(model, by_name, directory)
    trainers = []
    for index, stage in enumerate(stages):
        earlier = {s.name: s for s in stages[:index]}
        trainers.append(Trainer(model, stage, weights, partitioner, earlier))
    evaluator = ComparisonEvaluator(model, comparison, by_name, weights, partitioner)
    homes = _homes(directory, seeds)

    def check() -> None:
        for home in homes.values():
            check_growth(by_name, {name: home / name for name in by_name})

    run_directory.claim(
        directory, config.resolved_str(), may_change=MORE, may_extend=LONGER, check=check
    )

    # Before anything trains, all that will be asked is read.
    if any(StageResult.read(home / name) is None for home in homes.values() for name in by_name):
        with goodput.current().spent(goodput.DATA):
            evaluator.check()

    # What no stage has changed is the same for every seed.
    shared = [row for row in comparison.rows if seeds is not None and not row.stages]
    own = [row for row in comparison.rows if row not in shared]
    outlook = _outlook(by_name, homes, directory, shared, own)
    rows = []

    def evaluate(row: Row, home: epath.Path, weights: Weights, seed: int | None) -> None:
        place = row_directory(home, row)
        with goodput.current().spent(goodput.EVALUATION), outlook.evaluating(str(place)):
            made = evaluator.evaluate(row, home, weights, seed)
        rows.append(made)
        send(place, 0, {**made.targets, **made.suite})

    tokens = run_directory.token_cache(directory)
    with (
        running(loggers, directory, config.resolved_str()),
        outlook.shown(),
        compiled_programs.kept(directory),
    ):
        for row in shared:
            evaluate(row, directory, weights, None)
        for seed, home in homes.items():
            weights, seeded = Weights(model, by_name, home), trainers
            if seed is not None:
                weights = Weights(model, {s.name: s.with_seed(seed) for s in stages}, home)
                seeded = [trainer.seeded(seed, weights) for trainer in trainers]
            for trainer in seeded:
                preemption.stop_if_reached()
                place = home / trainer.stage.name
                with outlook.training(str(place)):
                    trainer.run(place, tokens, outlook)
            for row in own:
                evaluate(row, home, weights, seed)

        if processes.is_primary():
            show_run(directory)
            attach("report.md", (directory / "report.md").read_text())
    return rows


def _homes(directory: epath.Path, seeds: Sequence[int] | None) -> dict[int | None, epath.Path]:
    """Return the directory of each seed's stages; the run's own where SEEDS is not set."""
    if seeds is None:
        return {None: directory}
    return {seed: directory / f"seed_{seed}" for seed in seeds}


def _outlook(
    stages: Mapping[str, Stage],
    homes: Mapping[int | None, epath.Path],
    directory: epath.Path,
    shared: Sequence[Row],
    own: Sequence[Row],
) -> Outlook:
    """Return what an earlier launch has left to do of a run."""
    steps: dict[str, int] = {}
    for home in homes.values():
        for name, stage in stages.items():
            finished = StageResult.read(home / name)
            if finished is None or trained_steps(finished) < stage.train_steps:
                steps[str(home / name)] = stage.train_steps
    rows = [(directory, row) for row in shared]
    rows += [(home, row) for home in homes.values() for row in own]
    return Outlook(
        steps,
        [
            str(row_directory(home, row))
            for home, row in rows
            if any(str(home / name) in steps for name in row.stages)
            or not (row_directory(home, row) / report.FILE).exists()
        ],
    )
