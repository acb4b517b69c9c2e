"""Measure one checkpoint on a task or mixture, with a prompt or without: `promot-t5x eval`."""

import jax
from etils import epath

from promot_t5x import config, report, run_directory
from promot_t5x.evaluate import EvalConfig, Evaluator, TaskResult, write_results
from promot_t5x.models import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner
from promot_t5x.state import with_prompt
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

    params, _ = weights.model_weights(checkpoint_path, seed=0)
    if prompt_path:
        params = with_prompt(params, weights.prompt(prompt_path, seed=0, base=params)[0])
    with partitioner.activate():
        shardings = partitioner.shard_tree(model.param_axes(), params)
        results = evaluator.run(partitioner.place(params, shardings), "evaluate")
    if jax.process_index() == 0:
        write_results(directory, results, 0)
        for result in results:
            scores = "  ".join(f"{k} {report.number(v)}" for k, v in result.metrics.items())
            print(f"{result.task}  {scores}  ({len(result.records)} examples)")
    return results
