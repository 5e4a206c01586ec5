"""The tables of bootstrap_coverage.py, as Markdown."""

from typing import Any


def markdown(record: dict[str, Any]) -> str:
    """The tables of all parts."""
    lines = ["# Coverage of the bootstrap's 95 % intervals", ""]
    lines += [
        "Made by experiments/bootstrap_coverage.py; known_population.py has the population, people "
        "with random effects and a known TAR. Plain: the middle 95 % of the resamples. Now: the "
        "package's intervals, wider where few units are behind the figure.",
        "",
    ]
    tars = [record[part] for part in record if part.startswith("tar_")]
    if tars:
        lines += _tar_tables(tars)
    if accuracy := record.get("accuracy"):
        lines += ["## Accuracy of a 10-fold list", ""]
        rows = [
            [f"{s['people']:,}", s["errors"], f"{s['accuracy']:.2f}", f"{s['units']:g}"]
            + [_cell(s["intervals"][what]) for what in ("accuracy", "equal", "better")]
            for s in accuracy["settings"]
        ]
        lines += _table(["people", "errors", "accuracy %", "units behind", "accuracy",
                         "gain, equal", "gain, better"], rows)  # fmt: skip
        lines += [_replicates(accuracy), ""]
    if family := record.get("family"):
        lines += [f"## {family['methods']} methods at once, 100 people, FAR {family['far']:g}", ""]
        rows = [
            [s["sizes"], f"{s['gain']:.2f}", f"{s['units']:g}"]
            + [f"{s[key]:.1f}" for key in ("one_by_one", "at_once", "set_holds_best", "set_size",
                                           "highest_is_best")]
            for s in family["settings"]
        ]  # fmt: skip
        lines += _table(["images", "the best's gain", "units behind",
                         "any of 11 intervals one by one misses %", "any simultaneous one misses %",
                         "set holds the best %", "methods in it", "the best is highest %"],
                        rows)  # fmt: skip
        lines += [_replicates(family), ""]
    if whole := record.get("all_pairs"):
        cells = ", ".join(f"{name} {_cell(entry)}" for name, entry in whole["intervals"].items())
        lines += ["## `evaluate_all_pairs`, 50 people, FAR 1e-2", ""]
        lines += [f"TAR {whole['tar']:.2f} %, gain {whole['gain']:+.2f} points: {cells}.", ""]
        lines += [_replicates(whole), ""]
    return "\n".join(lines).rstrip()


def _tar_tables(parts: list[dict[str, Any]]) -> list[str]:
    rows = []
    for setting in (s for part in parts for s in part["settings"]):
        row = [f"{setting['people']:,}", setting["sizes"], setting["errors"]]
        row += [f"{setting['far']:g}", f"{setting['true_tar']:.2f}", f"{setting['true_gain']:.2f}"]
        row += [f"{setting['false_accepts']:,}", f"{setting['units']:g}"]
        for what in ("tar", "equal", "better"):
            row.append(f"{setting[what]['plain']['coverage']:.1f} → {_cell(setting[what]['now'])}")
        rows.append([*row, _cell(setting["threshold"]["now"])])
    lines = ["## Intervals of TAR", "", "Coverage in percent, plain → now ± its Monte-Carlo "
             "deviation; 100 less the equal method's is the share of false differences.",
             ""]  # fmt: skip
    lines += _table(["people", "images", "errors", "FAR", "TAR %", "gain", "false accepts",
                     "units behind", "TAR", "gain, equal", "gain, better", "threshold"],
                    rows)  # fmt: skip
    lines += [
        ", ".join(
            f"{part['settings'][0]['people']:,} people: {_replicates(part)}" for part in parts
        ),
        "",
        "## By what decides the figure",
        "",
    ]
    names = [f"{what}, {kind}" for what in ("tar", "equal", "better") for kind in ("plain", "now")]
    rows = []
    for key in dict.fromkeys(key for part in parts for key in part["bins"]):
        row, total = [key], 0
        for name in names:
            tallies = [part["bins"].get(key, {}).get(name, (0, 0)) for part in parts]
            held, number = (sum(tally[i] for tally in tallies) for i in (0, 1))
            row.append(f"{100 * held / number:.1f}" if number else "–")
            total = number if name == "tar, now" else total
        rows.append([*row, f"{total:,}"])
    rows.sort(key=lambda row: (row[0].split(" ")[0] != "units", _first_number(row[0])))
    lines += ["All settings together; by units where ten false accepts decide, by false accepts "
              "where three units do.", ""]  # fmt: skip
    return [*lines, *_table(["", *names, "intervals of TAR"], rows)]


def _first_number(text: str) -> float:
    return next(float(word) for word in text.split(" ") if word[0].isdigit())


def _cell(entry: dict[str, float]) -> str:
    return f"{entry['coverage']:.1f} ± {entry['deviation']:.1f}"


def _replicates(part: dict[str, Any]) -> str:
    """The fewest and the most replicates of a setting."""
    settings = part.get("settings", [part])
    low, high = (pick(s["replicates"] for s in settings) for pick in (min, max))
    number = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{number} replicates of a setting, {part['resamples']:,} resamples each"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    listed = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(row) + " |" for row in listed] + [""]
