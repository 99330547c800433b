"""What a compiled program is made of, read from XLA's text of it after all its optimisations."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)

# Nothing is computed or moved by these.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "opt-barrier"),
    *("while", "call", "conditional", "async-start", "async-update", "async-done", "domain"),
}
_SLICES = {"slice", "dynamic-slice", "gather"}
_ARRAY = re.compile(r"\b(pred|token|opaque|[suc]\d+|bf16|f\d+\w*)\[([\d,]*)\](\{[^{}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_NAME = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # attributes

    @property
    def called(self) -> list[str]:
        found = _CALLED.findall(self.rest)
        for branches in _BRANCHES.findall(self.rest):
            found += [name.strip().lstrip("%") for name in branches.split(",")]
        return found

    @property
    def trips(self) -> int:
        """How often the body of a loop runs, 0 where XLA does not say; of anything else 1."""
        found = re.search(r'"known_trip_count":\s*\{"n":\s*"?(\d+)', self.rest)
        return (int(found[1]) if found else 0) if self.opcode == "while" else 1


@dataclasses.dataclass(frozen=True)
class Program:
    """What one run of a program does on a device; the body of a loop counts as often as it runs, once where XLA does not say it.

    Attributes:
        kernels: {kind: how many are launched}, see `_kind`; the largest number first.
        collectives: {kind: (how many, bytes of their results on a device)}.
        bytes: of its memory that all kernels read and write: operands and results with the padding of their tiles, of an array
            that is only sliced the slices; not what lies on the chip itself.
        loops: those of which XLA does not say how often they run.
    """

    kernels: dict[str, int]
    collectives: dict[str, tuple[int, int]]
    bytes: int
    loops: int

    def sent(self, devices: int) -> float:
        """Bytes that each of so many devices sends for the collectives, at least: what a ring moves."""
        share = (devices - 1) / devices
        factors = {"all-reduce": 2 * share, "reduce-scatter": devices - 1, "collective-permute": 1, "collective-broadcast": 1}
        return sum(factors.get(kind, share) * size for kind, (_, size) in self.collectives.items())


def read(text: str) -> Program:
    """Counts a program given as text, `compiled.as_text()`; raises ValueError for a text that is none."""
    computations, entry = _computations(text)
    if not entry:
        raise ValueError("no text of a compiled program: it has no ENTRY")
    kernels: collections.Counter[str] = collections.Counter()
    collectives: dict[str, tuple[int, int]] = {}
    moved = loops = 0
    for instruction, within, times, fused in _walk(computations, entry, 1, False):
        loops += not instruction.trips
        kind = instruction.opcode.removesuffix("-done").removesuffix("-start")
        if kind in COLLECTIVES:
            if not instruction.opcode.endswith("-start"):  # whose shape is of operands and results
                number, size = collectives.get(kind, (0, 0))
                collectives[kind] = (number + times, size + times * size_of(instruction.shape))
                moved += 2 * times * size_of(instruction.shape, memory=True)
            continue
        if fused or instruction.opcode in _FREE:
            continue
        begins, ends = instruction.opcode.endswith("-start"), instruction.opcode.endswith("-done")
        if not ends:
            kernels[_kind(instruction, computations)] += times
            moved += times * _read_bytes(instruction, within, computations)
        if not begins:
            moved += times * size_of(instruction.shape, memory=True)
    return Program(dict(kernels.most_common()), collectives, moved, loops)


def size_of(shape: str, memory: bool = False) -> int:
    """Bytes of a shape as XLA writes it, of a tuple those of all its arrays: `(f32[8,3]{1,0}, pred[])` is 97.

    With `memory` those that it takes of the device's memory: sides are whole tiles, and what lies on the chip itself is 0.
    """
    total = 0
    for dtype, numbers, layout in _ARRAY.findall(shape):
        bits = 8 if dtype == "pred" else 0 if dtype in ("token", "opaque") else int(re.findall(r"\d+", dtype)[0])
        sides = [int(side) for side in numbers.split(",") if side]
        order, _, rest = layout.strip("{}").partition(":")
        if memory and re.search(r"S\([1-9]", rest):
            continue
        if memory and order and (tile := re.match(r"T\(([\d,]+)\)", rest)):
            # The order begins with the side that varies fastest, a tile ends with it.
            for side, step in zip(map(int, order.split(",")), reversed([int(step) for step in tile[1].split(",")]), strict=False):
                sides[side] = math.ceil(sides[side] / step) * step
        total += math.ceil(bits * math.prod(sides) / 8)
    return total


def _computations(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """{computation: {instruction: ..}}, and the name of the first that runs."""
    found: dict[str, dict[str, _Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if begins := re.match(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$", line):
            current = begins[2]
            found[current] = {}
            entry = current if begins[1] else entry
        elif line.startswith("}"):
            current = ""
        elif current and (named := _NAME.match(line)):
            instruction = _instruction(named[2], line[named.end() :])
            found[current][instruction.name] = instruction
    return found, entry


def _instruction(name: str, text: str) -> _Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    begin = text.index("(")
    end = _closing(text, begin)
    operands = tuple(re.findall(r"%([\w.\-]+)", text[begin:end])) or tuple(re.findall(r"([\w.\-]+)(?=[,)])", text[begin:end]))
    return _Instruction(name, shape, text[:begin], operands, text[end:])


def _closing(text: str, begin: int) -> int:
    """The place after the bracket that closes the one at `begin`."""
    depth = 0
    for place in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    return len(text)


def _walk(
    computations: dict[str, dict[str, _Instruction]], name: str, times: int, fused: bool
) -> Iterator[tuple[_Instruction, dict[str, _Instruction], int, bool]]:
    """Every instruction that runs, with its computation, how often, and whether it is a part of a kernel."""
    for instruction in computations[name].values():
        yield instruction, computations[name], times, fused
        inside = fused or instruction.opcode not in _FREE
        for called in instruction.called:
            if called in computations:
                yield from _walk(computations, called, times * (instruction.trips or 1), inside)


def _kind(instruction: _Instruction, computations: dict[str, dict[str, _Instruction]]) -> str:
    """`cuDNN`, `cuBLAS` or the target of another call of a library; with products are fusions with convolutions too."""
    if instruction.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
        name = target[1] if target else "custom-call"
        return "cuDNN" if name.startswith("__cudnn") else "cuBLAS" if name.startswith("__cublas") else name
    if instruction.opcode in ("dot", "convolution"):
        return "products"
    if instruction.opcode != "fusion":
        return "copies" if instruction.opcode in ("copy", "copy-start", "slice-start", "transpose") else "other operations"
    within = (each for name in instruction.called for each, *_ in _walk(computations, name, 1, True))
    return "fusions with products" if any(each.opcode in ("dot", "convolution") for each in within) else "other fusions"


def _read_bytes(
    instruction: _Instruction, within: dict[str, _Instruction], computations: dict[str, dict[str, _Instruction]]
) -> int:
    """Bytes of the operands; of one that a fusion, or the operation itself, only takes slices of, those slices."""
    sizes = [size_of(within[name].shape, memory=True) if name in within else 0 for name in instruction.operands]
    if instruction.opcode in _SLICES and sizes:
        sizes[0] = min(sizes[0], size_of(instruction.shape, memory=True))
    if instruction.opcode == "slice-start" and sizes:  # ((operand), slice, ..), the slice often on the chip
        taken = [each[0] for each in _ARRAY.finditer(instruction.shape)][1]
        sizes[0] = min(sizes[0], size_of(re.sub(r"S\(\d+\)", "", taken), memory=True))
    body = computations[instruction.called[0]] if instruction.opcode == "fusion" else {}
    for parameter in (each for each in body.values() if each.opcode == "parameter"):
        users = [user for user in body.values() if parameter.name in user.operands]
        if users and all(user.opcode in _SLICES and user.operands[0] == parameter.name for user in users):
            place = int(parameter.operands[0])
            sizes[place] = min(sizes[place], sum(size_of(user.shape, memory=True) for user in users))
    return sum(sizes)
