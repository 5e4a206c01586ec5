"""A list of LFW's people as women (F) and men (M), by their first names.

    PYTHONPATH=. python experiments/lfw_groups.py --data_dir=DATA --output=lfw_groups.csv

`lfw_first_names.csv` holds the judgement, by hand: first names that are a woman's or a man's in
LFW; names that are both, family names that come first, and titles are left out. Faces of doubtful
names, and those that a classifier of the embeddings contradicts, were looked at: whole names in the
list are what that changed, with no group where the picture did not settle it. What is judged is how
a name and a picture are read, not who somebody is; a few of the list's judgements will be wrong.
"""

import argparse
import csv
from pathlib import Path

_JUDGED = Path(__file__).parent / "lfw_first_names.csv"


def groups_of_people(people: list[str]) -> dict[str, str]:
    """{person: "F" or "M"} of those whose name is judged, by the whole name or by the first."""
    with _JUDGED.open(encoding="utf-8") as file:
        judged = {row["name"]: row["group"] for row in csv.DictReader(file)}
    groups = {name: judged.get(name, judged.get(name.split("_")[0], "")) for name in people}
    return {name: group for name, group in groups.items() if group}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    names = (options.data_dir / "lfw" / "names.txt").read_text(encoding="utf-8").split()
    people = sorted({name.split("/")[0] for name in names})
    groups = groups_of_people(people)
    lines = ["person,group", *(f"{person},{group}" for person, group in groups.items())]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for group in ("F", "M"):
        print(f"{group}: {sum(of == group for of in groups.values()):,} people")
    print(f"left out: {len(people) - len(groups):,} people")


if __name__ == "__main__":
    main()
