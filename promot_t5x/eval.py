"""Measure one checkpoint on a task or mixture, with a prompt or without: `promot-t5x eval`."""

import jax
from etils import epath

from promot_t5x import config, run_directory
from promot_t5x.evaluate import EvalConfig, Evaluator, eval_run
from promot_t5x.models import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner
from promot_t5x.prompt import PROMPT_AXES
from promot_t5x.records import TaskResult
from promot_t5x.report import rows as report
from promot_t5x.state import flatten, laid_out, unflatten, with_prompt
from promot_t5x.weights import Weights


def evaluate(
    *,
    model: EncoderDecoderModel,
    checkpoint_path: str,
    prompt_path: str | None = None,
    questions: EvalConfig,
    output_dir: str,
    partitioner: Partitioner,
) -> list[TaskResult]:
    """Ask a checkpoint's model a task's questions, score the answers and write them down.

    **Arguments:**

    - `checkpoint_path`: anything that can be a base; a prompt in it is left behind.
    - `prompt_path`: a prompt file to attach, or none to ask without one.
    - `output_dir`: gets `inference_eval/` and `config.gin`.
    """
    directory = epath.Path(output_dir)
    model = model if prompt_path else model.without_prompt()
    weights = Weights(model)
    weights.check(checkpoint_path, {}, "base")
    weights.check(prompt_path, {}, "prompt")
    evaluator = Evaluator(model, questions, partitioner)
    run_directory.claim(directory, config.resolved_str())

    plain = model.without_prompt()
    wanted = laid_out(plain.param_shapes(), plain.param_axes(), partitioner)
    loaded = weights.read(checkpoint_path, flatten(wanted), seed=0)
    params, prompt_origin = unflatten(loaded.arrays), None
    if prompt_path:
        table, prompt_origin = weights.prompt(prompt_path, seed=0, base=checkpoint_path)
        placed = partitioner.place(table, partitioner.sharding(PROMPT_AXES))
        params = with_prompt(params, placed)
    with partitioner.activate():
        run = eval_run(
            directory,
            0,
            params,
            path=checkpoint_path,
            origin=loaded.origin,
            prompt_origin=prompt_origin,
        )
        results = evaluator.run(params, "evaluate", run)
    if jax.process_index() == 0:
        for result in results:
            scores = "  ".join(f"{k} {report.number(v)}" for k, v in result.metrics.items())
            print(f"{result.task}  {scores}  ({len(result.records)} examples)")
    return results
