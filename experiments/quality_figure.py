"""What log F and the norm say of a face that gets worse: blur, size and occlusion, on LFW.

    PYTHONPATH=. python experiments/quality_figure.py --data_dir=DATA --cache=CACHE \
        --output=experiments/results/quality_figure.json

About 500 faces of the eval half by the given MobileFaceNet, made worse step by step
(`worse_faces.py`). log F in anchors from the anchor half: its people's first images, and these with
degraded copies of half of them, as `anchors build --degrade` adds. Means and deviations over faces;
beside them the cosine of the worse face to the whole one. The plot is written beside the JSON.
CACHE is that of `degraded_anchors.py`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from degraded_faces import embedded, given_model, people
from lfw_faces import lfw_embeddings
from worse_faces import CHANGES, plot_against, some_of

from ida_jax import Rescorer
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.command_line import Parser
from ida_jax.common.errors import exit_code
from ida_jax.common.files import json_text, written_whole
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings
from ida_jax.data.dataset import LazyImages
from ida_jax.data.degrade import degradation, degraded_rows
from ida_jax.data.lfw_crops import load_lfw
from ida_jax.report.style import BLUE, VERMILION, new_figure

# {the anchors' name in the record: (what they are, the line's colour and marker)}
ANCHORS = {
    "clean": ("clean anchors", BLUE, "o"),
    "mixed": ("clean anchors and degraded copies", VERMILION, "s"),
}


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="degraded_anchors.py's")
    parser.add_argument("--output", type=Path, required=True, metavar="JSON")
    options = parser.parse_args()
    own, model = people(options.data_dir), given_model(options.data_dir)
    rescorers = _rescorers(options.data_dir, options.cache)
    faces = load_lfw(options.data_dir / "lfw")
    probes = own.numbers[own.is_eval].tolist()
    chosen = some_of(LazyImages(len(probes), lambda at: faces.images[probes[at]]))
    whole = unit_embeddings(model.raw_embeddings(chosen))
    record: dict[str, Any] = {
        "faces": len(chosen),
        "anchors": {name: len(of.anchors.embeddings) for name, of in rescorers.items()},
        "changes": {},
    }
    for name, (change, title, levels) in CHANGES.items():
        rows = []
        for level in levels:
            worse = [change(image, level) for image in chosen]
            raw = model.raw_embeddings(worse, progress=f"{name} {level}")
            row = {"level": level, **_mean("log_norm", np.log(np.linalg.norm(raw, axis=1)))}
            for anchors, rescorer in rescorers.items():
                row |= _mean(f"log_density_{anchors}", rescorer.log_densities(raw))
            cosine = np.sum(unit_embeddings(raw) * whole, axis=1)
            row["cosine_to_the_whole_face"] = float(cosine.mean())
            rows.append(row)
        record["changes"][name] = {"what": title, "rows": rows}
    record["provenance"] = provenance()
    _plot(record, options.output.with_suffix(".png"))
    with written_whole(options.output) as temporary:
        temporary.write_text(json_text(record), encoding="utf-8")
    print(json.dumps(record["changes"], indent=1))


def _rescorers(data_dir: Path, cache: Path) -> dict[str, Rescorer]:
    """IDA-R by the first images of the anchor half, and by these and copies of half of them."""
    own = people(data_dir)
    clean = lfw_embeddings(data_dir / "lfw")[own.numbers]
    firsts = np.flatnonzero(~own.is_eval & own.is_first)
    half = firsts[degraded_rows(degradation("varied", share=0.5, seed=1), own.numbers[firsts])]
    copies = embedded(data_dir, cache, "varied")
    parts = {"clean": [clean[firsts]], "mixed": [clean[firsts], copies[half]]}
    found = {name: unit_embeddings(np.concatenate(part)) for name, part in parts.items()}
    return {
        name: Rescorer(AnchorSet.from_embeddings(rows, k=10, tau=1.0))
        for name, rows in found.items()
    }


def _mean(name: str, values: np.ndarray) -> dict[str, float]:
    return {name: float(values.mean()), f"{name}_deviation": float(values.std())}


def _plot(record: dict[str, Any], path: Path) -> None:
    columns = len(CHANGES)
    figure, axes = new_figure(rows=2, columns=columns, width=11, height=6.4, sharey="row")
    for above, below, (name, change) in zip(
        axes[:columns], axes[columns:], record["changes"].items(), strict=True
    ):
        for anchors, (label, color, marker) in ANCHORS.items():
            keys = (f"log_density_{anchors}", f"log_density_{anchors}_deviation")
            plot_against(above, change, *keys, color=color, marker=marker, label=label)
        keys = ("log_norm", "log_norm_deviation")
        plot_against(below, change, *keys, color=BLUE, marker="o", label="ln‖x‖")
        above.set_title(name.capitalize())
        below.set_xlabel(change["what"])
    axes[0].set_ylabel("log F")
    axes[0].legend(frameon=False)
    axes[columns].set_ylabel("ln‖x‖ of the raw embedding")
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


if __name__ == "__main__":
    sys.exit(exit_code(main))
