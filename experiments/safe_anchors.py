"""What anchors of the wrong domain cost, whether the check warns, whether the fall-back is safe.

    PYTHONPATH=. python experiments/safe_anchors.py --data_dir=DATA [--cache=CACHE] \
        --output=experiments/results/safe_anchors [--embeddings=NAME=FILE …] [--only NAME …]

All pairs of half of LFW (at most 10 images per identity) by the cosine, by IDA-R and by
`ida_r_fallback`, with anchors made from the other half: the right ones (the first image of each
identity) and parts of them, ones of another domain that overlaps (many images of few people,
tilted along a principal direction, clusters, high norms only), spoilt images of every tenth person,
rendered faces, directions at random, and mixtures. Beside them, what `anchors check` says of each:
nothing, that IDA-R raises a threshold ("raises", or "domain" where probes lie outside), or that the
probes cannot tell ("unclear").

Models: the given MobileFaceNet, its embeddings cut to 64 and 28 random directions, and any others
whose embeddings of LFW, in the order of names.txt, are given (FILE: .npy, [13233, D]; a row of
zeros is a face that was not embedded). The spoilt images are embedded by the MobileFaceNet alone,
and kept in CACHE. Intervals are over identities and paired with the cosine.

A method harms where its TAR is more than 0.05 points below the cosine's at FAR 1e-3 or 1e-4, or
where the whole interval of the difference lies below 0 at any of the three.

The rules of the fall-back's weight and of the check were chosen with these sets on the pairs of the
anchor half, by the given model, clean and with half of the probes degraded, and models made of it:
28 directions, principal components weighted more or less evenly, rectified or shifted ones. That
the weight is at most v, and the check's look at v, came after FaceRes on the anchor half had been
seen to lose without. The given model's eval half was looked at once on the way, and the bound above
which a pair counts as one person was mended with the probes of both halves; FaceRes' eval half had
no part in it.

N faces, A anchors, D embedding, K support, P pairs.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from lfw_faces import HALVES, LfwFaces, lfw_embeddings, lfw_faces
from safe_anchor_sets import Anchors, anchor_sets, spoilt_embeddings

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.coverage import coverage
from ida_jax.anchors.search import support_sets
from ida_jax.anchors.supported_weight import ProbeGain, probe_gain, supported_weight
from ida_jax.common.progress import progress_bar
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings
from ida_jax.metrics.bootstrap import bootstrap_tails
from ida_jax.metrics.resampling import Tail, all_pairs_total
from ida_jax.rescoring.density import log_density_of

FARS = (1e-3, 1e-4, 1e-5)
K, TAU, IMAGES = 10, 1.0, 10
ALLOWED_LOSS = 5e-4  # of TAR at FAR 1e-3 and 1e-4
_KEPT = 600_000  # impostor pairs of the highest cosines: the density term reorders these alone
_TAIL = 60_000
METHODS = ("ida_r", "ida_r_fallback")


class Pairs:
    """All pairs of labelled faces: every genuine one, and the impostors of the highest cosines."""

    def __init__(self, faces: np.ndarray, labels: np.ndarray, resamples: int) -> None:
        self.faces, self.labels, self.resamples = faces, labels, resamples
        self.units = np.unique(labels, return_inverse=True)[1]
        cosines: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        genuine: list[np.ndarray] = []
        self.impostors, floor = 0, -1.0
        for start in range(0, len(faces), 512):
            tile = faces[start : start + 512] @ faces[start:].T
            later = np.arange(tile.shape[1]) > np.arange(tile.shape[0])[:, None]
            same = labels[start : start + 512, None] == labels[start:]
            genuine.append(np.argwhere(later & same) + start)
            impostor = later & ~same
            self.impostors += int(impostor.sum())
            if start == 0:
                share = min(1.3 * _KEPT / (len(faces) ** 2 / 2), 1.0)
                floor = float(np.quantile(tile[impostor], 1 - share))
            found = np.argwhere(impostor & (tile > floor))
            cosines.append(tile[found[:, 0], found[:, 1]])
            rows.append(found + start)
        self.genuine = np.concatenate(genuine)
        self.rows, self.kept = np.concatenate(rows), np.concatenate(cosines)
        first, second = self.genuine.T
        self.genuine_cosines = np.einsum("pd,pd->p", faces[first], faces[second])
        self.cosine = self.scored(None)

    def scored(self, log_f: np.ndarray | None) -> tuple[np.ndarray, Tail]:
        """TAR at each FAR, and the scores' tail, of the cosine or of log DAO by log F [N]."""
        genuine, impostor = self.genuine_cosines, self.kept
        if log_f is not None:
            genuine = genuine + np.logaddexp(*log_f[self.genuine.T])
            impostor = impostor + np.logaddexp(*log_f[self.rows.T])
        top = np.argpartition(-impostor, _TAIL)[:_TAIL]
        top = top[np.argsort(-impostor[top], kind="stable")]
        ranks = [int(far * self.impostors) for far in FARS]
        tars = np.array([np.mean(genuine > impostor[top[rank]]) for rank in ranks])
        units = self.units[self.genuine].astype(np.int32)
        of_top = self.units[self.rows[top]].astype(np.int32)
        return tars, Tail(genuine, units, impostor[top], of_top, self.impostors)

    def figures(self, methods: dict[str, np.ndarray]) -> dict[str, dict]:
        """TAR, gain over the cosine and its interval at each FAR; whether the method harms.

        Args:
          methods: {method: log F [N]}.
        """
        scored = {name: self.scored(log_f) for name, log_f in methods.items()}
        tails = {"cosine": self.cosine[1]} | {name: tail for name, (_, tail) in scored.items()}
        bootstrap = bootstrap_tails(
            tails, fars=FARS, resamples=self.resamples, units=int(self.units.max()) + 1,
            total=all_pairs_total(self.units),
        )  # fmt: skip
        record = {}
        for name, (tars, _) in scored.items():
            gain = tars - self.cosine[0]
            ends = np.array([difference.tar for difference in bootstrap.differences[name]])
            harms = np.any(gain[:2] < -ALLOWED_LOSS) or np.any(ends[:, 1] < 0)
            record[name] = {
                "tar": _by_far(tars),
                "gain": _by_far(gain),
                "gain_interval": dict(zip(_by_far(gain), ends.round(5).tolist(), strict=True)),
                "harms": bool(harms),
            }
        return record


def _by_far(values: np.ndarray) -> dict[str, float]:
    return {f"{far:g}": round(float(value), 5) for far, value in zip(FARS, values, strict=True)}


def _evaluated(pairs: Pairs, given: Anchors) -> dict:
    anchors = AnchorSet.from_embeddings(given.rows, labels=given.labels, k=K, tau=TAU)
    similarities = support_sets(pairs.faces, anchors, k=K, labels=pairs.labels).similarities
    weight = supported_weight(pairs.faces, anchors)
    log_f = np.asarray(log_density_of(similarities, tau=TAU))
    near = coverage(pairs.faces, anchors)
    told = probe_gain(pairs.faces, anchors, people=pairs.labels)
    return {
        "anchors": len(anchors),
        "share_uncovered": round(near.share_uncovered, 3),
        "share_sparser": round(told.share_sparser, 3),
        "threshold_gain": [
            [round(each, 5) for each in pair] for pair in zip(told.gain, told.error, strict=True)
        ],
        "supported": [round(told.supported, 3), told.lowering],
        "weight": weight.weight,
        "check": _verdict(told, near.wrong_domain),
        "methods": pairs.figures({"ida_r": log_f, "ida_r_fallback": weight.weight * log_f}),
    }


def _verdict(told: ProbeGain, wrong_domain: bool) -> str:
    """What `anchors check` warns of; "" for nothing."""
    if wrong_domain:
        return "domain"
    if told.harmful:
        return "raises"
    return "" if told.helpful else "unclear"


def _page(record: dict) -> str:
    """Gains over the cosine in points of TAR, one row a set, bold where the method harms."""
    lines = [
        "TAR on all pairs of half of LFW in points above the cosine's, at FAR 1e-3 / 1e-4 / 1e-5; "
        "**bold** where the method harms (a loss of over 0.05 points at 1e-3 or 1e-4, or an "
        "interval below 0 at any). Thresholds: by how many thousandths of cosine IDA-R lowers "
        "them at FAR 1e-3 / 1e-4 among the probes' impostors; ω / v: the weight of log F "
        "that the probes support, one face a person, by the lower end of its interval, and the one "
        "that lowers the thresholds most; check: what "
        "`anchors check` warns of; w: the fall-back's weight, by 1,500 of the probes without their "
        "labels. "
        "`experiments/safe_anchors.py` says what the sets are."
    ]
    for name, half in record["runs"].items():
        counts = half["summary"]
        lines += ["", f"## {name}", ""]
        lines += [f"{key}: {value}  " for key, value in counts.items()]
        lines += [
            "",
            "| anchors | A | uncovered | sparser | thresholds | ω / v | check | w "
            "| IDA-R | fall-back |",
        ]
        lines += ["|" + " --- |" * 10]
        for which, each in half["sets"].items():
            cells = []
            for method in METHODS:
                of = each["methods"][method]
                cell = " / ".join(f"{100 * gain:+.2f}" for gain in of["gain"].values())
                cells.append(f"**{cell}**" if of["harms"] else cell)
            falls = " / ".join(
                f"{1e3 * gain:.1f} ± {1e3 * error:.1f}" for gain, error in each["threshold_gain"]
            )
            weights = [falls, " / ".join(f"{of:.2f}" for of in each["supported"])]
            shares = [f"{100 * each[key]:.0f} %" for key in ("share_uncovered", "share_sparser")]
            warned = [each["check"], f"{each['weight']:.2f}"]
            lines.append(
                "| "
                + " | ".join([which, str(each["anchors"]), *shares, *weights, *warned, *cells])
                + " |"
            )
    return "\n".join(lines) + "\n"


def _summary(sets: dict) -> dict:
    harmed = {
        m: [name for name, each in sets.items() if each["methods"][m]["harms"]] for m in METHODS
    }
    warned = {name for name, each in sets.items() if each["check"]}
    unclear = {name for name, each in sets.items() if each["check"] == "unclear"}
    right = [name for name in sets if name.startswith("right")]
    gains = {m: sets["right"]["methods"][m]["gain"] for m in METHODS}
    harmful = set(harmed["ida_r"])

    def listed(names: set[str]) -> str:
        return ", ".join(sorted(names)) or "none"

    return {
        "sets": len(sets),
        "harmed by IDA-R": len(harmful),
        "of these warned of": len(harmful & warned),
        "of these as unclear": len(harmful & unclear),
        "not warned of": listed(harmful - warned),
        "warned of without harm": listed(warned - unclear - harmful),
        "unclear without harm": listed(unclear - harmful),
        "right anchors warned of": ", ".join(each for each in right if each in warned) or "none",
        "harmed by the fall-back": ", ".join(harmed["ida_r_fallback"]) or "none",
        "gain with right anchors, IDA-R": gains["ida_r"],
        "gain with right anchors, fall-back": gains["ida_r_fallback"],
    }


def _run(
    embeddings: np.ndarray,
    faces: LfwFaces,
    tested_half: str,
    spoilt: dict,
    rows: np.ndarray,
    resamples: int,
) -> dict:
    given = np.abs(embeddings).max(axis=1) > 0
    tested = np.flatnonzero(faces.rows(tested_half, images=IMAGES) & given)
    pairs = Pairs(unit_embeddings(embeddings[tested]), faces.labels[tested], resamples)
    (half,) = set(HALVES) - {tested_half}
    made = anchor_sets(embeddings, faces, half, spoilt, rows)
    sets = {}
    for name in progress_bar(made, desc="anchor sets", unit="set"):
        sets[name] = _evaluated(pairs, made[name])
    return {
        "faces": len(tested),
        "cosine": _by_far(pairs.cosine[0]),
        "summary": _summary(sets),
        "sets": sets,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="without it, no spoilt images")
    parser.add_argument("--output", type=Path, required=True, help="without .json and .md")
    parser.add_argument("--embeddings", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--only", nargs="*", help="the models, by name; all if not given")
    options = parser.parse_args()
    faces = lfw_faces(options.data_dir / "lfw")
    rows, spoilt = np.empty(0, int), {}
    if options.cache is not None:
        rows, spoilt = spoilt_embeddings(options.data_dir, options.cache, faces)
    own = lfw_embeddings(options.data_dir / "lfw")
    models = {"MobileFaceNet": (own, spoilt)}
    for width, seed in ((64, 7), (28, 5)):
        cut = np.random.default_rng(seed).normal(size=(own.shape[1], width)).astype(np.float32)
        parts = {name: raw @ cut for name, raw in spoilt.items()}
        models[f"{width} directions"] = (own @ cut, parts)
    for each in options.embeddings:
        name, path = each.split("=", 1)
        models[name] = (np.load(path).astype(np.float32), {})
    runs = {}
    for name, (embeddings, parts) in models.items():
        if options.only and name not in options.only:
            continue
        for half in ("eval", "anchor"):
            title = f"{name}, pairs of the {half} half"
            runs[title] = _run(embeddings, faces, half, parts, rows, options.resamples)
            record = {"k": K, "tau": TAU, "resamples": options.resamples, "runs": runs}
            text = json.dumps(record | {"provenance": provenance()}, indent=1)
            for path, shown in ((options.data_dir, "DATA"), (options.cache, "CACHE")):
                text = text if path is None else text.replace(str(path), shown)
            for each in options.embeddings:
                text = text.replace(each.split("=", 1)[1], "FILE")
            options.output.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
            options.output.with_suffix(".md").write_text(_page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
