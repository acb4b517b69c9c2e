"""The training step of each kind of stage, packed and not.

The examples are random ids with the lengths of RTE (a lognormal with median 55 and a long tail),
behind a prompt of 20 vectors.
"""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from promot_t5x.data.batches import Batches, statistics
from promot_t5x.data.example_store import ExampleStore
from promot_t5x.data.sources import BoundTask
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.models import encoder_decoder
from promot_t5x.network import transformer
from promot_t5x.network.config import T5Config
from promot_t5x.network.lora import LoRA
from promot_t5x.training import adafactor, state, step

CONFIG = T5Config(
    vocab_size=32128,
    emb_dim=512,
    num_heads=6,
    num_encoder_layers=8,
    num_decoder_layers=8,
    head_dim=64,
    mlp_dim=1024,
    mlp_activations=("gelu", "linear"),
    dropout_rate=0.0,
)
PROMPT_LENGTH = 20


class Kind(NamedTuple):
    """A kind of stage: what trains, whether there is a prompt, and which adapters there are."""

    trainable: str
    prompted: bool = False
    lora: LoRA | None = None


STAGES = {
    "stage one": Kind("prompt", prompted=True),
    "stage two": Kind("model", prompted=True),
    "standard": Kind("all"),
    "LoRA, q and v": Kind("adapter", lora=LoRA(rank=8)),
    "LoRA, all layers": Kind(
        "adapter", lora=LoRA(rank=16, kernels=["(en|de)coder/layers.*/kernel"])
    ),
}
COMPARED = "standard"  # with which each kind is compared, both packed
LENGTHS = {"inputs": 320, "targets": 16}


class NoVocabulary:
    """Stands where a vocabulary would: the examples are ids already."""

    vocab_size = CONFIG.vocab_size
    eos_id = 1


def show(batch_size: int, count: int) -> None:
    """Print the table of `count` steps a row."""
    print(f"\ntraining, rows of {LENGTHS}")
    print(
        f"{'':26}{'steps/s':>9}{'real tok/s':>12}{'real':>7}{'TFLOP/step':>12}{'compile s':>11}"
        f"{'MiB':>8}"
    )
    rows: dict[tuple[str, bool], dict[str, float]] = {}
    for name, kind in STAGES.items():
        for packed in (False, True):
            row = measure(kind, packed, batch_size, count)
            rows[name, packed] = row
            label = f"{name}, {'packed' if packed else 'unpacked'}"
            print(
                f"{label:26}{row['steps_per_second']:9.3f}{row['tokens_per_second']:12,.0f}"
                f"{row['real']:7.0%}{row['flops'] / 1e12:12.3f}{row['compile_seconds']:11.1f}"
                f"{row['peak_bytes'] / 2**20:8,.0f}",
                flush=True,
            )
    for name in STAGES:
        ratio = _ratio("tokens_per_second", rows[name, True], rows[name, False])
        print(f"{name}: packed / unpacked = {ratio:.2f} x real tok/s")
    for name in STAGES:
        both = rows[name, True], rows[COMPARED, True]
        ratios = [_ratio(what, *both) for what in ("tokens_per_second", "peak_bytes", "flops")]
        print(
            f"{name} / {COMPARED}, packed = {ratios[0]:.2f} x real tok/s, "
            f"{ratios[1]:.2f} x memory, {ratios[2]:.2f} x operations"
        )


def _ratio(what: str, one: dict[str, float], other: dict[str, float]) -> float:
    return one[what] / other[what]


def measure(kind: Kind, packed: bool, batch_size: int, steps: int) -> dict[str, float]:
    """Compile one kind of step, run it, and return its rates and costs.

    Its peak of memory is the compiler's: state, batch and all that is alive at one time.
    """
    partitioner = Partitioner()
    config = dataclasses.replace(CONFIG, lora=kind.lora)
    if kind.prompted:
        config = dataclasses.replace(config, num_prompts=1, prompt_length=PROMPT_LENGTH)
    model = encoder_decoder.EncoderDecoderModel(
        module=transformer.Transformer(config=config),
        input_vocabulary=NoVocabulary,
        output_vocabulary=NoVocabulary,
        z_loss=1e-4,
    )
    params = jax.tree.map(np.asarray, model.initial_params(jax.random.key(0)))
    optimizer = adafactor.adafactor(learning_rate=1e-3)
    train_state = state.create(params, model.param_axes(), [kind.trainable], optimizer, partitioner)
    data = synthetic_batches(batch_size, packed, kind.prompted)
    batches = [data.batch(k) for k in range(steps + 1)]
    train_step = step.make_train_step(model, optimizer, lambda _: 1e-3)
    began = time.perf_counter()
    with partitioner.activate():
        lowered = jax.jit(train_step, donate_argnums=0).lower(
            train_state, partitioner.place_batch(batches[0])
        )
        compiled = lowered.compile()
    compile_seconds = time.perf_counter() - began
    train_state, *_ = compiled(train_state, partitioner.place_batch(batches[0]))
    jax.block_until_ready(train_state)
    began = time.perf_counter()
    for batch in batches[1:]:
        train_state, *_ = compiled(train_state, partitioner.place_batch(batch))
    jax.block_until_ready(train_state)
    seconds = time.perf_counter() - began
    full = [statistics(batch) for batch in batches[1:]]
    tokens = sum(s["real_tokens/encoder"] + s["real_tokens/decoder"] for s in full)
    return {
        "steps_per_second": steps / seconds,
        "tokens_per_second": tokens / seconds,
        "real": float(np.mean([s["non_padding_fraction/overall"] for s in full])),
        "flops": dict(compiled.cost_analysis() or {})["flops"],
        "compile_seconds": compile_seconds,
        "peak_bytes": _peak(compiled),
    }


def _peak(compiled: jax.stages.Compiled) -> float:
    found: Any = compiled.memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return float(kept + found.temp_size_in_bytes)


def synthetic_batches(batch_size: int, packed: bool, prompted: bool, count: int = 512) -> Batches:
    """Batches of random examples as long as RTE's, behind a prompt if asked for."""
    draw = np.random.default_rng(0)
    lengths = {
        "inputs": np.clip(draw.lognormal(4.0, 0.6, count).astype(int), 16, 280),
        "targets": np.full(count, 3),
    }
    tokens: dict[str, Any] = {}
    offsets: dict[str, Any] = {}
    for name, sizes in lengths.items():
        offsets[name] = np.concatenate([[0], np.cumsum(sizes)])
        tokens[name] = draw.integers(3, 32000, offsets[name][-1]).astype(np.int32)
        tokens[name][offsets[name][1:] - 1] = 1
    store = ExampleStore(
        name="synthetic/train",
        tokens=tokens,
        offsets=offsets,
        eos_ids={"inputs": 1, "targets": 1},
        max_token=31999,
        content_hash="synthetic",
    )
    task = BoundTask(name="synthetic", task=None, splits=("train",))
    return Batches(
        [task],
        [store],
        batch_size=batch_size,
        lengths=LENGTHS,
        pack=packed,
        seed=0,
        vocab_size=CONFIG.vocab_size,
        prompt_length=PROMPT_LENGTH if prompted else 0,
        use_prompts=prompted,
    )
