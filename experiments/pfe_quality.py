"""How sure PFE is of a face that gets worse: log σ² against blur, size and occlusion, on LFW.

    PYTHONPATH=. python experiments/pfe_quality.py --run=runs/lfw_pfe \
        --output=experiments/results/pfe_quality.json

The run is configs/lfw_pfe.py's. The same 500 faces of the eval half, whose people the module has
never seen, are blurred, made small and enlarged again, and covered from below; their mean log σ²
over faces and dimensions should rise. Beside it, the cosine of the worse face to the whole one.
The plot is written beside the JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from paper_runs import load_config
from worse_faces import CHANGES, plot_against, some_of

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import exit_code
from ida_jax.common.files import json_text, written_whole
from ida_jax.common.provenance import provenance
from ida_jax.report.style import BLUE, new_figure
from ida_jax.runs.run import Run


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the workdir of lfw_pfe")
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="JSON")
    options = parser.parse_args()
    config = load_config("lfw_pfe")
    config.data_dir = str(options.data_dir)
    run = Run(config, options.run)
    chosen = some_of(run.eval_faces.images)
    whole = run.model.embed(chosen)
    record: dict[str, Any] = {"faces": len(chosen), "changes": {}}
    for name, (change, title, levels) in CHANGES.items():
        rows = []
        for level in levels:
            made = run.uncertainty.embed(
                run.model, [change(image, level) for image in chosen], progress=f"{name} {level}"
            )
            of_face = made.log_variances.mean(axis=1)
            cosine = np.sum(made.means * whole, axis=1)
            rows.append(
                {
                    "level": level,
                    "log_variance": float(of_face.mean()),
                    "deviation_over_faces": float(of_face.std()),
                    "cosine_to_the_whole_face": float(cosine.mean()),
                }
            )
        record["changes"][name] = {"what": title, "rows": rows}
    record["provenance"] = provenance()
    _plot(record, options.output.with_suffix(".png"))
    with written_whole(options.output) as temporary:
        temporary.write_text(json_text(record), encoding="utf-8")
    print(json.dumps(record["changes"], indent=1))


def _plot(record: dict[str, Any], path: Path) -> None:
    figure, axes = new_figure(columns=len(CHANGES), width=11, height=3.6)
    for axis, (name, change) in zip(axes, record["changes"].items(), strict=True):
        label = "mean, ± deviation over faces"
        keys = ("log_variance", "deviation_over_faces")
        plot_against(axis, change, *keys, color=BLUE, marker="o", label=label)
        axis.set_xlabel(change["what"])
        axis.set_title(name.capitalize())
    axes[0].set_ylabel("mean log σ² of a face")
    axes[0].legend(frameon=False)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


if __name__ == "__main__":
    sys.exit(exit_code(main))
