"""Scalars of a run: one JSON line a record in metrics.jsonl, and TensorBoard events."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ida_jax.common.files import written_whole

Write = Callable[[int, Mapping[str, float]], None]


@contextmanager
def open_metrics(
    workdir: str | os.PathLike[str], *, stage: str, first_step: int = 0
) -> Iterator[Write]:
    """Yields write(step, scalars), which appends a record of the stage.

    Args:
      workdir: holds metrics.jsonl and tensorboard/.
      stage: "train", "gan", "ssr" or "pfe"; it is in every record, and a run of its own in
        TensorBoard.
      first_step: where the run goes on; the stage's records of later steps, which a killed run
        wrote after its last checkpoint, are dropped.
    """
    from tensorboardX import SummaryWriter

    path = Path(workdir) / "metrics.jsonl"
    kept = [r for r in read_metrics(workdir) if r["stage"] != stage or r["step"] <= first_step]
    with written_whole(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    # A folder a stage: a writer that purges hides every later step in its folder.
    events = SummaryWriter(
        str(Path(workdir) / "tensorboard" / stage), purge_step=first_step + 1, write_to_disk=True
    )
    with path.open("a", encoding="utf-8") as lines, events:

        def write(step: int, scalars: Mapping[str, float]) -> None:
            lines.write(json.dumps({"stage": stage, "step": step, **scalars}) + "\n")
            lines.flush()
            for name, value in scalars.items():
                events.add_scalar(name, value, step)

        yield write


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict]:
    """The records of metrics.jsonl; a last line torn by a kill is left out."""
    path = Path(workdir) / "metrics.jsonl"
    if not path.is_file():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole]
