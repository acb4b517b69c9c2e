"""A stage's compiled programs: its training step, from the shapes of all that it takes.

There is one for each shape of a batch, and all but `PACK = 'batch'` have one.

Training runs what is compiled here, and planning compiles it for devices that are not there: both
need the same shapes, the same shardings and the same step, and get them from one place.
"""

from typing import Any

import jax
import jax.numpy as jnp

from promot_t5x.data.assembly import batch_shapes
from promot_t5x.data.batch_rows import Shape
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.models.model import Model
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

    def __init__(self, model: Model, stage: Stage, partitioner: Partitioner):
        self.model = model.trained_with(stage.dropout_rate, stage.label_smoothing)
        self._stage, self._partitioner = stage, partitioner
        self._optimizer = stage.optimizer(learning_rate=stage.learning_rate)
        self._compiled: dict[Shape, jax.stages.Compiled] = {}

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

    @property
    def whole(self) -> Shape:
        """The shape of a batch as it is configured; `PACK = 'batch'` has smaller ones too."""
        data = self._stage.train_dataset
        return Shape(data.batch_size, **data.task_feature_lengths)

    def batch_shapes(self, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        """Return a batch's arrays likewise."""
        packed = bool(self._stage.train_dataset.pack)
        shapes = batch_shapes(shape, packed=packed, start_id=self.model.start_id)
        sharding = self._partitioner.sharding(("batch",))
        return {
            name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
            for name, shape in shapes.items()
        }

    def is_compiled(self, shape: Shape) -> bool:
        """Whether `compile` has been called for batches of that shape."""
        return shape in self._compiled

    def compile(self, shape: Shape) -> jax.stages.Compiled:
        """Compile the step of `lower` for these devices, once; no seed is in it."""
        if shape not in self._compiled:
            self._compiled[shape] = self.lower(shape).compile()
        return self._compiled[shape]

    def lower(self, shape: Shape) -> jax.stages.Lowered:
        """Lower the step `(state, batch) -> (state, metrics, finite)`; it takes over the memory."""
        stage = self._stage
        own = stage.train_dataset.pack == "batch"
        train_step = step.make_train_step(
            self.model,
            self._optimizer,
            stage.learning_rate,
            microbatches=stage.microbatches,
            optimizer_step=stage.optimizer_step,
            skip_non_finite=stage.skip_non_finite_steps > 0,
            total_target_tokens=self.whole.rows * self.whole.targets if own else None,
            objective=stage.objective,
        )
        shapes = self.state_shapes()
        formats = jax.tree.map(lambda a: a.format, shapes)
        everywhere = self._partitioner.replicated
        jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(formats, None, everywhere))
        with self._partitioner.activate():
            return jitted.lower(shapes, self.batch_shapes(shape))

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
