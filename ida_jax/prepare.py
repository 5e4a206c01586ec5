"""ida-jax prepare recordio|folder|bin|lfw …

Turns face images as people have them on disk into data sets that ida_jax reads.

  recordio  InsightFace's train.rec, train.idx, property (MS1M, CASIA-WebFace, WebFace, …)
  folder    a folder of aligned crops per identity
  bin       a verification .bin file (lfw.bin, calfw.bin, …); or makes one of images and pairs
  lfw       LFW's or CALFW's images and pair list, aligned by five landmarks per image

`ida-jax prepare recordio --help` and so on say more.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import UserError, exit_code

if TYPE_CHECKING:
    from argparse import Namespace

    from ida_jax.data.dataset import EncodedFaces
    from ida_jax.data.sources.tfds_writer import Written

_FACES = """Writes the TFDS data set DIR/NAME (split train: image, label), which training reads.

Images keep their bytes; grey and CMYK ones become RGB. Every image is checked: the first ten that
are corrupt are listed, and nothing is written. After a kill the same command resumes.

examples:
  ida-jax prepare recordio --from=faces_emore --name=ms1m --data_dir=data
  ida-jax prepare folder --from=crops --name=mine --data_dir=data"""

_BIN = """Writes the TFDS data set DIR/NAME of pairs (split test: first, second, same), or makes a
verification file:

  --from=X.bin --name=NAME [--data_dir=DIR]
  --images=IMAGES --pairs=PAIRS --output=X.bin

IMAGES is a folder, a .txt list or a .tar file; PAIRS is LFW's pairs.txt, or a .csv of
NAME,NAME,SAME. No pickle in a .bin file can run code: what is not plain data is refused.

examples:
  ida-jax prepare bin --from=calfw.bin --name=calfw --data_dir=data
  ida-jax prepare bin --images=crops.tar --pairs=pairs.txt --output=mine.bin"""

_LFW = """Writes DIR/lfw or DIR/calfw: crops of 112×112 in a tar file, and the lists beside them.
Without --landmarks the images must be such crops already.

examples:
  ida-jax prepare lfw --from=lfw.tgz --landmarks=landmarks.txt --pairs=pairs.txt --data_dir=data"""


def main(argv: list[str]) -> None:
    """Runs one of the four."""
    sources = {"recordio": _recordio, "folder": _folder, "bin": _bin, "lfw": _lfw}
    if not argv:
        raise UserError(f"no source was named: expected {', '.join(sources)}; see --help")
    if argv[0] in ("-h", "--help"):
        print(__doc__)
    elif argv[0] in sources:
        sources[argv[0]](argv[1:])
    else:
        raise UserError(f"'{argv[0]}' is unknown: expected {', '.join(sources)}; see --help")


def _recordio(argv: list[str]) -> None:
    options = _face_options("recordio", argv, "the folder with train.rec and train.idx")
    from ida_jax.data.sources.recordio import read_recordio

    files = {f"--from ({name})": options.source / name for name in ("train.rec", "train.idx")}
    _refuse_overwriting(options, reading=files)
    _write_faces(read_recordio(options.source), options)


def _folder(argv: list[str]) -> None:
    options = _face_options("folder", argv, "the folder that holds one folder per identity")
    from ida_jax.data.sources.face_folder import read_face_folder

    _refuse_overwriting(options, reading={"--from": options.source})
    _write_faces(read_face_folder(options.source), options)


def _bin(argv: list[str]) -> None:
    parser = _parser("bin", _BIN)
    add = parser.add_argument
    add("--from", dest="source", type=Path, metavar="X.bin", help="the verification file")
    add("--name", help="the data set's, in small letters, digits and underscores")
    _add_data_dir(parser)
    _add_size(parser)
    add("--images", type=Path, metavar="IMAGES", help="encoded images, which keep their bytes")
    add("--pairs", type=Path, metavar="PAIRS", help="who is to be compared")
    add("--output", type=Path, metavar="X.bin", help="the verification file to make")
    options = parser.parse_args(argv)
    reads = [options.source, options.name]
    makes = [options.images, options.pairs, options.output]
    if None not in makes and reads == [None, None]:
        _make_bin(options)
    elif None not in reads and makes == [None, None, None]:
        _read_bin(options)
    else:
        raise UserError("expected --from and --name, or --images, --pairs and --output; see --help")


def _make_bin(options: "Namespace") -> None:
    from ida_jax.common.outputs import writing
    from ida_jax.data.sources.image_names import hidden_note
    from ida_jax.data.sources.verification_bin import write_verification_bin

    reading = {"--images": options.images, "--pairs": options.pairs}
    with writing({"--output": options.output}, reading=reading):
        written = write_verification_bin(options.output, images=options.images, pairs=options.pairs)
    print(f"{written.pairs:,} pairs: {options.output}")
    if written.hidden:
        print(hidden_note(written.hidden))


def _read_bin(options: "Namespace") -> None:
    from ida_jax.data.sources.verification_bin import read_verification_bin

    _check(options)
    from ida_jax.data.sources.tfds_writer import write_pairs

    _refuse_overwriting(options, reading={"--from": options.source})
    pairs = read_verification_bin(options.source)
    written = write_pairs(options.name, pairs, data_dir=options.data_dir, size=options.size)
    print(f"{written.records:,} pairs, {pairs.same.sum():,} genuine: {written.path}")
    _print_notes(written)


def _lfw(argv: list[str]) -> None:
    parser = _parser("lfw", _LFW)
    add = parser.add_argument
    add("--from", dest="source", type=Path, required=True, help="the images: a folder or a tar")
    add("--landmarks", type=Path, help="five points per image")
    add("--pairs", type=Path, required=True, help="the set's own list of pairs")
    add("--name", choices=("lfw", "calfw"), default="lfw", help="which set (lfw)")
    add("--split", type=Path, help="split.csv: which identities are anchors, and which under test")
    _add_data_dir(parser)
    options = parser.parse_args(argv)
    from ida_jax.common.outputs import refuse_overwriting
    from ida_jax.data.sources.lfw_source import prepare_lfw, written_files

    reading = {"--from": options.source}
    reading |= {f"--{name}": getattr(options, name) for name in ("landmarks", "pairs", "split")}
    folder = options.data_dir / options.name
    # A list that stands there already is written as it is.
    outputs = {
        f"--data_dir ({path.name})": path
        for what, path in written_files(folder, options.name).items()
        if not (path.exists() and what in ("pairs", "split") and _is(path, vars(options)[what]))
    }
    refuse_overwriting(reading, outputs)
    prepared = prepare_lfw(
        options.source,
        landmarks=options.landmarks,
        pairs=options.pairs,
        split=options.split,
        data_dir=options.data_dir,
        name=options.name,
    )
    print(f"{prepared.images:,} images, {prepared.pairs:,} pairs: {prepared.folder}")
    for note in prepared.notes:
        print(note)


def _refuse_overwriting(options: "Namespace", *, reading: dict[str, Path]) -> None:
    """Before the data set DIR/NAME is written."""
    from ida_jax.common.outputs import refuse_overwriting
    from ida_jax.data.sources.tfds_writer import written_folders

    folders = written_folders(options.data_dir / options.name)
    written = {f"--data_dir ({path.name})": path for path in folders}
    refuse_overwriting(reading, {}, folders=written)


def _is(path: Path, given: Path | None) -> bool:
    return given is not None and given.exists() and path.samefile(given)


def _face_options(source: str, argv: list[str], what: str) -> "Namespace":
    parser = _parser(source, _FACES)
    add = parser.add_argument
    add("--from", dest="source", type=Path, required=True, metavar="FOLDER", help=what)
    add("--name", required=True, help="the data set's, in small letters, digits and underscores")
    _add_data_dir(parser)
    add(
        "--skip_corrupt",
        action="store_true",
        help="leave corrupt images out, and list them in DIR/NAME.skipped.txt",
    )
    _add_size(parser)
    options = parser.parse_args(argv)
    _check(options)
    return options


def _check(options: "Namespace") -> None:
    """Before a source of millions of records is read."""
    if options.size is not None and options.size < 1:
        raise UserError(f"--size is {options.size}: expected the crops' height in pixels")
    from ida_jax.data.sources.tfds_writer import require_new

    require_new(options.name, data_dir=options.data_dir)


def _write_faces(faces: "EncodedFaces", options: "Namespace") -> None:
    from ida_jax.data.sources.tfds_writer import write_faces

    written = write_faces(
        options.name,
        faces,
        data_dir=options.data_dir,
        skip_corrupt=options.skip_corrupt,
        size=options.size,
    )
    people = len(faces.identities)
    print(f"{written.records:,} images of {people:,} identities: {written.path}")
    _print_notes(written)
    if written.skipped:
        listed = options.data_dir / f"{options.name}.skipped.txt"
        print(f"{len(written.skipped):,} corrupt images were left out: {listed}")


def _print_notes(written: "Written") -> None:
    if written.converted:
        print(f"{written.converted:,} images were not RGB and were converted")
    for note in written.notes:
        print(note)


def _parser(source: str, description: str) -> Parser:
    return Parser(f"prepare {source}", description=description)


def _add_data_dir(parser: Parser) -> None:
    parser.add_argument(
        "--data_dir", type=Path, default=Path("data"), metavar="DIR", help="of data sets (data)"
    )


def _add_size(parser: Parser) -> None:
    parser.add_argument(
        "--size", type=int, help="of the crops in pixels; another size counts as corrupt (any)"
    )


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
