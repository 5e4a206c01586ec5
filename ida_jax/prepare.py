"""python -m ida_jax.prepare folder --from=FOLDER --name=NAME --data_dir=DIR

Turns FOLDER/IDENTITY/*.jpg (or .jpeg), aligned crops of the size that the network takes, into the
TFDS data set DIR/NAME that training reads. The images' bytes are kept as they are; the labels are
kept a second time in one small file, so that training starts at once.
"""

import sys
from pathlib import Path

from ida_jax.data.tfds_faces import write_tfds
from ida_jax.errors import UserError, exit_code


def main(argv: list[str]) -> None:
    """Parses flags and writes the data set."""
    from absl import flags

    parsed = flags.FlagValues()
    flags.DEFINE_string("from", None, "The folder of identity folders.", flag_values=parsed)
    flags.DEFINE_string("name", None, "The data set's name.", flag_values=parsed)
    flags.DEFINE_string("data_dir", "data", "Where data sets are.", flag_values=parsed)
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return
    try:
        sources = parsed(argv)[1:]
    except flags.Error as error:
        raise UserError(f"{error}; see --help") from error
    if sources != ["folder"] or parsed["from"].value is None or parsed.name is None:
        raise UserError("expected folder --from=FOLDER --name=NAME [--data_dir=DIR]")
    folder = Path(parsed["from"].value)
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}: expected one that holds a folder an identity")
    inside = [path for path in sorted(folder.glob("*/*")) if path.is_file()]
    files = [path for path in inside if path.suffix.lower() in (".jpg", ".jpeg")]
    if not files:
        raise UserError(f"no JPEG at {folder}/IDENTITY/*.jpg: expected a folder an identity")
    if len(files) < len(inside):
        print(f"{len(inside) - len(files)} files that are no .jpg or .jpeg are left out")
    identities = sorted({file.parent.name for file in files})
    label = {identity: number for number, identity in enumerate(identities)}
    path = write_tfds(
        parsed.name,
        files,
        [label[file.parent.name] for file in files],
        identities,
        data_dir=parsed.data_dir,
    )
    print(f"{len(files)} images of {len(identities)} identities: {path}")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv)))
