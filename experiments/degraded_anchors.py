"""Anchors as varied as the probes: what degraded copies among the anchors give, on LFW.

    PYTHONPATH=. python experiments/degraded_anchors.py --data_dir=DATA --cache=CACHE \
        --output=experiments/results/degraded_anchors

All pairs of one half's identities (at most 10 images each), anchors from the other half's first
images, the given MobileFaceNet. Probes are clean, mixed (about half of the images degraded) or all
degraded: one of a blur of 1 to 3 pixels, 20 to 48 pixels a side and JPEG of quality 5 to 25
(`degraded_faces.py`). Anchors are clean, mixed (clean ones and degraded copies of about half of
them, as `anchors build --degrade` adds) or degraded copies alone, by the library's kinds and
strengths and another seed: never the probes' degradations. "other kinds" are mixed probes with
kinds that the anchors "of the probes' kinds" have not seen.

The default (varied strengths of all kinds, share 0.5, one copy) is settled by the pairs of the
anchor half ("choice"); the pairs of the eval half are reported. The SSR modules (IDA-L), the
classifier of CSN and the fit of IDA-Q are made with the other half's faces: clean ones, those and
the first images' degraded copies for mixed anchors, the copies alone for degraded anchors (CSN and
IDA-Q: as for mixed ones, since copies of one image per person make no genuine pairs). PFE's
module is trained on the anchor half's images with the settings of `configs/lfw_pfe.py` (images
spoilt by the low_quality augmentation among them), one for all anchors, and tested on the eval half
alone; "PFE & IDA" are DAO with the likelihood in the cosine's place. The fall-back's weight is
found from the probes, without labels. The weaker model is the same embeddings' first 32 principal
components of the other half.

Gains are over the cosine, in TAR, intervals over identities and paired with it. A method harms
where it loses more than 0.05 points at FAR 1e-3 or 1e-4, or where an interval lies below 0.
Embeddings and finished cells of the table are kept in CACHE: the same command continues, and with
--finished it writes what there is.

N faces, A anchors, D embedding.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from degraded_faces import SETS, People, embedded, given_model, log_variances, people
from lfw_faces import lfw_embeddings
from paper_runs import load_config

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.coverage import coverage
from ida_jax.anchors.crowding import crowding
from ida_jax.anchors.supported_weight import supported_weight
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.artefacts.uncertainty_model import ProbabilisticEmbeddings, UncertaintyModel
from ida_jax.common.files import json_text, written_whole
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_rows
from ida_jax.data.degrade import degradation, degraded_rows
from ida_jax.data.lfw_crops import load_lfw
from ida_jax.metrics.bootstrap import bootstrap_tails
from ida_jax.metrics.resampling import (
    Tail,
    all_pairs_total,
    genuine_rows,
    impostor_rows,
    split_tail,
)
from ida_jax.metrics.roc import SplitScores, tar_at_far
from ida_jax.protocols.pfe_methods import likelihood_methods, likelihood_of_all_pairs
from ida_jax.rescoring.csn_fit import Csn, fit_csn
from ida_jax.rescoring.density import searched_log_density
from ida_jax.rescoring.pairs import all_pair_scores
from ida_jax.rescoring.quality_fit import QualityFit, fit_quality
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import cosine_terms
from ida_jax.runs.config import ssr_section
from ida_jax.training.pfe import train_pfe
from ida_jax.training.ssr import train_ssr, with_copies

FARS = (1e-3, 1e-4, 1e-5)
K, TAU, WIDTH, FEW = 10, 1.0, 32, 300
ALLOWED_LOSS = 5e-4  # of TAR at FAR 1e-3 and 1e-4
# Another method of the table is added by its name; those that are trained, with the main anchors.
SEARCHED = ("ida_r", "ida_r_fallback", "as_norm", "ida_q_label_free")
TRAINED = ("ida_l", "csn", "ida_q")
PFE = ("pfe", "pfe_mls_ida_r", "pfe_mls_ida_l")
MAIN = ("clean", "mixed", "degraded")
CHOICE = (*MAIN, "share 0.25", "share 1", "two copies", "medium")


class Labelled(NamedTuple):
    """Unit rows float32 [N, D], identities int32 [N], and the norms that the rows had [N]."""

    rows: np.ndarray
    labels: np.ndarray
    norms: np.ndarray


class LogVariances(NamedTuple):
    """log σ² by a module that was trained on the anchors' half: {name: float32 [N or A, D]}."""

    faces: dict[str, np.ndarray]
    anchors: dict[str, np.ndarray]


class Half(NamedTuple):
    """Probes of one half, anchors and training faces of the other.

    Attributes:
      faces: {probes' name: raw embeddings float32 [N, D]}.
      labels: int32 [N].
      anchors: {anchors' name: the anchors}.
      training: {anchors' name: the faces that modules are trained on, and fits made with}.
      log_variances: of all probes and of the main anchors; None without PFE's methods.
    """

    faces: dict[str, np.ndarray]
    labels: np.ndarray
    anchors: dict[str, Labelled]
    training: dict[str, Labelled]
    log_variances: LogVariances | None = None


def _half(own: People, sets: Mapping[str, np.ndarray], *, of_eval: bool) -> Half:
    mine = own.is_eval == of_eval
    firsts = np.flatnonzero(~mine & own.is_first)
    clean, probes, varied = sets["clean"], sets["probes"], sets["varied"]
    mixed = own.is_mixed[:, None]
    faces = _probes(own, sets, of_eval=of_eval)

    def joined(*parts: tuple[np.ndarray, np.ndarray]) -> Labelled:
        raw = np.concatenate([made[at] for made, at in parts])
        labels = np.concatenate([own.labels[at] for _, at in parts]).astype(np.int32)
        return _labelled(raw, labels)

    plain, half = (clean, firsts), _copied(own, firsts, 0.5)
    few = np.sort(np.random.default_rng(0).choice(firsts, FEW, replace=False))
    anchors = {
        "clean": joined(plain),
        "mixed": joined(plain, (varied, half)),
        "degraded": joined((varied, firsts)),
        "share 0.25": joined(plain, (varied, _copied(own, firsts, 0.25))),
        "share 1": joined(plain, (varied, firsts)),
        "two copies": joined(plain, (varied, half), (sets["second copy"], half)),
        "medium": joined(plain, (sets["medium"], half)),
        "the probes' kinds": joined(plain, (sets["probes' kinds"], half)),
        "faces as the mixed probes are": joined((np.where(mixed, probes, clean), firsts)),
        f"copies of {FEW} people": joined(plain, (varied, few)),
        f"clean faces and copies of {FEW} people": joined((clean, few), (varied, few)),
    }
    others = np.flatnonzero(~mine)
    training = {
        "clean": joined((clean, others)),
        "mixed": joined((clean, others), (varied, firsts)),
        "degraded": joined((varied, firsts)),
    }
    return Half(faces, own.labels[mine].astype(np.int32), anchors, training)


def _probes(own: People, sets: Mapping[str, np.ndarray], *, of_eval: bool) -> dict[str, np.ndarray]:
    """{probes' name: rows [N, D] of what the sets are of}."""
    mine, mixed = own.is_eval == of_eval, own.is_mixed[:, None]
    clean, probes = sets["clean"], sets["probes"]
    found = {
        "clean": clean[mine],
        "mixed": np.where(mixed, probes, clean)[mine],
        "degraded": probes[mine],
    }
    if of_eval:
        found["other kinds"] = np.where(mixed, sets["other probes"], clean)[mine]
    return found


def _copied(own: People, firsts: np.ndarray, share: float) -> np.ndarray:
    """Which of the first images have a degraded copy at this share."""
    how = degradation("varied", share=share, seed=1)
    return firsts[degraded_rows(how, own.numbers[firsts])]


def _log_variances(own: People, data_dir: Path, cache: Path) -> LogVariances:
    """Of the eval half's probes and the anchor half's main anchors."""
    others = ~own.is_eval & own.is_first
    firsts = np.flatnonzero(others)
    module = _uncertainty(data_dir, cache)
    wanted = {
        "clean": own.is_eval | others,
        "probes": own.is_eval,
        "varied": others,
        "other probes": own.is_eval & own.is_mixed,
    }
    sets = {
        name: log_variances(data_dir, cache, name, module, rows) for name, rows in wanted.items()
    }
    clean, varied = sets["clean"][firsts], sets["varied"][firsts]
    half = sets["varied"][_copied(own, firsts, 0.5)]
    anchors = {"clean": clean, "mixed": np.concatenate([clean, half]), "degraded": varied}
    return LogVariances(_probes(own, sets, of_eval=True), anchors)


def _uncertainty(data_dir: Path, cache: Path) -> UncertaintyModel:
    """PFE's module with the settings of `configs/lfw_pfe.py`, of the anchor half's images; kept."""
    path = cache / "pfe.safetensors"
    if not path.is_file():
        config = load_config("lfw_pfe")
        faces, model = load_lfw(data_dir / "lfw", role="anchor"), given_model(data_dir)
        trained = train_pfe(faces, model, config.pfe, workdir=cache, seed=config.seed)
        trained.save(path)
    return UncertaintyModel.load(path)


def _labelled(raw: np.ndarray, labels: np.ndarray) -> Labelled:
    rows, _, norms = unit_rows(raw, what="embeddings")
    return Labelled(rows, labels, norms)


def _weaker(half: Half) -> Half:
    """The first principal components of the other half's clean faces, in place of all numbers."""
    rows = half.training["clean"].rows
    centred = rows - rows.mean(axis=0)
    basis = np.linalg.svd(centred, full_matrices=False)[2][:WIDTH].T.astype(np.float32)

    def shortened(faces: Labelled) -> Labelled:
        return _labelled(faces.rows @ basis * faces.norms[:, None], faces.labels)

    return Half(
        {name: faces @ basis for name, faces in half.faces.items()},
        half.labels,
        {name: shortened(half.anchors[name]) for name in MAIN},
        {name: shortened(half.training[name]) for name in MAIN},
    )


def _ssr(faces: np.ndarray, labels: np.ndarray, anchors: AnchorSet, path: Path) -> SSRModule:
    """A small module with the settings of `configs/lfw_pretrained.py`, shortened; kept."""
    if not path.is_file():
        c = ssr_section()
        c.input, c.hidden, c.learning_rate, c.weight_decay = "scaled", 256, 1e-2, 2e-3
        c.steps, c.decay_steps = 5_000, (3_000, 4_000, 4_500)
        copied = with_copies(faces, labels, copies=8, mix=c.mix, noise=c.noise, seed=0)
        log_density = searched_log_density(copied.embeddings, anchors, labels=copied.labels)
        with tempfile.TemporaryDirectory() as folder:
            options = {"k": K, "tau": TAU, "workdir": folder, "seed": 0}
            train_ssr(copied.embeddings, log_density, c, **options).save(path)
    return SSRModule.load(path)


def _csn(faces: Labelled, anchors: AnchorSet, path: Path) -> Csn:
    if not path.is_file():
        fit_csn(faces.rows, faces.labels, anchors, seed=0).save(path)
    return Csn.load(path)


def _quality(faces: Labelled, anchors: AnchorSet, path: Path) -> QualityFit:
    if not path.is_file():
        fit_quality(faces.rows, faces.norms, faces.labels, anchors).save(path)
    return QualityFit.load(path)


def _scorers(
    half: Half, name: str, methods: tuple[str, ...], cache: Path, probes: np.ndarray
) -> dict[str, Rescorer]:
    anchors = _anchors(half, name)
    pairs = half.training["mixed" if name == "degraded" else name] if methods == TRAINED else None
    scorers = {}
    for method in methods:
        path, made = _artefact(cache, name, method), {}
        match method:
            case "ida_r_fallback":
                made["weight"] = supported_weight(probes, anchors).weight
            case "ida_l":
                faces = half.training[name]
                made["ssr"] = _ssr(faces.rows, faces.labels, anchors, path)
            case "csn":
                made["csn"] = _csn(pairs, anchors, path)
            case "ida_q":
                made["quality_fit"] = _quality(pairs, anchors, path)
        scorers[method] = Rescorer(anchors, method=method, **made)
    return scorers


def _anchors(half: Half, name: str) -> AnchorSet:
    made = half.anchors[name]
    return AnchorSet.from_embeddings(made.rows, labels=made.labels, k=K, tau=TAU)


def _tail(split: Any, units: np.ndarray) -> Tail:
    genuine = units[genuine_rows(units, np.arange(split.genuine.size)).first]
    return split_tail(
        *split,
        genuine_units=np.repeat(genuine[:, None], 2, axis=1),
        impostor_units=lambda at: units[np.stack(impostor_rows(units, at), axis=1)],
        highest_far=max(FARS),
    )


def _figures(labels: np.ndarray, scores: Mapping[str, SplitScores]) -> dict[str, Any]:
    """TAR of every method; gain over the cosine, its interval, and whether the method harms."""
    tars = {
        name: np.array([point.tar for point in tar_at_far(*split, FARS)])
        for name, split in scores.items()
    }
    identities, units = np.unique(labels, return_inverse=True)
    tails = {name: _tail(split, units) for name, split in scores.items()}
    bootstrap = bootstrap_tails(
        tails, units=identities.size, total=all_pairs_total(units), fars=FARS
    )
    record = {"cosine": {"tar": _by_far(tars["cosine"])}}
    for name, differences in bootstrap.differences.items():
        gain = tars[name] - tars["cosine"]
        ends = np.array([difference.tar for difference in differences])
        record[name] = {
            "tar": _by_far(tars[name]),
            "gain": _by_far(gain),
            "gain_interval": dict(zip(_by_far(gain), ends.round(5).tolist(), strict=True)),
            "harms": bool(np.any(gain[:2] < -ALLOWED_LOSS) or np.any(ends[:, 1] < 0)),
        }
    return record


def _by_far(values: np.ndarray) -> dict[str, float]:
    return {f"{far:g}": round(float(value), 5) for far, value in zip(FARS, values, strict=True)}


def _checked(faces: Labelled, anchors: AnchorSet) -> dict[str, Any]:
    """What `anchors check` says of these probes and anchors."""
    return {
        "crowding": crowding(faces.rows, faces.labels, anchors, norms=faces.norms).json(),
        "share_uncovered": coverage(faces.rows, anchors).share_uncovered,
    }


def _likelihoods(
    half: Half, name: str, probes: str, faces: Labelled, cache: Path
) -> dict[str, SplitScores]:
    """{method of `PFE`: the scores of all pairs}."""
    trained = half.training[name]
    ssr = _ssr(trained.rows, trained.labels, _anchors(half, name), _artefact(cache, name, "ida_l"))
    uncertain = ProbabilisticEmbeddings(faces.rows, half.log_variances.faces[probes])
    anchors = ProbabilisticEmbeddings(half.anchors[name].rows, half.log_variances.anchors[name])
    methods = likelihood_methods(uncertain, anchors, k=K, tau=TAU, ssr=ssr)
    return likelihood_of_all_pairs(uncertain, faces.labels, methods)


def _artefact(cache: Path, name: str, method: str) -> Path:
    return cache / f"{name}.{method}.safetensors"


def _cell(
    half: Half,
    name: str,
    probes: str,
    methods: tuple[str, ...],
    cache: Path,
    finished: bool = False,
) -> dict[str, Any] | None:
    """Figures of some probes with some anchors; a finished cell is read from the cache."""
    kind = {SEARCHED: "", TRAINED: ", trained", PFE: ", PFE"}[methods]
    path = cache / f"{name}, {probes}{kind}.json"
    if finished and not path.is_file():
        return None
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        faces = _labelled(half.faces[probes], half.labels)
        scorers, terms = {}, {"cosine": cosine_terms(len(faces.rows))}
        if methods != PFE:
            scorers = _scorers(half, name, methods, cache, faces.rows)
            terms |= {m: of.terms(faces.rows, norms=faces.norms) for m, of in scorers.items()}
        scores = all_pair_scores(faces.rows, faces.labels, terms)
        if methods == PFE:
            scores |= _likelihoods(half, name, probes, faces, cache)
        cell = {
            "methods": _figures(faces.labels, scores),
            "check": _checked(faces, _anchors(half, name)),
        }
        if "ida_r_fallback" in scorers:
            weight = scorers["ida_r_fallback"].weight
            cell["methods"]["ida_r_fallback"]["weight"] = weight
        with written_whole(path) as temporary:
            temporary.write_text(json_text(cell), encoding="utf-8")
        print(path, flush=True)
    return json.loads(path.read_text())


def _table(
    half: Half, cache: Path, kinds: tuple[tuple[str, ...], ...], *, finished: bool
) -> dict[str, Any]:
    """{anchors: {"anchors": A, "probes": {probes: figures}}}.

    Args:
      kinds: of methods; with other than the main anchors `SEARCHED` alone.
      finished: only the cells that the cache has.
    """
    table: dict[str, Any] = {}
    for name, made in half.anchors.items():
        cells: dict[str, Any] = {}
        for probes in half.faces:
            for methods in kinds if name in MAIN else (SEARCHED,):
                cell = _cell(half, name, probes, methods, cache, finished)
                if cell is not None:
                    cells.setdefault(probes, cell)["methods"] |= cell["methods"]
        table[name] = {"anchors": len(made.rows), "probes": cells}
    return table


TITLES = {
    "eval": "Pairs of the eval half",
    "choice": "Pairs of the anchor half, on which the default was chosen",
    "weaker": f"A weaker model ({WIDTH} principal components), pairs of the eval half",
}
SHOWN = {
    "ida_r": "IDA-R", "ida_r_fallback": "IDA-R fallback", "ida_l": "IDA-L", "as_norm": "AS-norm",
    "csn": "CSN", "ida_q": "IDA-Q", "ida_q_label_free": "IDA-Q, label-free", "pfe": "PFE",
    "pfe_mls_ida_r": "PFE & IDA-R", "pfe_mls_ida_l": "PFE & IDA-L",
}  # fmt: skip


def _page(record: dict[str, Any]) -> str:
    """Gains over the cosine in points of TAR, a table a half, a row for probes and anchors."""
    first = (__doc__ or "").split("\n")[0]
    lines = [
        f"# {first}", "",
        "TAR in points above the cosine's at FAR 1e-3 / 1e-4 / 1e-5; **bold** where the method "
        "harms (more than 0.05 points lost at 1e-3 or 1e-4, or an interval below 0). "
        "`experiments/degraded_anchors.py` says what the sets are. Crowding is what `anchors "
        "check` prints, and warns of above 1.75. The fall-back's weight of log F is in brackets. "
        "All intervals are in the JSON.",
    ]  # fmt: skip
    for part, title in TITLES.items():
        table = record[part]
        made = {m for row in table.values() for of in row["probes"].values() for m in of["methods"]}
        methods = [method for method in SHOWN if method in made]
        lines += ["", f"## {title}", ""]
        lines += [
            "| probes | anchors | A | crowding | " + " | ".join(SHOWN[m] for m in methods) + " |",
            "| --- | --- | --- | --- |" + " --- |" * len(methods),
        ]
        for probes in ("clean", "mixed", "degraded", "other kinds"):
            found = [row["probes"][probes] for row in table.values() if probes in row["probes"]]
            if not found:
                continue
            cosine = found[0]["methods"]["cosine"]["tar"]
            tars = " / ".join(f"{100 * tar:.2f}" for tar in cosine.values())
            lines.append(f"| {probes} | cosine: {tars} | | |" + " |" * len(methods))
            for name, row in table.items():
                if probes not in row["probes"]:
                    continue
                of = row["probes"][probes]
                cells = [_shown(of["methods"].get(method)) for method in methods]
                crowd = f"{of['check']['crowding']['ratio']:.2f}"
                lines.append(
                    f"| {probes} | {name} | {row['anchors']} | {crowd} | " + " | ".join(cells)
                    + " |"
                )  # fmt: skip
    return "\n".join([*lines, *_interval_lines(record["eval"])]) + "\n"


def _interval_lines(table: dict[str, Any]) -> list[str]:
    """A table of the gains at FAR 1e-4 with their intervals: every method with the main anchors."""
    columns = [(probes, anchors) for probes in MAIN for anchors in MAIN]
    cells = {(p, a): table[a]["probes"][p] for p, a in columns if p in table[a]["probes"]}
    methods = [m for m in SHOWN if any(m in of["methods"] for of in cells.values())]
    lines = [
        "", "## Intervals at FAR 1e-4, pairs of the eval half", "",
        "| probes | anchors | " + " | ".join(SHOWN[m] for m in methods) + " |",
        "| --- | --- |" + " --- |" * len(methods),
    ]  # fmt: skip
    for (probes, anchors), of in cells.items():
        shown = [_with_interval(of["methods"].get(m)) for m in methods]
        lines.append(f"| {probes} | {anchors} | " + " | ".join(shown) + " |")
    return lines


def _with_interval(of: dict[str, Any] | None) -> str:
    if of is None:
        return ""
    far = f"{FARS[1]:g}"
    low, high = of["gain_interval"][far]
    return f"{100 * of['gain'][far]:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _shown(of: dict[str, Any] | None) -> str:
    if of is None:
        return ""
    text = " / ".join(f"{100 * gain:+.2f}" for gain in of["gain"].values())
    text = f"**{text}**" if of["harms"] else text
    return f"{text} ({of['weight']:g})" if "weight" in of else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME")
    parser.add_argument("--finished", action="store_true", help="only what CACHE has of the table")
    options = parser.parse_args()
    only = options.finished
    own = people(options.data_dir)
    clean = lfw_embeddings(options.data_dir / "lfw")[own.numbers]
    sets = {name: embedded(options.data_dir, options.cache, name) for name in SETS}
    sets["clean"] = clean
    choice, tested = (_half(own, sets, of_eval=of_eval) for of_eval in (False, True))
    choice = choice._replace(anchors={name: choice.anchors[name] for name in CHOICE})
    if not only:
        cache = options.cache / "pfe"
        found = _log_variances(own, options.data_dir, cache)
        tested = tested._replace(log_variances=found)
    rows = options.cache / "rows"
    kinds = (SEARCHED, TRAINED, PFE)
    record = {
        "eval": _table(tested, rows / "eval", kinds, finished=only),
        "choice": _table(choice, rows / "choice", kinds[:2], finished=only),
        "weaker": _table(_weaker(tested), rows / "weaker", kinds[:1], finished=only),
        "provenance": provenance(),
    }
    for suffix, text in ((".json", json_text(record)), (".md", _page(record))):
        with written_whole(options.output.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(_page(record))


if __name__ == "__main__":
    main()
