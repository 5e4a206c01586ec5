"""Mutations of what a file holds, in a file that is whole again: checksums, CRCs, JSON, protobuf.

A plain mutation of such a file ends at its checksum or its parser, and goes no deeper. Each of
these takes and returns what `mutate.mutated` does, which it leaves a file to that is not of its
kind.
"""

import gzip
import io
import json
import random
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .mutate import mutated

_DEEP: list = []
for _ in range(200):
    _DEEP = [_DEEP]
_VALUES = (
    -1, 0, 1, 2, 0.5, 7, 2**31, 10**14, 10**400, 1e30, -1e308, float("nan"), float("inf"), "", "a",
    None, True, [], {}, [[]], {"a": 1}, "x" * 5000, "\x1b[31m\nb", "<script>", "$", "../../x",
    [1] * 5000, "\ud800", _DEEP,
)  # fmt: skip
_NUMBERS = (0, -1, 1, np.nan, np.inf, 1e30, 3e38)


def artefact(seed: bytes, other: bytes, rng: random.Random) -> bytes:
    """An artefact with other metadata or arrays, whose checksum and fingerprint are those of them.

    The fingerprint is taken anew half of the time, where the kind of artefact has one.
    """
    from safetensors.numpy import load

    from ida_jax.common.files import save_tensors

    try:
        length = int.from_bytes(seed[:8], "little")
        header = json.loads(seed[8 : 8 + length])["__metadata__"]
        tensors = load(seed)
    except Exception:  # a seed that an earlier step broke: whatever it raises, it has no header
        return mutated(seed, other, rng)
    kind = header.pop("kind")
    header.pop("checksum", None)
    metadata = {key: json.loads(value) for key, value in header.items()}
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.5:
            metadata = _other_value(metadata, rng)
            metadata = metadata if isinstance(metadata, dict) else {}
        else:
            _other_array(tensors, rng)
    if rng.random() < 0.5:
        _fingerprint(kind, metadata, tensors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        try:
            save_tensors(path, tensors, kind=kind, metadata=metadata)
        except (UnicodeEncodeError, ValueError):  # half a surrogate pair, an integer of 400 digits
            return mutated(seed, other, rng)
        return path.read_bytes()


def _fingerprint(kind: str, metadata: dict, tensors: dict[str, np.ndarray]) -> None:
    from flax.traverse_util import unflatten_dict

    from ida_jax.common.fingerprints import fingerprint_of

    variables = {k: v for k, v in tensors.items() if k not in ("mean_style", "class_weights")}
    try:
        described = {
            "face_model": lambda: [
                metadata["network"],
                metadata["network_options"],
                {key: metadata[key] for key in ("image_size", "mean", "std")},
            ],
            "face_generator": lambda: [metadata["options"], metadata["image_size"]],
        }[kind]()
        variables = unflatten_dict(variables, sep="/")
        metadata["fingerprint"] = fingerprint_of(described, variables)
    except Exception:  # mutated beyond what a fingerprint can be made of: the old one stays
        return


def _other_array(tensors: dict[str, np.ndarray], rng: random.Random) -> None:
    if not tensors:
        return
    name = rng.choice(sorted(tensors))
    array = np.array(tensors[name])
    match rng.randrange(10):
        case 0 | 1 | 2 if array.size:
            with np.errstate(all="ignore"):
                number = np.array(rng.choice(_NUMBERS)).astype(array.dtype)
            array.reshape(-1)[rng.randrange(array.size)] = number
        case 3:
            array = np.zeros_like(array)
        case 4:
            array = array.reshape(-1)[: rng.choice((0, 1, array.size - 1))]
        case 5:
            array = array.reshape(-1, 1) if rng.random() < 0.5 else array.T.copy()
        case 6:
            with np.errstate(all="ignore"):
                array = array.astype(rng.choice((np.float64, np.float16, np.int64, np.uint8, bool)))
        case 7:
            del tensors[name]
            name = rng.choice(("", "a", "a/b", f"{name}/a", "\x1b[31m", name + "x"))
        case 8:
            del tensors[name]
            return
        case _:
            array = array[:-1] if array.ndim else array
    tensors[name] = array


def json_values(seed: bytes, other: bytes, rng: random.Random) -> bytes:
    """JSON, or a line of JSON lines, with another value or key somewhere in it."""
    lines = seed.split(b"\n")
    try:
        try:
            return _dumped(_other_value(json.loads(seed), rng))
        except ValueError:
            at = rng.randrange(len(lines))
            lines[at] = _dumped(_other_value(json.loads(lines[at]), rng))
            return b"\n".join(lines)
    except ValueError:
        return mutated(seed, other, rng)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _other_value(value: Any, rng: random.Random) -> Any:
    """The value with one inside it, or itself, replaced, renamed or left out."""
    places = range(len(value)) if isinstance(value, list) else value
    places = list(places) if isinstance(value, dict | list) else []
    if not places or rng.random() < 0.05:
        return rng.choice(_VALUES)
    place = rng.choice(places)
    changed = value.copy()
    if rng.random() < 0.15:
        del changed[place]
    elif isinstance(value, dict) and rng.random() < 0.1:
        changed[rng.choice(("", "a", "\x1b[31m", "dtype", "stage_sizes"))] = changed.pop(place)
    else:
        changed[place] = _other_value(value[place], rng)
    return changed


def zip_members(seed: bytes, other: bytes, rng: random.Random) -> bytes:
    """A zip (.npz, .pth) whose members' CRCs are those of mutated contents."""
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(seed)) as old, zipfile.ZipFile(out, "w") as new:
            members = old.infolist()
            chosen = rng.randrange(len(members))
            for at, member in enumerate(members):
                content = old.read(member)
                if at == chosen:
                    content = mutated(content, content, rng)
                new.writestr(member.filename, content, member.compress_type)
    except (zipfile.BadZipFile, ValueError):
        return mutated(seed, other, rng)
    return out.getvalue()


def gzip_content(seed: bytes, other: bytes, rng: random.Random) -> bytes:
    """A gzip of mutated content."""
    return gzip.compress(mutated(gzip.decompress(seed), gzip.decompress(other), rng), mtime=0)


def sealed(seed: bytes, other: bytes, rng: random.Random) -> bytes:
    """A part of mutated content, sealed again."""
    from ida_jax.common.parts import seal

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(mutated(seed.partition(b"\0ida sum")[0], b"", rng))
        seal(path)
        return path.read_bytes()


def onnx_nodes(seed: bytes, other: bytes, rng: random.Random) -> bytes:
    """An ONNX graph with another node, input, attribute or weight."""
    import onnx

    model = onnx.load_from_string(seed)
    nodes, weights = model.graph.node, model.graph.initializer
    names = [name for node in nodes for name in (*node.input, *node.output)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        node, weight = rng.choice(nodes), rng.choice(weights)
        match rng.randrange(9):
            case 0 if node.input:
                node.input[rng.randrange(len(node.input))] = rng.choice((*names, "", "\x1b"))
            case 1 if node.output:
                node.output[rng.randrange(len(node.output))] = rng.choice((*names, "", "\x1b"))
            case 2:
                node.op_type = rng.choice(_OPERATIONS)
            case 3 if node.attribute:
                attribute = rng.choice(node.attribute)
                attribute.i, attribute.f = rng.choice(((-1, -1.0), (2**62, 1e30), (0, 0.0)))
                attribute.ints[:] = rng.choice(([], [-1], [2**40], [0, 0, 0]))
            case 4 if len(nodes) > 1:
                nodes.remove(node)
            case 5:
                dims = list(weight.dims)
                weight.dims[:] = rng.choice(([], [0], [-1], [1, 1], [2**40], dims[::-1]))
            case 6:
                weight.data_type = rng.randrange(25)
            case 7:
                weight.name = rng.choice(names)
            case _:
                weight.raw_data = mutated(weight.raw_data[:4096], b"", rng)
    return model.SerializeToString()


_OPERATIONS = (
    "Identity", "Cast", "CastLike", "Constant", "Unsqueeze", "Squeeze", "Reshape", "Transpose",
    "Shape", "Concat", "Expand", "Conv", "BatchNormalization", "Add", "Gemm", "MatMul", "Flatten",
)  # fmt: skip

Mutation = Callable[[bytes, bytes, random.Random], bytes]
ARTEFACT: tuple[Mutation, ...] = (mutated, artefact, artefact, artefact)
JSON: tuple[Mutation, ...] = (mutated, json_values)
ZIP: tuple[Mutation, ...] = (mutated, zip_members)
GZIP: tuple[Mutation, ...] = (mutated, gzip_content)
PART: tuple[Mutation, ...] = (mutated, sealed)
ONNX: tuple[Mutation, ...] = (mutated, onnx_nodes, onnx_nodes)
