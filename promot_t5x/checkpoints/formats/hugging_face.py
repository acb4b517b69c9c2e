"""Checkpoints of Hugging Face: `config.json` and safetensors, sharded or not.

Kernels there are [out, in], here [in, out]; T5's relative position bias is [buckets, heads] there
and lies in the first block (in every block for umT5). A model whose logits are the embedding's but
not scaled, which T5X's networks cannot tie, is read as an untied one whose logits kernel is the
embedding transposed: the same numbers. T5Gemma's names are in
`hf_t5gemma`, those of decoder-only models in `hf_decoder_only`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from promot_t5x.checkpoints.formats import hf_config, hf_decoder_only, hf_t5gemma, safetensors
from promot_t5x.checkpoints.formats.hf_config import HuggingFaceConfig
from promot_t5x.checkpoints.formats.layouts import BIAS
from promot_t5x.checkpoints.formats.reading import (
    DamagedCheckpointError,
    NotACheckpointError,
    read_json,
    reading,
)
from promot_t5x.checkpoints.formats.shape import (
    DECODER_EMBEDDING,
    EMBEDDING,
    LOGITS,
    DecoderOnlyShape,
    parameters,
)
from promot_t5x.checkpoints.formats.source import ArraySource, Shapes, nbytes, total_bytes
from promot_t5x.errors import UserError, listed
from promot_t5x.files import write_json

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
TOKENIZER_FILES = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
SHARD_BYTES = 5 * 10**9
_SHARED = "shared.weight"
_HEAD = "lm_head.weight"
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Old T5 checkpoints hold it, and no version of transformers has used it.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_PROJECTIONS = {"query": "q", "key": "k", "value": "v", "out": "o"}
# Part of a layer -> (encoder's or decoder's index in the block, transformers' name).
_ATTENTION = {
    "attention": (0, "SelfAttention"),
    "self_attention": (0, "SelfAttention"),
    "encoder_decoder_attention": (1, "EncDecAttention"),
}
_NORMS = {
    "encoder": {"pre_attention": 0, "pre_mlp": 1},
    "decoder": {"pre_self_attention": 0, "pre_cross_attention": 1, "pre_mlp": 2},
}
_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")


def tensor_name(path: str, model_type: str = "t5") -> tuple[str, bool]:
    """Return transformers' name of a parameter, and whether it is transposed there.

    **Arguments:**

    - `path`: of the parameter, one layer after the other.
    - `model_type`: of the model in transformers; all of T5's have the same names.

    **Raises:** `KeyError` for a path that has none.
    """
    if model_type == hf_t5gemma.MODEL_TYPE:
        return hf_t5gemma.tensor_name(path)
    if model_type in hf_decoder_only.MODEL_TYPES:
        return hf_decoder_only.tensor_name(path, model_type)
    if path == EMBEDDING:
        return _SHARED, False
    if path == LOGITS:
        return _HEAD, True
    if norm := re.fullmatch(r"(encoder|decoder)/\1_norm/scale", path):
        return f"{norm[1]}.final_layer_norm.weight", False
    stack, block, rest = "", "0", path
    if layer := _LAYER.fullmatch(path):
        stack, block, rest = layer.groups()
    elif path.endswith(f"/{BIAS}"):
        stack, rest = path.removesuffix(f"/{BIAS}"), BIAS
    start = f"{stack}.block.{block}.layer."
    if rest == BIAS:
        return start + "0.SelfAttention.relative_attention_bias.weight", True
    part, *_, last = rest.split("/")
    if last == "scale":
        return start + f"{_NORMS[stack][part.removesuffix('_layer_norm')]}.layer_norm.weight", False
    name = rest.split("/")[1]
    if part == "mlp":
        return start + f"{_NORMS[stack]['pre_mlp']}.DenseReluDense.{name}.weight", True
    index, module = _ATTENTION[part]
    return start + f"{index}.{module}.{_PROJECTIONS[name]}.weight", True


class HuggingFaceCheckpoint(ArraySource):
    """The parameters of a Hugging Face checkpoint.

    **Attributes:**

    - `config`: what its `config.json` says.
    - `shape`: the network's.
    - `files`: the files that the weights are in.
    """

    format = "hf"
    step = None

    def __init__(self, directory: epath.Path):
        self.config: HuggingFaceConfig = hf_config.read(directory)
        tensors = _open_tensors(directory)
        self.files = sorted({tensor.path.name for tensor in tensors.values()})
        self.shape = self.config.shape
        kind = self.config.model_type
        is_t5gemma = kind == hf_t5gemma.MODEL_TYPE
        decoder = "model.decoder.layers." if is_t5gemma else "decoder.block."
        decoder_only = kind in hf_decoder_only.MODEL_TYPES
        if not decoder_only and not any(name.startswith(decoder) for name in tensors):
            raise NotACheckpointError(
                f"{directory} holds an encoder alone ({self.config.architecture}); this network "
                "writes answers and needs a decoder too. Take the checkpoint of a whole model."
            )
        copies: tuple[str, ...]
        if is_t5gemma:
            embedding, copies = hf_t5gemma.tensor_name(EMBEDDING)[0], hf_t5gemma.HEADS
            table, _ = hf_t5gemma.tensor_name(DECODER_EMBEDDING)
            _check_tied(directory, tensors, table, copies)
        elif isinstance(self.shape, DecoderOnlyShape):
            embedding, copies = hf_decoder_only.TABLE, ()
            if self.shape.logits_via_embedding:
                copies = (hf_decoder_only.HEAD,)
                _check_tied(directory, tensors, embedding, copies)
        else:
            embedding = _embedding_of(directory, tensors, self.config.scaled)
            copies = (_SHARED, _HEAD, *_COPIES, _UNUSED)
        arrays = {}
        for path, leaf in parameters(self.shape).items():
            name, transposed = tensor_name(path, kind)
            name = embedding if path == EMBEDDING else name
            if path == LOGITS and name not in tensors and not decoder_only:
                name = embedding
            if name not in tensors:
                raise UserError(f"{directory} lacks {name}, which its config.json promises.")
            tensor = tensors[name]
            arrays[path] = tensor.transpose() if transposed else tensor
            if arrays[path].shape != leaf.shape:
                raise UserError(
                    f"{directory}: {name} is {list(tensor.shape)}, which is not what "
                    f"{hf_config.CONFIG_FILE} says: {path} would be {list(leaf.shape)}."
                )
        used = {tensor_name(path, kind)[0] for path in arrays}.union(copies)
        if unknown := sorted(set(tensors) - used):
            raise UserError(
                f"{directory} holds {len(unknown)} tensors that are no part of a "
                f"{self.config.model_type} model for text generation: {listed(unknown)}."
            )
        super().__init__(directory, arrays)


def _open_tensors(directory: epath.Path) -> dict[str, safetensors.Tensor]:
    """Open the tensors of the one set of weights that a directory holds."""
    with reading(directory):
        names = sorted(entry.name for entry in directory.iterdir())
    if INDEX_FILE not in names:
        if SINGLE_FILE not in names:
            raise NotACheckpointError(_no_weights(directory, names))
        return safetensors.open_file(directory / SINGLE_FILE)
    try:
        weight_map: dict[str, str] = read_json(directory / INDEX_FILE)["weight_map"]
        files = sorted(set(weight_map.values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{directory / INDEX_FILE} is no index: {error}") from error
    if SINGLE_FILE in names and SINGLE_FILE not in files:
        raise UserError(
            f"{directory} holds two sets of weights: {SINGLE_FILE}, and {listed(files)}, which "
            f"{INDEX_FILE} names. Remove the set that is not meant: the first, or the second with "
            "its index."
        )
    if missing := sorted(set(files) - set(names)):
        raise DamagedCheckpointError(
            f"{directory} lacks {listed(missing)}, which {INDEX_FILE} names."
        )
    tensors: dict[str, safetensors.Tensor] = {}
    for file in files:
        found = safetensors.open_file(directory / file)
        promised = {name for name, place in weight_map.items() if place == file}
        if absent := sorted(promised - set(found)):
            raise DamagedCheckpointError(
                f"{directory / file} lacks {listed(absent)}, which {INDEX_FILE} names."
            )
        if extra := sorted(set(found) - promised):
            places = sorted({weight_map.get(name, "no file") for name in extra})
            raise UserError(
                f"{directory / file} holds {listed(extra)} too, which {INDEX_FILE} gives to "
                f"{listed(places)}: two sets of weights are mixed there. Download the model again."
            )
        tensors |= found
    return tensors


def _no_weights(directory: epath.Path, names: Sequence[str]) -> str:
    old = [n for n in names if n.endswith((".bin", ".pt", ".msgpack", ".h5", ".ckpt"))]
    held = (
        f"; {listed(old)} cannot be read without torch or running code of the file" if old else ""
    )
    return (
        f"{directory} has a config.json but no {SINGLE_FILE} or {INDEX_FILE}{held}. Save it with "
        "transformers' save_pretrained(..., safe_serialization=True)."
    )


def _embedding_of(directory: epath.Path, tensors: Mapping[str, Any], scaled: bool) -> str:
    """Return the name of the embedding among those that may stand for it, if all are the same."""
    names = [name for name in (_SHARED, *_COPIES) if name in tensors]
    if scaled and _HEAD in tensors:
        names.append(_HEAD)
    if not names:
        raise UserError(f"{directory} lacks {_SHARED}, the embedding.")
    first, *others = names
    for other in others:
        if not np.array_equal(tensors[first][...], tensors[other][...]):
            raise UserError(
                f"{directory}: {other} differs from {first}. In this network they are one array"
                + (
                    " where the decoder's output is scaled (config.json)."
                    if other == _HEAD
                    else "."
                )
            )
    return first


def _check_tied(
    directory: epath.Path, tensors: Mapping[str, Any], table: str, heads: Sequence[str]
) -> None:
    """Check that a tied head, where it is stored, is the embedding."""
    for head in (name for name in heads if name in tensors and table in tensors):
        if not np.array_equal(tensors[table][...], tensors[head][...]):
            raise UserError(
                f"{directory}: {head} differs from {table}. In this network they are one array."
            )


class HuggingFaceWriter:
    """Writes a Hugging Face checkpoint, array by array, in any order."""

    def __init__(self, directory: epath.Path, shapes: Shapes, config: Mapping[str, Any]):
        """Write the index and the configuration; the arrays follow.

        **Arguments:**

        - `directory`: on a local disk; created if need be.
        - `shapes`: {path: shape and dtype} of all that will be written, one layer after the other.
        - `config`: the `config.json`.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._kind = config["model_type"]
        named = {}
        for path, leaf in shapes.items():
            name, transposed = tensor_name(path, self._kind)
            size = leaf.shape[::-1] if transposed else leaf.shape
            named[name] = jax.ShapeDtypeStruct(size, leaf.dtype)
        shards = _shards(named)
        self._files: dict[str, safetensors.FileWriter] = {}
        weight_map: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            file = SINGLE_FILE
            if len(shards) > 1:
                file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            writer = safetensors.FileWriter(directory / file, {n: named[n] for n in names})
            self._files |= dict.fromkeys(names, writer)
            weight_map |= dict.fromkeys(names, file)
        if len(shards) > 1:
            total = total_bytes(named)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_json(directory / INDEX_FILE, index)
        write_json(directory / hf_config.CONFIG_FILE, config)
        write_json(directory / "generation_config.json", hf_config.generation_config(config))

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays by path."""
        for path, array in arrays.items():
            name, transposed = tensor_name(path, self._kind)
            self._files[name].add(name, array.T if transposed else array)

    def close(self) -> None:
        """Finish the files."""
        for writer in set(self._files.values()):
            writer.close()


def _shards(named: Shapes) -> list[list[str]]:
    """Part names into files of at most `SHARD_BYTES`, or of one array."""
    shards: list[list[str]] = []
    left = 0
    for name in sorted(named):
        size = nbytes(named[name])
        if size > left:
            shards.append([])
            left = SHARD_BYTES
        shards[-1].append(name)
        left -= size
    return shards
