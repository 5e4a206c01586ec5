"""ida-jax plan --config=FILE[:variant] --topology=h200:8 [--program=P] [--classes=C] [--json=FILE]

Compiles a config's device program for GPUs or a TPU slice, on any machine and without either, and
reports what it needs there: memory of each device against its limit, operations, memory traffic,
kernels, bytes sent by each kind of collective, and a lower bound on a step's time.
--config.key=value as in training.

The topology is KIND:SHAPE: h200:1, h100:16 or a100:8 GPUs, nodes of eight; in chips, v5e:16x16 or
v5p:4x4x8; or cpu:8 for fake devices. P is train (default), embed, search, pairs, identify,
likelihood (PFE's search and pairs), gan, pfe or ssr. GPUs need the compiler alone, 590 MB: pip
install 'ida_jax[plan-gpu]'; TPUs [tpu].

Bytes sent are those of rings: each device sends 2(n-1)/n of an array that n devices all-reduce, n-1
of what it adds to an all-gather, (n-1)/n of what it reduce-scatters. A TPU's bound is the largest
of what a step waits for, on one slice whose links are all in use; "latency" takes 1 µs a hop. A
GPU's is a sum over its kernels: each the longest of arithmetic at the data sheet's rate, traffic at
its bandwidth and a launch, 2 µs; and 10 µs and the ring's time for a collective beside which no
kernel runs. Its memory is what jax's pool takes, 75 % unless XLA_PYTHON_CLIENT_MEM_FRACTION says
otherwise. Exit code 1 if the program does not fit.

examples:
  ida-jax plan --config=ms1m_arcface --topology=h200:8 --classes=85742
  ida-jax plan --config=ms1m_arcface --topology=v5e:16x16 --classes=85742 --json=plan.json
  ida-jax plan --config=ms1m_arcface --topology=a100:1 --program=identify --faces=1000000
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

    from ida_jax.planning.costs import Bound, Costs
    from ida_jax.planning.kernels import Kernels
    from ida_jax.planning.topology import Topology
    from ida_jax.runs.programs import DeviceProgram, Part

_MIB = 2.0**20
_PROGRAMS = ("train", "embed", "search", "pairs", "identify", "likelihood", "gan", "pfe", "ssr")


def main(argv: list[str]) -> None:
    """Parses flags, compiles, prints the plan. Ends with exit code 1 if the step does not fit."""
    parser = Parser("plan", description=__doc__)
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="e.g. h200:8")
    parser.add_argument("--program", choices=_PROGRAMS, default="train", help="default: train")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the plan's figures, as JSON")
    sizes = parser.add_argument_group("sizes that the config does not say")
    sizes.add_argument("--classes", type=int, metavar="C", help="train: default, the data set's")
    sizes.add_argument(
        "--faces", type=int, default=1_000_000, metavar="N",
        help="pairs, likelihood: of which; identify: the gallery; ssr: of its training (1,000,000)",
    )  # fmt: skip
    sizes.add_argument(
        "--batch_size", type=int, default=128, metavar="B", help="embed: images at once (128)"
    )
    options, others = parser.parse_known_args(argv)

    from ida_jax.common.outputs import writing
    from ida_jax.runs.config_flags import config_file

    with writing({"--json": options.json}, reading={"--config": config_file(others)}):
        _write(options, others)


def _write(options: Any, others: list[str]) -> None:
    from ida_jax.planning.topology import open_topology
    from ida_jax.runs.config_flags import parse_config

    config, _ = parse_config(others)
    if config is None:
        raise UserError("expected --config=FILE, e.g. --config=configs/ms1m_arcface.py")
    if options.program == "train" and "train" not in config.stages:
        raise UserError(f"the config's stages are {', '.join(config.stages)}: none of them trains")
    for flag in ("classes", "faces", "batch_size"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag}={value}: expected 1 or more")
    topology = open_topology(options.topology)

    from ida_jax.runs.programs import Sizes, device_program

    def classes() -> int:
        return _classes(config) if options.classes is None else options.classes

    sizes = Sizes(classes, options.faces, options.batch_size)
    program = device_program(options.program, config, topology.devices, sizes)
    plan = {"program": options.program, **make_plan(program, topology)}
    if options.json is not None:
        from ida_jax.common.files import written_whole

        with written_whole(options.json) as path:
            path.write_text(json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
    if not plan["fits"]:
        raise SystemExit(1)


def make_plan(program: "DeviceProgram", topology: "Topology") -> dict[str, Any]:
    """Compiles a program; prints its figures as they become known, and returns them."""
    import jax

    from ida_jax.planning.topology import Gpu

    mesh = program.mesh
    topology = topology._replace(devices=list(mesh.devices.flat))
    count = len(topology.devices)
    plan = {
        "topology": topology.name,
        "chips": count // topology.devices_per_chip,
        "devices": count,
        "mesh": dict(mesh.shape),
        **program.facts,
        "jax": jax.__version__,
    }
    chips = f"{plan['chips']} {'GPU' if isinstance(topology.chip, Gpu) else 'chip'}(s)"
    _line("machine", f"{topology.name}: {chips}, {count} device(s)", mesh.shape)
    _line("program", program.described)
    parts = {}
    for part in program.parts:
        if len(program.parts) > 1:
            _line(f"-- {part.name}", _how_often(part.every))
        parts[part.name] = _plan_part(part, topology)
    plan |= {"parts": parts, "fits": all(part["fits"] for part in parts.values())}
    if plan["fits"] and topology.chip is not None:
        plan["bound"] = _bound(program, parts)
    return plan


def _plan_part(part: "Part", topology: "Topology") -> dict[str, Any]:
    import jax

    from ida_jax.planning.costs import bound, measure
    from ida_jax.planning.flops import count_flops

    plan = {"every": part.every}
    with _timed(f"trace {part.name}", plan, "trace_seconds"):
        traced = part.function.trace(*part.arguments)
        flops = count_flops(traced.jaxpr)
        lowered = traced.lower()
    try:
        with _timed("compile it (minutes, for a deep network)", plan, "compile_seconds"):
            compiled = lowered.compile(compiler_options=dict(topology.options) or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        _line("verdict", f"DOES NOT FIT. XLA: {reason}")
        return {**plan, "fits": False, "reason": reason}
    costs = measure(compiled, flops, topology)
    _print_costs(costs)
    fits = costs.memory.limit is None or costs.memory.total <= costs.memory.limit
    plan |= {"fits": fits, "costs": _as_dict(costs)}
    if (waits := bound(costs, topology)) is not None:
        _print_bound(waits, costs)
        plan["bound"] = waits._asdict()
    _line("verdict", _verdict(costs, topology))
    return plan


def _verdict(costs: "Costs", topology: "Topology") -> str:
    from ida_jax.planning.topology import Gpu, larger_pool, pool_fraction

    memory = costs.memory
    if memory.limit is None:
        return "compiles; no limit is known for fake devices"
    verdict = "fits" if memory.total <= memory.limit else "DOES NOT FIT"
    used = f"{verdict}: {memory.total / memory.limit:.0%} used"
    if not isinstance(topology.chip, Gpu):
        return used
    used += f" of jax's pool, {pool_fraction():.0%} of the GPU's memory"
    if memory.total <= memory.limit:
        return used
    setting = larger_pool(memory.total, topology.chip)
    return f"{used}; it would with a larger pool: {setting}" if setting else used


def _bound(program: "DeviceProgram", parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The bound of a step, of all its parts; printed and returned."""
    seconds, waits = 0.0, {}
    for part in parts.values():
        seconds += part["bound"]["seconds"] / part["every"]
        for name, value in part["bound"]["parts"].items():
            waits[name] = waits.get(name, 0.0) + value / part["every"]
    binds = max(waits, key=waits.get)
    rate = program.rows / seconds
    found = {"seconds": waits, "binds": binds, "step_seconds": seconds}
    found[f"{program.unit}_per_second"] = rate
    whole = ""
    if program.steps:
        found["hours"] = program.steps * seconds / 3600
        whole = f", at least {found['hours']:.2g} h for {program.steps:,} steps"
    _line(
        "bound",
        f"{1e3 * seconds:.3g} ms a step, most of it {binds}: at most {rate:,.0f} "
        f"{program.unit}/s{whole}",
    )
    return found


def _how_often(every: float) -> str:
    if every == 1:
        return "every step"
    return f"every {every:g} steps" if every > 1 else f"{1 / every:g} times a step"


def _print_costs(costs: "Costs") -> None:
    m = costs.memory
    limit = "" if m.limit is None else f" of {m.limit / _MIB:,.0f}"
    _line(
        "memory",
        f"{m.total / _MIB:,.1f}{limit} MiB a device: arguments {m.arguments / _MIB:,.1f}, outputs "
        f"{m.outputs / _MIB:,.1f} ({m.aliased / _MIB:,.1f} in the arguments' place), temporaries "
        f"{m.temporaries / _MIB:,.1f}, program {m.code / _MIB:,.1f}",
    )
    if costs.kernels is not None:
        _print_kernels(costs.kernels)
    else:
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


def _print_kernels(kernels: "Kernels") -> None:
    flops = [f"{value / 1e9:,.4g} in {kind}" for kind, value in kernels.flops.items()]
    _line("compute", f"GFLOP a device: {', '.join(flops) or 'none'}")
    kinds = [
        f"{of.count:,} {kind} ({of.bytes / 1e9:,.3g} GB, {1e3 * of.seconds:.3g} ms)"
        for kind, of in kernels.by_kind.items()
    ]
    _line("kernels", f"{kernels.count:,}: {', '.join(kinds)}")


def _print_bound(waits: "Bound", costs: "Costs") -> None:
    listed = ", ".join(f"{key} {1e3 * value:.3g} ms" for key, value in waits.parts.items())
    together = "one after the other" if costs.kernels is not None else "all at once"
    _line("at least", f"{listed}, {together}: {1e3 * waits.seconds:.3g} ms")


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
    if data.name == "recordio":
        from ida_jax.data.load import load_faces

        return load_faces(data, data_dir=config.data_dir, seed=config.seed).num_identities
    raise UserError(f"how many classes? Unknown for the data set '{data.name}': give --classes=C")


def _as_dict(costs: "Costs") -> dict[str, Any]:
    sent = {kind: sent._asdict() for kind, sent in costs.sent.items()}
    found = {**costs._asdict(), "memory": costs.memory._asdict(), "sent": sent}
    if (kernels := costs.kernels) is not None:
        kinds = {kind: of._asdict() for kind, of in kernels.by_kind.items()}
        found["kernels"] = {**kernels._asdict(), "by_kind": kinds}
    return found


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
