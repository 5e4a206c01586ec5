"""What anchors of the wrong domain cost, and which fall-back to the cosine is safe, on LFW.

    PYTHONPATH=. python experiments/domain_safe.py --data_dir=DATA --cache=CACHE \
        --output=experiments/results/domain_safe

All pairs of the eval half (at most 10 images an identity) by the cosine, by IDA-R, and by log F̃ of
several rules, each with anchors of many domains: the right one (the first image of each identity of
the anchor half), every second of these images spoilt in one way or another and embedded anew,
made-up faces, and sets made of the right one's embeddings. Intervals are over identities and paired
with the cosine. The spoilt images' embeddings are kept in CACHE. It writes OUTPUT.json, OUTPUT.md.

A rule harms where its TAR is more than 0.05 points below the cosine's at FAR 1e-3 or 1e-4, or where
the whole interval of the difference lies below 0 at any of the three.

The fall-back's two constants were chosen on this. So everything is done once more with the halves
exchanged, where nothing was chosen: pairs of the anchor half, right anchors from the eval half, the
spoilt ones as before, and each face's own identity left out of its support set.

N faces, A anchors, D embedding, K support.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from scipy import ndimage

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.coverage import Neighbourhood, own_neighbourhood
from ida_jax.anchors.search import support_sets
from ida_jax.anchors.sources import real_db_rows
from ida_jax.common.progress import progress_bar
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings
from ida_jax.data.lfw_crops import load_lfw, read_split
from ida_jax.data.rendered import rendered_faces
from ida_jax.interop.weights import import_model
from ida_jax.metrics.bootstrap import bootstrap_tails
from ida_jax.metrics.resampling import (
    Tail,
    all_pairs_total,
    genuine_rows,
    impostor_rows,
    split_tail,
)
from ida_jax.metrics.roc import tar_at_far
from ida_jax.ops.dao import fall_back
from ida_jax.rescoring.density import log_density_of, searched_log_density
from ida_jax.rescoring.pairs import score_all_pairs
from ida_jax.rescoring.terms import FaceTerms, cosine_terms, dao_terms

FARS = (1e-3, 1e-4, 1e-5)
K, TAU, IMAGES = 10, 1.0, 10
ALLOWED_LOSS = 5e-4  # of TAR at FAR 1e-3 and 1e-4


def _halves(root: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(unit rows, labels) of both halves, anchor and eval, first images."""
    names = (root / "names.txt").read_text().split()
    embeddings = unit_embeddings(np.load(root / "mobilefacenet_embeddings.npy"))
    roles = read_split(root / "split.csv")
    people, labels = np.unique([name.split("/")[0] for name in names], return_inverse=True)
    role = np.array([roles[person] for person in people])[labels]
    place = np.array([int(name.rsplit("_", 1)[1]) for name in names])
    chosen = [(role == each) & (place <= IMAGES) for each in ("anchor", "eval")]
    return [(embeddings[which], labels[which].astype(np.int32)) for which in chosen]


def _low_resolution(images: np.ndarray, size: int) -> np.ndarray:
    n, *_, side, colours = images.shape
    small = jax.image.resize(images.astype(np.float32), (n, size, size, colours), "linear")
    back = jax.image.resize(small, (n, side, side, colours), "linear")
    return np.asarray(back).round().clip(0, 255).astype(np.uint8)


def _shuffled(images: np.ndarray, rng: np.random.Generator, patch: int = 28) -> np.ndarray:
    n, side, _, colours = images.shape
    m = side // patch
    patches = images.reshape(n, m, patch, m, patch, colours).swapaxes(2, 3)
    patches = patches.reshape(n, m * m, patch, patch, colours)
    mixed = np.stack([each[rng.permutation(m * m)] for each in patches])
    return mixed.reshape(n, m, m, patch, patch, colours).swapaxes(2, 3).reshape(images.shape)


def _noisy(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (images + rng.normal(0, 60, images.shape)).round().clip(0, 255).astype(np.uint8)


class Anchors(NamedTuple):
    """Unit rows float32 [A, D] and identities int32 [A], negative where nobody's."""

    rows: np.ndarray
    labels: np.ndarray


SPOILT: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "grey": lambda x, _: np.broadcast_to(x.mean(-1, keepdims=True), x.shape).astype(np.uint8),
    "red and blue exchanged": lambda x, _: x[..., ::-1],
    "darkened to an eighth": lambda x, _: x // 8,
    "negative": lambda x, _: 255 - x,
    "blurred, sigma 2": lambda x, _: ndimage.gaussian_filter(x, (0, 2, 2, 0)),
    "blurred, sigma 5": lambda x, _: ndimage.gaussian_filter(x, (0, 5, 5, 0)),
    "24 pixels": lambda x, _: _low_resolution(x, 24),
    "12 pixels": lambda x, _: _low_resolution(x, 12),
    "noisy, sigma 60": _noisy,
    "shifted by 30 pixels": lambda x, _: np.roll(x, 30, axis=2),
    "rotated by 90 degrees": lambda x, _: np.rot90(x, axes=(1, 2)),
    "upside down": lambda x, _: x[:, ::-1],
    "upper half black": lambda x, _: x * (np.arange(x.shape[1]) >= x.shape[1] // 2)[:, None, None],
    "shuffled patches": _shuffled,
    "one colour": lambda x, _: np.zeros_like(x) + x.mean((1, 2), keepdims=True).astype(np.uint8),
    "noise": lambda x, rng: rng.integers(0, 256, x.shape, dtype=np.uint8),
}


def _spoilt_sets(data_dir: Path, cache: Path) -> dict[str, np.ndarray]:
    """Unit embeddings [A, D] of each domain that needs the model; read from the cache if there."""
    cache.mkdir(parents=True, exist_ok=True)
    made: dict[str, np.ndarray] = {}
    model = images = None
    for name in (*SPOILT, "rendered"):
        path = cache / f"{name}.npy"
        if not path.is_file():
            if model is None:
                model = import_model(data_dir / "weights" / "mobilefacenet.npz")
                people = load_lfw(data_dir / "lfw", role="anchor", images_per_identity=1)
                images = np.stack([people.images[row] for row in range(0, len(people.images), 2)])
            if name == "rendered":
                drawn = rendered_faces(identities=1000, images_per_identity=1, image_size=112)
                changed = drawn.images
            else:
                rng, parts = np.random.default_rng(0), np.array_split(images, 9)
                changed = np.concatenate([SPOILT[name](part, rng) for part in parts])
            raw = model.raw_embeddings(np.ascontiguousarray(changed), progress=name)
            np.save(path, unit_embeddings(raw))
        made[name] = np.load(path)
    return made


def _made_sets(
    right: Anchors, spoilt: dict[str, np.ndarray], labels: np.ndarray
) -> dict[str, Anchors]:
    """The right domain (names that start with "right"), the wrong ones, and mixtures.

    Args:
      right: the right anchors.
      spoilt: as `_spoilt_sets` gives them.
      labels: int [A], identities of the spoilt images.
    """
    x, own = right
    a, d = x.shape
    rng = np.random.default_rng(0)
    order = rng.permutation(a)

    def part(rows: np.ndarray) -> Anchors:
        return Anchors(x[rows], own[rows])

    def unknown(rows: np.ndarray) -> Anchors:
        return Anchors(unit_embeddings(rows.astype(np.float32)), np.full(len(rows), -1, np.int32))

    sets = {"right": right}
    sets |= {f"right, {n} of them": part(order[:n]) for n in (1000, 300, 100, 20)}
    sets |= {name: Anchors(rows, labels) for name, rows in spoilt.items() if name != "rendered"}
    sets["rendered"] = unknown(spoilt["rendered"])
    random = rng.normal(size=(a, d))
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    alike = np.argsort(-(x @ x[order[0]]))
    alone = AnchorSet.from_embeddings(x, labels=own, k=K, tau=TAU)
    crowded = np.argsort(searched_log_density(x, alone, labels=own))
    centred = x - x.mean(axis=0)
    side = np.argsort(-(centred @ np.linalg.svd(centred, full_matrices=False)[2][0]))
    sets |= {
        "random directions": unknown(random),
        "random directions, 100": unknown(random[:100]),
        "another space (rotated)": unknown(x @ rotation),
        "another space (permuted)": unknown(x[:, rng.permutation(d)]),
        "another space (negated)": unknown(-x),
        "the 287 nearest to one person": part(alike[:287]),
        "a tenth, by a principal direction": part(side[: a // 10]),
        "half, by a principal direction": part(side[: a // 2]),
        "the most crowded tenth": part(crowded[: a // 10]),
        "the least crowded tenth": part(crowded[-(a // 10) :]),
    }
    half = part(order[: a // 2])
    for name in ("blurred, sigma 5", "upside down", "rendered", "random directions"):
        sets[f"half right, half {name}"] = _joined(half, sets[name], a // 2)
    both = _joined(sets["random directions"], sets["blurred, sigma 5"], a // 2)
    return sets | {"half random, half blurred": both}


def _joined(first: Anchors, second: Anchors, count: int) -> Anchors:
    return Anchors(
        *(np.concatenate([a[:count], b[:count]]) for a, b in zip(first, second, strict=True))
    )


def _rules(log_f: np.ndarray, similarity: np.ndarray, own: Neighbourhood) -> dict[str, np.ndarray]:
    """log F̃ [N] by each rule, of log F [N] and the support sets' mean similarities [N]."""
    m, high = np.quantile(own.log_density, [0.8, 0.9]).astype(np.float32)
    start, end = np.quantile(own.similarity, [0.01, 0.10]).astype(np.float32)
    covered = np.clip((similarity - start) / (end - start), 0, 1)
    weight = np.float32(min(own.reliability / 0.5, 1.0))
    return {
        "ida_r": log_f,
        # What ida_r_fallback was before: by each face's coverage.
        "coverage": high + covered * (log_f - high),
        # The two halves of what it is now.
        "minimum": m + np.minimum(log_f - m, 0),
        "reliability": weight * log_f,
        "ida_r_fallback": fall_back(log_f, own.log_density, reliability=own.reliability),
    }


class Pairs:
    """All pairs of labelled faces; of a method's scores their tails are kept, for intervals."""

    def __init__(self, faces: np.ndarray, labels: np.ndarray, resamples: int) -> None:
        self.faces, self.labels, self.resamples = faces, labels, resamples
        people, self.units = np.unique(labels, return_inverse=True)
        self.options = {"units": people.size, "total": all_pairs_total(self.units)}
        self.cosine = self.scored(cosine_terms(len(faces)))

    def scored(self, terms: FaceTerms) -> tuple[np.ndarray, Tail]:
        """TAR at each FAR, and the scores' tail."""
        split = score_all_pairs(self.faces, self.labels, terms)
        tars = np.array([point.tar for point in tar_at_far(*split, FARS)])
        genuine = self.units[genuine_rows(self.units, np.arange(split.genuine.size)).first]
        return tars, split_tail(
            *split,
            genuine_units=np.repeat(genuine[:, None], 2, axis=1),
            impostor_units=lambda at: self.units[np.stack(impostor_rows(self.units, at), axis=1)],
            highest_far=2 * max(FARS),
        )

    def figures(self, rules: dict[str, np.ndarray]) -> dict[str, dict]:
        """TAR, gain over the cosine and its interval at each FAR; whether the rule harms.

        Args:
          rules: {rule: log F̃ [N]}; equal ones are scored once.
        """
        scored: dict[bytes, tuple[np.ndarray, Tail]] = {}
        for log_f in rules.values():
            if log_f.tobytes() not in scored:
                scored[log_f.tobytes()] = self.scored(dao_terms(log_f, tau=TAU))
        found = {rule: scored[log_f.tobytes()] for rule, log_f in rules.items()}
        tails = {"cosine": self.cosine[1]} | {rule: tail for rule, (_, tail) in found.items()}
        bootstrap = bootstrap_tails(tails, fars=FARS, resamples=self.resamples, **self.options)
        record = {}
        for rule, (tars, _) in found.items():
            gain = tars - self.cosine[0]
            ends = np.array([difference.tar for difference in bootstrap.differences[rule]])
            harms = np.any(gain[:2] < -ALLOWED_LOSS) or np.any(ends[:, 1] < 0)
            record[rule] = {
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
    own = own_neighbourhood(anchors, k=K, tau=TAU)
    log_f = np.asarray(log_density_of(similarities, tau=TAU))
    similarity = similarities.mean(axis=1)
    uncovered = np.mean(similarity < np.quantile(own.similarity, 0.01))
    return {
        "anchors": len(anchors),
        "reliability": round(own.reliability, 3),
        "share_uncovered": round(float(uncovered), 3),
        "rules": pairs.figures(_rules(log_f, similarity, own)),
    }


def _page(record: dict) -> str:
    """Gains over the cosine in points of TAR, one row a set, bold where the rule harms."""
    shown = {"ida_r": "IDA-R", "coverage": "by coverage", "ida_r_fallback": "IDA-R fallback"}
    lines = [
        "TAR on all pairs of half of LFW in points above the cosine's, at FAR 1e-3 / 1e-4 / 1e-5; "
        "**bold** where the rule harms (a loss of over 0.05 points at 1e-3 or 1e-4, or an interval "
        "below 0 at any). `experiments/domain_safe.py` says what the sets are; the fall-back's "
        "constants were chosen on the eval half."
    ]
    for half in (name for name in record if name.startswith("pairs of")):
        lines += ["", f"## {half.capitalize()}", ""]
        lines += ["| anchors | A | ρ | not covered | " + " | ".join(shown.values()) + " |"]
        lines += ["| --- | --- | --- | --- |" + " --- |" * len(shown)]
        for name, each in record[half]["sets"].items():
            cells = []
            for rule in shown:
                of = each["rules"][rule]
                cell = " / ".join(f"{100 * gain:+.2f}" for gain in of["gain"].values())
                cells.append(f"**{cell}**" if of["harms"] else cell)
            about = f"{name} | {each['anchors']} | {each['reliability']:.2f}"
            share = f"{100 * each['share_uncovered']:.0f} %"
            lines.append(f"| {about} | {share} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _half(pairs: Pairs, made: dict[str, Anchors]) -> dict:
    sets = {}
    for name in progress_bar(made, desc="anchor sets", unit="set"):
        sets[name] = _evaluated(pairs, made[name])
    gains = {rule: of["gain"] for rule, of in sets["right"]["rules"].items()}
    return {
        "faces": len(pairs.faces),
        "cosine": _by_far(pairs.cosine[0]),
        "harmed_by": {
            rule: [name for name, each in sets.items() if each["rules"][rule]["harms"]]
            for rule in gains
        },
        "share of IDA-R's gain kept": {
            rule: {far: round(each / gains["ida_r"][far], 3) for far, each in gain.items()}
            for rule, gain in gains.items()
        },
        "sets": sets,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="without .json and .md")
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    halves = _halves(options.data_dir / "lfw")
    rows = [real_db_rows(labels, size=50_000) for _, labels in halves]
    firsts = [Anchors(x[at], y[at]) for (x, y), at in zip(halves, rows, strict=True)]
    spoilt = _spoilt_sets(options.data_dir, options.cache)
    record: dict = {"k": K, "tau": TAU, "resamples": options.resamples}
    for evaluated, own in (("eval", 0), ("anchor", 1)):
        made = _made_sets(firsts[own], spoilt, firsts[0].labels[::2])
        pairs = Pairs(*halves[1 - own], options.resamples)
        record[f"pairs of the {evaluated} half"] = _half(pairs, made)
    record["provenance"] = provenance()
    text = json.dumps(record, indent=1)
    text = text.replace(str(options.data_dir), "DATA").replace(str(options.cache), "CACHE")
    options.output.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(_page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
