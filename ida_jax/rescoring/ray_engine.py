"""`ida-jax rescore --engine=ray`: the parts of a job are made by Ray's actors.

The driver (`ida_jax.rescoring.job`) reads, checks and assembles as without Ray; the slabs of faces
and the chunks of pairs go to actors of Ray Data, one per GPU or, where the cluster has none, one a
core. They are cut as without Ray, so that the scores are the same, and a part is written whole into
the job's folder, which all nodes must see: what a killed actor was at is made again by the one that
Ray starts in its place, and a killed driver goes on with the parts that are there.

N faces, P pairs.
"""

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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
    """Makes a job's parts by actors of Ray Data."""

    def __init__(self, method: BatchFaceTerms, actors: int | None = None) -> None:
        """Connects to the cluster of RAY_ADDRESS, or starts Ray on this host.

        Args:
          method: what it scores by.
          actors: how many; one per GPU or, without GPUs, one per core if None.
        """
        require_module("ray")
        # Its core reports as an error that Ray Data's actors start anew with what the driver holds.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray

        if not ray.is_initialized():
            with warnings.catch_warnings():
                # jax warns of its threads wherever a process is started; Ray's are other programs.
                warnings.filterwarnings("ignore", message=r"os\.fork", category=RuntimeWarning)
                ray.init(logging_level="ERROR", log_to_driver=False, include_dashboard=False)
        self._method = method
        self._device = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
        self._actors = actors or int(ray.cluster_resources()[self._device])

    def face_parts(self, left: Sequence[Part], faces: Shared, bar: Advance) -> None:
        """Makes parts of `slab_terms`, `faces` being its arguments for all N faces."""
        self._map(_face_parts, left, (self._method,), faces, bar)

    def score_parts(
        self, left: Sequence[Part], faces: Shared, pairs: Path, finish: Finish | None, bar: Advance
    ) -> None:
        """Makes parts of `BatchPairScores.of_chunk`, of the `pairs` that `PairFile` reads.

        `faces` are `unit` and `terms` of all faces or, with a `Subset`'s `rows` and `place`, of it.
        """
        self._map(_score_parts, left, (self._method, pairs.absolute(), finish), faces, bar)

    def _map(
        self,
        prepare: Callable[..., Make],
        left: Sequence[Part],
        given: tuple,
        shared: Shared,
        bar: Advance,  # called with how many rows are done
    ) -> None:
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        if not left:
            return
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        DataContext.get_current().enable_progress_bars = False
        items = [
            {"start": part.rows.start, "stop": part.rows.stop, "path": str(part.path.absolute())}
            for part in left
        ]
        shared_once = ray.put(dict(shared))  # in Ray's memory on a node, mapped by its actors
        made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Parts,
            fn_constructor_args=(prepare, given, [shared_once]),
            batch_size=1,
            # A killed actor is started again, and its task too, however often: Ray Data's default.
            compute=ActorPoolStrategy(size=min(self._actors, len(items))),
            **{f"num_{self._device.lower()}s": 1},
        )
        try:
            for row in made.iter_rows():
                bar(row["stop"] - row["start"])
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, UserError):
                cause = getattr(cause, "cause", None) or cause.__cause__
            if cause is None:
                raise
            raise cause from None


class _Parts:
    """An actor: makes and writes the parts that it is given."""

    def __init__(self, prepare: Callable[..., Make], given: tuple, shared: list) -> None:
        import ray

        self._make = prepare(*given, **ray.get(shared[0]))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for start, stop, path in zip(batch["start"], batch["stop"], batch["path"], strict=True):
            write_part(Path(path), self._make(int(start), int(stop)))
        return batch


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
