"""A run from a file of embeddings: IDA-L for any model, without its images or weights.

    targets   → DIR/targets/         log F of the faces, searched, their own identity left out
    ssr       → DIR/ssr.safetensors  the SSR module (IDA-L)
    evaluate  → DIR/results.json     its figures on held-out identities; and DIR/report.html

`ida_jax.runs.stages` runs them. Targets are needed until the SSR module is there, and are kept in
parts: an interrupted search continues. N faces, A anchors, D embedding.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ida_jax.anchors.check import refuse_self_matches
from ida_jax.anchors.search import SupportSearch
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.common.errors import UserError, printable
from ida_jax.common.files import load_tensors, save_tensors
from ida_jax.common.parts import Parts
from ida_jax.common.processes import is_first
from ida_jax.common.provenance import provenance
from ida_jax.metrics.evaluation import regression_quality
from ida_jax.metrics.groups import FaceGroups
from ida_jax.protocols.group_figures import face_groups
from ida_jax.protocols.table import noted
from ida_jax.protocols.verification import evaluate_all_pairs
from ida_jax.rescoring.density import log_density_of
from ida_jax.rescoring.log_norms import log_norms
from ida_jax.rescoring.method_table import BASELINE, METHODS, REGRESSED, SEARCHED
from ida_jax.rescoring.methods import make_scorers
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import cosine_terms, dao_terms
from ida_jax.runs.config_check import check_embedding_config
from ida_jax.runs.embedding_inputs import (
    Inputs,
    anchors_of_others,
    check_k,
    held_out_rows,
    read_inputs,
)
from ida_jax.runs.run import Stage
from ida_jax.runs.workdir import (
    RESULTS,
    SSR,
    TARGETS,
    figures_and_notes,
    ignored_list,
    write_results,
)
from ida_jax.tables.identities import read_people
from ida_jax.tables.identity_pairs import KnownPairs, pairs_among, read_identity_pairs
from ida_jax.training.ssr import LabelledFaces, train_ssr, train_ssr_on_the_fly, with_copies
from ida_jax.training.ssr_choice import chooses, train_chosen_ssr

_PROTOCOL = "held_out_all_pairs"
# Faces a file of targets.
_PART = 65_536


@dataclass(frozen=True, eq=False)
class EmbeddingRun:
    """A config and its workdir; the files that the config names are read on demand."""

    config: ConfigDict
    workdir: Path

    @cached_property
    def files(self) -> Inputs:
        """The content of the files that the config names."""
        return read_inputs(self.config)

    @cached_property
    def held(self) -> np.ndarray:
        """bool [N], the faces kept for the report."""
        return held_out_rows(self.files, self.config)

    @cached_property
    def inputs(self) -> Inputs:
        """The same without the anchors of the people who are held out."""
        return self.files._replace(anchors=anchors_of_others(self.files, self.held))

    @cached_property
    def one_person(self) -> KnownPairs | None:
        """The held-out people whose pairs count neither way, as numbers in `Inputs.people`."""
        path = ignored_list(self.config)
        if path is None:
            return None
        if self.files.people is None:
            raise UserError("evaluate.ignore_identity_pairs names people: add --config.labels=L")
        values = self.files.identities
        known = pairs_among(read_identity_pairs(path), values, what="people")
        pairs = known.codes if values.dtype.kind == "U" else values[known.codes]
        held = np.isin(pairs, self.files.people[self.held]).all(axis=1)
        return known._replace(codes=pairs[held], unknown=known.unknown + int(np.sum(~held)))

    @cached_property
    def groups(self) -> FaceGroups | None:
        """Those of the held-out faces, by the list `evaluate.groups` of people."""
        path, labels = self.config.evaluate.get("groups"), self.config.labels
        if path is None:
            return None
        if labels is None:
            raise UserError("evaluate.groups are of people: add --config.labels=L")
        people = read_people(labels)[self.held].tolist()
        return face_groups(path, [str(person) for person in people])

    @cached_property
    def digest(self) -> str:
        """A hash of all that the targets depend on, so that other targets are not used."""
        digest = hashlib.blake2b(digest_size=16)
        anchors = self.inputs.anchors
        for part in (self.inputs.faces, self.inputs.own, anchors.embeddings, anchors.labels):
            digest.update(b"" if part is None else np.ascontiguousarray(part).data)
        return digest.hexdigest()

    @property
    def training_faces(self) -> LabelledFaces:
        """The faces that are not held out, and their identities among the anchors, if any."""
        labels = None if self.inputs.own is None else self.inputs.own[~self.held]
        return LabelledFaces(self.inputs.faces[~self.held], labels)

    @property
    def training_people(self) -> np.ndarray | None:
        """Of `training_faces`, in a numbering of their own."""
        return None if self.inputs.people is None else self.inputs.people[~self.held]

    @property
    def chooses(self) -> bool:
        """Whether the SSR module's settings are left to held-out people."""
        faces, people = np.count_nonzero(~self.held), self.training_people
        # Without labels there are no people to hold out.
        known = 0 if people is None else len(np.unique(people[people >= 0]))
        return chooses(self.config.ssr, faces, known)

    @cached_property
    def copied_faces(self) -> LabelledFaces:
        """The training faces and their synthetic copies."""
        c, (faces, labels) = self.config, self.training_faces
        return with_copies(
            faces, labels, copies=c.ssr.copies, mix=c.ssr.mix, noise=c.ssr.noise, seed=c.seed
        )

    @cached_property
    def training_log_density(self) -> np.ndarray:
        """Of `copied_faces`."""
        return self._searched("training", *self.copied_faces)

    @cached_property
    def held_out_log_density(self) -> np.ndarray:
        """Of the faces held out, whose identities are not among the anchors any more."""
        return self._searched("held_out", self.inputs.faces[self.held], None)

    def _searched(self, name: str, faces: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """log F [N], searched in parts: an interrupted search continues."""
        c = self.config
        folder = self.workdir / TARGETS
        folder.mkdir(exist_ok=True)
        search = SupportSearch(
            self.inputs.anchors, k=c.k, searcher=c.searcher, expected_queries=len(faces), tau=c.tau
        )

        def part(rows: range) -> np.ndarray:
            print(f"targets: {name}, {rows.start:,} … {rows.stop - 1:,} of {len(faces):,}")
            some = slice(rows.start, rows.stop)
            nearest = search(faces[some], None if labels is None else labels[some]).similarities
            if labels is None:
                refuse_self_matches(nearest)
            return log_density_of(nearest, tau=c.tau)

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


def check_embeddings(run: EmbeddingRun, unfinished: list[str]) -> None:
    """Finds mistakes in the config and in the files that it names, before any work.

    The first process does it all, and alone reads the files.

    Raises:
      UserError: as `check_embedding_config`, `read_inputs` and `held_out_rows`; other stages; a k
        that the anchors cannot give each face.
    """
    if not is_first():
        return
    check_embedding_config(run.config)
    if tuple(run.config.stages) != tuple(EMBEDDING_STAGES):
        raise UserError(f"stages is {run.config.stages}: expected {', '.join(EMBEDDING_STAGES)}")
    check_k(run.config.k, run.inputs)
    _ = run.one_person
    _ = run.groups
    for method in _further(run):
        if METHODS[method].log_norm is not None:
            log_norms(run.inputs.norms, len(run.inputs.norms), method=method)


def _further(run: EmbeddingRun) -> dict[str, Rescorer]:
    """The methods that are evaluated beside the usual three."""
    c = run.config
    methods, options = c.evaluate.get("further", ()), {"k": c.k, "tau": c.tau}
    options["probes"] = run.inputs.faces[run.held]
    return make_scorers(methods, run.inputs.anchors, searcher=c.searcher, **options)


def _targets(run: EmbeddingRun) -> None:
    _ = run.held_out_log_density
    if run.config.ssr.targets != "on_the_fly" and not run.chooses:
        _ = run.training_log_density


def _ssr(run: EmbeddingRun) -> None:
    c = run.config
    options = {"k": c.k, "tau": c.tau, "fingerprint": run.inputs.fingerprint}
    options |= {"workdir": run.workdir, "seed": c.seed}
    if run.chooses:
        ssr = train_chosen_ssr(
            run.training_faces.embeddings,
            run.training_people,
            run.training_faces.labels,
            run.inputs.anchors,
            c.ssr,
            searcher=c.searcher,
            **options,
        )
    elif c.ssr.targets == "on_the_fly":
        ssr = train_ssr_on_the_fly(
            *run.training_faces, run.inputs.anchors, c.ssr, searcher=c.searcher, **options
        )
    else:
        faces = run.copied_faces.embeddings
        ssr = train_ssr(faces, run.training_log_density, c.ssr, **options)
    replace(ssr, anchors_sketch=run.inputs.anchors.sketch).save(run.workdir / SSR)


def _evaluate(run: EmbeddingRun) -> None:
    from ida_jax.report.run_report import DensitiesByGroup, write_protocol_report

    c, inputs = run.config, run.inputs
    faces, searched = inputs.faces[run.held], run.held_out_log_density
    ssr = SSRModule.load(run.workdir / SSR)
    regressed = ssr.log_density(faces)
    results: dict[str, Any] = {
        "model": {"fingerprint": ssr.fingerprint},
        "anchors": {
            "source": inputs.anchors.source,
            "size": len(inputs.anchors),
            "fingerprint": inputs.anchors.fingerprint,
        },
        "ssr": regression_quality(np.exp(regressed), np.exp(searched))._asdict() | ssr.judgement(),
        "held_out": {"faces": len(faces), "training_faces": len(inputs.faces) - len(faces)},
        "protocols": {},
        "notes": {},
    }
    evaluated = {}
    judged = () if ssr.held_out is None else (ssr.held_out.note(),)
    if inputs.people is None:
        results["notes"]["held_out"] = [
            "Without labels faces were held out, not identities: other faces of the same people "
            "may have been trained on, and no TAR can be given.",
            *judged,
        ]
        print(*results["notes"]["held_out"])
    else:
        people, norms = inputs.people[run.held], inputs.norms[run.held]
        results["held_out"]["identities"] = len(np.unique(people))
        known = run.one_person
        found = evaluate_all_pairs(
            faces,
            people,
            {
                BASELINE: cosine_terms(len(faces)),
                SEARCHED: dao_terms(searched, tau=c.tau),
                REGRESSED: dao_terms(regressed, tau=c.tau),
                **{name: more.terms(faces, norms=norms) for name, more in _further(run).items()},
            },
            fars=c.evaluate.fars,
            ignored=None if known is None else known.codes,
            groups=run.groups,
            group_thresholds=c.evaluate.get("group_thresholds", False),
            resamples=c.evaluate.resamples,
            seed=c.seed,
        )
        if known is not None:
            print(printable(known.note(found.ignored)))
        held_out = noted(found.evaluated, known, found.ignored)
        notes = (*held_out.notes, *_notes(run, people), *judged)
        evaluated = {_PROTOCOL: held_out._replace(notes=notes)}
        results |= figures_and_notes(evaluated)
    results["provenance"] = provenance()
    write_results(
        run.workdir,
        results,
        write_protocol_report,
        title=c.title,
        settings={"config": c.to_dict()},
        evaluated=evaluated,
        groups=DensitiesByGroup(searched, np.zeros(len(faces), np.int32), ("held-out faces",)),
    )


def _notes(run: EmbeddingRun, people: np.ndarray) -> tuple[str, ...]:
    notes = (
        f"{len(people):,} faces of {len(np.unique(people)):,} identities, held out of the training "
        f"and of the {len(run.inputs.anchors):,} anchors.",
    )
    unknown = np.count_nonzero(run.inputs.people < 0)
    if unknown and run.inputs.own is not None:
        notes += (
            f"{unknown:,} faces of unknown identity were trained on with nobody left out of their "
            "support sets: where they are among the anchors themselves, their F is too small.",
        )
    return notes


_TARGETS_DEPEND_ON = (
    "seed", "embeddings", "anchors", "labels", "disjoint", "held_out", "evaluate.most_faces",
    "k", "tau", "searcher", "ssr.targets", "ssr.copies", "ssr.mix", "ssr.noise",
)  # fmt: skip

EMBEDDING_STAGES = {
    "targets": Stage(_targets, SSR, remade=False, parts=(TARGETS,), depends_on=_TARGETS_DEPEND_ON),
    "ssr": Stage(_ssr, SSR, depends_on=(*_TARGETS_DEPEND_ON, "ssr")),
    "evaluate": Stage(_evaluate, RESULTS, after=("ssr",)),
}
