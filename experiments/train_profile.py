"""Where a compiled step's time goes, from a trace of jax.profiler: by kind of operation and by part
of the network.

On a GPU trace with --xla-flags=--xla_gpu_enable_command_buffer= : kernels in a CUDA graph do not
tell which operation they belong to.
"""

import collections
import re
from pathlib import Path
from typing import Any

from ida_jax.planning.hlo import Instruction, Module, parse

# They take as long as the operations in them, which are counted.
_OUTER = ("while", "call", "conditional", "tuple")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_LAYER = re.compile(r"(?:(stage\d+)_block\d+|(stem)_(?=conv|bn|prelu))/?(\w+)?")
_WHOLE_LAYER = re.compile(r"/(output_bn|fc|embedding_bn|Dropout)\w*/")


def times(folder: str, hlo: str, *, steps: int) -> dict[str, Any]:
    """Milliseconds a step of the newest trace in a folder, largest first.

    Several operations may run at once, on several streams or cores: the sum can be more than the
    step's time.

    Args:
      folder: as given to jax.profiler.trace.
      hlo: the program's optimised text.
      steps: how many were traced.
    """
    from jax.profiler import ProfileData

    path = max(Path(folder).rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    planes = list(ProfileData.from_file(str(path)).planes)
    on_device = [plane for plane in planes if plane.name.startswith("/device:")]
    spent = collections.Counter()
    for plane in on_device or planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation and not event.name.startswith("end: "):
                    spent[str(operation)] += event.duration_ns / 1e6 / steps
    module = parse(hlo)
    known = {name: i for body in module.computations.values() for name, i in body.items()}
    by_kind, by_part = collections.Counter(), collections.Counter()
    for name, milliseconds in spent.items():
        found = known.get(name)
        if found is not None and found.opcode in _OUTER:
            continue
        by_kind[_kind(found, module) if found else "unknown"] += milliseconds
        by_part[_part(found) if found else "unknown"] += milliseconds
    single = [
        [round(ms, 3), name, _kind(known[name], module), _source(known[name])]
        for name, ms in spent.most_common(40) if name in known and known[name].opcode not in _OUTER
    ]  # fmt: skip
    return {"ms_by_kind": _rounded(by_kind), "ms_by_part": _rounded(by_part), "largest": single}


def _rounded(counted: collections.Counter) -> dict[str, float]:
    return {name: round(milliseconds, 3) for name, milliseconds in counted.most_common()}


def _kind(instruction: Instruction, module: Module) -> str:
    """The opcode; of a fusion what is in it, of a custom call what it calls."""
    if instruction.opcode == "custom-call":
        target = _TARGET.search(instruction.attributes)
        return target[1] if target else "custom-call"
    if instruction.opcode != "fusion":
        return instruction.opcode
    inside = {
        part.opcode
        for callee in instruction.callees() for part in module.computations[callee].values()
    }  # fmt: skip
    for opcode in ("convolution", "dot", "reduce", "scatter", "gather", "dynamic-update-slice"):
        if opcode in inside:
            return f"fusion with {opcode}"
    return "fusion, elementwise"


def _source(instruction: Instruction) -> str:
    found = _OP_NAME.search(instruction.attributes)
    return found[1] if found else ""


def _part(instruction: Instruction) -> str:
    """forward or backward, and the layer; blocks of a stage count together."""
    source = _source(instruction)
    way = "backward" if "transpose(" in source else "forward"
    if "/head/" in source:
        return "head"
    if found := _LAYER.search(source):
        return f"{way} {found[1] or found[2]} {found[3] or 'sum'}"
    if found := _WHOLE_LAYER.search(source):
        return f"{way} {found[1]}"
    return "the rest (input, optimiser, unnamed)"
