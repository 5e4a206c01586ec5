"""ida-jax anchors build: an anchor set from embeddings, class weights, or a model and crops."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ida_jax.common.command_line import Parser, seed_number
from ida_jax.common.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from ida_jax.artefacts.face_model import FaceModel

_BUILD = """Makes an anchor set, from exactly one of

  --embeddings=E [--labels=L]    embeddings, with their model's fingerprint: all, or one per person
  --model=M --class_weights      the weights of a model's margin head
  --class_weights=FILES [--model=M]
                                 those of an arcface_torch training, the embeddings' own: .pt files
                                 of all ranks by commas, or the folder of softmax_fc_gpu_*.pt
  --model=M --images=FOLDER      crops in FOLDER/PERSON/ or in FOLDER, embedded by the model;
                                 with --degrade also degraded copies of some

An existing output is replaced whole or not at all.

examples:
  ida-jax anchors build --embeddings=train.npy --labels=people.txt --output=anchors.safetensors
  ida-jax anchors build --model=model.safetensors --images=crops --degrade \\
      --output=anchors.safetensors"""


def main(argv: list[str]) -> None:
    from ida_jax.anchors.balance import balance_option
    from ida_jax.anchors.degraded import add_degrade_flags

    parser = Parser("anchors build", description=_BUILD)
    add = parser.add_argument_group("where they come from").add_argument
    add("--output", type=Path, required=True, metavar="A.safetensors", help="the anchor set")
    add("--embeddings", type=Path, metavar="E", help=".npy, .npz or .parquet, [N, D] of any norm")
    people = "who is on each row: .npy, or .txt of one integer or name per line"
    add("--labels", type=Path, metavar="L", help=people)
    add("--model", type=Path, metavar="M", help="model.safetensors, or the folder that holds it")
    weights = "the model's class weights; or those in FILES (.pt), or in a folder's shards"
    add("--class_weights", nargs="?", const="", metavar="FILES", help=weights)
    add("--images", type=Path, metavar="FOLDER", help="embed these crops with the model")
    add("--flip", action="store_true", help="with --images: add the mirrored crop's embedding")
    add = parser.add_argument_group("which of them").add_argument
    add("--per_identity", type=int, default=1, help="anchors of one identity, its first (1)")
    add(
        "--balance",
        type=balance_option,
        metavar="GROUPS",
        help="as many anchors of each group as of the smallest: a list of person or image and "
        "group, .csv, .tsv or .txt; one group per row of E; or clusters:N, of the embeddings",
    )
    add("--size", type=int, default=50_000, help="at most this many images (50,000, the paper's)")
    add("--seed", type=seed_number, default=0, help="of the draw where there are more (0)")
    add = parser.add_argument_group("what is kept with them").add_argument
    add("--k", type=int, default=10, help="the set's default support set size (10)")
    add("--tau", type=float, default=1.0, help="the set's default τ (1)")  # fmt: skip
    add_degrade_flags(parser)
    options = parser.parse_args(argv)
    _check_build(options)
    from ida_jax.common.files import file_inside
    from ida_jax.common.outputs import writing
    from ida_jax.runs.workdir import MODEL

    reading = {f"--{name}": getattr(options, name) for name in ("embeddings", "labels", "images")}
    if isinstance(options.balance, Path):
        reading["--balance"] = options.balance
    if options.class_weights:
        from ida_jax.interop.weights import class_weight_files

        files = class_weight_files(options.class_weights)
        reading |= {f"--class_weights ({path})": path for path in files}
    reading["--model"] = None if options.model is None else file_inside(options.model, MODEL)
    with writing({"--output": options.output}, reading=reading):
        _build_set(options)


def _build_set(options: Any) -> None:
    from ida_jax.anchors import sources
    from ida_jax.anchors.balance import names_of_rows, requested_balance
    from ida_jax.anchors.degraded import asked_degradation
    from ida_jax.data.sources.image_names import hidden_note
    from ida_jax.tables.embeddings import names_beside, read_embeddings
    from ida_jax.tables.identities import read_people

    common = {"size": options.size, "seed": options.seed, "k": options.k, "tau": options.tau}
    if options.embeddings is not None:
        people = None if options.labels is None else read_people(options.labels)
        names = None if options.balance is None else names_beside(options.embeddings, None)
        table = read_embeddings(options.embeddings, names=names)
        anchors = sources.embedding_anchors(
            table.embeddings,
            people=people,
            per_identity=options.per_identity,
            balance=requested_balance(
                options.balance, names_of_rows(table.names, people), len(table.embeddings)
            ),
            fingerprint=table.fingerprint,
            **common,
        )
    elif options.class_weights is not None:
        weights, fingerprint = _class_weights(options)
        anchors = sources.class_weights(weights, fingerprint=fingerprint, **common)
    else:
        found = sources.find_images(options.images)  # its mistakes before the model is read
        if found.hidden:
            print(hidden_note(found.hidden))
        names = [f"{file.parent.name}/{file.name}" for file in found.files]
        anchors = sources.image_anchors(
            options.images,
            _model(options.model),
            per_identity=options.per_identity,
            balance=requested_balance(options.balance, names, len(names)),
            flip=options.flip,
            degrade=asked_degradation(options),
            **common,
        )
    if options.k > len(anchors):
        raise UserError(
            f"k = {options.k} is more than the {len(anchors)} anchors: lower k or take more anchors"
        )
    anchors.save(options.output)
    print(f"{options.output}: {anchors.described()}")


def _class_weights(options: Any) -> "tuple[np.ndarray, str]":
    """[C, D], and their model's fingerprint, "" where it is not known."""
    from ida_jax.interop.weights import class_weight_files, read_class_weights

    model = None if options.model is None else _model(options.model)
    if not options.class_weights:
        if model.class_weights is None:
            raise UserError(
                f"{options.model} has no class weights: it was not trained by ida_jax; give those "
                "of its arcface_torch training as --class_weights=FILES"
            )
        return model.class_weights, model.fingerprint
    files = class_weight_files(options.class_weights)
    if model is None:
        return read_class_weights(files), ""
    weights = read_class_weights(files, width=model.width, model=str(options.model))
    return weights, model.fingerprint


def _check_build(options: Any) -> None:
    from ida_jax.anchors.degraded import asked_degradation

    kinds = (options.embeddings, options.class_weights, options.images)
    given = [each is not None for each in kinds]
    if sum(given) != 1:
        raise UserError("expected exactly one of --embeddings, --class_weights, --images")
    of_files = bool(options.class_weights)
    if (options.model is None) != given[0] and not of_files:
        raise UserError("--model=M goes with --class_weights or --images, and they need it")
    if options.labels is not None and not given[0]:
        raise UserError("--labels goes with --embeddings: images are labelled by their folders")
    if options.balance is not None and given[1]:
        raise UserError("--balance goes with --embeddings or --images: classes have no names")
    if options.flip and not given[2]:
        raise UserError("--flip goes with --images")
    if options.degrade and not given[2]:
        raise UserError("--degrade goes with --images: embeddings and weights have none to degrade")
    asked_degradation(options)
    if options.output.suffix != ".safetensors":
        raise UserError(f"--output is {options.output}: expected a name that ends in .safetensors")
    if options.size < 1 or options.per_identity < 1:
        raise UserError("--size and --per_identity must be at least 1")
    if not 1 <= options.k <= options.size:
        raise UserError(f"--k is {options.k}: expected k from 1 to the size, {options.size}")
    from ida_jax.common.validation import require_tau

    require_tau(options.tau, what="--tau")
    if not options.output.parent.is_dir():
        raise UserError(f"no folder {options.output.parent} to write in: make it first")


def _model(path: Path) -> "FaceModel":
    from ida_jax.artefacts.face_model import FaceModel
    from ida_jax.common.files import file_inside
    from ida_jax.runs.workdir import MODEL

    return FaceModel.load(file_inside(path, MODEL))
