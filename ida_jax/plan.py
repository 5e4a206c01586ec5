"""ida-jax plan --config=FILE[:variant] --topology=v5e:16x16 [--classes=C] [--json=FILE]

Compiles a config's training step for a TPU slice, on any machine and without a TPU, and reports
what it needs there: memory of each device against its limit, operations, memory traffic, bytes sent
by each kind of collective, and a lower bound on a step's time. --config.key=value as in training.

The topology is KIND:SHAPE in chips, such as v5e:16x16, v5p:4x4x8, v6e:8x8, or cpu:8 for fake
devices. Bytes sent are those of rings: each device sends 2(n-1)/n of an array that n devices
all-reduce, n-1 of what it adds to an all-gather, (n-1)/n of what it reduce-scatters. The bounds
hold for one slice whose links are all in use; "latency" takes 1 µs a hop and no overlap.
Exit code 1 if the step does not fit.

examples:
  ida-jax plan --config=ms1m_arcface --topology=v5e:16x16
"""

import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import UserError, exit_code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ml_collections import ConfigDict

    from ida_jax.planning.costs import Costs
    from ida_jax.planning.topology import Topology

_MIB = 2.0**20


def main(argv: list[str]) -> None:
    """Parses flags, compiles, prints the plan. Ends with exit code 1 if the step does not fit."""
    parser = Parser("plan", description=__doc__)
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="e.g. v5e:16x16")
    parser.add_argument("--classes", type=int, metavar="C", help="default: the data set's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the plan's figures, as JSON")
    options, others = parser.parse_known_args(argv)

    from ida_jax.common.outputs import writing
    from ida_jax.runs.config import config_file

    with writing({"--json": options.json}, reading={"--config": config_file(others)}):
        _write(options, others)


def _write(options: Any, others: list[str]) -> None:
    from ida_jax.planning.topology import open_topology
    from ida_jax.runs.config import parse_config

    config, _ = parse_config(others)
    if config is None:
        raise UserError("expected --config=FILE, e.g. --config=configs/ms1m_arcface.py")
    if "train" not in config.stages:
        raise UserError(f"the config's stages are {', '.join(config.stages)}: none of them trains")
    topology = open_topology(options.topology)

    from ida_jax.runs.config_check import check_training

    check_training(config)
    classes = _classes(config) if options.classes is None else options.classes
    if classes < 1:
        raise UserError(f"--classes={classes}: expected 1 or more")
    plan = _plan(config, classes, topology)
    if options.json is not None:
        from ida_jax.common.files import written_whole

        with written_whole(options.json) as path:
            path.write_text(json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
    if not plan["fits"]:
        raise SystemExit(1)


def _plan(config: "ConfigDict", classes: int, topology: "Topology") -> dict[str, Any]:
    """Compiles the step; prints its figures as they become known, and returns them."""
    import jax

    from ida_jax.common.devices import training_mesh
    from ida_jax.planning.costs import bounds, measure
    from ida_jax.planning.flops import count_flops
    from ida_jax.training.train_step import make_program

    mesh = training_mesh(config.train.class_shards, devices=topology.devices)
    program = make_program(config, num_classes=classes, mesh=mesh)
    rows, count = program.batch[0].shape[0], len(topology.devices)
    plan = {
        "topology": topology.name,
        "chips": count // topology.devices_per_chip,
        "devices": count,
        "mesh": dict(mesh.shape),
        "network": config.model.network,
        "classes": classes,
        "batch_size": config.train.batch_size,
        "rows_per_device": rows // count,
        "jax": jax.__version__,
    }
    _line("machine", f"{topology.name}: {plan['chips']} chips, {count} devices", mesh.shape)
    padded = "" if rows == config.train.batch_size else f", padded to {rows:,}"
    _line(
        "step",
        f"{config.model.network}, {classes:,} classes, batch {config.train.batch_size:,}{padded}: "
        f"{rows // count:,} images a device",
    )
    with _timed("trace the step", plan, "trace_seconds"):
        traced = program.step.trace(program.state, *program.batch)
        flops = count_flops(traced.jaxpr)
        lowered = traced.lower()
    try:
        with _timed("compile it (minutes, for a deep network)", plan, "compile_seconds"):
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        _line("verdict", f"DOES NOT FIT. XLA: {reason}")
        return {**plan, "fits": False, "reason": reason}

    costs = measure(compiled, flops, topology)
    memory = costs.memory
    fits = memory.limit is None or memory.total <= memory.limit
    _print_costs(costs)
    plan |= {"fits": fits, "costs": _as_dict(costs)}
    if waits := bounds(costs, topology):
        binds, seconds = max(waits.items(), key=lambda item: item[1])
        hours = config.train.steps * seconds / 3600
        rate = config.train.batch_size / seconds
        plan["bound"] = {
            "seconds": waits, "binds": binds, "step_seconds": seconds,
            "images_per_second": rate, "hours": hours,
        }  # fmt: skip
        _line("at least", ", ".join(f"{key} {1e3 * value:.3g} ms" for key, value in waits.items()))
        _line(
            "bound",
            f"{1e3 * seconds:.3g} ms a step by {binds}: at most {rate:,.0f} images/s, at least "
            f"{hours:.2g} h for {config.train.steps:,} steps",
        )
    if memory.limit is None:
        verdict = "compiles; no limit is known for fake devices"
    else:
        verdict = f"{'fits' if fits else 'DOES NOT FIT'}: {memory.total / memory.limit:.0%} used"
    _line("verdict", verdict)
    return plan


def _print_costs(costs: "Costs") -> None:
    m = costs.memory
    limit = "" if m.limit is None else f" of {m.limit / _MIB:,.0f}"
    _line(
        "memory",
        f"{m.total / _MIB:,.1f}{limit} MiB a device: arguments {m.arguments / _MIB:,.1f}, outputs "
        f"{m.outputs / _MIB:,.1f} ({m.aliased / _MIB:,.1f} in the arguments' place), temporaries "
        f"{m.temporaries / _MIB:,.1f}, program {m.code / _MIB:,.1f}",
    )
    _line(
        "compute",
        f"{costs.flops / 1e9:,.4g} GFLOP a device in products, {costs.passes / 1e9:,.4g} as "
        f"bfloat16 passes (XLA's count, loop bodies once: {costs.xla_flops / 1e9:,.4g})",
    )
    _line("traffic", f"{costs.memory_bytes / 1e9:,.4g} GB a device to and from its memory")
    for kind, sent in costs.sent.items():
        if sent.count:
            _line(kind, f"{sent.count:,} a step, {sent.bytes / 1e6:,.4g} MB sent by each device")
    if costs.unknown_loops:
        _line("note", f"{costs.unknown_loops} loops of unknown length are counted once")


def _classes(config: "ConfigDict") -> int:
    """The training set's identities, without reading its images."""
    data = config.train_data
    if data.name == "rendered":
        return data.identities
    if data.name == "tfds":
        from ida_jax.data.tfds_faces import find_tfds

        try:
            path = find_tfds(data.dataset, data_dir=config.data_dir)
        except UserError as error:
            raise UserError(
                f"how many classes? {data.dataset} is not in {config.data_dir}: give --classes=C, "
                "or --config.data_dir=DIR"
            ) from error
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(path).info.features["label"].num_classes
    raise UserError(f"how many classes? Unknown for the data set '{data.name}': give --classes=C")


def _as_dict(costs: "Costs") -> dict[str, Any]:
    sent = {kind: sent._asdict() for kind, sent in costs.sent.items()}
    return {**costs._asdict(), "memory": costs.memory._asdict(), "sent": sent}


@contextmanager
def _timed(what: str, plan: dict[str, Any], key: str) -> "Iterator[None]":
    print(f"{what} …", end=" ", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        yield
    finally:
        plan[key] = time.perf_counter() - start
        print(f"{plan[key]:.1f} s", file=sys.stderr, flush=True)


def _line(name: str, text: str, *more: Any) -> None:
    print(f"{name:<18}{text}", *(dict(m) for m in more), flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
