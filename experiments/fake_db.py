"""How the fake-db comes up to the real-db: by training, set size, truncation and resolution.

Command: PYTHONPATH=. python experiments/fake_db.py --scale=small --data_dir=DATA \
    --output=experiments/results/fake_db_small.json
small: IDA-R on all pairs of LFW's eval half behind the given MobileFaceNet, as table4.py has it,
with anchors of the generators that configs/stylegan_lfw.py's run in WORKDIR/stylegan_lfw kept. One
of these is changed at a time, the others being the last generator, as many faces as the real-db has
and no truncation: the generator, by the images it had been shown; the number of faces; the
truncation ψ. Faces are taken as they come; beside them the same faces aligned, their embeddings
brought to the real-db's mean and covariance (`ida_jax.anchors.moments`). The ceiling that a
resolution sets for any generator: the real-db's own crops, shrunk to it and enlarged again. Every
difference to the real-db is paired, over the same resamples of people.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from paper import TABLE4, columns, experiment, require, save_figure
from table4 import (
    FARS,
    GENERATOR,
    anchors_of,
    compare,
    fake_embeddings,
    generator_file,
    generator_flag,
    likeness,
    over_real_db,
    small_run,
)

from ida_jax.anchors.moments import fewest_faces, matched, moments
from ida_jax.common.errors import UserError
from ida_jax.common.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Times the real-db's size; 2,870 on LFW, so that the last is about 20,000.
_SIZES = (0.1, 0.35, 1.0, 3.5, 7.0)
_TRUNCATIONS = (0.5, 0.7, 0.9, 1.0)
_RESOLUTIONS = (32, 64)
_MOST_MOMENTS = 6
# What is changed, and its axis' title.
_PANELS = {
    "images": "images the generator was shown",
    "faces": "anchors |A|",
    "truncation": "truncation ψ",
}


class Point(NamedTuple):
    """One anchor set.

    Attributes:
      kind: "fake-db", or "real-db" and what was done to it.
      embeddings: float32 [A, D], unit rows.
      places: {panel: where it lies on its axis}.
      settings: what the table says of it, {column: text}.
    """

    kind: str
    embeddings: np.ndarray
    places: dict[str, float]
    settings: dict[str, str]


def small(options: Any) -> dict[str, Any]:
    from paper_runs import eval_embeddings

    run = small_run(options)
    points = _points(run, options)
    faces = eval_embeddings(run)
    sets = {name: anchors_of(run, point.embeddings) for name, point in points.items()}
    figures, notes = compare(run, faces, sets)
    real = points["real_db"].embeddings
    for name, point in points.items():
        figures[name] |= {"kind": point.kind, "anchors": len(point.embeddings), **point.places}
        if name != "real_db":
            figures[name] |= likeness(real, point.embeddings)
    return {
        "ours": figures,
        "rows": _rows(figures, points),
        "picture": save_figure(options, _figure(figures)),
        "notes": notes,
        "differs": [
            f"{run.model.network} and all pairs of {len(faces)} faces in place of ResNet-50 on "
            "IJB-B's templates",
            f"a generator of {len(run.train_faces.labels)} faces in place of StyleGAN's 70,000",
        ],
    }


def no_paper_scale(options: Any) -> dict[str, Any]:
    raise UserError("the paper has no such experiment: take --scale=small, or table4.py's paper")


def _points(run: Any, options: Any) -> dict[str, Point]:
    """The anchor sets by name, "real_db" the first."""
    path = generator_file(options)
    real = np.asarray(run.anchors.embeddings)
    size = len(real)
    points = {"real_db": Point("real-db", real, {"faces": size}, {})}
    for share in (share for share in _SIZES if share < 1):
        count = _count(run, share)
        rows = np.sort(np.random.default_rng(run.config.seed).choice(size, count, replace=False))
        points[f"real_db_{count}"] = Point("real-db", real[rows], {"faces": count}, {})
    for pixels in _RESOLUTIONS:
        kind = f"real-db at {pixels} px"
        points[f"real_db_{pixels}px"] = Point(kind, _shrunk(run, pixels), {}, {})
    generators = _generators(path)
    shown, last = generators[-1]

    def add(name: str, made: np.ndarray, after: int, psi: float, **places: float) -> None:
        settings = {"images shown": f"{after:,}", "ψ": f"{psi:g}"}
        points[name] = Point("fake-db", made, places, settings)
        if size < fewest_faces(real.shape[1]):
            return  # too few to tell moments from
        # They are told from as many faces as the real-db has, however many are taken.
        several = fake_embeddings(run, generator, size, psi)
        aligned = matched(made, own=moments(several), target=moments(real))
        points[f"{name}_aligned"] = Point("fake-db, aligned", aligned, places, settings)

    for images, generator in generators:
        places = {"faces": size, "truncation": 1.0} if images == shown else {}
        made = fake_embeddings(run, generator, size)
        add(f"images_{images}", made, images, 1.0, images=images, **places)
    for share in (share for share in _SIZES if share != 1):
        made = fake_embeddings(run, last, _count(run, share))
        add(f"faces_{len(made)}", made, shown, 1.0, faces=len(made))
    for truncation in (each for each in _TRUNCATIONS if each != 1):
        made = fake_embeddings(run, last, size, truncation)
        add(f"truncation_{truncation:g}", made, shown, truncation, truncation=truncation)
    return points


def _count(run: Any, share: float) -> int:
    """That many anchors, and enough for a support set."""
    return max(run.config.k, round(share * len(run.anchors)))


def _generators(path: Path) -> list[tuple[int, Any]]:
    """The run's generators with the images that each was shown, up to 6 evenly apart; that of the
    file itself where there are none."""
    from ida_jax.artefacts.generator import FaceGenerator

    kept = sorted(path.parent.glob("generators/*.safetensors"), key=lambda file: int(file.stem))
    if not kept:
        require({path: f"a generator, by {GENERATOR} --workdir={path.parent}"})
    places = np.linspace(0, len(kept) - 1, min(len(kept), _MOST_MOMENTS))
    files = [kept[round(place)] for place in places] or [path]
    generators = [FaceGenerator.load(file) for file in files]
    return [(int(each.provenance.get("images", 0)), each) for each in generators]


def _shrunk(run: Any, pixels: int) -> np.ndarray:
    """Embeddings of the real-db's crops as a generator of that resolution would have them."""
    import cv2

    from ida_jax.anchors.sources import real_db_rows

    side, images = run.model.preprocessing.image_size, run.train_faces.images
    path = run.workdir / "fakes" / f"real-db-{pixels}.npy"
    if path.is_file():
        return np.load(path)
    rows = real_db_rows(run.train_faces.labels, size=run.config.anchors.size, seed=run.config.seed)
    small = (
        cv2.resize(images[row], (pixels, pixels), interpolation=cv2.INTER_AREA) for row in rows
    )
    crops = [cv2.resize(each, (side, side), interpolation=cv2.INTER_CUBIC) for each in small]
    made = run.embed(crops, f"embed the real-db at {pixels} px")
    path.parent.mkdir(exist_ok=True)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.save(file, made)
    return made


def _rows(figures: Mapping[str, Any], points: Mapping[str, Point]) -> list[dict[str, str]]:
    rows = []
    for name, of in figures.items():
        settings = {"images shown": "", "ψ": ""}
        point = points.get(name)
        row = {"anchors": "none: the cosine", "|A|": "", **settings}
        if point is not None:
            row = {"anchors": point.kind, "|A|": f"{len(point.embeddings):,}"}
            row |= settings | point.settings
        for key in ("frechet", "precision", "recall"):
            row[key] = f"{of[key]:.3f}" if key in of else ""
        for far in FARS:
            row[f"TAR@{far:g}"] = columns("TAR", of, "tar@far", f"{far:g}")["TAR"]
            row[f"TAR@{far:g} over real-db"] = over_real_db(of, f"{far:g}")
        rows.append(row)
    return rows


def _figure(figures: Mapping[str, Any]) -> "Figure":
    """TAR above the real-db's in points: a column a panel, a row a FAR, with paired intervals."""
    from ida_jax.report.style import house_style, new_figure

    @house_style
    def draw() -> "Figure":
        figure, axes = new_figure(
            rows=len(FARS), columns=len(_PANELS), width=11, height=0.6 + 2.7 * len(FARS),
            sharey="row",
        )  # fmt: skip
        for i, far in enumerate(FARS):
            for j, (panel, label) in enumerate(_PANELS.items()):
                axis = axes[i * len(_PANELS) + j]
                _panel(axis, figures, panel, f"{far:g}")
                if i == len(FARS) - 1:
                    axis.set_xlabel(label)
                if j == 0:
                    axis.set_ylabel(f"TAR at FAR {far:g} above\nthe real-db's, points")
        handles, labels = axes[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=6, frameon=False)
        return figure

    return draw()


def _panel(axis: Any, figures: Mapping[str, Any], panel: str, far: str) -> None:
    """One panel: levels across, and the sets that lie on its axis."""
    from ida_jax.report.style import BLUE, INK, VERMILION

    axis.axhline(0, color=VERMILION, linewidth=1.4, label="real-db")
    axis.axhline(_gap(figures["cosine"], far)[0], color=INK, linestyle="--", linewidth=1.4,
                 label="cosine")  # fmt: skip
    for name, line in zip((f"real_db_{pixels}px" for pixels in _RESOLUTIONS), (":", "-."),
                          strict=True):  # fmt: skip
        axis.axhline(_gap(figures[name], far)[0], color="#777777", linestyle=line, linewidth=1.2,
                     label=figures[name]["kind"])  # fmt: skip
    looks = {
        "real-db": (VERMILION, "o", None),
        "fake-db": (BLUE, "s", "fake-db"),
        "fake-db, aligned": ("#009E73", "D", "fake-db, aligned"),
    }
    for kind, (color, marker, label) in looks.items():
        found = [of for of in figures.values() if of.get("kind") == kind and panel in of]
        found.sort(key=lambda of: of[panel])
        if not found or (kind == "real-db" and len(found) < 2):
            continue
        places = [of[panel] for of in found]
        gaps = np.array([_gap(of, far) for of in found])
        axis.plot(places, gaps[:, 0], color=color, marker=marker, markersize=5, linewidth=1.8,
                  markerfacecolor="white", label=label)  # fmt: skip
        axis.vlines(places, gaps[:, 1], gaps[:, 2], color=color, alpha=0.55, linewidth=1.6)
        if panel == "faces":
            axis.set_xscale("log")
            axis.set_xticks(places, [f"{n / 1000:.2g}k" if n >= 1000 else f"{n}" for n in places])
            axis.minorticks_off()
    if panel == "images":
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(lambda images, _: f"{images / 1000:g}k")


def _gap(figures: Mapping[str, Any], far: str) -> tuple[float, float, float]:
    """TAR above the real-db's, and its interval, in points; zeros for the real-db itself."""
    over = figures["over_real_db"]
    if not over:
        return 0.0, 0.0, 0.0
    low, high = over["tar_gain_interval@far"][far]
    return 100 * over["tar_gain@far"][far], 100 * low, 100 * high


if __name__ == "__main__":
    experiment(
        "fake_db", __doc__, small=small, paper=no_paper_scale, published=TABLE4,
        flags=generator_flag,
    )  # fmt: skip
