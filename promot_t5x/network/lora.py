"""LoRA: low-rank adapters of dense kernels (arXiv 2106.09685).

An adapted kernel W [in, out] has a matrix A [in, rank] and a matrix B [rank, out] beside it, and
projects x to x W + (alpha / rank) x A B. The product A B, which has W's size, is never made while
the model trains or answers; `merged` makes it once, for a model without adapters. B starts at 0, so
a new adapter changes nothing.

    encoder/layers_0/attention/query/kernel  ->  …/query/lora_a, …/query/lora_b

In a scanned stack both have their layers on axis 1, as kernels have.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float

from promot_t5x.config import validation
from promot_t5x.errors import UserError
from promot_t5x.network.scan import LAYER_AXIS

LORA_A, LORA_B = "lora_a", "lora_b"
RANK_AXIS = "lora"  # the logical axis of the rank
_ADAPTER = re.compile(rf"(.+/)(?:{LORA_A}|{LORA_B})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Which kernels are adapted, and how.

    **Attributes:**

    - `rank`: r, columns of A and rows of B.
    - `alpha`: the adapter's product counts alpha / rank; None is twice the rank.
    - `dropout_rate`: of the inputs of A, besides the model's own dropout.
    - `kernels`: regular expressions; a kernel is adapted if one of them matches the whole of its
      path, such as `encoder/layers_0/mlp/wi_0/kernel` (scanned, `encoder/encoder/mlp/wi_0/kernel`).
    """

    rank: int = 8
    alpha: int | float | None = None
    dropout_rate: float = 0.0
    kernels: Sequence[str] = (".*attention/(query|value)/kernel",)

    def __post_init__(self) -> None:
        validation.check_positive("LoRA.rank", self.rank)
        if self.alpha is not None:
            validation.check_rate("LoRA.alpha", self.alpha)
        if not 0.0 <= self.dropout_rate < 1.0:
            raise UserError(f"LoRA.dropout_rate is {self.dropout_rate}; it must be in [0, 1).")
        if isinstance(self.kernels, str) or not self.kernels:
            raise UserError(
                f"LoRA.kernels = {self.kernels!r} must be a list of patterns, as in "
                "['.*attention/(query|value)/kernel']."
            )
        # A list, as gin reads it, would make the network's configuration unhashable.
        object.__setattr__(self, "kernels", tuple(self.kernels))
        for pattern in self.kernels:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"LoRA.kernels has {pattern!r}, which is no regular expression: {error}."
                ) from error

    @property
    def scale(self) -> float:
        """What the product A B is multiplied by."""
        return 2.0 if self.alpha is None else self.alpha / self.rank

    def adapts(self, path: str) -> bool:
        """Whether the parameter at a path is an adapted kernel."""
        return any(re.fullmatch(pattern, path) for pattern in self.kernels)


def is_adapter(path: str) -> bool:
    """Whether the parameter at a '/'-joined path is a part of an adapter."""
    return _ADAPTER.fullmatch(path) is not None


def kernel_of(path: str) -> str:
    """Return the path of the kernel that a part of an adapter belongs to."""
    return _ADAPTER.sub(r"\1kernel", path)


def parts_of(kernel: str) -> tuple[str, str]:
    """Return the paths of the A and the B of a kernel's adapter."""
    start = kernel.removesuffix("kernel")
    return start + LORA_A, start + LORA_B


def adapters_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of adapters among parameters by path."""
    return {path: leaf for path, leaf in tree.items() if is_adapter(path)}


def merged(
    kernel: Float[Any, "..."], a: Float[Any, "..."], b: Float[Any, "..."], scale: float
) -> Float[Any, "..."]:
    """Return W + scale A B, in W's type; of a scanned stack, layer by layer.

    **Arguments:**

    - `kernel`, `a`, `b`: [in, out], [in, rank], [rank, out], or with the layers on axis 1; numpy's
      or JAX's arrays. The product and the sum are float32.
    - `scale`: `LoRA.scale`.
    """
    product = a @ b if a.ndim == 2 else _swapped(_swapped(a) @ _swapped(b))
    total = kernel.astype(product.dtype) + scale * product
    return total.astype(kernel.dtype)


def _swapped(array: Any) -> Any:
    """Return an array whose layers have come to the front, or gone back."""
    return array.swapaxes(0, LAYER_AXIS)


def check_kernels(lora: LoRA, paths: Sequence[str]) -> None:
    """Check that every pattern matches a kernel.

    **Arguments:**

    - `paths`: of the model's parameters.

    **Raises:** `UserError` for a pattern that does not.
    """
    kernels = sorted(path for path in paths if path.endswith("/kernel"))
    for pattern in lora.kernels:
        if not any(re.fullmatch(pattern, path) for path in kernels):
            raise UserError(
                f"LoRA.kernels has {pattern!r}, which matches none of the model's {len(kernels)} "
                f"kernels; a pattern must match the whole path, as in {kernels[0]!r}."
            )
