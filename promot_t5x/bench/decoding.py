"""Decoding: keys and values shared by beams, lengths in buckets, a suite in one plan."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from promot_t5x.bench.training import CONFIG
from promot_t5x.decoding import decoder as decoding
from promot_t5x.decoding import search
from promot_t5x.decoding.batched import BatchedProgram
from promot_t5x.decoding.length_buckets import Batch
from promot_t5x.network import parameters, transformer
from promot_t5x.network.config import T5Config

INPUT_LENGTH, OUTPUT_LENGTH, FEW_STEPS, MANY_STEPS = 1024, 64, 4, 36
BEAMS = search.BeamSearch(num_decodes=4)
# Two layers a side in place of eight: what is compared here are lengths, not layers.
SHALLOW = dataclasses.replace(CONFIG, num_encoder_layers=2, num_decoder_layers=2)
# name: (median inputs, most tokens of an answer), about those of the tasks after one demonstration
SUITE = {
    "cb": (210, 8),
    "wic": (90, 8),
    "triviaqa": (60, 32),
    "webquestions": (40, 32),
    "wmt16_ende": (110, 64),
    "wmt16_enro": (110, 64),
    "xsum": (800, 64),
    "wikilingua": (700, 64),
}
SHORT, LONG = SUITE["cb"], SUITE["xsum"]

Tokens = Int[Array, "batch length"]


def show(batch_size: int) -> None:
    """Print the three comparisons."""
    _show_steps(max(1, batch_size // 4))
    _show_buckets(4 * batch_size)
    _show_suite(batch_size)


def _show_steps(batch_size: int) -> None:
    """Measure what a step costs where beams share the encoder's keys and values, and where not."""
    print(f"\nbeam search, inputs of {INPUT_LENGTH} tokens, {BEAMS.num_decodes} beams")
    print(f"{'':34}{'ms/step':>9}{'peak MiB':>10}")
    module, params = _network(CONFIG)
    tokens = jnp.asarray(_ids(np.random.default_rng(0), batch_size * INPUT_LENGTH))
    tokens = tokens.reshape(batch_size, INPUT_LENGTH)
    found = {}
    ways: dict[str, Callable[..., search.Decodes]] = {
        "shared by the beams": _shared,
        "repeated for each beam": functools.partial(_repeated, projected_once=True),
        "projected for each beam at a step": functools.partial(_repeated, projected_once=False),
    }
    for name, decode in ways.items():
        program = jax.jit(functools.partial(decode, module))
        compiled: Any = program.lower(params, tokens, jnp.int32(0)).compile()

        def seconds(steps: int, compiled: Any = compiled) -> float:
            return _best(lambda: compiled(params, tokens, jnp.int32(steps)))

        a_step = (seconds(MANY_STEPS) - seconds(FEW_STEPS)) / (MANY_STEPS - FEW_STEPS)
        peak = compiled.memory_analysis().temp_size_in_bytes / 2**20
        found[name] = a_step, peak
        print(f"{name:34}{1000 * a_step:9.1f}{peak:10.0f}", flush=True)
    first, *others = found
    for name in others:
        ratios = [there / here for there, here in zip(found[name], found[first], strict=True)]
        print(f"{name}: {ratios[0]:.2f} x the time and {ratios[1]:.2f} x the memory")


def _shared(module: Any, params: Any, tokens: Tokens, limit: Int[Array, ""]) -> search.Decodes:
    return decoding.decode(
        module, params, tokens, max_decode_length=OUTPUT_LENGTH, method=BEAMS, limit=limit
    )


def _repeated(
    module: Any, params: Any, tokens: Tokens, limit: Int[Array, ""], *, projected_once: bool
) -> search.Decodes:
    """Search with a row of the encoder's output, or of its projections, for each beam."""
    variables = {"params": params}
    encoded = module.apply(variables, tokens, enable_dropout=False, method="encode")
    encoded, rows = (jnp.repeat(a, BEAMS.num_decodes, axis=0) for a in (encoded, tokens))
    cross = None
    if projected_once:
        cross = module.apply(variables, encoded, method="cross_key_values")
        # Or the compiler would see that the rows are equal.
        cross = jax.lax.optimization_barrier(cross)

    def step(ids: Tokens, cache: Any) -> tuple[Array, Any]:
        flat = ids.reshape(-1, 1)
        logits, updated = module.apply(
            {**variables, "cache": cache},
            encoded,
            rows,
            flat,
            flat,
            enable_dropout=False,
            decode=True,
            max_decode_length=OUTPUT_LENGTH,
            cross_key_values=cross,
            mutable=["cache"],
            method="decode",
        )
        return logits.reshape(*ids.shape, -1), updated["cache"]

    return search.beam_search(
        step,
        decoding.reorder,
        decoding.empty_cache(module, params, rows.shape[0], OUTPUT_LENGTH),
        BEAMS,
        is_padding=jnp.zeros(tokens.shape[0], bool),
        length=OUTPUT_LENGTH,
        limit=limit,
        eos_id=1,
    )


def _show_buckets(batch_size: int) -> None:
    """Examples as long as CB's and XSum's, three to one, in random order."""
    rng = np.random.default_rng(0)
    kinds = [SHORT] * (3 * batch_size) + [LONG] * batch_size
    examples = [_example(rng, kinds[i]) for i in rng.permutation(len(kinds))]
    sequences, limits = [ids for ids, _ in examples], [most for _, most in examples]
    lengths = [len(ids) for ids in sequences]
    print(
        f"\ngreedy decoding, {len(examples)} examples as long as CB's and XSum's, three to one, "
        f"batch {batch_size}"
    )
    module, params = _network(SHALLOW)
    rates = {}
    for name, plan in {"in buckets": BatchedProgram.plan, "as they come": _as_they_come}.items():
        decoder = decoding.Decoder(module, batch_size=batch_size)
        batches = plan(decoder, lengths, limits)

        def run(decoder: Any = decoder, batches: Any = batches) -> Any:
            return list(decoder.run(params, sequences, batches))

        run()
        rates[name] = len(examples) / _best(run, repetitions=2)
        programs = len(decoder.compilations)
        print(f"{name:20}{rates[name]:8.2f} examples/s, {programs} programs", flush=True)
    ratio = rates["in buckets"] / rates["as they come"]
    print(f"in buckets / as they come = {ratio:.2f} x examples/s, compilation aside")


def _as_they_come(
    decoder: BatchedProgram, lengths: Sequence[int], limits: Sequence[int]
) -> list[Batch]:
    """Batches in the order of the data, each padded to its own longest, in steps of 128."""
    batches = []
    for start in range(0, len(lengths), decoder.batch_size):
        end = min(start + decoder.batch_size, len(lengths))
        padded, most = -(-max(lengths[start:end]) // 128) * 128, max(limits[start:end])
        batches.append(Batch(np.arange(start, end), padded, most, most))
    return batches


def _show_suite(batch_size: int) -> None:
    """Eight tasks in one evaluation and one after the other, from nothing compiled."""
    rng = np.random.default_rng(0)
    tasks = [[_example(rng, kind) for _ in range(2 * batch_size + 1)] for kind in SUITE.values()]
    print(f"\ngreedy decoding, eight tasks of {len(tasks[0])} examples, compilation included")
    module, params = _network(SHALLOW)
    seconds = {}
    for name, evaluations in {
        "in one evaluation": [[example for task in tasks for example in task]],
        "one after the other": tasks,
    }.items():
        jax.clear_caches()
        decoder = decoding.Decoder(module, batch_size=batch_size)
        began = time.perf_counter()
        for examples in evaluations:
            ids, limits = zip(*examples, strict=True)
            decoder(params, ids, limits)
        seconds[name] = time.perf_counter() - began
        programs = len(decoder.compilations)
        print(f"{name:20}{seconds[name]:8.1f} s, {programs} compilations", flush=True)
    ratio = seconds["one after the other"] / seconds["in one evaluation"]
    print(f"one after the other / in one evaluation = {ratio:.2f} x the time")


def _network(config: T5Config) -> tuple[transformer.Transformer, Any]:
    params, _ = parameters.initial_params(config, jax.random.key(0))
    return transformer.Transformer(config), params


def _example(rng: np.random.Generator, kind: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Ids with a length near a median, and the most tokens of an answer."""
    median, most = kind
    return _ids(rng, int(np.clip(rng.lognormal(np.log(median), 0.3), 8, 1024))), most


def _ids(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(3, CONFIG.vocab_size - 128, count).astype(np.int32)


def _best(run: Callable[[], Any], repetitions: int = 3) -> float:
    """Seconds of the fastest of a few runs."""
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return min(times)
