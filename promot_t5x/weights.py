"""Where the parameters of a stage, or of a row of the comparison, come from.

Every array has one stated origin: the base checkpoint, an earlier stage, a prompt file, or a
random initialiser that was asked for by name. Nothing starts from scratch by accident.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from promot_t5x import bases, named_bases, prompt_file, restore, scan
from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.files import write_atomically
from promot_t5x.models import EncoderDecoderModel
from promot_t5x.prompt import PROMPT_PATH
from promot_t5x.stages import Stage
from promot_t5x.state import Tree, flatten, unflatten

RESULT_FILE = "stage.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageResult:
    """A finished stage: its directory, its chosen step, and that step's validation score."""

    directory: epath.Path
    step: int
    score: float | None

    def write(self) -> None:
        """Mark the stage as finished."""
        text = json.dumps({"step": self.step, "score": self.score}, indent=1)
        write_atomically(self.directory / RESULT_FILE, text + "\n")

    @classmethod
    def read(cls, directory: epath.Path) -> "StageResult | None":
        """The result that `write` left in a stage's directory, if the stage has finished."""
        path = directory / RESULT_FILE
        if not path.exists():
            return None
        return cls(directory=directory, **json.loads(path.read_text()))

    def trained(self) -> dict[str, np.ndarray]:
        """What the stage trained, {path: array}, at its chosen step."""
        return flatten(restore.read_trainable(self.directory, self.step))


class Weights:
    """Finds weights and prompts by reference: an earlier stage's name, or a path."""

    def __init__(
        self,
        model: EncoderDecoderModel,
        stages: Mapping[str, Stage] | None = None,
        directory: epath.Path | None = None,
    ):
        """**Arguments:**

        - `stages`: the stages of this run by name.
        - `directory`: MODEL_DIR, which holds a directory for each of them.
        """
        self._model = model
        self._stages = dict(stages or {})
        self._directory = directory or epath.Path(".")
        self._paths = flatten(model.without_prompt().param_shapes()).keys()
        self._base: tuple[str, Tree] | None = None  # the last one read: stages share it

    def check(self, reference: Any, earlier: Mapping[str, Stage], what: str) -> None:
        """Raise `UserError` where a base or prompt can be neither found nor used.

        **Arguments:**

        - `reference`: as a `Stage` has it.
        - `earlier`: the stages that will have run by then.
        - `what`: `base` or `prompt`, for the message.
        """
        if not isinstance(reference, str) or reference in earlier:
            return
        if reference in self._stages:
            raise UserError(
                f"{what} = {reference!r} is a stage that runs later; list it before the stage that "
                "needs it."
            )
        known = [*earlier, *(named_bases.SHIPPED if what == "base" else ())]
        if not (reference in known or "/" in reference or epath.Path(reference).exists()):
            raise UserError(
                f"{what} = {reference!r} is neither an earlier stage of this run, nor a base with "
                f"a name ({', '.join(known) or 'there is none'}), nor a path that exists."
                f"{did_you_mean(reference, known)}"
            )
        if what == "prompt":
            prompt_file.load_prompt(reference, shape=self._model.prompt_shape)
            return
        try:
            shapes = bases.param_shapes(reference)
        except UserError as error:
            raise UserError(
                f"The base cannot be read: {error} A base is a checkpoint_<step> directory, a "
                f"stage's directory, or one of {', '.join(named_bases.SHIPPED)}; None starts from "
                "random weights."
            ) from None
        self._check_shapes(shapes, reference)

    def model_weights(self, reference: str | None, *, seed: int) -> tuple[Tree, str]:
        """The model's parameters without any prompt, as host arrays, and where they came from.

        **Arguments:**

        - `reference`: an earlier stage, a checkpoint's path, or none for random ones.
        - `seed`: of the random ones.
        """
        if reference is None:
            params = self._model.without_prompt().initial_params(jax.random.key(seed))
            return jax.tree.map(np.asarray, params), f"scratch (seed {seed})"
        stage = self._stages.get(reference)
        if stage is None:
            return self._read_base(reference), reference
        result = self._result(reference)
        trained = result.trained()
        trained.pop(PROMPT_PATH, None)
        origin = f"stage {reference}, step {result.step}"
        if trained.keys() == self._paths:
            return unflatten(trained), origin
        base, base_origin = self.model_weights(stage.base, seed=stage.random_seed)
        if not trained:
            return base, base_origin
        return unflatten({**flatten(base), **trained}), f"{origin}, over {base_origin}"

    def prompt(self, reference: Any, *, seed: int, base: Tree) -> tuple[np.ndarray, str]:
        """The prompt table [prompts, length, embed], float32, and where it came from.

        **Arguments:**

        - `reference`: an earlier stage, a prompt file, or an initialiser of `prompt_init`.
        - `seed`: of an initialiser.
        - `base`: the model's parameters, from whose embedding some initialisers draw.
        """
        shape = self._model.prompt_shape
        if not isinstance(reference, str):
            table = reference(
                jax.random.key(seed),
                shape,
                embedding=base["token_embedder"]["embedding"],
                vocabulary=self._model.vocabulary,
            )
            return np.asarray(table, np.float32), f"{reference} (seed {seed})"
        if reference not in self._stages:
            return prompt_file.load_prompt(reference, shape=shape)[0], reference
        stage, result = self._stages[reference], self._result(reference)
        if (table := result.trained().get(PROMPT_PATH)) is not None:
            return table, f"stage {reference}, step {result.step}"
        if stage.prompt is None:
            raise UserError(f"Stage {reference!r} has no prompt to give to another one.")
        # The stage kept its prompt frozen, so its prompt is the one that it started with.
        weights, _ = self.model_weights(stage.base, seed=stage.random_seed)
        return self.prompt(stage.prompt, seed=stage.random_seed, base=weights)

    def _result(self, name: str) -> StageResult:
        result = StageResult.read(self._directory / name)
        if result is None:
            raise UserError(
                f"Stage {name!r} has not finished in {self._directory}; it must run before what "
                "needs it."
            )
        return result

    def _read_base(self, path: str) -> Tree:
        if self._base is None or self._base[0] != path:
            flat = flatten(bases.read_params(path))
            flat.pop(PROMPT_PATH, None)
            self._check_shapes(flat, path)
            params = unflatten(flat)
            if self._stacks(flat):
                params = scan.scan_params(params, self._model.config)
            self._base = (path, params)
        return self._base[1]

    def _stacks(self, paths: Any) -> bool:
        """Whether the network scans its layers and the checkpoint does not."""
        return self._model.config.scan_layers and not any(map(scan.layer_axis, paths))

    def _check_shapes(self, found: Mapping[str, Any], source: str) -> None:
        shapes = {path: leaf for path, leaf in found.items() if path != PROMPT_PATH}
        model = self._model.without_prompt()
        if self._stacks(shapes):
            model = model.unscanned()
        expected = {path: leaf.shape for path, leaf in flatten(model.param_shapes()).items()}
        try:
            bases.check_tree(traverse_util.unflatten_dict(shapes, sep="/"), expected)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
