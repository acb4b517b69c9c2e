"""A stage's compiled program: its one training step, from the shapes of all that it takes.

Training runs what is compiled here, and planning compiles it for devices that are not there: both
need the same shapes, the same shardings and the same step, and get them from one place.
"""

from typing import Any

import jax
import jax.numpy as jnp

from promot_t5x.data.assembly import batch_shapes
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.runs.stages import Stage
from promot_t5x.training import state, step


class StageProgram:
    """The training step of a stage on a mesh; neither arrays nor devices are needed to lower it.

    **Arguments:**

    - `model`: with a prompt table if the stage has a prompt.
    - `stage`: what trains, on batches of which shape, by which optimizer.
    - `partitioner`: the mesh.

    **Attributes:**

    - `model`: with the stage's own dropout and label smoothing.
    """

    def __init__(self, model: EncoderDecoderModel, stage: Stage, partitioner: Partitioner):
        self.model = model.trained_with(stage.dropout_rate, stage.label_smoothing)
        self._stage, self._partitioner = stage, partitioner
        self._optimizer = stage.optimizer(learning_rate=stage.learning_rate)
        self._compiled: jax.stages.Compiled | None = None

    def state_shapes(self) -> state.TrainState:
        """Return the state's arrays as `jax.ShapeDtypeStruct`s with their formats."""
        return state.state_shapes(self.model.param_shapes(), *self._layout())

    def create_state(self, params: state.Tree, *, random_seed: int) -> state.TrainState:
        """Return the state of step 0, from all the model's parameters; see `state.create`."""
        return state.create(
            params,
            *self._layout(),
            random_seed=random_seed,
            optimizer_step=self._stage.optimizer_step,
        )

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return a batch's arrays likewise."""
        data = self._stage.train_dataset
        shapes = batch_shapes(
            batch_size=data.batch_size, lengths=data.task_feature_lengths, pack=data.pack
        )
        sharding = self._partitioner.sharding(("batch",))
        return {
            name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
            for name, shape in shapes.items()
        }

    @property
    def is_compiled(self) -> bool:
        """Whether `compile` has been called."""
        return self._compiled is not None

    def compile(self) -> jax.stages.Compiled:
        """Compile the step of `lower` for these devices, once; no seed is in it."""
        if self._compiled is None:
            self._compiled = self.lower().compile()
        return self._compiled

    def lower(self) -> jax.stages.Lowered:
        """Lower the step `(state, batch) -> (state, metrics, finite)`; it takes over the memory."""
        stage = self._stage
        train_step = step.make_train_step(
            self.model,
            self._optimizer,
            stage.learning_rate,
            microbatches=stage.microbatches,
            optimizer_step=stage.optimizer_step,
            skip_non_finite=stage.skip_non_finite_steps > 0,
            objective=stage.objective,
        )
        shapes = self.state_shapes()
        formats = jax.tree.map(lambda a: a.format, shapes)
        everywhere = self._partitioner.replicated
        jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(formats, None, everywhere))
        with self._partitioner.activate():
            return jitted.lower(shapes, self.batch_shapes())

    def _layout(self) -> tuple[Any, Any, Any, Any, Any, Any]:
        stage = self._stage
        return (
            self.model.param_axes(),
            stage.trainable,
            self._optimizer,
            self._partitioner,
            stage.frozen_dtype,
            stage.keeps_base,
        )
