"""What the scripts of the paper's tables and figures share: the paper's figures, flags, records.

Each script runs at three scales: `paper`, with the paper's data and trained runs; `small`, on
rendered identities and, where --data_dir has them, LFW and the given MobileFaceNet, in minutes on a
laptop; `smoke`, the same code on a handful of faces, whose figures mean nothing.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import exit_code
from ida_jax.common.files import json_text, written_whole

NAMES = {"cosine": "", "ida_r": " +IDA-R", "ida_l": " +IDA-L"}
HEADS = {"l2_softmax": "L2-Face", "cosface": "CosFace", "arcface": "ArcFace"}


def _table1(*rates: float) -> dict[str, dict[str, float]]:
    return {
        "ijbb": {"1e-05": rates[0], "0.0001": rates[1]},
        "ijbc": {"1e-06": rates[2], "1e-05": rates[3]},
    }


# Table 1: TAR at FAR on IJB-B and IJB-C, ResNet-50 on MS1M.
TABLE1 = {
    "l2_softmax": {
        "cosine": _table1(0.7494, 0.8686, 0.7033, 0.8196),
        "ida_r": _table1(0.7689, 0.8745, 0.7387, 0.8287),
        "ida_l": _table1(0.7671, 0.8732, 0.7351, 0.8239),
    },
    "cosface": {
        "cosine": _table1(0.8515, 0.9224, 0.8243, 0.9049),
        "ida_r": _table1(0.8646, 0.9259, 0.8345, 0.9061),
        "ida_l": _table1(0.8635, 0.9253, 0.8337, 0.9055),
    },
    "arcface": {
        "cosine": _table1(0.8550, 0.9309, 0.8061, 0.9062),
        "ida_r": _table1(0.8789, 0.9363, 0.8314, 0.9140),
        "ida_l": _table1(0.8778, 0.9354, 0.8290, 0.9138),
    },
}
# Table 2: accuracy, ResNet-18 on CASIA-WebFace with ArcFace.
TABLE2 = {
    "cosine": {"lfw": 0.9873, "calfw": 0.9167, "ytf": 0.9497},
    "ida_r": {"lfw": 0.9903, "calfw": 0.9205, "ytf": 0.9523},
    "ida_l": {"lfw": 0.9898, "calfw": 0.9203, "ytf": 0.9517},
}
# Table 3: rank-1 on MegaFace by distractors, ResNet-100 on MS1M with ArcFace.
TABLE3 = {
    "cosine": {"1000": 0.9962, "10000": 0.9937, "100000": 0.9895, "1000000": 0.9830},
    "ida_r": {"1000": 0.9966, "10000": 0.9946, "100000": 0.9915, "1000000": 0.9856},
    "ida_l": {"1000": 0.9966, "10000": 0.9945, "100000": 0.9913, "1000000": 0.9854},
}
# Table 4: TAR at FAR on IJB-B by the anchors' source; the first row is without IDA.
TABLE4 = {
    "cosine": {"1e-05": 0.8550, "0.0001": 0.9309},
    "class_weights": {"1e-05": 0.8750, "0.0001": 0.9348},
    "real_db": {"1e-05": 0.8786, "0.0001": 0.9364},
    "fake_db": {"1e-05": 0.8789, "0.0001": 0.9363},
}
# Table 5: with PFE, as Table 1.
TABLE5 = {
    "cosine": _table1(0.8550, 0.9309, 0.8061, 0.9062),
    "pfe": _table1(0.8663, 0.9332, 0.8279, 0.9111),
    "ida_r": _table1(0.8789, 0.9363, 0.8314, 0.9140),
    "pfe_ida_r": _table1(0.8812, 0.9373, 0.8340, 0.9146),
}
# The figures' values are in no text of the paper; what it says of them is.
FIGURES = {
    "fig3": "every curve falls quickly and is flat near 0: the nearest classes dominate (500 "
    "samples, ResNet-50, MS1M)",
    "fig6": "IJB-B: best at k = 10 of |A| = 50,000, lower beyond; rising with |A| at k = 10, then "
    "flat",
    "fig7": "IJB-B, TAR@FAR 1e-5: best at τ = 1, lower at 0.5 and beyond 1",
    "fig8": "at 80,000, 140,000 and 200,000 of 200,000 steps: both distributions become sharper, "
    "and the overlap of the segments' cosines does not go away",
    "fig9": "the overlap of the segments is smaller in DAO than in the cosine, the curves sharper",
    "fig10": "wrong decisions of the cosine on MegaFace, of both kinds, that IDA corrects",
}


def experiment(
    name: str,
    description: str,
    *,
    small: Callable[[Any], dict[str, Any]],
    paper: Callable[[Any], dict[str, Any]],
    published: Any,
    flags: Callable[[Parser], Any] = lambda parser: None,
) -> None:
    """A script's body: flags in, one record out; ends the process.

    Args:
      name: "table1", for the default output.
      description: the script's docstring, its --help.
      small: (options) → the record's content, at the scales small and smoke: "ours", "differs" (how
        it differs from the paper's setting) and, of a table, "rows" for its Markdown.
      paper: (options) → the same, at the scale paper.
      published: the paper's figures, or what it says of them.
      flags: adds the script's own flags.
    """

    def body() -> None:
        parser = _parser(name, description)
        flags(parser)
        options = parser.parse_args()
        if options.output is None:
            options.output = options.workdir / f"{name}_{options.scale}.json"
        options.output.parent.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        content = (paper if options.scale == "paper" else small)(options)
        rows = content.pop("rows", None)
        from ida_jax.common.provenance import provenance

        record = {
            "experiment": name,
            "scale": options.scale,
            "paper": published,
            **content,
            "seconds": round(time.perf_counter() - begun, 1),
            "provenance": provenance(),
        }
        if rows:
            text = markdown(rows)
            print(text)
            with written_whole(options.output.with_suffix(".md")) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
        with written_whole(options.output) as temporary:
            temporary.write_text(json_text(record), encoding="utf-8")
        print(f"see {options.output}")

    sys.exit(exit_code(body))


def require(things: Mapping[Path, str]) -> None:
    """Ends the process with 2, saying one line for each path that is not there.

    Args:
      things: {path: what must lie there, and where it comes from}.
    """
    missing = [f"missing: {path}: {what}" for path, what in things.items() if not path.exists()]
    if missing:
        print("\n".join(missing), file=sys.stderr)
        sys.exit(2)


def save_figure(options: Any, figure: Any, ending: str = "") -> str:
    """Writes a figure as PNG beside the record; its name."""
    path = options.output.with_name(f"{options.output.stem}{ending}.png")
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png")
    return path.name


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of texts under the first one's keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(
    rate: float | None, interval: Sequence[float] | None = None, *, signed: bool = False
) -> str:
    """98.73, or 98.73 [98.10, 99.20], in per cent; a dash for none."""
    form = "+.2f" if signed else ".2f"
    if rate is None:
        return "–"
    text = f"{100 * rate:{form}}"
    ends = ", ".join(f"{100 * end:{form}}" for end in interval or ())
    return f"{text} [{ends}]" if ends else text


def columns(
    title: str, figures: Mapping[str, Any] | None, key: str, place: str = "", *,
    published: float | None = None,
) -> dict[str, str]:  # fmt: skip
    """Cells of one figure: ours with its interval, the gain over the cosine, the paper's.

    Args:
      title: what heads the columns.
      figures: a method's, as in results.json; None where it was not run.
      key: "tar@far", or with the place "" a figure of one number, "accuracy".
      place: "1e-05".
      published: the paper's rate; no column where None.
    """
    base, _, suffix = key.partition("@")

    def at(kind: str) -> Any:
        found = (figures or {}).get(f"{base}{kind}" + (f"@{suffix}" if suffix else ""))
        return found.get(place) if place and found is not None else found

    gain = at("_gain")
    cells = {
        title: percent(at(""), at("_interval")),
        f"{title} gain": "" if gain is None else percent(gain, at("_gain_interval"), signed=True),
    }
    return cells if published is None else {**cells, f"{title} in the paper": percent(published)}


def _parser(name: str, description: str) -> Parser:
    parser = Parser(description=description)
    add = parser.add_argument
    add("--scale", choices=("paper", "small", "smoke"), default="small", help="see above")
    add("--data_dir", type=Path, default=Path("data"), help="where data sets are (data)")
    add("--workdir", type=Path, default=Path("runs/paper"), help="trained runs (runs/paper)")
    add("--output", type=Path, metavar="JSON", help=f"the record (WORKDIR/{name}_SCALE.json)")
    return parser
