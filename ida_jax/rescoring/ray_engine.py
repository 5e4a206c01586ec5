"""`ida-jax rescore --engine=ray`: the parts of a job are made by Ray's actors.

The driver (`ida_jax.rescoring.job`) reads, checks and assembles as without Ray; the slabs of faces
and the chunks of pairs go to actors, one per GPU or, where the cluster has none, one per node,
whose cores one process uses all. They start while the driver reads, and stay for all of the job.
Parts are cut as without Ray, so that the scores are the same, and a part is written whole into the
job's folder, which all nodes must see: what a killed actor was at is made again by the one that Ray
starts in its place, and a killed driver goes on with the parts that are there.

N faces, P pairs.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ida_jax.common.errors import UserError, require_module
from ida_jax.common.parts import Part, write_part
from ida_jax.rescoring.batch import BatchFaceTerms, BatchPairScores, slab_terms
from ida_jax.rescoring.pairs import Subset
from ida_jax.tables.pair_lists import PairFile

Advance = Callable[[int], object]
Shared = Mapping[str, np.ndarray | None]
Finish = Callable[[np.ndarray], np.ndarray]
Make = Callable[[int, int], np.ndarray]


class RayEngine:
    """Makes a job's parts by Ray's actors."""

    def __init__(self, method: BatchFaceTerms, actors: int | None = None) -> None:
        """Connects to the cluster of RAY_ADDRESS, or starts Ray on this host.

        Args:
          method: what it scores by.
          actors: how many, at most one per GPU or per core; one per GPU or, without GPUs, one per
            node if None.
        """
        require_module("ray")
        # Its core reports as an error that actors start anew with what the driver holds.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray

        if not ray.is_initialized():
            with warnings.catch_warnings():
                # jax warns of its threads wherever a process is started; Ray's are other programs.
                warnings.filterwarnings("ignore", message=r"os\.fork", category=RuntimeWarning)
                ray.init(logging_level="ERROR", log_to_driver=False, include_dashboard=False)
        gpus = int(ray.cluster_resources().get("GPU", 0))
        cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        count = gpus or sum(number > 0 for number in cores)
        # Ray starts a killed actor again and repeats its call, however often.
        kind = ray.remote(
            max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD",
            num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0,
        )(_Actor)  # fmt: skip
        ready = [kind.remote(method) for _ in range(min(actors or count, gpus or sum(cores)))]
        # Calls to actors, of which one that never starts has only its first; and who waits for one.
        self._calls = {actor.start.remote(): actor for actor in ready}
        self._idle: list[Any] = []

    def face_parts(self, left: Sequence[Part], faces: Shared, bar: Advance) -> None:
        """Makes parts of `slab_terms`, `faces` being its arguments for all N faces."""
        self._map(_face_parts, left, (), faces, bar)

    def score_parts(
        self, left: Sequence[Part], faces: Shared, pairs: Path, finish: Finish | None, bar: Advance
    ) -> None:
        """Makes parts of `BatchPairScores.of_chunk`, of the `pairs` that `PairFile` reads.

        `faces` are `unit` and `terms` of all faces or, with a `Subset`'s `rows` and `place`, of it.
        """
        self._map(_score_parts, left, (pairs.absolute(), finish), faces, bar)

    def _map(
        self,
        prepare: Callable[..., Make],
        left: Sequence[Part],
        given: tuple,
        shared: Shared,
        bar: Advance,  # called with how many rows are done
    ) -> None:
        import ray

        # In Ray's memory on a node, mapped by its actors.
        stage = ray.put((prepare, given, dict(shared)))
        waiting, made = list(left)[::-1], {}
        while waiting or made:
            while waiting and self._idle:
                actor, part = self._idle.pop(), waiting.pop()
                rows, path = part.rows, part.path.absolute()
                call = actor.make.remote([stage], rows.start, rows.stop, path)
                self._calls[call], made[call] = actor, part
            (call,), _ = ray.wait(list(self._calls))
            try:
                ray.get(call)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            self._idle.append(self._calls.pop(call))
            if call in made:
                bar(len(made.pop(call).rows))


class _Actor:
    """Makes and writes the parts that it is given."""

    def __init__(self, method: BatchFaceTerms) -> None:
        self._method, self._stage, self._make = method, None, None

    def start(self) -> None:
        """Reads what the method needs."""
        _ = self._method.scorer

    def make(self, stage: list[Any], start: int, stop: int, path: Path) -> None:
        """A part of the stage whose reference is in the list."""
        import ray

        if self._stage != stage[0]:
            prepare, given, shared = ray.get(stage[0])
            self._stage, self._make = stage[0], prepare(self._method, *given, **shared)
        write_part(path, self._make(start, stop))


def _face_parts(method: BatchFaceTerms, **faces: np.ndarray | None) -> Make:
    def make(start: int, stop: int) -> np.ndarray:
        slab = {name: None if x is None else x[start:stop] for name, x in faces.items()}
        return slab_terms(method.scorer, **slab)

    return make


def _score_parts(
    method: BatchFaceTerms,
    pairs: Path,
    finish: Finish | None,
    rows: np.ndarray | None = None,
    place: np.ndarray | None = None,
    **faces: np.ndarray,
) -> Make:
    held = None if rows is None else Subset(rows, place)
    listed, scorer = PairFile(pairs), BatchPairScores(method, faces)

    def make(start: int, stop: int) -> np.ndarray:
        scores = scorer.of_chunk(listed.read(start, stop), held)
        return scores if finish is None else finish(scores)

    return make
