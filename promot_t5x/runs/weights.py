"""Where the parameters of a stage, or of a row of the comparison, come from.

Every array has one stated origin: a pretrained checkpoint, an earlier stage, a prompt file, or a
random initializer that was asked for by name. Nothing starts from scratch by accident, and
nothing is read that is not asked for.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from promot_t5x.checkpoints import pretrained_names, prompt_file
from promot_t5x.checkpoints.adapters import open_adapter
from promot_t5x.checkpoints.formats.reading import NotACheckpointError
from promot_t5x.checkpoints.formats.shape import EMBEDDING
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.checkpoints.sharded_reading import read_sharded
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.models.model import Model
from promot_t5x.network import lora, quantization
from promot_t5x.network.config import NetworkConfig
from promot_t5x.network.lora import LoRA
from promot_t5x.network.parameters import initial_params
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.paths import user_path
from promot_t5x.runs.stages import Stage
from promot_t5x.training.state import count, flatten


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """Parameters by path, and where each came from in words; scales come with what they scale."""

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
            arrays = [a for path, a in self.arrays.items() if self.origins.get(path) == origin]
            lines.append(f"{len(arrays)} arrays, {count(arrays):,} parameters from {origin}")
        return lines


class Weights:
    """Finds weights, prompts and adapters by reference: an earlier stage's name, or a path."""

    def __init__(
        self,
        model: Model,
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
        """Raise `UserError` where a base, prompt or adapter can be neither found nor used.

        **Arguments:**

        - `reference`: as a `Stage` has it.
        - `earlier`: the stages that will have run by then.
        - `what`: `base`, `prompt` or `adapter`, for the message.
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
        if what == "adapter":
            open_adapter(reference, self._model.config)
            return
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
        - `wanted`: the parameters by path, in the dtype and sharding in which they are to lie, of
          int8 ones the scales too; of a sharded array each process reads its own part. Numpy
          arrays where there is no sharding.
        - `seed`: of random ones.
        """
        arrays: dict[str, Any] = {}
        origins: dict[str, str] = {}
        adapted: list[tuple[str, set[str]]] = []
        while rest := {path: leaf for path, leaf in wanted.items() if path not in arrays}:
            if reference is None:
                model = self._model.without_prompt()
                found, origin = self._random(rest, seed, model), f"scratch (seed {seed})"
            elif (stage := self._stages.get(reference)) is None:
                found = open_checkpoint(reference, self._model.config).read(rest)
                origin = f"the base {reference}"
            else:
                # What the stage trained; it took the rest from its own base.
                result = self._result(reference)
                trained = result.trained()
                own = {p: a for p, a in rest.items() if quantization.owner(p) in trained.shapes}
                found = read_sharded(trained, own)
                origin = f"this run: stage {reference}, step {result.step}"
                if any(map(lora.is_adapter, trained.shapes)):
                    adapted.append((reference, set(rest)))
                reference, seed = stage.base, stage.random_seed
            arrays |= found
            origins |= {p: origin for p in found if not quantization.is_scale(p)}
        loaded = Loaded(arrays={p: arrays[p] for p in wanted}, origins=origins)
        for name, paths in reversed(adapted):
            loaded = self.with_adapter(loaded, name, within=paths)
        return loaded

    def model_of(self, stage: Stage) -> Model:
        """Return the model that a stage trains: with a prompt table and adapters if it has them."""
        model = self._model if stage.prompt is not None else self._model.without_prompt()
        return model.with_lora(self.lora(stage.adapter))

    def lora(self, reference: LoRA | str | None) -> LoRA | None:
        """Return which kernels an adapter is of, and how.

        **Arguments:**

        - `reference`: as a `Stage` has it.
        """
        if not isinstance(reference, str):
            return reference
        if (stage := self._stages.get(reference)) is None:
            return open_adapter(reference, self._model.config).lora
        if stage.adapter is None:
            raise UserError(f"Stage {reference!r} has no adapter to give to another one.")
        return self.lora(stage.adapter)

    def adapter(
        self, reference: LoRA | str, wanted: Mapping[str, jax.ShapeDtypeStruct], *, seed: int
    ) -> tuple[dict[str, Any], str]:
        """Return the matrices of adapters, and where they came from.

        **Arguments:**

        - `reference`: as a `Stage` has it.
        - `wanted`: the matrices by path, in the dtype and sharding in which new ones are to lie;
          trained ones are numpy's, float32.
        - `seed`: of new ones.
        """
        if isinstance(reference, LoRA):
            model = self._model.without_prompt().with_lora(reference)
            return self._random(wanted, seed, model), f"scratch: adapters (seed {seed})"
        if reference not in self._stages:
            arrays = open_adapter(reference, self._model.config).arrays
            return dict(arrays), f"the adapter {reference}"
        stage, result = self._stages[reference], self._result(reference)
        trained = result.trained()
        if not any(map(lora.is_adapter, trained.shapes)):
            # The stage kept its adapter frozen, so its adapter is the one that it started with.
            assert stage.adapter is not None  # as `lora` has checked
            return self.adapter(stage.adapter, wanted, seed=stage.random_seed)
        plain = {p: jax.ShapeDtypeStruct(a.shape, np.float32) for p, a in wanted.items()}
        return trained.read(plain), f"this run: stage {reference}, step {result.step}"

    def holds_adapter(self, base: str | None, reference: str) -> bool:
        """Whether a stage's weights, as `read` gives them, hold an adapter already.

        **Arguments:**

        - `base`: the stage of the weights, or what they are otherwise.
        - `reference`: the stage of the adapter.
        """
        source, trainer = self._stages[reference], reference
        while not source.trains_adapter(self.model_of(source)):
            if not isinstance(source.adapter, str) or source.adapter not in self._stages:
                return False
            trainer, source = source.adapter, self._stages[source.adapter]
        while base is not None and base in self._stages and base != trainer:
            base = self._stages[base].base
        return base == trainer

    def with_adapter(
        self, loaded: Loaded, reference: str, *, within: Collection[str] | None = None
    ) -> Loaded:
        """Merge an adapter into the kernels that it is of.

        **Arguments:**

        - `loaded`: parameters of the model; its kernels stay as they are, others take their place.
        - `reference`: an earlier stage, or a path.
        - `within`: the paths of the kernels that it may change; None for all.
        """
        settings = self.lora(reference)
        assert settings is not None
        shapes = flatten(self._model.without_prompt().with_lora(settings).param_shapes())
        parts, origin = self.adapter(reference, lora.adapters_of(shapes), seed=0)
        arrays, origins = dict(loaded.arrays), dict(loaded.origins)
        for path in sorted({lora.kernel_of(part) for part in parts}):
            if path in arrays and (within is None or path in within):
                # A kernel in int8 is quantized again, and moves by half a scale more at most.
                own = [path, quantization.scale_of(path)]
                kernel = {p: arrays[p] for p in own if p in arrays}
                where = {p: getattr(a, "format", None) for p, a in kernel.items()}
                a, b = (parts[part] for part in lora.parts_of(path))
                merge = _merger(tuple(where.values()))
                merged = merge(tuple(kernel.values()), a, b, settings.scale)
                arrays |= zip(kernel, merged, strict=True)
                origins[path] = f"{origins[path]}, with the adapter of {origin}"
        return Loaded(arrays=arrays, origins=origins)

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

    def _random(self, wanted: Mapping[str, Any], seed: int, model: Model) -> dict[str, Any]:
        formats = {path: leaf.format for path, leaf in wanted.items()}
        drawn = _drawing(model.config, tuple(wanted.items()))(jax.random.key(seed))
        return {p: a if formats[p].sharding else np.asarray(a) for p, a in drawn.items()}


@functools.lru_cache(maxsize=16)
def _drawing(
    config: NetworkConfig, wanted: tuple[tuple[str, Any], ...]
) -> Callable[[jax.Array], dict[str, Any]]:
    """Return what draws parameters of a network, compiled once for all the rows that want them.

    **Arguments:**

    - `wanted`: the path of each, and its shape, type and format.
    """

    def draw(key: jax.Array) -> dict[str, Any]:
        return quantization.cast(flatten(initial_params(config, key)[0]), dict(wanted))

    return jax.jit(draw, out_shardings={path: leaf.format for path, leaf in wanted})


def adapter_paths(given: str | Sequence[str] | None) -> Sequence[str]:
    """Return the adapters that ADAPTER_FILE names."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)


def _merged(kernel: tuple[Any, ...], a: Any, b: Any, scale: float) -> tuple[Any, ...]:
    """Return `lora.merged` of a kernel, or of one in int8 and its scales."""
    if len(kernel) == 1:
        return (lora.merged(*kernel, a, b, scale),)
    whole = quantization.dequantized("kernel", *kernel)
    return quantization.quantized("kernel", lora.merged(whole, a, b, scale))


@functools.cache
def _merger(where: tuple[Any, ...]) -> Callable[..., Any]:
    """Return `_merged` for kernels that lie so; where None, for numpy's."""
    if where == (None,):
        return _merged
    compiled = jax.jit(_merged, static_argnums=3, out_shardings=where)

    def merge(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return compiled(*arguments)

    return merge
