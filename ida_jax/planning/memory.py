"""How many bytes a compiled program reads from and writes to the devices' main memory.

XLA's cost analysis counts a loop's body once and on-chip memory as main memory; here bytes are
counted on the compiled HLO, with its loops' rounds.
"""

from ida_jax.planning.hlo import Computation, Instruction, Module, array_bytes, arrays, executed

# They name what is there already.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
    "partition-id", "replica-id", "opt-barrier", "async-update",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")


def memory_bytes(module: Module) -> float:
    """Bytes that a run of the program moves, on each device: operands and results of what runs.

    XLA's own "bytes accessed" counts a loop's body once, and on-chip memory like main memory. Here
    a body counts as often as it runs, on-chip buffers count nothing, and of an array that is only
    sliced, or updated in place, the slice alone counts.
    """
    return sum(
        times * _moved(instruction, computation, module)
        for instruction, computation, times in executed(module)
    )


def _moved(instruction: Instruction, computation: Computation, module: Module) -> float:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0.0
    if opcode in ("copy-start", "slice-start"):
        # The result's tuple has the operand, too: of a copy second, of a slice first.
        result = arrays(instruction.type)[0 if opcode == "copy-start" else 1]
        source = computation[instruction.operands[0]].type
        is_read = array_bytes(source, main_memory=True) > 0
        return array_bytes(result, main_memory=True) + is_read * array_bytes(result)
    if opcode == "fusion":
        body = module.computations[instruction.callees()[0]]
        numbered = {int(i.inside): i.name for i in body.values() if i.opcode == "parameter"}
        inputs = [(name, numbered[k]) for k, name in enumerate(instruction.operands)]
    else:
        body = {instruction.name: instruction}
        inputs = [(name, name) for name in dict.fromkeys(instruction.operands)]
    read = 0.0
    for operand, parameter in inputs:
        size = array_bytes(computation[operand].type, main_memory=True)
        read += min(size, _read(parameter, size, body, module)) if size else 0.0
    written = array_bytes(instruction.type, main_memory=True)
    return read + (max(0.0, written - _kept(body, module)) if written else 0.0)


def _read(parameter: str, size: float, body: Computation, module: Module) -> float:
    """The bytes that a body reads of a parameter of `size` bytes."""
    total = 0.0
    for user in body.values():
        if parameter not in user.operands:
            continue
        first = user.operands[0] == parameter
        if user.opcode in _SLICES and first:
            total += array_bytes(user.type)
        elif user.opcode == "bitcast":
            total += _read(user.name, size, body, module)
        elif user.opcode == "fusion":
            inner = module.computations[user.callees()[0]]
            for k, operand in enumerate(user.operands):
                if operand == parameter:
                    name = next(
                        i.name for i in inner.values()
                        if i.opcode == "parameter" and i.inside == str(k)
                    )  # fmt: skip
                    total += _read(name, size, inner, module)
        elif not (user.opcode == "dynamic-update-slice" and first):
            return size
    return total


def _kept(body: Computation, module: Module) -> float:
    """The bytes of the results that updates in place leave as they are."""
    total = 0.0
    for part in body.values():
        if part.opcode == "dynamic-update-slice":
            update = body.get(part.operands[1])
            total += array_bytes(part.type) - (array_bytes(update.type) if update else 0.0)
        elif part.opcode == "fusion":
            total += _kept(module.computations[part.callees()[0]], module)
    return total
