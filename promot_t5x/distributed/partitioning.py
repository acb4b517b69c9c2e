"""One mesh of devices, and the rules that lay every array out on it.

The mesh has three axes on any backend, slowest network first: `replica` (copies that only meet to
add up gradients: slices of a multislice run), `data` (rows of the batch), `model` (parts of one
copy of the model). A logical axis name (`embed`, `mlp`, `batch`, …) says what a dimension means;
the rules map each name to mesh axes or to none. The rules are T5X's
(`t5x.partitioning.standard_logical_axis_rules`), so its users' overrides mean the same here.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np
from flax.core.spmd import logical_axis_rules
from flax.linen.spmd import logical_to_mesh_axes
from jax.experimental import mesh_utils
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Int

from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.network import scan
from promot_t5x.network.lora import RANK_AXIS

MeshAxes = str | Sequence[str] | None
# (logical axis, the mesh axes that split it: MeshAxes). Any, because flax knows no lists.
Rules = Sequence[tuple[str, Any]]

AXES = ("replica", "data", "model")


def standard_logical_axis_rules(
    activation_partitioning_dims: int = 1,
    parameter_partitioning_dims: int = 1,
    additional_rules: Rules = (),
) -> Rules:
    """T5X's rules: which mesh axes (`replica`, `data`, `model` or none) split each logical axis.

    **Arguments:**

    - `activation_partitioning_dims`: 1 replicates the activations' embed axis over `model`,
      2 splits it.
    - `parameter_partitioning_dims`: 1 replicates parameters over `data`, 2 splits their embed
      axis over it (each device of a replica then holds 1 / devices of the parameters).
    - `additional_rules`: appended, so they name new axes; the first rule that fits an axis wins.
    """
    variants: dict[tuple[int, int], list[tuple[str, MeshAxes]]] = {
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
    rules: list[tuple[str, MeshAxes]] = [
        ("batch", ("replica", "data")),
        ("vocab", "model"),
        ("mlp", "model"),
        ("heads", "model"),
        ("kv", None),
        ("joined_kv", "model"),
        *variants[dims],
        *((name, None) for name in ("relpos_buckets", "length", "layers", "stack")),
        # The prompt is small: every device holds it whole, and any host can write it out.
        *((name, None) for name in ("tasks", "prompt", "prompt_embed")),
        (RANK_AXIS, None),
        ("mlp_activations", None),
    ]
    return (*rules, *additional_rules)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partitioner:
    """Devices as a (`replica`, `data`, `model`) mesh, and the shardings of all that lives on it.

    **Attributes:**

    - `num_partitions`: size of the `model` axis, over which one copy of the model is split.
    - `mesh_shape`: sizes by axis name, in place of `num_partitions`. Without `replica`, each TPU
      slice is one, and elsewhere there is one in all; without `data`, it takes the devices that
      the others leave; without `model`, it is 1.
    - `logical_axis_rules`: see `standard_logical_axis_rules`.
    - `devices`: what the mesh is made of, in any order (the devices of a described topology, for
      one); none takes all that the run has.
    """

    num_partitions: int = 1
    mesh_shape: Mapping[str, int] | None = None
    logical_axis_rules: Rules = dataclasses.field(default_factory=standard_logical_axis_rules)
    devices: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        for name in self.mesh_shape or ():
            if name not in AXES:
                raise UserError(
                    f"MESH has an axis {name!r}; a mesh has {', '.join(AXES)}."
                    f"{did_you_mean(name, AXES)}"
                )
        if self.mesh_shape is not None and self.num_partitions != 1:
            raise UserError(
                f"MESH = {dict(self.mesh_shape)} and NUM_PARTITIONS = {self.num_partitions} both "
                "say how the model is split; give one of them."
            )
        # Lists, as gin reads them, are no mesh axes.
        rules = tuple(
            (n, tuple(a) if isinstance(a, list) else a) for n, a in self.logical_axis_rules
        )
        object.__setattr__(self, "logical_axis_rules", rules)
        for name, axes in rules:
            for axis in _as_tuple(axes):
                if axis not in AXES:
                    raise UserError(
                        f"The logical axis rule ({name!r}, {axes!r}) names a mesh axis {axis!r}; "
                        f"a mesh has {', '.join(AXES)}.{did_you_mean(axis, AXES)}"
                    )

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh; neighbors on an axis are neighbors on the network where that can be."""
        devices = list(jax.devices() if self.devices is None else self.devices)
        slices = _slices(devices)
        shape = self._shape(len(devices), slices)
        if slices > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                (shape[0] // slices, *shape[1:]),
                (slices, 1, 1),
                devices,
                allow_split_physical_axes=True,
            )
        else:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))

    def _shape(self, devices: int, slices: int) -> tuple[int, int, int]:
        """Sizes of `AXES`; raises `UserError` where they do not multiply to the devices."""
        given = {"model": self.num_partitions} if self.mesh_shape is None else self.mesh_shape
        sizes = {"replica": slices, "model": 1, **given}
        taken = math.prod(sizes.values())
        if sizes["replica"] % slices:
            raise UserError(
                f"{self._setting}: 'replica' is the slow axis across slices, so with {slices} "
                f"slices it must be a multiple of {slices}."
            )
        if min(sizes.values()) < 1 or devices % taken or ("data" in sizes and devices != taken):
            there = f"the {devices} devices of this run"
            if slices > 1:
                there += f" in {slices} slices"
            mend = f"choose a divisor of {devices // slices}"
            if self.mesh_shape is not None:
                mend = "the sizes must multiply to it; without 'data', it takes what is left"
            raise UserError(f"{self._setting} does not divide {there}; {mend}.")
        return sizes["replica"], sizes.get("data", devices // taken), sizes["model"]

    @property
    def _setting(self) -> str:
        """What chose the mesh, for messages."""
        if self.mesh_shape is None:
            return f"Partitioner.num_partitions = {self.num_partitions}"
        return f"MESH = {dict(self.mesh_shape)}"

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        """Make the mesh and the rules those of every constraint inside the model."""
        with jax.set_mesh(self.mesh), logical_axis_rules(self.logical_axis_rules):
            yield

    def sharding(self, logical_axes: Sequence[str | None]) -> NamedSharding:
        """Return the sharding of an array whose dimensions have these logical names."""
        spec = logical_to_mesh_axes(tuple(logical_axes), self.logical_axis_rules)
        assert spec is not None  # it is None for no axes at all only
        return NamedSharding(self.mesh, spec)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that every device holds whole."""
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

    def formats(self, axes: Any, shapes: Any) -> Any:
        """Shardings and orders in memory for a tree of parameters; see `shard_tree`."""
        flat_shapes = flax.traverse_util.flatten_dict(shapes, sep="/")
        shardings = flax.traverse_util.flatten_dict(self.shard_tree(axes, shapes), sep="/")
        formats = {}
        for path, leaf in flat_shapes.items():
            order = scan.major_to_minor(path, len(leaf.shape))
            formats[path] = Format(Layout(order) if order else None, shardings[path])
        return flax.traverse_util.unflatten_dict(formats, sep="/")

    def _check_divides(
        self,
        path: str,
        shape: tuple[int, ...],
        axes: Sequence[str],
        spec: PartitionSpec,
    ) -> None:
        for size, name, mesh_axes in zip(shape, axes, spec, strict=False):
            ways = self._ways(mesh_axes)
            if size % ways:
                raise UserError(
                    f"Parameter {path} of shape {shape} cannot be split {ways} ways over the mesh "
                    f"axis {mesh_axes!r}: its axis {name!r} has size {size}. Choose a mesh "
                    f"(Partitioner.num_partitions, or MESH) that divides {size}."
                )

    def _ways(self, mesh_axes: MeshAxes) -> int:
        """Into how many parts these mesh axes split a dimension."""
        return math.prod(self.mesh.shape[axis] for axis in _as_tuple(mesh_axes))

    @property
    def batch_ways(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return self._ways(self.sharding(("batch",)).spec[0])

    def check_batch(self, batch_size: int, source: str) -> None:
        """Raise `UserError` unless the mesh divides the rows of the batch."""
        ways = self.batch_ways
        if batch_size % ways:
            below = batch_size // ways * ways
            shape = " × ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
            raise UserError(
                f"{source} = {batch_size} is not divisible by the {ways} parts that the mesh of "
                f"{self.mesh.size} devices ({shape}) splits a batch into; use {below + ways}"
                f"{f' or {below}' if below else ''}."
            )

    def rows(self, batch_size: int) -> Int[np.ndarray, " rows"]:
        """Return the rows of a global batch that this process's devices hold, ascending.

        Processes whose devices share rows, as where the model axis spans hosts, get the same.
        """
        held = self.sharding(("batch",)).addressable_devices_indices_map((batch_size,))
        return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held.values()]))

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Put a global batch on the mesh, split by rows.

        **Arguments:**

        - `batch`: numpy arrays [rows, …] of this process's `rows`; of all, in a single process.
        """
        sharding = self.sharding(("batch",))
        return {
            name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
            for name, array in batch.items()
        }

    def place(self, tree: Any, shardings: Any) -> Any:
        """Put a tree of host arrays on the mesh with the given shardings or formats.

        Every process has all of every array, and uploads what its own devices hold; an array that
        lies there so already is taken as it is.
        """
        return jax.tree.map(_put, tree, shardings)


def _put(array: Any, where: NamedSharding | Format) -> jax.Array:
    place: Any = where if isinstance(where, Format) else Format(None, where)
    if isinstance(array, jax.Array) and array.sharding == place.sharding:
        there: Any = array
        order = place.layout and place.layout.major_to_minor
        if order in (None, there.format.layout.major_to_minor):
            return array
        moved: jax.Array = jax.device_put(array, place)
        return moved
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])


def _as_tuple(axes: MeshAxes) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _slices(devices: Sequence[Any]) -> int:
    """Return the number of TPU slices among the devices; others are ordered by host anyway."""
    return len({getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices})
