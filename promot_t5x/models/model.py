"""The model as training sees it: a network, its vocabulary and its loss."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Shaped

from promot_t5x.errors import UserError
from promot_t5x.models import loss
from promot_t5x.models.objectives import Objective
from promot_t5x.network.config import NetworkConfig
from promot_t5x.network.lora import LoRA, check_kernels
from promot_t5x.network.parameters import (
    Module,
    initial_params,
    module_of,
    param_axes,
    param_shapes,
)
from promot_t5x.tasks import dialects, format

Batch = Mapping[str, Shaped[Array, "_ _"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(abc.ABC):
    """A network with the loss that trains it, whatever its kind.

    **Attributes:**

    - `module`: the network; its config says how many prompts there are and how long they are.
    - `input_vocabulary`, `output_vocabulary`: one `seqio.Vocabulary` under T5X's two names: inputs
      and targets share the embedding. The tasks must tokenize with it.
    - `label_smoothing`, `z_loss`: coefficients of the loss, see `loss.token_loss`.
    - `loss_normalizing_factor`: what the summed loss is divided by, see `loss.normalizer`.
    - `loss_chunk_tokens`: target tokens whose logits [tokens, vocab] exist at one time.
    - `dialect`: how the model is asked and where its answer stands, see `tasks.dialects`.
    - `task_format`: how prompts are put together where the paper is silent, see `tasks.format`.
      Both apply to the project's tasks and the user's, not to those registered with SeqIO.
    """

    # The class of the networks of this kind.
    network: ClassVar[type[Any]]

    module: Module
    input_vocabulary: Any
    output_vocabulary: Any
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    loss_normalizing_factor: float | str | None = None
    loss_chunk_tokens: int = 1024
    dialect: dialects.Dialect = dialects.PLAIN
    task_format: format.Format = format.DEFAULT

    def __post_init__(self) -> None:
        loss.check_normalizer(self.loss_normalizing_factor)
        loss.check_settings(self.label_smoothing, self.loss_chunk_tokens)
        for module in (self.module, module_of(self.config)):
            if not isinstance(module, self.network):
                raise UserError(
                    f"{type(self).__name__}.module is a {type(self.module).__name__} of a "
                    f"{type(self.config).__name__}; it must be a network.{self.network.__name__}: "
                    "choose the model file that the network is of."
                )
        if self.input_vocabulary != self.output_vocabulary:
            raise UserError(
                f"input_vocabulary ({self.input_vocabulary}) and output_vocabulary "
                f"({self.output_vocabulary}) differ, but inputs and targets share one "
                "embedding; set both to %VOCABULARY."
            )
        if self.vocabulary.vocab_size > self.config.vocab_size:
            raise UserError(
                f"The vocabulary {type(self.vocabulary).__name__} has {self.vocabulary.vocab_size} "
                f"ids, the model's embedding only NUM_EMBEDDINGS = {self.config.vocab_size} rows; "
                "raise NUM_EMBEDDINGS or choose the model's own VOCABULARY."
            )

    @property
    def vocabulary(self) -> Any:
        """The SeqIO vocabulary of inputs and targets."""
        return self.input_vocabulary

    @property
    @abc.abstractmethod
    def start_id(self) -> int | None:
        """The id that the decoder begins with; None: the last of the inputs, which goes there."""

    @property
    def config(self) -> NetworkConfig:
        """The network's configuration."""
        return self.module.config

    @property
    def prompt_shape(self) -> tuple[int, int, int]:
        """[prompts, length, embed] of the prompt table; zeros where there is none."""
        config = self.config
        return config.num_prompts, config.prompt_length, config.emb_dim

    def without_prompt(self) -> "Model":
        """Return the same model with no prompt table."""
        return self.with_prompts(0, 0)

    def with_shot_seed(self, seed: int) -> "Model":
        """Return the same model, asked with the demonstrations that another seed draws."""
        task_format = dataclasses.replace(self.task_format, shot_seed=seed)
        return dataclasses.replace(self, task_format=task_format)

    def unscanned(self) -> "Model":
        """Return the same model with its layers one by one, as checkpoints hold them."""
        return self._with(scan_layers=False)

    def trained_with(self, dropout_rate: float | None, label_smoothing: float | None) -> "Model":
        """Return the model with a stage's own regularization.

        **Arguments:**

        - `dropout_rate`, `label_smoothing`: in place of the model's; None keeps the model's.
        """
        model = self if dropout_rate is None else self._with(dropout_rate=dropout_rate)
        if label_smoothing is None:
            return model
        return dataclasses.replace(model, label_smoothing=label_smoothing)

    def with_prompts(self, num_prompts: int, prompt_length: int) -> "Model":
        """Return the same model with a table of so many prompts of so many vectors."""
        return self._with(num_prompts=num_prompts, prompt_length=prompt_length)

    def with_lora(self, lora: LoRA | None) -> "Model":
        """Return the same model with adapters beside its kernels, or without any.

        **Raises:** `UserError` for a pattern that matches no kernel.
        """
        if lora is not None:
            check_kernels(lora, list(flatten_dict(self.param_shapes(), sep="/")))
        return self._with(lora=lora)

    def _with(self, **changes: Any) -> "Model":
        config = dataclasses.replace(self.config, **changes)
        return dataclasses.replace(self, module=module_of(config))

    def hidden(
        self, params: Any, batch: Batch, dropout_key: Any | None = None
    ) -> Float[Array, "batch length embed"]:
        """Return the decoder's final activations; dropout is off without a key."""
        hidden: Array = self.module.apply(  # type: ignore[assignment]
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            batch["decoder_target_tokens"],
            encoder_segment_ids=batch.get("encoder_segment_ids"),
            decoder_segment_ids=batch.get("decoder_segment_ids"),
            encoder_positions=batch.get("encoder_positions"),
            decoder_positions=batch.get("decoder_positions"),
            enable_dropout=dropout_key is not None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
            method="hidden",
        )
        return hidden

    def projection(self, params: Any) -> loss.Projection:
        """Return the function from final activations to logits."""

        def project(chunk: Float[Array, "batch t embed"]) -> Float[Array, "batch t vocab"]:
            logits: Array = self.module.apply(  # type: ignore[assignment]
                {"params": params}, chunk, method="logits"
            )
            return logits

        return project

    def loss_sums(
        self,
        params: Any,
        batch: Batch,
        dropout_key: Any | None = None,
        objective: Objective | None = None,
        base: Any | None = None,
    ) -> loss.LossSums:
        """Sum the loss over the batch's target tokens.

        **Arguments:**

        - `dropout_key`: dropout is off without one.
        - `objective`: in place of cross-entropy and z-loss.
        - `base`: the parameters that an objective compares with, if it needs any.
        """
        reference = None
        if objective is not None and objective.needs_base:
            hidden = jax.lax.stop_gradient(self.hidden(base, batch))
            reference = loss.Base(self.projection(base), hidden)
        return loss.token_loss(
            self.projection(params),
            self.hidden(params, batch, dropout_key),
            batch["decoder_target_tokens"],
            batch["decoder_loss_weights"],
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
            chunk_tokens=self.loss_chunk_tokens,
            objective=objective,
            base=reference,
            segment_ids=batch.get("decoder_segment_ids"),
        )

    def initial_params(self, rng: jax.Array) -> Any:
        """Draw random parameters, a nested dict."""
        return initial_params(self.config, rng)[0]

    def param_shapes(self) -> Any:
        """Return the tree of parameters as `jax.ShapeDtypeStruct`s."""
        return param_shapes(self.config)

    def param_axes(self) -> Any:
        """Return the tree of parameters with a tuple of logical axis names per leaf."""
        return param_axes(self.config)
