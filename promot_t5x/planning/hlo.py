"""What an optimized program moves: HBM traffic and collectives, its loops multiplied out.

The compiler's own count takes a loop's body once, which for scanned layers is off by their number;
so the program's text is read here. A computation is a list of instructions; `while` runs another
one as often as its condition's constant says.
"""

import dataclasses
import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0}
_BUFFER = re.compile(r"\b(pred|token|opaque|[su]\d+|bf16|f\d+\w*|c\d+)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_NAMED = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|branch_computations)=(\{[^}]*\}|%[\w.\-]+)")
_SCALAR = re.compile(r"[su]\d+\[\]\S* constant\((\d+)\)")
_LIST = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\))\))? \{([^}]*)\}")
# Between slices a program hands its data to the runtime, which does the collective.
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_MEGASCALE_SLICES = re.compile(r'_xla_megascale_target="\{([\d,:]*)\}')
# A collective that goes on while other work is done stands in a first fusion, in those that it
# overlaps, and in a last one; only in the first its flags are unset.
_GOES_ON = re.compile(r'"async_collective_fusion_config":\{"flag_start":"\d')
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# They name or rearrange buffers without touching them.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "partition-id", "replica-id", "after-all", "opt-barrier", "iota", "async-update",
    "domain", "rng-get-and-update-state",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "slice-start", "gather")
_FREE_TARGETS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding")


class Buffer(NamedTuple):
    """An array: its bytes without padding, and whether it lies in HBM rather than on the chip."""

    size: int
    in_hbm: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line: `%name = type opcode(%operand, …), attributes`."""

    name: str
    opcode: str
    results: tuple[Buffer, ...]
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def goes_on(self) -> bool:
        """Whether it is a collective that another instruction has begun."""
        return _GOES_ON.search(self.rest) is not None

    def called(self, *kinds: str) -> list[str]:
        """Names of the computations that it runs."""
        return [
            name
            for kind, names in _CALLED.findall(self.rest)
            if kind in kinds
            for name in _NAMED.findall(names)
        ]


class Collective(NamedTuple):
    """One kind of collective over groups of one size.

    `across_slices` says that the groups cross from one slice to another.
    """

    kind: str
    group: int
    across_slices: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """What one chip moves when the program runs once.

    **Attributes:**

    - `hbm_bytes`: read from HBM and written to it.
    - `sent_bytes`: that a ring algorithm sends for each `Collective`.
    - `calls`: how often each is run.
    """

    hbm_bytes: float
    sent_bytes: Mapping[Collective, float]
    calls: Mapping[Collective, int]


def traffic(text: str, *, chips_per_slice: int) -> Traffic:
    """Read an optimized program's text, as `Compiled.as_text` gives it.

    **Arguments:**

    - `chips_per_slice`: devices with ids below it are the first slice, and so on.
    """
    program = _Program(text)
    hbm, sent, calls = 0.0, defaultdict[Collective, float](float), Counter[Collective]()
    for times, instruction, fused in program.run(program.entry, 1, False):
        if not fused:
            hbm += times * program.hbm_bytes(instruction)
        if collective := program.collective(instruction, chips_per_slice):
            found, size = collective
            sent[found] += times * size
            calls[found] += times
    return Traffic(hbm_bytes=hbm, sent_bytes=dict(sent), calls=dict(calls))


class _Program:
    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self._inside: dict[str, str] = {}  # instruction -> the computation it is in
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if header := _HEADER.match(line):
                current = self.computations[header[2]] = {}
                if header[1]:
                    self.entry = header[2]
            elif line.startswith("  ") and (parsed := _instruction(line)):
                current[parsed.name] = parsed
        for name, instructions in self.computations.items():
            self._inside.update(dict.fromkeys(instructions, name))

    def run(
        self, computation: str, times: int, fused: bool
    ) -> Iterator[tuple[int, Instruction, bool]]:
        """Every instruction, how often it runs, and whether it is part of a fused one."""
        for instruction in self.computations[computation].values():
            yield times, instruction, fused
            if instruction.opcode == "while":
                (body,), (condition,) = instruction.called("body"), instruction.called("condition")
                yield from self.run(body, times * self._trips(condition), fused)
            elif instruction.opcode == "fusion" or instruction.opcode.startswith("async-start"):
                for called in instruction.called("calls"):
                    inside = fused or instruction.opcode == "fusion"
                    yield from self.run(called, times, inside)
            elif instruction.opcode in ("call", "conditional"):
                # One branch runs; the first stands for it.
                for called in instruction.called("to_apply", "branch_computations")[:1]:
                    yield from self.run(called, times, fused)

    def _trips(self, condition: str) -> int:
        """Find the largest constant that the condition compares with: a scan's length."""
        bounds = [int(n) for n in _SCALAR.findall(self._text_of(condition))]
        return max(bounds, default=1)

    def _text_of(self, computation: str) -> str:
        lines = []
        for instruction in self.computations[computation].values():
            lines.append(instruction.rest)
            lines += [self._text_of(name) for name in instruction.called("calls", "to_apply")]
        return "\n".join(lines)

    def hbm_bytes(self, instruction: Instruction) -> int:
        """Bytes that one instruction reads from HBM and writes to it."""
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done") or opcode.startswith("async"):
            return 0
        if opcode == "custom-call" and any(name in instruction.rest for name in _FREE_TARGETS):
            return 0
        computation = self.computations[self._inside[instruction.name]]
        read = sum(
            self._read(instruction, position, computation[name])
            for position, name in enumerate(instruction.operands)
            if name in computation
        )
        return read + _sum_hbm(self._written(instruction))

    def _written(self, instruction: Instruction) -> tuple[Buffer, ...]:
        """Return the results; of an update in place, the part that changes."""
        if instruction.opcode == "dynamic-update-slice":
            update = self._operand(instruction, 1)
            return update.results if update else ()
        if instruction.opcode != "fusion":
            return instruction.results
        body = self.computations[instruction.called("calls")[0]]
        roots = [each for each in body.values() if each.is_root]
        if roots and roots[0].opcode == "tuple":
            roots = [body[name] for name in roots[0].operands if name in body]
        if len(roots) != len(instruction.results):
            return instruction.results
        return tuple(
            Buffer(min(result.size, self._updated(body, root, result.size)), result.in_hbm)
            for root, result in zip(roots, instruction.results, strict=True)
        )

    def _updated(self, body: Mapping[str, Instruction], root: Instruction, size: int) -> int:
        while root.opcode == "bitcast" and root.operands[0] in body:
            root = body[root.operands[0]]
        if root.opcode == "parameter" or root.goes_on:
            return 0  # it is passed on, or being written by what began before
        if root.opcode != "dynamic-update-slice" or root.operands[1] not in body:
            return size
        return sum(buffer.size for buffer in body[root.operands[1]].results)

    def _read(self, instruction: Instruction, position: int, operand: Instruction) -> int:
        """Bytes of one operand that are read; of what is only sliced, the slices."""
        whole = _sum_hbm(operand.results)
        if not whole:
            return 0
        if instruction.opcode in _SLICES:
            return min(whole, sum(buffer.size for buffer in instruction.results))
        if instruction.opcode == "dynamic-update-slice" and position == 0:
            return 0
        if instruction.opcode != "fusion":
            return whole
        return min(whole, self._sliced(instruction.called("calls")[0], position, whole))

    @functools.cache  # noqa: B019
    def _sliced(self, computation: str, position: int, whole: int) -> int:
        body = self.computations[computation]
        parameter = next(
            (
                each
                for each in body.values()
                if each.opcode == "parameter" and each.rest.startswith(f"{position})")
            ),
            None,
        )
        if parameter is None:
            return whole
        return self._read_by_users(body, parameter.name, whole)

    def _read_by_users(self, body: Mapping[str, Instruction], name: str, whole: int) -> int:
        read = 0
        for user in body.values():
            for position, operand in enumerate(user.operands):
                if operand != name:
                    continue
                if user.opcode in _SLICES:
                    read += sum(buffer.size for buffer in user.results)
                elif user.opcode == "dynamic-update-slice" and position == 0:
                    continue
                elif user.opcode == "tuple" or user.goes_on:
                    continue  # passed on, or being read by what began before
                elif user.opcode == "bitcast" or self._retiles(user):
                    read += self._read_by_users(body, user.name, whole)
                elif user.opcode == "fusion":
                    read += self._sliced(user.called("calls")[0], position, whole)
                else:
                    return whole
        return min(read, whole)

    def _retiles(self, fusion: Instruction) -> bool:
        """Whether it gives its operand's own bytes another tiling, as int8 gets inside fusions."""
        if "output_to_operand_aliasing={{}: (0, {})}" not in fusion.rest:
            return False
        body = self.computations[fusion.called("calls")[0]]
        return {each.opcode for each in body.values()} == {"parameter", "copy"}

    def _operand(self, instruction: Instruction, position: int) -> Instruction | None:
        computation = self.computations[self._inside[instruction.name]]
        return computation.get(instruction.operands[position])

    def collective(
        self, instruction: Instruction, chips_per_slice: int
    ) -> tuple[Collective, float] | None:
        """If it is a collective, which one, and the bytes that one chip sends in a ring of it."""
        kind = instruction.opcode.removesuffix("-start")
        operands = sum(
            sum(buffer.size for buffer in operand.results)
            for position in range(len(instruction.operands))
            if (operand := self._operand(instruction, position))
        )
        if kind == "send" and (transfer := _MEGASCALE.search(instruction.rest)):
            kind = transfer[1].lower().replace("_", "-")
            group = _members(_MEGASCALE_SLICES.search(instruction.rest))
            return Collective(kind, group, True), _sent(kind, operands, group)
        if kind not in COLLECTIVES or instruction.goes_on:
            return None
        devices = replica_group(instruction.rest)
        if kind == "all-reduce" and "reduce-scatter" in self._inside[instruction.name]:
            kind = "reduce-scatter"  # how the TPU compiler writes it: fused with its slice
        across = len({device // chips_per_slice for device in devices}) > 1
        group = max(len(devices), 1)
        return Collective(kind, group, across), _sent(kind, operands, group)


def _sent(kind: str, operands: int, group: int) -> float:
    """Bytes that each of a ring's `group` members sends, of operands of so many bytes each."""
    share = (group - 1) / group
    return {
        "all-gather": operands * (group - 1.0),
        "all-reduce": 2 * operands * share,
        "reduce-scatter": operands * share,
        "all-to-all": operands * share,
        "ragged-all-to-all": operands * share,
    }.get(kind, float(operands))


def _members(match: re.Match[str] | None) -> int:
    """How many numbers `1,2` or `1:4` names; at least 2."""
    if match is None:
        return 2
    count = 0
    for part in match[1].split(","):
        first, _, last = part.partition(":")
        count += int(last or first) - int(first) + 1 if first else 0
    return max(count, 2)


def _instruction(line: str) -> Instruction | None:
    name, equals, right = line.strip().partition(" = ")
    if not equals or right.startswith("("):
        end = _closing(right, 0) + 1 if equals else 0
    else:
        end = right.find(" ")
    opcode, parenthesis, rest = right[end:].strip().partition("(")
    if not equals or not parenthesis:
        return None
    close = _closing("(" + rest, 0) - 1
    is_root = name.startswith("ROOT ")
    operands = tuple(_NAMED.findall(rest[:close]))
    buffers = [_buffer(*found) for found in _BUFFER.findall(right[:end])]
    return Instruction(
        name=name.removeprefix("ROOT ").lstrip("%"),
        opcode=opcode,
        results=tuple(_destinations(opcode, buffers, len(operands))),
        operands=operands,
        rest=rest if opcode != "constant" else right,
        is_root=is_root,
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return len(text) - 1


def _buffer(kind: str, sizes: str, layout: str) -> Buffer:
    bits = _BITS.get(kind)
    if bits is None:
        bits = int(re.sub(r"\D", " ", kind).split()[0])
    elements = math.prod(int(n) for n in sizes.split(",") if n)
    return Buffer(elements * bits // 8, "S(" not in layout)


def _sum_hbm(buffers: tuple[Buffer, ...]) -> int:
    return sum(buffer.size for buffer in buffers if buffer.in_hbm)


def _destinations(opcode: str, buffers: list[Buffer], operands: int) -> list[Buffer]:
    """Of what an asynchronous instruction names as its results, those that it fills."""
    if opcode in ("copy-start", "recv"):  # (destination, source, context), (data, context, token)
        return buffers[:1]
    if opcode == "send":  # (what is sent, context, token)
        return []
    if opcode.endswith("-start") and opcode not in ("all-reduce-start", "async-start"):
        return buffers[operands : 2 * operands]  # (operands, results, contexts)
    return buffers


def replica_group(attributes: str) -> list[int]:
    """Return the first group of devices that take part in a collective together."""
    if match := _LIST.search(attributes):
        return [int(n) for n in match[1].split(",") if n]
    if match := _PAIRS.search(attributes):
        return [int(match[1]), int(match[2])]
    if match := _IOTA.search(attributes):
        return _iota(match[1], match[2], match[3])[0]
    if match := _MESH.search(attributes):
        return _mesh_group(match[1], match[2], match[3])
    return []


def _ints(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _iota(groups: str, dims: str, permutation: str | None) -> list[list[int]]:
    import numpy as np

    ids = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
    if permutation:
        ids = ids.transpose(_ints(permutation))
    nested: list[list[int]] = ids.reshape(_ints(groups)).tolist()
    return nested


def _mesh_group(axes: str, device_ids: str | None, over: str) -> list[int]:
    """Of `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`: the devices along the axis b."""
    import numpy as np

    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values()))
    if device_ids:
        match = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", device_ids)
        if match:
            ids = ids.reshape(_ints(match[1]))
            ids = ids.transpose(_ints(match[2])) if match[2] else ids
    ids = ids.reshape(list(sizes.values()))
    chosen = re.findall(r"'([^']+)'", over)
    index = tuple(slice(None) if name in chosen else 0 for name in sizes)
    return sorted(np.asarray(ids[index]).reshape(-1).tolist())
