"""A run from a file of embeddings: IDA-L for any model, without its images or weights.

    targets   → DIR/targets/         log F of the faces, searched, their own identity left out
    ssr       → DIR/ssr.safetensors  the SSR module (IDA-L)
    evaluate  → DIR/results.json     its figures on held-out identities; and DIR/report.html

What is there is not made again. N faces, A anchors, D embedding.

Held-out people are held out of the anchors too: a support set that holds the other person of an
impostor pair lowers just that pair's score, and the report would flatter IDA. Targets are kept in
parts, and an interrupted search continues.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ida_jax.anchors.check import refuse_self_matches
from ida_jax.anchors.search import SupportSearch
from ida_jax.artefacts.ssr import DensityRegressor
from ida_jax.common.errors import UserError
from ida_jax.common.files import load_tensors, save_tensors
from ida_jax.common.parts import Parts
from ida_jax.common.processes import all_or_none, is_first
from ida_jax.common.provenance import provenance
from ida_jax.metrics.regression import regression_quality
from ida_jax.protocols.verification import evaluate_all_pairs
from ida_jax.rescoring.density import log_density_of
from ida_jax.rescoring.terms import cosine_terms, dao_terms
from ida_jax.runs.config_check import check_embedding_config
from ida_jax.runs.embedding_inputs import (
    Inputs,
    anchors_of_others,
    check_k,
    held_out_rows,
    read_inputs,
)
from ida_jax.runs.results import figures_and_notes, write_results
from ida_jax.runs.workdir import claim_workdir
from ida_jax.training.ssr import Faces, train_ssr, train_ssr_on_the_fly, with_copies

STAGES = ("targets", "ssr", "evaluate")
_PROTOCOL = "held_out_all_pairs"
# Faces a file of targets.
_PART = 65_536


def run(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains the SSR module on a file of embeddings and returns results.json's content.

    Raises:
      UserError: a mistake in the config or in a file, found before any work; a workdir that another
        config or other files have begun.
    """
    workdir = Path(workdir)
    results_path = workdir / "results.json"
    with all_or_none():
        current = _begun(config, workdir) if is_first() and not results_path.is_file() else None
        if is_first():
            claim_workdir(workdir, config)
    # The first process does it all.
    while not is_first() and not results_path.is_file():
        time.sleep(1)
    if not is_first():
        return {}
    if current is None:
        print(f"{', '.join(STAGES)}: finished before, see {results_path}")
    else:
        _evaluate(current, current.held_out_log_density, _regressor(current))
    return json.loads(results_path.read_text(encoding="utf-8"))


def _begun(config: ConfigDict, workdir: Path) -> "_Run":
    check_embedding_config(config)
    if tuple(config.stages) != STAGES:
        raise UserError(f"stages is {config.stages}: expected {', '.join(STAGES)}")
    inputs = read_inputs(config)
    held = held_out_rows(inputs, config)
    inputs = inputs._replace(anchors=anchors_of_others(inputs, held))
    check_k(config.k, inputs)
    return _Run(config, workdir, inputs, held)


@dataclass(frozen=True, eq=False)
class _Run:
    config: ConfigDict
    workdir: Path
    inputs: Inputs
    held: np.ndarray

    @cached_property
    def digest(self) -> str:
        """Of what the targets are searched for, so that no others are taken for them."""
        found = hashlib.blake2b(digest_size=16)
        anchors = self.inputs.anchors
        for part in (self.inputs.faces, self.inputs.own, anchors.embeddings, anchors.labels):
            found.update(b"" if part is None else np.ascontiguousarray(part).data)
        return found.hexdigest()

    @property
    def training_labels(self) -> np.ndarray | None:
        return None if self.inputs.own is None else self.inputs.own[~self.held]

    @property
    def held_out_log_density(self) -> np.ndarray:
        # Their own identities are not among the anchors any more.
        return self.searched("held_out", self.inputs.faces[self.held], None)

    def searched(self, name: str, faces: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """log F [N], a file for each part: an interrupted search goes on where it was."""
        c = self.config
        folder = self.workdir / "targets"
        folder.mkdir(exist_ok=True)
        search = SupportSearch(
            self.inputs.anchors, k=c.k, searcher=c.searcher, expected_queries=len(faces), tau=c.tau
        )

        def part(rows: range) -> np.ndarray:
            print(f"targets: {name}, {rows.start:,} … {rows.stop - 1:,} of {len(faces):,}")
            some = slice(rows.start, rows.stop)
            found = search(faces[some], None if labels is None else labels[some])
            if labels is None:
                refuse_self_matches(found.similarities)
            return log_density_of(found.similarities, tau=c.tau)

        def write(path: Path, part: np.ndarray) -> None:
            inputs = {"inputs": self.digest}
            save_tensors(path, {"log_density": part}, kind="ssr_targets", metadata=inputs)

        def read(path: Path) -> np.ndarray:
            tensors, metadata = load_tensors(path, kind="ssr_targets")
            if metadata.get("inputs") != self.digest:
                raise UserError(
                    f"{path} was searched for other embeddings, labels or anchors of the same file "
                    "names: take another --workdir, or delete this one"
                )
            return tensors["log_density"]

        file = f"{name}-from-{{start:09}}.safetensors"
        return Parts(folder, len(faces), _PART, name=file, write=write, read=read).whole(part)


def _regressor(run: _Run) -> DensityRegressor:
    """Targets and ssr."""
    path = run.workdir / "ssr.safetensors"
    if path.is_file():
        print(f"ssr: finished before, see {path}")
        return DensityRegressor.load(path)
    c, inputs = run.config, run.inputs
    faces, labels = inputs.faces[~run.held], run.training_labels
    options = {"k": c.k, "tau": c.tau, "fingerprint": inputs.fingerprint}
    options |= {"workdir": run.workdir, "seed": c.seed}
    if c.ssr.targets == "on_the_fly":
        regressor = train_ssr_on_the_fly(
            faces, labels, inputs.anchors, c.ssr, searcher=c.searcher, **options
        )
    else:
        made = _with_copies(faces, labels, c)
        log_density = run.searched("training", made.embeddings, made.labels)
        regressor = train_ssr(made.embeddings, log_density, c.ssr, **options)
    regressor.save(path)
    return regressor


def _with_copies(faces: np.ndarray, labels: np.ndarray | None, c: ConfigDict) -> Faces:
    made = with_copies(
        faces,
        np.zeros(len(faces), np.int32) if labels is None else labels,
        copies=c.ssr.copies,
        mix=c.ssr.mix,
        noise=c.ssr.noise,
        seed=c.seed,
    )
    return made if labels is not None else made._replace(labels=None)


def _evaluate(run: _Run, searched: np.ndarray, regressor: DensityRegressor) -> None:
    from ida_jax.report.run_report import Groups, write_protocol_report

    c, inputs = run.config, run.inputs
    faces = inputs.faces[run.held]
    regressed = regressor.log_density(faces)
    results: dict[str, Any] = {
        "model": {"fingerprint": regressor.fingerprint},
        "anchors": {
            "source": inputs.anchors.source,
            "size": len(inputs.anchors),
            "fingerprint": inputs.anchors.fingerprint,
        },
        "ssr": regression_quality(np.exp(regressed), np.exp(searched))._asdict(),
        "held_out": {"faces": len(faces), "training_faces": len(inputs.faces) - len(faces)},
        "protocols": {},
        "notes": {},
    }
    evaluated = {}
    if inputs.people is None:
        results["notes"]["held_out"] = [
            "Without labels faces were held out, not identities: other faces of the same people "
            "may have been trained on, and no TAR can be given."
        ]
        print(*results["notes"]["held_out"])
    else:
        people = inputs.people[run.held]
        results["held_out"]["identities"] = len(np.unique(people))
        found = evaluate_all_pairs(
            faces,
            people,
            {
                "cosine": cosine_terms(len(faces)),
                "ida_r": dao_terms(searched, tau=c.tau),
                "ida_l": dao_terms(regressed, tau=c.tau),
            },
            fars=c.evaluate.fars,
            resamples=c.evaluate.resamples,
            seed=c.seed,
        ).evaluated
        evaluated = {_PROTOCOL: found._replace(notes=(*found.notes, *_notes(run, people)))}
        results |= figures_and_notes(evaluated)
    results["provenance"] = provenance()
    write_results(
        run.workdir,
        results,
        write_protocol_report,
        title=c.title,
        settings={"config": c.to_dict()},
        evaluated=evaluated,
        groups=Groups(searched, np.zeros(len(faces), np.int32), ("held-out faces",)),
    )


def _notes(run: _Run, people: np.ndarray) -> tuple[str, ...]:
    told = f"{len(people):,} faces of {len(np.unique(people)):,} identities"
    notes = (f"{told}, held out of the training and of the {len(run.inputs.anchors):,} anchors.",)
    unknown = np.count_nonzero(run.inputs.people < 0)
    if unknown and run.inputs.own is not None:
        notes += (
            f"{unknown:,} faces of unknown identity were trained on with nobody left out of their "
            "support sets: where they are among the anchors themselves, their F is too small.",
        )
    return notes
