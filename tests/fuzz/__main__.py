"""Feeds mutated files to every reader of users' files: python -m tests.fuzz --seconds=600 --seed=0

A reader may refuse an input by a UserError of one line, or take it. Anything else is a finding:
another exception, a message of several lines or with control characters, more than 5 s or 1 GiB,
a crash. Each finding's input is kept under --findings beside a text file that says what happened.

Readers run in a second process, which is started again when an input takes it down. It exits with 1
if there was a finding, and prints one JSON object: inputs, refusals and findings of each reader.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

from .readers import READERS
from .worker import SECONDS, WAITING, Task, work

# Beyond its own limit a reader may be in native code that no signal interrupts.
_GRACE = 15
# Of one cause no more inputs are kept than this.
_KEPT_OF_A_KIND = 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long, in all (60)")
    parser.add_argument("--seed", type=int, default=0, help="the same inputs for the same seed")
    parser.add_argument("--readers", default="", help="comma-separated; all of them if left out")
    parser.add_argument("--findings", type=Path, default=Path("fuzz_findings"))
    args = parser.parse_args()
    names = args.readers.split(",") if args.readers else sorted(READERS)
    unknown = sorted(set(names) - set(READERS))
    if unknown:
        parser.error(f"unknown reader '{unknown[0]}': choose from {', '.join(sorted(READERS))}")
    report = run(names, seconds=args.seconds, seed=args.seed, findings=args.findings)
    print(json.dumps(report, indent=1))
    return 1 if report["findings"] else 0


def run(
    names: list[str],
    *,
    seconds: float,
    seed: int,
    findings: Path,
    module: str = f"{__package__}.readers",
    inputs: int = sys.maxsize,
    seconds_each: float = SECONDS,
) -> dict:
    """Fuzzes readers in turn until the time is over; the counts, and what was found.

    Args:
      names: of the readers.
      seconds: in all.
      seed: of the mutations.
      findings: a folder for the inputs that are findings.
      module: whose READERS they are.
      inputs: the most of them.
      seconds_each: the most for one.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    context = multiprocessing.get_context("spawn")
    counts: dict[str, Counter] = {name: Counter() for name in names}
    found: list[dict] = []
    end = time.monotonic() + seconds
    first = 0
    with tempfile.TemporaryDirectory() as folder:
        task = Task(module, names, seed, folder, end, inputs, seconds_each)
        while time.monotonic() < end and first < inputs:
            ours, theirs = context.Pipe()
            worker = context.Process(target=work, args=(theirs, task, first), daemon=True)
            worker.start()
            theirs.close()
            first = _follow(ours, worker, counts, found, findings, first)
    return {
        "seconds": seconds,
        "seed": seed,
        "inputs": sum(c["inputs"] for c in counts.values()),
        "readers": {name: dict(c) for name, c in counts.items()},
        "findings": found,
    }


def _follow(
    pipe: Connection,
    worker: multiprocessing.process.BaseProcess,
    counts: dict[str, Counter],
    found: list[dict],
    findings: Path,
    first: int,
) -> int:
    """Takes a worker's reports until it ends; the number of the next input."""
    begun: tuple[int, str, str] | None = None
    number = first
    while True:
        # The first input also waits for imports and seeds.
        patience = WAITING * SECONDS + _GRACE if begun else 300
        try:
            report = pipe.recv() if pipe.poll(patience) else None
        except EOFError:
            report = None
        if report is None:
            worker.kill()
            worker.join()
            if begun is None:
                if worker.exitcode:
                    raise SystemExit(f"the worker ended with {worker.exitcode} before any input")
                return number
            number, name, path = begun
            counts[name].update(("inputs", "finding"))
            _keep(found, findings, name, Path(path), "hangs or crashes", f"{worker.exitcode}")
            return number + 1
        match report:
            case ("begin", number, name, path):
                begun = (number, name, path)
            case ("end", number, outcome, text):
                _, name, path = begun
                begun = None
                counts[name]["inputs"] += 1
                counts[name][outcome] += 1
                if outcome == "finding":
                    _keep(found, findings, name, Path(path), *text)
                    pipe.send("kept")
            case ("done", number):
                worker.join()
                return number


def _keep(
    found: list[dict], findings: Path, name: str, path: Path, kind: str, details: str
) -> None:
    if sum(f["reader"] == name and f["what"] == kind for f in found) >= _KEPT_OF_A_KIND:
        return
    findings.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes()
    kept = findings / f"{name}-{hashlib.sha256(content).hexdigest()[:10]}{path.suffix}"
    kept.write_bytes(content)
    kept.with_name(kept.name + ".txt").write_text(f"{kind}\n\n{details}\n")
    found.append({"reader": name, "what": kind, "input": str(kept)})
    print(f"{name}: {kind}: {kept}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
