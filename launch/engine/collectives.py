"""Collectives of a compiled program, read from the text of its optimized HLO."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = ")
_CALLED = re.compile(
    r"(?:calls|to_apply|condition|body|true_computation|false_computation|branch_computations"
    r"|called_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\]")
_TRIPS = re.compile(r'"?known_trip_count"?:\{"?n"?:"?(\d+)"?\}')
_ROW = re.compile(r'^(\d+) (?:"(.*)"|\{(.*)\})$')
_INSTALLED = ("/site-packages/", "/dist-packages/")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a compiled program.

    Attributes:
      kind: one of `KINDS`.
      shape: shape of the result on one device without its layout, such as "f32[16,24]", or, for
        several arrays in one collective, "(f32[16,24], f32[24])".
      bytes: size of the complete arrays on one device. The complete arrays are the operands of a
        reduce-scatter, and the results of any other kind.
      group_size: number of devices that take part; for a collective-permute, the number of devices
        in the longest chain of sources and targets.
      source: "file:line" of the innermost frame outside installed packages, else of the innermost
        frame; "" if the program does not have it.
      op_name: name of the JAX operation, such as "jit(train)/jvp()/dot_general"; "" if unknown.
      count: number of executions per run of the program; None in a loop of unknown length. All
        branches of a conditional are counted.
    """

    kind: str
    shape: str
    bytes: int
    group_size: int
    source: str
    op_name: str
    count: int | None


@dataclasses.dataclass
class _Instruction:
    name: str
    shape: str
    operation: str
    rest: str
    root: bool


def collectives(hlo_text: str) -> list[Collective]:
    """Returns the collectives of a program, in the order of its text.

    A pair of start and done instructions counts as one collective. So do all parts of an
    asynchronous collective that XLA:TPU fuses with other operations. An all-reduce that XLA:TPU
    fuses with the slice that each device keeps is returned as a reduce-scatter.

    Args:
      hlo_text: `jax.stages.Compiled.as_text()` of a program for CPU, GPU or TPU.
    """
    computations, entry = _computations(hlo_text)
    counts = _counts(computations, entry)
    callers = _callers(computations)
    sources = _Sources(hlo_text)
    devices = _devices(hlo_text)
    found: list[Collective] = []
    chains: set[tuple[str, ...]] = set()
    for computation, instructions in computations.items():
        if computation not in counts:
            continue
        for instruction in instructions:
            kind = instruction.operation.removesuffix("-start")
            if kind not in KINDS:
                continue
            chain = re.search(r'chain_id="(\w+)"', instruction.rest)
            if chain:
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                key = (kind, chain.group(1), channel.group(1) if channel else "")
                if key in chains:
                    continue
                chains.add(key)
            shape = _result(instruction)
            scattered = _scattered(instruction, instructions)
            if scattered is not None:
                kind, shape = "reduce-scatter", scattered.shape
            group = _group_size(instruction.rest, devices)
            size = _size(shape) * (group if kind == "reduce-scatter" else 1)
            described = [instruction, *callers.get(computation, ())]
            found.append(
                Collective(
                    kind=kind,
                    shape=_without_layout(shape),
                    bytes=size,
                    group_size=group,
                    source=next(filter(None, (sources.of(each.rest) for each in described)), ""),
                    op_name=next(filter(None, (_op_name(each.rest) for each in described)), ""),
                    count=counts[computation],
                )
            )
    return found


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns the instructions of each computation, and the name of the entry computation."""
    found: dict[str, list[_Instruction]] = {}
    entry, instructions = "", []
    for line in text.splitlines():
        if line[:1] not in ("", " ", "}") and (header := _COMPUTATION.match(line)):
            instructions = found.setdefault(header["name"], [])
            entry = header["name"] if header["entry"] else entry
        elif line[:1] == " " and (head := _INSTRUCTION.match(line)):
            shape, after = _split_shape(line[head.end() :])
            operation, _, rest = after.partition("(")
            instructions.append(
                _Instruction(head["name"], shape, operation, rest, bool(head["root"]))
            )
    return found, entry


def _split_shape(text: str) -> tuple[str, str]:
    """Splits "shape operation(...)" after the shape."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == " " and depth == 0:
            return text[:position], text[position + 1 :]
    return text, ""


def _called(instruction: _Instruction) -> Iterator[str]:
    for several, one in _CALLED.findall(instruction.rest):
        for name in several.split(",") if several else [one]:
            yield name.strip().lstrip("%")


def _callers(computations: dict[str, list[_Instruction]]) -> dict[str, list[_Instruction]]:
    found: dict[str, list[_Instruction]] = {}
    for instructions in computations.values():
        for instruction in instructions:
            for name in _called(instruction):
                found.setdefault(name, []).append(instruction)
    return found


def _counts(computations: dict[str, list[_Instruction]], entry: str) -> dict[str, int | None]:
    """Returns how often the program runs each computation; None where that is unknown.

    Computations that the entry computation does not reach are left out.
    """
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order or name not in computations:
            return
        for instruction in computations[name]:
            for called in _called(instruction):
                visit(called)
        order.append(name)

    visit(entry)
    found: dict[str, int | None] = dict.fromkeys(order, 0)
    found[entry] = 1
    # `order` lists each computation after those that it calls. In reverse, the count of a caller is
    # therefore complete before it is used.
    for name in reversed(order):
        for instruction in computations[name]:
            trips = 1
            if instruction.operation == "while":
                trips = _trips(instruction, computations[name], computations)
            for called in _called(instruction):
                if called in found:
                    before, here = found[called], found[name]
                    if before is None or here is None or trips is None:
                        found[called] = None
                    else:
                        found[called] = before + here * trips
    return found


def _trips(
    loop: _Instruction,
    around: list[_Instruction],
    computations: dict[str, list[_Instruction]],
) -> int | None:
    """Returns the number of iterations of a while loop; None if unknown.

    XLA:TPU does not print this number, so it is computed from the initial value, the step and the
    limit of the loop counter if all three are constants.
    """
    if known := _TRIPS.search(loop.rest):
        return int(known.group(1))
    names = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", loop.rest)
    if names is None:
        return None
    condition, body = (computations.get(each, []) for each in names.groups())
    test = next((each for each in condition if each.root), None)
    step = next((each for each in body if each.root), None)
    start = _origin(_operands(loop)[0], around)
    if not (test and step and start) or "direction=LT" not in test.rest:
        return None
    counter, limit = (_origin(each, condition) for each in _operands(test))
    if not (counter and limit) or (index := _index(counter)) is None:
        return None
    if start.operation != "tuple" or step.operation != "tuple":
        return None
    first = _constant(_origin(_operands(start)[index], around))
    last = _constant(limit)
    added = _origin(_operands(step)[index], body)
    if added is None or added.operation != "add":
        return None
    parts = [_origin(each, body) for each in _operands(added)]
    steps = [_constant(each) for each in parts if each and _index(each) != index]
    if first is None or last is None or len(steps) != 1 or not steps[0]:
        return None
    return max(-(-(last - first) // steps[0]), 0)


def _operands(instruction: _Instruction) -> list[str]:
    inside = re.sub(r"/\*.*?\*/", "", instruction.rest.partition(")")[0])
    return [each.strip().lstrip("%") for each in inside.split(",")]


def _origin(name: str, instructions: list[_Instruction]) -> _Instruction | None:
    """Returns the instruction with a name. If it is a copy, returns the copied instruction."""
    found = next((each for each in instructions if each.name == name), None)
    while found and found.operation in ("copy", "bitcast"):
        source = _operands(found)[0]
        found = next((each for each in instructions if each.name == source), None)
    return found


def _index(instruction: _Instruction) -> int | None:
    """Returns the tuple index of a get-tuple-element instruction; None for other instructions."""
    found = re.search(r"index=(\d+)", instruction.rest)
    return int(found.group(1)) if found and instruction.operation == "get-tuple-element" else None


def _constant(instruction: _Instruction | None) -> int | None:
    if instruction is None or instruction.operation != "constant":
        return None
    value = re.match(r"(-?\d+)\)", instruction.rest)
    return int(value.group(1)) if value else None


def _result(instruction: _Instruction) -> str:
    """Returns the shape of the result of an instruction.

    Most start operations return a tuple, whose second element is the result.
    """
    shape = instruction.shape
    if instruction.operation.endswith("-start") and instruction.operation != "all-reduce-start":
        return _parts(shape)[1]
    return shape


def _parts(shape: str) -> list[str]:
    """Returns the elements of a tuple shape."""
    depth, parts = 0, [""]
    for letter in re.sub(r"/\*.*?\*/", "", shape)[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _scattered(instruction: _Instruction, instructions: list[_Instruction]) -> _Instruction | None:
    """Returns the instruction that slices the result of an all-reduce in a fused computation.

    The result is None if the instruction is not an all-reduce that is sliced.
    """
    root = next((each for each in instructions if each.root), None)
    fused = (
        instruction.operation == "all-reduce"
        and root is not None
        and root.operation == "dynamic-slice"
        and re.match(rf"%?{re.escape(instruction.name)}[,)]", root.rest)
        and any(each.operation == "partition-id" for each in instructions)
    )
    return root if fused else None


def _size(shape: str) -> int:
    """Returns the bytes of all arrays in a shape."""
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        digits = re.search(r"\d+", kind)
        bits = 8 if kind == "pred" else int(digits.group()) if digits else 0
        lengths = [int(size.strip().lstrip("<=")) for size in sizes.split(",") if size]
        total += math.ceil(bits * math.prod(lengths) / 8)
    return total


def _without_layout(shape: str) -> str:
    arrays = [f"{kind}[{sizes}]" for kind, sizes in _ARRAY.findall(shape)]
    return arrays[0] if len(arrays) == 1 else f"({', '.join(arrays)})"


def _devices(text: str) -> int:
    header = text.partition("\n")[0]
    found = [re.search(rf"{name}=(\d+)", header) for name in ("num_partitions", "replica_count")]
    return math.prod(int(each.group(1)) for each in found if each)


def _group_size(rest: str, devices: int) -> int:
    """Returns the number of devices in a group; see `Collective.group_size`.

    Replica groups in any notation and source-target pairs are supported.
    """
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        found = re.findall(r"(\d+),(\d+)", pairs.group(1))
        targets = {int(source): int(target) for source, target in found}
        return max(_chain(start, targets) for start in targets)
    # A permuted mesh also has device_ids before its axes.
    pattern = r"replica_groups=mesh\[([^\]]*)\]\S*(?: device_ids=\S*)? \{([^}]*)\}"
    if mesh := re.search(pattern, rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(.*?)'=(\d+)", mesh.group(1))}
        axes = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(iota.group(1))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed.group(1).split(","))
    return devices


def _chain(start: int, targets: dict[int, int]) -> int:
    seen = {start}
    while (start := targets.get(start, start)) not in seen:
        seen.add(start)
    return len(seen)


def _op_name(rest: str) -> str:
    found = re.search(r'op_name="([^"]*)"', rest)
    return found.group(1) if found else ""


class _Sources:
    """Source positions from the tables of files, locations and stack frames of a program."""

    def __init__(self, text: str):
        self._tables: dict[str, dict[int, str]] = {}
        table: dict[int, str] | None = None
        for line in text.splitlines():
            if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                table = self._tables.setdefault(line, {})
            elif table is not None and (row := _ROW.match(line)):
                table[int(row.group(1))] = row.group(2) or row.group(3) or ""
            elif line.startswith(("%", "ENTRY")):
                break

    def of(self, rest: str) -> str:
        """Returns the source of an instruction, see `Collective.source`; "" without metadata."""
        if named := re.search(r'source_file="([^"]*)"(?: source_line=(\d+))?', rest):
            return f"{named.group(1)}:{named.group(2) or 0}"
        if not (frame := re.search(r"stack_frame_id=(\d+)", rest)):
            return ""
        frames = list(self._frames(int(frame.group(1))))
        outside = (each for each in frames if not any(part in each for part in _INSTALLED))
        return next(outside, frames[0] if frames else "")

    def _frames(self, frame: int) -> Iterator[str]:
        """Yields the "file:line" of a stack frame and of its callers, innermost first."""
        seen: set[int] = set()
        while frame not in seen and (row := self._tables.get("StackFrames", {}).get(frame)):
            seen.add(frame)
            location = self._tables["FileLocations"][_field(row, "file_location_id")]
            file = self._tables["FileNames"][_field(location, "file_name_id")]
            yield f"{file}:{_field(location, 'line')}"
            frame = _field(row, "parent_frame_id")


def _field(row: str, name: str) -> int:
    found = re.search(rf"(?<!\w){name}=(\d+)", row)
    return int(found.group(1)) if found else 0
