"""All that is to be measured on a GPU, in three calls of ten minutes.

Command: PYTHONPATH=. python experiments/gpu_session.py --call=1 --output=FOLDER
and then --call=2 and --call=3. --small runs all of it at sizes for a CPU; --only=NAME,… some of it.

call 1: every device program of bench_compiled.py, R1's update first; bench_train with PyTorch.
call 2: bench_gan with PyTorch; bench_head from 10⁵ to 2.9·10⁷ classes.
call 3: whether a resumed training ends in the same bits, with and without XLA's flags for that;
  bench_rescore's search and pairs by each precision; bench_train with an H100's bandwidth in the
  target's description, and with fused convolutions.

FOLDER/session_N.json is written anew after each step, so that a call that is cut short loses one
step. A step has a limit of its own, and is left out where the call's --limit leaves it less than a
third of that. At the end a table: measured time, the bound of the executable that was timed, and
that of results/bench_compiled.json, from compiling without a device.

Needs jax, flax, optax, scipy, tqdm and safetensors, and torch for the peers; neither
ml_collections, tensorflow-datasets, array_record, grain, scann nor FAISS.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import session_programs
from session_programs import ORDER
from workers import Failed, Worker

_HERE = Path(__file__).parent


class Step(NamedTuple):
    """What is measured: a function of the options and the step's seconds, to its record."""

    run: Callable[[argparse.Namespace, float], Any]
    limit: float


def _programs(options: argparse.Namespace, seconds: float) -> list[dict[str, Any]]:
    end = time.perf_counter() + seconds
    recorded = _recorded()
    rows = []
    for name in options.programs or ORDER:
        if time.perf_counter() > end:
            rows.append({"program": name, "failed": "no time left"})
            continue
        try:
            with Worker(session_programs.timed, name, vars(options)) as worker:
                for number in range(len(worker.ask("parts"))):
                    row = {"program": name, **worker.ask("run", number)}
                    row["planned_bound"] = recorded.get((name, row["part"]))
                    print(json.dumps(row), file=sys.stderr)
                    rows.append(row)
        except Failed as failed:
            rows.append({"program": name, "failed": str(failed)})
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def _recorded() -> dict[tuple[str, str], float]:
    """{(program, part): seconds at least}, from compiling for one H200."""
    record = json.loads((_HERE / "results" / "bench_compiled.json").read_text())
    return {
        (program, part): found["bound"]["seconds"]
        for program, plan in record["topologies"]["h200:1"].items()
        for part, found in plan["parts"].items()
    }


def _script(name: str, *arguments: str) -> Callable[[argparse.Namespace, float], Any]:
    def run(options: argparse.Namespace, seconds: float) -> Any:
        small = ["--small"] if options.small and name != "bench_rescore.py" else []
        command = [sys.executable, str(_HERE / name), *small, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds)
        if done.returncode:
            raise Failed(f"{name} ended with status {done.returncode}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    return run


def _heads(options: argparse.Namespace, seconds: float) -> Any:
    arguments = ["--table-classes=1e5"]
    if not options.small:
        arguments += [
            "--classes=1e5,1e6,1e7,2.9e7", "--repeats=3",
            "--cases=block_8192,block_65536,block_65536_bfloat16,torch_compiled,torch_bfloat16",
        ]  # fmt: skip
    else:
        arguments += ["--classes=1e4", "--cases=block_8192,torch"]
    return _script("bench_head.py", *arguments)(options, seconds)


def _resume(options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Six steps, and three and three by another process: the same bits?"""
    train = {
        "network": "iresnet18" if options.small else "iresnet50",
        "image_size": 56 if options.small else 112,
        "embedding_dim": 64 if options.small else 512,
        "dtype": "float32" if options.small else "bfloat16",
        "batch_size": 8 if options.small else 512,
        "classes": 100 if options.small else 85_742,
    }
    end, found = time.perf_counter() + seconds, {}
    settings = ["", "--xla_gpu_exclude_nondeterministic_ops=true"]
    for flags in settings[:1] if options.small else settings:
        if time.perf_counter() > end:
            found[flags or "none"] = "no time left"
            continue
        environment = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "state.npz")
            ends = []
            for file, steps in ((None, 6), (None, 6), (path, 3), (path, 3)):
                with Worker(
                    session_programs.resumed, train, file, steps, environment=environment
                ) as worker:
                    ends.append(worker.ask("run"))
        found[flags or "none"] = {
            "two_runs_alike": ends[0] == ends[1],
            "resumed_alike": ends[0] == ends[3],
            "digests": ends,
        }
    return found


def _rescore(options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    sizes = ("--faces=300", "--anchors=2000", "--width=32", "--pairs=20000")
    sizes = sizes if options.small else ()
    end, found = time.perf_counter() + seconds, {}
    with tempfile.TemporaryDirectory() as folder:
        given = (f"--folder={folder}", *sizes)
        _script("bench_rescore.py", *given, "--stage=data")(options, seconds)
        for searcher in ("exact", "bfloat16_x6", "bfloat16_x3"):
            left = max(1.0, end - time.perf_counter())
            run = _script("bench_rescore.py", *given, "--stage=stages", f"--searcher={searcher}")
            found[searcher] = run(options, left)
    return found


def _flags(options: argparse.Namespace, seconds: float) -> Any:
    from ida_jax.planning.topology import GPUS

    target = GPUS["h200"]._replace(memory_bandwidth=GPUS["h100"].memory_bandwidth).target()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "target.txtpb")
        path.write_text(target)
        flags = ["--xla_gpu_enable_command_buffer="]
        if not options.small:
            flags = [
                f"--xla_gpu_target_config_filename={path}",
                "--xla_gpu_experimental_enable_conv_fusion=true",
                *flags,
            ]
        arguments = [f"--xla-flags={flag}" for flag in flags]
        return _script(
            "bench_train.py", "--skip-torch", "--sources=device", "--repeats=3", *arguments
        )(options, seconds)


CALLS = {
    1: {"programs": Step(_programs, 330), "train": Step(_script("bench_train.py"), 240)},
    2: {"gan": Step(_script("bench_gan.py"), 330), "head": Step(_heads, 240)},
    3: {
        "resume": Step(_resume, 200),
        "rescore": Step(_rescore, 120),
        "flags": Step(_flags, 240),
    },
}


def _table(steps: dict[str, Any]) -> list[str]:
    heads = ("ms", "bound", "planned", "of bound")
    rows = [f"{'program':<26}" + "".join(f"{head:>10}" for head in heads)]
    for row in steps.get("programs", {}).get("record", []):
        name = f"{row['program']} {row.get('part', '')}"
        if "failed" in row:
            rows.append(f"{name:<26} {row['failed']}")
            continue
        shown = [row["seconds"], row.get("bound"), row.get("planned_bound")]
        numbers = "".join(f"{'–' if x is None else f'{1e3 * x:.3f}':>10}" for x in shown)
        share = row.get("share_of_bound")
        rows.append(f"{name:<26}{numbers}{'–' if share is None else f'{share:.0%}':>10}")
    planned = _recorded()
    for name, parts in (("train", ("step",)), ("gan", ())):
        for variant in steps.get(name, {}).get("record", {}).get("variants", []):
            rates = {key: variant.get(key, {}) for key in ("device", "host")} | {"": variant}
            for source, found in rates.items():
                rate, ratio = found.get("ours_images_per_second"), found.get("ratio")
                if rate:
                    beside = "" if ratio is None else f", {ratio:.2f} of PyTorch"
                    rows.append(
                        f"{name} {variant['variant']} {source}: {rate:,.0f} images/s{beside}"
                    )
            for part in parts:
                # At the sizes of a GPU.
                rows.append(f"{name}: planned bound {1e3 * planned[name, part]:.1f} ms a step")
    for setting, found in (steps.get("resume", {}).get("record") or {}).items():
        rows.append(f"resume, flags {setting}: {found}")
    return rows


def main() -> None:
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"session_{options.call}.json"
    end = time.perf_counter() + options.limit
    steps: dict[str, Any] = {}
    for name, step in CALLS[options.call].items():
        if options.only and name not in options.only:
            continue
        left = end - time.perf_counter()
        start = time.perf_counter()
        if left < step.limit / 3:
            steps[name] = {"failed": "no time left"}
        else:
            try:
                steps[name] = {"record": step.run(options, min(left, step.limit))}
            except (Failed, subprocess.TimeoutExpired, ValueError, OSError) as error:
                steps[name] = {"failed": str(error)}
        steps[name]["seconds"] = time.perf_counter() - start
        print(f"{name}: {steps[name]['seconds']:.0f} s", file=sys.stderr)
        # Whole or not at all.
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"call": options.call, "steps": steps}, indent=1))
        temporary.replace(path)
    failed = [f"{name}: {step['failed']}" for name, step in steps.items() if "failed" in step]
    print("\n".join([*_table(steps), *failed]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--call", type=int, choices=list(CALLS), required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of the records")
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of steps")
    parser.add_argument(
        "--programs", type=lambda text: text.split(","), help=f"some of {', '.join(ORDER)}"
    )
    parser.add_argument("--limit", type=float, default=570, help="seconds of the call (570)")
    parser.add_argument("--repeats", type=int, default=5, help="of each device program (5)")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    options = parser.parse_args()
    if unknown := set(options.only or []) - set(CALLS[options.call]):
        parser.error(f"--only: {', '.join(sorted(unknown))}: expected some of "
                     f"{', '.join(CALLS[options.call])}")  # fmt: skip
    if unknown := set(options.programs or []) - set(ORDER):
        parser.error(f"--programs: {', '.join(sorted(unknown))}: expected some of "
                     f"{', '.join(ORDER)}")  # fmt: skip
    return options


if __name__ == "__main__":
    main()
