"""XLA's HLO text as data: the instructions that a compiled program runs, and how often."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_INSTRUCTION = re.compile(
    r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<type>.*?) (?P<opcode>[a-z][a-z0-9-]*)\("
    r"(?P<rest>.*)$"
)
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{\s*$")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.-]+)")
_CALLEE = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'known_trip_count"?:\s*\{"n":\s*"(\d+)"')


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: its own, without the percent sign.
      type: of its result, an array's or a tuple's, with layouts.
      opcode: all-reduce, fusion, ….
      inside: the text between its parentheses: a constant's value, a parameter's number.
      attributes: the text after them.
      is_root: whether its computation returns it.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    inside: str
    attributes: str
    is_root: bool

    def callees(self) -> list[str]:
        """The computations that it runs."""
        branches = _BRANCHES.search(self.attributes)
        listed = _NAME.findall(branches[1]) if branches else []
        return [*_CALLEE.findall(self.attributes), *listed]


Computation = dict[str, Instruction]


class Module(NamedTuple):
    """Computations by name, and the name of the one that runs."""

    computations: dict[str, Computation]
    entry: str


class Executed(NamedTuple):
    """An instruction outside fusions, the computation it is in, and how often it runs."""

    instruction: Instruction
    computation: Computation
    times: int


def parse(text: str) -> Module:
    """Reads the text of an optimised module (`compiled.as_text()`)."""
    computations, current, entry = {}, {}, ""
    for line in text.splitlines():
        if not line[:1].isspace():
            if header := _COMPUTATION.match(line):
                current = computations.setdefault(header["name"], {})
                entry = header["name"] if header["entry"] else entry
        elif match := _INSTRUCTION.match(line):
            inside, attributes = _split(match["rest"])
            current[match["name"]] = Instruction(
                match["name"], match["type"], match["opcode"],
                tuple(_NAME.findall(inside)), inside, attributes, bool(match["root"]),
            )  # fmt: skip
    return Module(computations, entry)


def executed(module: Module) -> Iterator[Executed]:
    """The instructions that one run executes, and how often.

    Loop bodies count as often as they run, both branches of a conditional once, a fusion as one
    instruction, and a loop without a known trip count once (`unknown_loops`).
    """

    def visit(name: str, times: int) -> Iterator[Executed]:
        computation = module.computations[name]
        for instruction in computation.values():
            if instruction.opcode == "while":
                trips = _trip_count(instruction, module) or 1
                yield from visit(instruction.callees()[0], times * trips)
            elif instruction.opcode in ("call", "conditional"):
                for callee in instruction.callees():
                    yield from visit(callee, times)
            else:
                yield Executed(instruction, computation, times)

    return visit(module.entry, 1)


def unknown_loops(module: Module) -> int:
    """The number of loops without a known trip count."""
    return sum(
        instruction.opcode == "while" and _trip_count(instruction, module) is None
        for computation in module.computations.values()
        for instruction in computation.values()
    )


def array_bytes(type_text: str, *, main_memory: bool = False) -> float:
    """The bytes of a type's arrays, without the padding that a layout may add.

    Args:
      type_text: such as "(f32[16]{0}, bf16[4,4]{1,0:T(8,128)S(1)})".
      main_memory: leaves out arrays in on-chip memory, whose layout has S(1) or higher.
    """
    total = 0.0
    for dtype, shape, layout in _ARRAY.findall(type_text):
        if main_memory and re.search(r"S\([1-9]", layout):
            continue
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        total += math.prod(int(size.strip("<=")) for size in shape.split(",") if size) * bits / 8
    return total


def arrays(type_text: str) -> list[str]:
    """The array types of a type, in order."""
    return [match[0] for match in _ARRAY.finditer(type_text)]


def shape_of(type_text: str) -> tuple[str, tuple[int, ...]]:
    """The element type and the sizes of a type's first array."""
    dtype, shape, _ = _ARRAY.search(type_text).groups()
    return dtype, tuple(int(size.strip("<=")) for size in shape.split(",") if size)


def _split(rest: str) -> tuple[str, str]:
    """The text inside an instruction's parentheses, and the text after them."""
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if not depth:
            return rest[:i], rest[i + 1 :]
    return rest, ""


def _trip_count(loop: Instruction, module: Module) -> int | None:
    """A loop's trip count as XLA noted it, or else from its condition i < N, counting from 0."""
    if known := _TRIP_COUNT.search(loop.attributes):
        return int(known[1])
    condition = module.computations[re.search(r"condition=%?([\w.-]+)", loop.attributes)[1]]
    root = next(i for i in condition.values() if i.is_root)
    if root.opcode != "compare" or "direction=LT" not in root.attributes:
        return None
    bounds = [condition[name] for name in root.operands if name in condition]
    constants = [int(i.inside) for i in bounds if i.opcode == "constant"]
    return constants[0] if len(constants) == 1 else None
