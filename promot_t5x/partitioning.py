"""One mesh of devices, and the rules that lay every array out on it.

A logical axis name (`embed`, `mlp`, `batch`, …) says what a dimension means; the rules
map each name to a mesh axis or to none. The rules are T5X's
(`t5x.partitioning.standard_logical_axis_rules`), so its users' overrides mean the same here.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np
from flax.linen import partitioning as flax_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from promot_t5x.errors import UserError

Rules = Sequence[tuple[str, str | None]]


def standard_logical_axis_rules(
    activation_partitioning_dims: int = 1,
    parameter_partitioning_dims: int = 1,
    additional_rules: Rules = (),
) -> tuple[tuple[str, str | None], ...]:
    """T5X's rules: which mesh axis (`data`, `model` or none) each logical axis is split over.

    **Arguments:**

    - `activation_partitioning_dims`: 1 replicates the activations' embed axis over `model`,
      2 splits it.
    - `parameter_partitioning_dims`: 1 replicates parameters over `data`, 2 splits their embed
      axis over it (each device then holds 1 / devices of the parameters).
    - `additional_rules`: appended, so they name new axes; the first rule that fits an axis wins.
    """
    variants: dict[tuple[int, int], list[tuple[str, str | None]]] = {
        (1, 1): [("embed", None)],
        (2, 1): [("embed", "model")],
        (1, 2): [("embed", "data")],
        (2, 2): [("embed", "model"), ("embed", "data")],
    }
    dims = (activation_partitioning_dims, parameter_partitioning_dims)
    if dims not in variants:
        raise UserError(
            "standard_logical_axis_rules: activation_partitioning_dims and "
            f"parameter_partitioning_dims must each be 1 or 2, got {dims}."
        )
    rules: list[tuple[str, str | None]] = [
        ("batch", "data"),
        ("vocab", "model"),
        ("mlp", "model"),
        ("heads", "model"),
        ("kv", None),
        ("joined_kv", "model"),
        *variants[dims],
        *((name, None) for name in ("relpos_buckets", "length", "layers", "stack")),
        # The prompt is small: every device holds it whole, and any host can write it out.
        *((name, None) for name in ("tasks", "prompt", "prompt_embed")),
        ("mlp_activations", None),
    ]
    return (*rules, *additional_rules)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partitioner:
    """Devices as a (`data`, `model`) mesh, and the shardings of everything that lives on it.

    **Attributes:**

    - `num_partitions`: size of the `model` axis, over which one copy of the model is split;
      the `data` axis takes the remaining devices.
    - `logical_axis_rules`: see `standard_logical_axis_rules`.
    """

    num_partitions: int = 1
    logical_axis_rules: Rules = standard_logical_axis_rules()

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        devices = jax.device_count()
        if self.num_partitions < 1 or devices % self.num_partitions:
            raise UserError(
                f"Partitioner.num_partitions = {self.num_partitions} does not divide the "
                f"{devices} devices of this run; choose a divisor of {devices}."
            )
        return jax.make_mesh(
            (devices // self.num_partitions, self.num_partitions),
            ("data", "model"),
            axis_types=(jax.sharding.AxisType.Auto,) * 2,
        )

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        """Make the mesh and the rules those of every constraint inside the model."""
        with jax.set_mesh(self.mesh), flax_partitioning.axis_rules(self.logical_axis_rules):
            yield

    def sharding(self, logical_axes: Sequence[str | None]) -> NamedSharding:
        """The sharding of an array whose dimensions have these logical names."""
        spec = flax_partitioning.logical_to_mesh_axes(tuple(logical_axes), self.logical_axis_rules)
        assert spec is not None  # it is None for no axes at all only
        return NamedSharding(self.mesh, spec)

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def shard_tree(self, axes: Any, shapes: Any) -> Any:
        """Shardings for a tree of parameters.

        **Arguments:**

        - `axes`: nested dict of tuples of logical axis names.
        - `shapes`: the same tree of arrays or `jax.ShapeDtypeStruct`s.

        **Raises** `UserError` where the mesh does not divide a parameter's dimension.
        """
        flat_axes = flax.traverse_util.flatten_dict(axes, sep="/")
        flat_shapes = flax.traverse_util.flatten_dict(shapes, sep="/")
        shardings = {}
        for path, leaf in flat_shapes.items():
            sharding = self.sharding(flat_axes[path])
            self._check_divides(path, leaf.shape, flat_axes[path], sharding.spec)
            shardings[path] = sharding
        return flax.traverse_util.unflatten_dict(shardings, sep="/")

    def _check_divides(
        self,
        path: str,
        shape: tuple[int, ...],
        axes: Sequence[str],
        spec: PartitionSpec,
    ) -> None:
        for size, name, mesh_axis in zip(shape, axes, spec, strict=False):
            ways = 1 if mesh_axis is None else self.mesh.shape[mesh_axis]
            if size % ways:
                raise UserError(
                    f"Parameter {path} of shape {shape} cannot be split {ways} ways over the mesh "
                    f"axis {mesh_axis!r}: its axis {name!r} has size {size}. Choose a "
                    f"Partitioner.num_partitions that divides {size}."
                )

    def check_batch(self, batch_size: int, source: str) -> None:
        """Raise `UserError` unless the `data` axis divides the batch."""
        data = self.mesh.shape["data"]
        if batch_size % data:
            below = batch_size // data * data
            raise UserError(
                f"{source} = {batch_size} is not divisible by the mesh's data axis of {data} "
                f"devices ({jax.device_count()} / num_partitions {self.num_partitions}); use "
                f"{below + data}{f' or {below}' if below else ''}."
            )

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Put a global batch of numpy arrays [batch, …] on the mesh, split over `data`.

        Every process holds the same global batch and uploads only the rows of its own devices.
        """
        sharding = self.sharding(("batch",))
        return {name: _put(array, sharding) for name, array in batch.items()}

    def place(self, tree: Any, shardings: Any) -> Any:
        """Put a tree of host arrays on the mesh with the given shardings."""
        return jax.tree.map(_put, tree, shardings)


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
    """A host array on the mesh; every process uploads what its own devices hold."""
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
