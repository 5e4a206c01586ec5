r"""Who is among the anchors decides whose false accept rate is higher: women and men of LFW.

    PYTHONPATH=. python experiments/group_fairness.py --data_dir=DATA \
        --output=experiments/results/group_fairness

Writes .json and .md. Pairs are all pairs of one half of LFW's identities, their first 10 images;
anchors are the first image of each identity of the other half, both ways round. `lfw_groups.py`
says who counts as a woman or a man: 73 % of those are men, in each half. The anchor sets:

- own: all identities, as `anchors build` makes them
- balanced: as many women as men, `--balance=GROUPS`; people whose name is not judged are left out
- random: as many at random of all identities, which is what the smaller size alone does
- clusters: as many of each of 8 clusters, `--balance=clusters`

Embeddings: MobileFaceNet's, and two weaker models made of them, as in `fit_dao.py`: their first 32
principal components (of the anchors' half), and noise of 0.06 in each component. Nothing was chosen
on these figures: k, τ and the number of clusters are the defaults.

The last part is of levels of the embeddings' norm (`evaluate --groups=norms:20`), of MobileFaceNet
alone: the FAR in the twentieth of the pairs with the lowest norms at one threshold for all.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fit_dao import EMBEDDINGS, IMAGES
from lfw_faces import HALVES, lfw_embeddings, lfw_faces
from lfw_groups import groups_of_people

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.balance import Balance, balanced
from ida_jax.anchors.search import support_sets
from ida_jax.anchors.sources import real_db_rows, sampled_rows
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings
from ida_jax.metrics.bootstrap import bootstrap_deepening
from ida_jax.metrics.evaluation import verification_figures
from ida_jax.metrics.group_rates import Sides, group_rates
from ida_jax.metrics.groups import FaceGroups, groups_of_all_pairs, named_cells, norm_groups
from ida_jax.metrics.interval_figures import tar_intervals
from ida_jax.metrics.resampling import all_pairs_total, genuine_rows, impostor_rows, split_tail
from ida_jax.metrics.roc import SplitScores
from ida_jax.rescoring.density import log_density_of
from ida_jax.rescoring.pairs import all_pair_scores
from ida_jax.rescoring.terms import cosine_terms, dao_terms

FARS = (1e-3, 1e-4, 1e-5)
K, TAU, CLUSTERS, LEVELS, GROUPS = 10, 1.0, 8, 20, ("F", "M")


class Half(NamedTuple):
    """One half of LFW: embeddings as the model gives them, and who is on each."""

    embeddings: np.ndarray
    people: np.ndarray

    def groups(self) -> np.ndarray:
        """int32 [N]: places in GROUPS, −1 for people whose name is not judged."""
        judged = groups_of_people(np.unique(self.people).tolist())
        place = {group: code for code, group in enumerate(GROUPS)}
        return np.array([place.get(judged.get(p, ""), -1) for p in self.people.tolist()], np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="without .json and .md")
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    halves = _halves(options.data_dir / "lfw")
    record: dict = {"k": K, "tau": TAU, "resamples": options.resamples, "cases": {}}
    for anchor_half, half in (("anchor", "eval"), ("eval", "anchor")):
        for model, made in EMBEDDINGS.items():
            name = f"{model}, pairs of the {half} half"
            case = _case(halves[anchor_half], halves[half], made, options.resamples)
            record["cases"][name] = case
            print(f"{name}: {_line(case)}", file=sys.stderr)
    record["norms"] = {
        f"pairs of the {half} half": _norms(halves[anchor_half], halves[half], options.resamples)
        for anchor_half, half in (("anchor", "eval"), ("eval", "anchor"))
    }
    record["provenance"] = provenance()
    text = json.dumps(_rounded(record), indent=1).replace(str(options.data_dir), "DATA")
    options.output.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(_page(record), encoding="utf-8")


def _halves(root: Path) -> dict[str, Half]:
    faces, embeddings = lfw_faces(root), lfw_embeddings(root)
    people = faces.people[faces.labels]
    chosen = {half: faces.rows(half, images=IMAGES) for half in HALVES}
    return {half: Half(embeddings[rows], people[rows]) for half, rows in chosen.items()}


def _anchor_rows(half: Half, faces: np.ndarray) -> dict[str, np.ndarray]:
    """{anchor set: its rows of the half}."""
    own = real_db_rows(np.unique(half.people, return_inverse=True)[1], size=len(faces))
    options = {"size": len(own), "seed": 0, "k": K, "embeddings": lambda: faces[own]}
    by_group = balanced(own, Balance(half.groups(), GROUPS), **options)
    by_cluster = balanced(own, Balance(clusters=CLUSTERS), **options)
    return {
        "own": own,
        "balanced": own[by_group.places],
        "random": own[sampled_rows(len(own), size=len(by_group.places), seed=0)],
        "clusters": own[by_cluster.places],
    }


def _case(anchor_half: Half, half: Half, made, resamples: int) -> dict:
    given = (unit_embeddings(each.embeddings) for each in (anchor_half, half))
    anchor_faces, faces = made(*given)
    rows, groups = _anchor_rows(anchor_half, anchor_faces), anchor_half.groups()
    methods = {"cosine": cosine_terms(len(faces))}
    for name, chosen in rows.items():
        anchors = AnchorSet.from_embeddings(anchor_faces[chosen], k=K, tau=TAU)
        found = support_sets(faces, anchors, k=K).similarities
        methods[f"ida_r, {name}"] = dao_terms(log_density_of(found, tau=TAU), tau=TAU)
    grouped = FaceGroups(half.groups(), named_cells(GROUPS))
    figures = _figures(faces, half.people, methods, grouped, resamples, tars=True)
    return {
        "faces": len(faces),
        "people": {g: int(np.unique(half.people[half.groups() == i]).size)
                   for i, g in enumerate(GROUPS)},
        "anchors": {name: {"all": len(chosen), **{g: int(np.sum(groups[chosen] == i))
                                                  for i, g in enumerate(GROUPS)}}
                    for name, chosen in rows.items()},
        "methods": figures,
    }  # fmt: skip


def _norms(anchor_half: Half, half: Half, resamples: int) -> dict:
    anchor_faces, faces = (unit_embeddings(each.embeddings) for each in (anchor_half, half))
    rows = _anchor_rows(anchor_half, anchor_faces)["own"]
    anchors = AnchorSet.from_embeddings(anchor_faces[rows], k=K, tau=TAU)
    found = support_sets(faces, anchors, k=K).similarities
    methods = {"cosine": cosine_terms(len(faces)),
               "ida_r, own": dao_terms(log_density_of(found, tau=TAU), tau=TAU)}  # fmt: skip
    levels = norm_groups(half.embeddings, LEVELS)
    figures = _figures(faces, half.people, methods, levels, resamples, tars=False)
    for of in figures.values():  # the ends say it: of twenty levels all figures are long
        groups = list(of.pop("groups").values())
        of |= {"lowest": groups[0], "highest": groups[-1]}
    return figures


def _figures(
    faces: np.ndarray, people: np.ndarray, methods: dict, groups: FaceGroups, resamples: int, *,
    tars: bool,
) -> dict:  # fmt: skip
    """{method: its figures by group, at one threshold and at one threshold per group}."""
    identities, units = np.unique(people, return_inverse=True)
    scores: dict[str, SplitScores] = all_pair_scores(faces, units, methods)
    genuine = next(iter(scores.values())).genuine.size
    of_genuine = np.repeat(units[genuine_rows(units, np.arange(genuine)).first][:, None], 2, axis=1)

    def of_impostor(positions: np.ndarray) -> np.ndarray:
        return units[np.stack(impostor_rows(units, positions), axis=1)]

    total = all_pairs_total(units)
    figures = group_rates(
        scores, groups_of_all_pairs(groups, units, genuine),
        Sides(of_genuine, of_impostor, identities.size, total),
        fars=FARS, own_thresholds=True, resamples=resamples,
    )  # fmt: skip
    if not tars:
        return figures
    bootstrap = bootstrap_deepening(
        lambda far: {
            name: split_tail(*split, genuine_units=of_genuine, impostor_units=of_impostor,
                             highest_far=far)
            for name, split in scores.items()
        },
        fars=FARS, units=identities.size, total=total, resamples=resamples,
    )  # fmt: skip
    entries = tar_intervals(bootstrap)
    return {
        name: verification_figures(split, fars=FARS) | entries[name] | figures[name]
        for name, split in scores.items()
    }


def _ratio(figures: dict, far: str) -> tuple[str, str]:
    """FAR of women over that of men, and its interval, as text."""
    entry = figures["far_ratio"].get(far)
    if entry is None or entry["ratio"] is None:
        return "–", ""
    ratio, ends = entry["ratio"], entry["interval"]
    if entry["highest"] != GROUPS[0]:
        ratio, ends = 1 / ratio, [1 / end if end else np.inf for end in ends[::-1]]
    return f"{ratio:.2f}", f"[{ends[0]:.2f}, {ends[1]:.2f}]"


def _line(case: dict) -> str:
    return "; ".join(f"{name} {_ratio(of, '0.0001')[0]}" for name, of in case["methods"].items())


def _page(record: dict) -> str:
    lines = [
        "FAR of pairs of women over that of pairs of men at the threshold of each overall FAR, "
        "with its 95 % interval, and below it the TAR of all pairs in percent with the gain over "
        "the cosine and its interval, in points. `experiments/group_fairness.py` says what the "
        "anchor sets are.",
    ]
    for name, case in record["cases"].items():
        counts = "; ".join(
            f"{each}: {of['all']:,} ({of['F']:,} women, {of['M']:,} men)"
            for each, of in case["anchors"].items()
        )
        lines += ["", f"## {name}", "", f"Anchors: {counts}.", ""]
        lines += ["| | 1e-3 | 1e-4 | 1e-5 |", "| --- | --- | --- | --- |"]
        for method, figures in case["methods"].items():
            cells = []
            for far in (f"{each:g}" for each in FARS):
                cell = " ".join(_ratio(figures, far))
                tar = f"{100 * figures['tar@far'][far]:.2f}"
                if "tar_gain@far" in figures:
                    low, high = (100 * end for end in figures["tar_gain_interval@far"][far])
                    tar += f" ({100 * figures['tar_gain@far'][far]:+.2f} [{low:+.2f}, {high:+.2f}])"
                cells.append(f"**{cell}**<br>{tar}")
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines += ["", "A threshold a group (women, men, across), TAR of all pairs and what it is "
                  "above one threshold, in points:", ""]  # fmt: skip
        lines += ["| | 1e-3 | 1e-4 | 1e-5 |", "| --- | --- | --- | --- |"]
        for method, figures in case["methods"].items():
            held = (figures["group_thresholds"][f"{far:g}"] for far in FARS)
            cells = [f"{100 * of['tar']:.2f} ({_points(of)})" for of in held]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", "## Levels of the embeddings' norm, MobileFaceNet", ""]
    lines.append(
        "FAR in the twentieth of the pairs whose lower norm is lowest, over the FAR asked for; its "
        "95 % interval; and what a threshold a level costs in TAR, in points."
    )
    for name, methods in record["norms"].items():
        lines += ["", f"### {name}", "", "| | 1e-3 | 1e-4 | 1e-5 |", "| --- | --- | --- | --- |"]
        for method, figures in methods.items():
            lowest, cells = figures["lowest"], []
            for far in FARS:
                key = f"{far:g}"
                low, high = (end / far for end in lowest["realised_far_interval"][key])
                rate = lowest["realised_far"][key] / far
                cost = _points(figures["group_thresholds"][key])
                cells.append(f"{rate:.1f} [{low:.1f}, {high:.1f}]; {cost}")
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _rounded(value):
    """Numbers with six digits."""
    if isinstance(value, dict):
        return {key: _rounded(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(of) for of in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _points(held: dict) -> str:
    low, high = (100 * end for end in held["tar_gain_interval"])
    return f"{100 * held['tar_gain']:+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main()
