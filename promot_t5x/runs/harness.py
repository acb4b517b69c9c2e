"""A model of the Language Model Evaluation Harness: `lm_eval --model promot_t5x` on a checkpoint.

Contexts are inputs, continuations are targets, as the harness has it for its own models: of a
sequence-to-sequence model a context ends in EOS, and a continuation never does.
"""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from promot_t5x import config, decoding
from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.evaluation.answering import Answer, Answerer, EncodedQuestion
from promot_t5x.network.prompt import prompt_ids
from promot_t5x.runs import infer, preflight
from promot_t5x.runs.eval import Checkpoint, load, with_prompt_table
from promot_t5x.runs.weights import Weights
from promot_t5x.tasks import dialects

NAME = "promot_t5x"
# What the harness gives every model, and the mesh decides here.
_GIVEN_ANYWAY = {"device", "max_batch_size"}


class HarnessModel:
    """What the harness asks of a model; `register` makes one of its own classes of it.

    **Arguments:**

    - `gin_file`: the model's gin files, separated by `;`, or a list of them.
    - `checkpoint_path`: a checkpoint of any format; a prompt in it is left behind.
    - `prompt_file`: a prompt that precedes every context.
    - `inputs`: most tokens of a context, the prompt included; a longer one loses its beginning.
    - `targets`: most tokens of an answer, unless the task says how many.
    - `gin_bindings`: further settings, separated by `;`, or a list of them.
    - `batch_size`: the harness's own flag; `auto` is 32.

    **Raises:** `UserError` for bad input.
    """

    def __init__(
        self,
        gin_file: str | Sequence[str],
        checkpoint_path: str,
        prompt_file: str | None = None,
        inputs: int = 512,
        targets: int = 64,
        gin_bindings: str | Sequence[str] = (),
        batch_size: int | str = 32,
        **others: Any,
    ):
        super().__init__()
        if unknown := sorted(others.keys() - _GIVEN_ANYWAY):
            known = list(inspect.signature(HarnessModel).parameters)[:-1]
            raise UserError(
                f"--model_args of {NAME} have no {unknown[0]!r}; there are {', '.join(known)}."
                f"{did_you_mean(unknown[0], known)}"
            )
        config.configured(infer.infer)
        macros = {
            "CHECKPOINT_PATH": checkpoint_path,
            "PROMPT_FILE": prompt_file,
            "INPUT_FILE": infer.STANDARD_INPUT,
            "INFER_OUTPUT_DIR": None,
            "TASK_FEATURE_LENGTHS": {"inputs": int(inputs), "targets": int(targets)},
            "BATCH_SIZE": int(batch_size) if str(batch_size).isdecimal() else 32,
        }
        bindings = [*_several(gin_bindings), *(f"{n} = {v!r}" for n, v in macros.items())]
        config.parse([*_several(gin_file), "runs/infer.gin"], bindings, [])
        config.check([infer.infer])
        given = config.arguments(infer.infer)
        self._partitioner, self._questions = given.pop("partitioner"), given["questions"]
        preflight.infer(**given)
        model = given["model"]
        self._model = (
            with_prompt_table(model, prompt_file) if prompt_file else model.without_prompt()
        )
        weights = Weights(self._model)
        weights.check(checkpoint_path, {}, "base")
        weights.check(prompt_file, {}, "prompt")
        checkpoint = Checkpoint(path=checkpoint_path, label="", step=0)
        place = epath.Path(".")
        self._params, _ = load(
            weights,
            checkpoint,
            prompt_file,
            (),
            place,
            self._model,
            self._partitioner,
            given["frozen_dtype"],
        )
        self._prompt = np.zeros(0, np.int32)
        if self._model.config.num_virtual_ids:
            self._prompt = np.asarray(prompt_ids(self._model.config, 0), np.int32)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer contexts greedily, up to what ends an answer."""
        del disable_tqdm
        asked = []
        for number, request in enumerate(requests):
            context, settings = request.args
            if settings.get("do_sample") and settings.get("temperature", 1.0):
                raise UserError(
                    f"the task {request.task_name!r} asks for samples (do_sample = True); "
                    f"{NAME} answers greedily: --gen_kwargs do_sample=False."
                )
            limit = int(
                settings.get("max_gen_toks", self._questions.task_feature_lengths["targets"])
            )
            asked.append(EncodedQuestion(self._context(context), limit, number))
        return [
            _cut(self._said(answer), request.args[1])
            for answer, request in zip(self._answers(asked), requests, strict=True)
        ]

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood, and whether it is the greedy answer.

        One without tokens is certain.
        """
        del disable_tqdm
        found = [(0.0, True)] * len(requests)
        scored, greedy = [], []
        for number, request in enumerate(requests):
            context, continuation = request.args
            # Spaces belong to what follows them.
            stripped = context.rstrip()
            continuation = context[len(stripped) :] + continuation
            ids = dialects.target_ids(self._model.vocabulary, self._model.dialect, continuation)
            target = ids[:-1]  # without EOS
            if not len(target):
                continue
            inputs = self._context(stripped)
            scored.append(EncodedQuestion(inputs, len(target), number, (target,)))
            greedy.append(EncodedQuestion(inputs, len(target), number))
        for answer, said, question in zip(
            self._answers(scored), self._answers(greedy), scored, strict=True
        ):
            said_first = said["ids"][0][: question.limit]
            found[question.number] = (answer["log_probs"][0], said_first == answer["ids"][0])
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Refuse it: not every model here has it."""
        raise UserError(
            f"the task {requests[0].task_name!r} asks for the likelihood of whole documents, which "
            f"{NAME} does not give: leave it out."
        )

    def _context(self, text: str) -> np.ndarray:
        """Return a context as the encoder gets it; a long one loses its beginning, as elsewhere."""
        vocabulary = self._model.vocabulary
        ids = dialects.question_ids(vocabulary, self._model.dialect, text)
        room = self._questions.task_feature_lengths["inputs"] - len(self._prompt)
        if room < 1:
            raise UserError(f"inputs = {room + len(self._prompt)} has no room behind the prompt.")
        return np.concatenate([self._prompt, ids[-room:]])

    def _answers(self, questions: Sequence[EncodedQuestion]) -> list[Answer]:
        answerer = Answerer(
            self._model, decoding.Greedy(), self._questions.batch_size, self._partitioner
        )
        answerer.plan(questions)
        with self._partitioner.activate():
            answers, _ = answerer.answers(self._params, NAME)
        return answers

    def _said(self, answer: Answer) -> str:
        return self._model.dialect.read(dialects.decode(self._model.vocabulary, answer["ids"][0]))


def register() -> None:
    """Make `--model promot_t5x` known to the harness in this process."""
    from lm_eval.api.model import LM
    from lm_eval.api.registry import model_registry

    importlib.import_module("lm_eval.models")  # which registers the harness's own
    if NAME not in model_registry:
        model_registry.register(NAME, target=type("PromotT5X", (HarnessModel, LM), {}))


def _several(values: str | Sequence[str]) -> list[str]:
    return [v for v in values.split(";") if v] if isinstance(values, str) else list(values)


def _cut(text: str, settings: Mapping[str, Any]) -> str:
    ends = settings.get("until") or []
    for end in [ends] if isinstance(ends, str) else ends:
        if end:
            text = text.split(end)[0]
    return text
