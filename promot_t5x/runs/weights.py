"""Where the parameters of a stage, or of a row of the comparison, come from.

Every array has one stated origin: a pretrained checkpoint, an earlier stage, a prompt file, or a
random initializer that was asked for by name. Nothing starts from scratch by accident, and
nothing is read that is not asked for.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from promot_t5x.checkpoints import pretrained_names, prompt_file
from promot_t5x.checkpoints.formats.reading import NotACheckpointError
from promot_t5x.checkpoints.formats.shape import EMBEDDING
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.paths import user_path
from promot_t5x.runs.stages import Stage
from promot_t5x.training.state import count, flatten


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """Parameters by path, and where each came from in words."""

    arrays: dict[str, Any]
    origins: dict[str, str]

    @property
    def origin(self) -> str:
        """Where the parameters came from, on one line."""
        return "; ".join(dict.fromkeys(self.origins.values()))

    def summary(self) -> list[str]:
        """Return a line for each origin: how much of the model came from there."""
        lines = []
        for origin in dict.fromkeys(self.origins.values()):
            arrays = [a for path, a in self.arrays.items() if self.origins[path] == origin]
            lines.append(f"{len(arrays)} arrays, {count(arrays):,} parameters from {origin}")
        return lines


class Weights:
    """Finds weights and prompts by reference: an earlier stage's name, or a path."""

    def __init__(
        self,
        model: EncoderDecoderModel,
        stages: Mapping[str, Stage] | None = None,
        directory: epath.Path | None = None,
    ):
        """Remember where things are.

        **Arguments:**

        - `model`: the model that takes the weights.
        - `stages`: the stages of this run by name.
        - `directory`: MODEL_DIR, which holds a directory for each of them.
        """
        self._model = model
        self._stages = dict(stages or {})
        self._directory = directory or epath.Path(".")

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
        known = [*earlier, *(pretrained_names.NAMES if what == "base" else ())]
        if not (reference in known or "/" in reference or user_path(reference, what).exists()):
            named = ", nor a base with a name (`promot-t5x convert --list` shows them)"
            raise UserError(
                f"{what} = {reference!r} is neither an earlier stage of this run"
                f"{named if what == 'base' else ''}, nor a path that exists."
                f"{did_you_mean(reference, known)}"
            )
        if what == "prompt":
            prompt_file.load_prompt(reference, shape=self._model.prompt_shape)
            return
        try:
            open_checkpoint(reference, self._model.config)
        except NotACheckpointError as error:
            raise UserError(
                f"The base cannot be read: {error} A base is a checkpoint_<step> directory, a "
                "stage's directory, a Hugging Face directory, or a name that `promot-t5x convert "
                "--list` shows; None starts from random weights."
            ) from None

    def read(
        self, reference: str | None, wanted: Mapping[str, jax.ShapeDtypeStruct], *, seed: int
    ) -> Loaded:
        """Read parameters of the model without any prompt.

        **Arguments:**

        - `reference`: an earlier stage, a checkpoint's path, or none for random ones.
        - `wanted`: the parameters by path, in the dtype and sharding in which they are to lie; of
          a sharded array each process reads its own part. Numpy arrays where there is no sharding.
        - `seed`: of random ones.
        """
        arrays: dict[str, Any] = {}
        origins: dict[str, str] = {}
        while rest := {path: leaf for path, leaf in wanted.items() if path not in arrays}:
            if reference is None:
                found, origin = self._random(rest, seed), f"scratch (seed {seed})"
            elif (stage := self._stages.get(reference)) is None:
                found = open_checkpoint(reference, self._model.config).read(rest)
                origin = f"the base {reference}"
            else:
                # What the stage trained; it took the rest from its own base.
                result = self._result(reference)
                trained = result.trained()
                found = trained.read({p: leaf for p, leaf in rest.items() if p in trained.shapes})
                origin = f"this run: stage {reference}, step {result.step}"
                reference, seed = stage.base, stage.random_seed
            arrays |= found
            origins |= dict.fromkeys(found, origin)
        return Loaded(arrays={p: arrays[p] for p in wanted}, origins=origins)

    def prompt(
        self, reference: Any, *, seed: int, base: str | None
    ) -> tuple[Float[np.ndarray, "prompts length embed"], str]:
        """Return the prompt table, float32, and where it came from.

        **Arguments:**

        - `reference`: an earlier stage, a prompt file, or an initializer of `prompt_init`.
        - `seed`: of an initializer.
        - `base`: the model's weights as `read` takes them, from whose embedding some initializers
          draw.
        """
        shape = self._model.prompt_shape
        if not isinstance(reference, str):
            rows, columns = self._model.config.vocab_size, self._model.config.emb_dim
            wanted = {EMBEDDING: jax.ShapeDtypeStruct((rows, columns), np.float32)}
            table = reference(
                jax.random.key(seed),
                shape,
                embedding=self.read(base, wanted, seed=seed).arrays[EMBEDDING],
                vocabulary=self._model.vocabulary,
            )
            return np.asarray(table, np.float32), f"scratch: {reference} (seed {seed})"
        if reference not in self._stages:
            return prompt_file.load_prompt(reference, shape=shape)[0], f"the file {reference}"
        stage, result = self._stages[reference], self._result(reference)
        trained = result.trained()
        if PROMPT_PATH in trained.shapes:
            wanted = {PROMPT_PATH: jax.ShapeDtypeStruct(shape, np.float32)}
            table = trained.read(wanted)[PROMPT_PATH]
            return table, f"this run: stage {reference}, step {result.step}"
        if stage.prompt is None:
            raise UserError(f"Stage {reference!r} has no prompt to give to another one.")
        # The stage kept its prompt frozen, so its prompt is the one that it started with.
        return self.prompt(stage.prompt, seed=stage.random_seed, base=stage.base)

    def _result(self, name: str) -> StageResult:
        result = StageResult.read(self._directory / name)
        if result is None:
            raise UserError(
                f"Stage {name!r} has not finished in {self._directory}; it must run before what "
                "needs it."
            )
        return result

    def _random(self, wanted: Mapping[str, Any], seed: int) -> dict[str, Any]:
        def draw(key: Any) -> dict[str, Any]:
            drawn = flatten(self._model.without_prompt().initial_params(key))
            return {path: drawn[path].astype(leaf.dtype) for path, leaf in wanted.items()}

        formats = {path: leaf.format for path, leaf in wanted.items()}
        drawn = jax.jit(draw, out_shardings=formats)(jax.random.key(seed))
        return {p: a if formats[p].sharding else np.asarray(a) for p, a in drawn.items()}
