"""The ArcFace head alone, loss, gradients and update: time and memory against the classes.

Command: PYTHONPATH=. python experiments/bench_head.py [--small] [--classes=1e5,1e6,1e7]
Prints one JSON. --small is for a CPU: a batch of 128, up to a million classes.

Each case is a process of its own. Ours is `ida_jax.ops.class_softmax` on one device, as the train
step calls it; seconds are medians of --repeats steps after a first one.

plain: all classes at once. block_N: N classes at a time. sampled: a tenth of the classes (Partial
  FC), by blocks. bfloat16: the products' type; otherwise it is float32 in full precision.
torch: a plain head with cross-entropy and fused SGD (torch_head.py), its product in TF32 where
  there is such; torch_compiled the same by torch.compile, torch_bfloat16 under autocast.
  `speed_over_torch` compares with the fastest of them.
memory: of each process, the most that the device had in use, and on a CPU the system's count.
table: bytes of weights and momentum ("state") and of what a step needs beside them ("temporary")
  for 512 images, from compiling alone; nothing is allocated. `fits` says whether both are below a
  device's memory.

A case that lacks memory is recorded as such. On a CPU none begins that would need more than is
free, since the system would end other programs.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from workers import Failed, Worker, available_bytes, peak_resident_bytes


class Case(NamedTuple):
    """How the head computes: classes at a time (0: all), their share, the products' type."""

    block: int = 0
    rate: float = 1.0
    dtype: str = "float32"


class Peer(NamedTuple):
    """How PyTorch's head computes."""

    dtype: str = "float32"
    compiled: bool = False


CASES = {
    "plain": Case(),
    "block_8192": Case(8192),
    "block_65536": Case(65536),
    "sampled": Case(8192, 0.1),
    "plain_bfloat16": Case(dtype="bfloat16"),
    "plain_bfloat16_x3": Case(dtype="bfloat16_x3"),
    "block_8192_bfloat16": Case(8192, dtype="bfloat16"),
    "block_65536_bfloat16": Case(65536, dtype="bfloat16"),
}
PEERS = {
    "torch": Peer(),
    "torch_compiled": Peer(compiled=True),
    "torch_bfloat16": Peer(dtype="bfloat16"),
}
TABLE_BATCH = 512
DEVICES = {"H100, 80 GB": 80e9, "H200, 141 GB": 141e9}


def compiled_step(case: Case, *, classes: int, batch_size: int, width: int) -> Any:
    """One step on this process's first device: (classes, embeddings, labels) → (classes, gradient,
    mean loss). The old classes are donated; nothing is allocated here.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from ida_jax.common.devices import training_mesh
    from ida_jax.ops.class_optimizers import ClassWeights, Sgd
    from ida_jax.ops.class_softmax import sample_classes, softmax_step
    from ida_jax.ops.margin import arcface

    def on_device(state: ClassWeights, embeddings: jax.Array, labels: jax.Array) -> tuple:
        sampled = None
        if case.rate < 1:
            sampled = sample_classes(
                # Another draw in every step would cost the same.
                jax.random.key(0, impl="threefry2x32"),
                labels,
                num_local=classes,
                num_classes=classes,
                count=max(int(case.rate * classes), min(batch_size, classes)),
            )
        out = softmax_step(
            embeddings,
            labels,
            jnp.full((batch_size,), 1 / batch_size, jnp.float32),
            state,
            partial(arcface, scale=64.0, margin=0.5),
            Sgd(jnp.float32(0.1), 0.9, 5e-4, is_first=jnp.bool_(True), is_last=jnp.bool_(True)),
            num_classes=classes,
            scale=64.0,
            block=case.block,
            sampled=sampled,
            dtype=case.dtype,
        )
        return out.classes, out.gradient, jnp.mean(out.losses)

    by_rows, by_classes = PartitionSpec(("data", "model")), PartitionSpec("model")
    step = jax.shard_map(
        on_device,
        mesh=training_mesh(devices=jax.devices()[:1]),
        in_specs=(by_classes, by_rows, by_rows),
        out_specs=(by_classes, by_rows, PartitionSpec()),
        check_vma=False,
    )
    weight = jax.ShapeDtypeStruct((classes, 1, width), jnp.float32)
    return (
        jax.jit(step, donate_argnums=0)
        .lower(
            ClassWeights(weight, weight),
            jax.ShapeDtypeStruct((batch_size, width), jnp.float32),
            jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        )
        .compile()
    )


def needs(step: Any) -> dict[str, int]:
    """Bytes of a compiled step's arguments, and of what it needs beside them."""
    found = step.memory_analysis()
    extra = found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return {"state": found.argument_size_in_bytes, "temporary": extra}


def _batch(options: dict[str, Any], classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(options["batch_size"], options["width"])).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, rng.integers(0, classes, len(embeddings), np.int32)


def _seconds(step: Callable[[], float], repeats: int) -> dict[str, float]:
    """A first step, then the median of the others."""
    step()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
    if not np.isfinite(loss):
        raise ValueError("the loss is not finite")
    return {"seconds": statistics.median(seconds), "fastest": min(seconds)}


def ours(options: dict[str, Any], case: Case, classes: int) -> dict[str, Callable]:
    """Our head in this process."""
    import jax
    import jax.numpy as jnp

    from ida_jax.ops.class_optimizers import ClassWeights

    shapes = {"classes": classes, "batch_size": options["batch_size"], "width": options["width"]}
    step = compiled_step(case, **shapes)
    if jax.default_backend() == "cpu":
        _check_memory(sum(needs(step).values()))

    def initial() -> ClassWeights:
        # Anything but costly: a random generator's bits would be the peak of the memory.
        row, column = (jax.lax.broadcasted_iota(jnp.float32, (classes, 1, options["width"]), axis)
                       for axis in (0, 2))  # fmt: skip
        weight = 0.01 * jnp.sin(12.9898 * row + 78.233 * column + row * column)
        return ClassWeights(weight, jnp.zeros_like(weight))

    state = jax.jit(initial)()
    batch = [jax.device_put(part, jax.devices()[0]) for part in _batch(options, classes)]

    def run() -> dict[str, Any]:
        def once() -> float:
            nonlocal state
            state, gradient, loss = step(state, *batch)
            jax.block_until_ready((state, gradient))
            return float(loss)

        found = _seconds(once, options["repeats"])
        stats = jax.devices()[0].memory_stats() or {}
        return found | {
            "peak_device_bytes": stats.get("peak_bytes_in_use"),
            "peak_resident_bytes": peak_resident_bytes(),
            **{f"{name}_bytes": size for name, size in needs(step).items()},
        }

    return {"run": run}


def torch_peer(options: dict[str, Any], peer: Peer, classes: int) -> dict[str, Callable]:
    """PyTorch's head in this process."""
    import torch
    from torch_head import ArcFaceHead

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        # Weights, momentum, gradients by them and by the unit weights, those; and the logits.
        _check_memory(4 * classes * (5 * options["width"] + 3 * options["batch_size"]))
    torch.set_float32_matmul_precision("high")
    autocast = None if peer.dtype == "float32" else getattr(torch, peer.dtype)
    head = ArcFaceHead(classes, options["width"], autocast=autocast, device=device)
    optimizer = torch.optim.SGD(
        head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True
    )
    embeddings, labels = (torch.from_numpy(x).to(device) for x in _batch(options, classes))
    embeddings.requires_grad_()
    labels = labels.long()
    compiled = torch.compile(head) if peer.compiled else head

    def once() -> float:
        optimizer.zero_grad(set_to_none=True)
        embeddings.grad = None
        loss = compiled(embeddings, labels)
        loss.backward()
        optimizer.step()
        return loss.item() if device == "cpu" else (torch.cuda.synchronize(), loss.item())[1]

    def run() -> dict[str, Any]:
        found = _seconds(once, options["repeats"])
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        return found | {
            "peak_device_bytes": peak, "peak_resident_bytes": peak_resident_bytes()
        }  # fmt: skip

    return {"run": run}


def _check_memory(needed: int) -> None:
    if needed > 0.9 * available_bytes():
        raise MemoryError(
            f"needs {needed / 1e9:.1f} GB, {available_bytes() / 1e9:.1f} GB are free: not begun"
        )


def _table(options: dict[str, Any]) -> dict[str, Callable]:
    def run() -> list[dict[str, Any]]:
        rows = []
        for classes in options["table_classes"]:
            for name, case in CASES.items():
                found = needs(compiled_step(
                    case, classes=classes, batch_size=TABLE_BATCH, width=options["width"]
                ))  # fmt: skip
                total = sum(found.values())
                fits = {device: total < size for device, size in DEVICES.items()}
                rows.append({"classes": classes, "case": name, **found, "fits": fits})
        return rows

    def describe() -> dict[str, Any]:
        from ida_jax.common.provenance import provenance

        return provenance()

    return {"run": run, "provenance": describe}


def measure(options: argparse.Namespace) -> dict:
    """The whole record."""
    given = vars(options)
    results = []
    for classes in options.classes:
        for name in options.cases:
            record: dict[str, Any] = {"classes": classes, "case": name}
            how = (ours, given, CASES[name]) if name in CASES else (torch_peer, given, PEERS[name])
            try:
                # PREALLOCATE stays on in a trainer; here it would hide what is in use.
                with Worker(
                    *how, classes, environment={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
                ) as worker:
                    record |= worker.ask("run")
            except Failed as failed:
                record |= {"failed": str(failed), "out_of_memory": failed.out_of_memory}
            record["load_average"] = os.getloadavg()[0]
            print(json.dumps(record), file=sys.stderr)
            results.append(record)
    for record in results:
        peers = [r["seconds"] for r in results if r["classes"] == record["classes"]
                 and r["case"] in PEERS and "seconds" in r]  # fmt: skip
        if peers and "seconds" in record and record["case"] in CASES:
            record["speed_over_torch"] = min(peers) / record["seconds"]
    with Worker(_table, given) as worker:
        table, found = worker.ask("run"), worker.ask("provenance")
    command = shlex.join(["python", *sys.orig_argv[1:]])  # a worker has another
    return {
        "settings": given,
        "results": results,
        "table": table,
        "provenance": found | {"command": command},
    }


def _options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def counts(text: str) -> list[int]:
        return [int(float(part)) for part in text.split(",")]

    parser.add_argument("--small", action="store_true", help="settings for a CPU")
    parser.add_argument("--classes", type=counts, help="1e5,1e6,1e7; with --small 1e5,1e6")
    parser.add_argument(
        "--table-classes", type=counts, default="1e5,1e6,1e7,2.9e7", help="of the table"
    )
    parser.add_argument("--width", type=int, default=512, help="of the embeddings")
    parser.add_argument("--batch-size", type=int, help="512; with --small 128")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--cases", type=lambda text: text.split(","), default=[*CASES, *PEERS],
        help=f"of {', '.join([*CASES, *PEERS])}",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - {*CASES, *PEERS}:
        parser.error(f"--cases: {', '.join(unknown)}; see --help")
    options.classes = options.classes or counts("1e5,1e6" if options.small else "1e5,1e6,1e7")
    options.batch_size = options.batch_size or (128 if options.small else 512)
    return options


if __name__ == "__main__":
    print(json.dumps(measure(_options()), indent=1))
