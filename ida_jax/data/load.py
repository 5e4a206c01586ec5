"""From a config's data section to faces: the one place that knows the data sets' names."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.data.dataset import FaceDataset
from ida_jax.data.lfw_crops import find_crops, load_lfw
from ida_jax.data.rendered import rendered_faces
from ida_jax.data.sources.recordio import find_recordio, load_recordio
from ida_jax.data.tfds_faces import find_tfds, load_tfds


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.strip("()[]").split(",") if part.strip())


_KINDS = {int: "an integer", str: "text", _shares: "numbers separated by commas"}
# Of each data set that a section may name: its options, with what a flag's text becomes.
_OPTIONS: dict[str, dict[str, Callable[[str], Any]]] = {
    "rendered": {
        "identities": int,
        "images_per_identity": int,
        "image_size": int,
        "first_identity": int,
        "shares": _shares,
    },
    "lfw": {"role": str, "images_per_identity": int},
    "tfds": {"dataset": str, "split": str},
    "recordio": {"dataset": str},
    "pairs": {"dataset": str},  # of verify_data alone
}
_NEEDED = {
    "rendered": ("identities", "images_per_identity"),
    "lfw": (),
    "tfds": ("dataset",),
    "recordio": ("dataset",),
    "pairs": ("dataset",),
}


def renamed_section(
    section: str, former: ConfigDict, given: Mapping[str, str]
) -> tuple[ConfigDict, tuple[str, ...]]:
    """A section as flags change it, its `name` among them.

    Args:
      section: train_data, eval_data or verify_data.
      former: as the config has it.
      given: the flags' texts, {key: value}.

    Returns:
      The section: of the former options those that the named data set has too, and the flags'; and
      the former options that fell away.
    """
    name = given["name"]
    known = {"name": str, **_options_of(name, verify=section == "verify_data")}
    kept = {key: value for key, value in former.to_dict().items() if key in known}
    for key, text in given.items():
        if key not in known:
            raise UserError(f"{section} is {name}, which has no '{key}': {_expected(name)}")
        try:
            kept[key] = known[key](text)
        except ValueError as error:
            raise UserError(
                f"--config.{section}.{key}={text}: expected {_KINDS[known[key]]}"
            ) from error
    changed = ConfigDict(kept)
    changed.lock()
    check_section(section, changed)
    return changed, tuple(key for key in former if key not in known)


def check_section(section: str, config: ConfigDict | Sequence[str]) -> None:
    """Refuses a section that its data set cannot be read by.

    Args:
      config: the section; of verify_data also the names of verification sets (.bin).
    """
    if not isinstance(config, Mapping | ConfigDict):
        bin_files(config)
        return
    if (name := config.get("name")) is None:
        raise UserError(f"{section} has no 'name': set --config.{section}.name= to a data set's")
    known = _options_of(name, verify=section == "verify_data")
    for key in config:
        if key != "name" and key not in known:
            raise UserError(f"{section} is {name}, which has no '{key}': {_expected(name)}")
    for key in _NEEDED[name]:
        if config.get(key) is None:
            raise UserError(
                f"{section} is {name}, which needs '{key}': set --config.{section}.{key}="
            )


def _options_of(name: str, *, verify: bool) -> dict[str, Callable[[str], Any]]:
    names = [known for known in _OPTIONS if verify or known != "pairs"]
    if name not in names:
        raise UserError(f"data set '{name}' is unknown: choose one of {', '.join(names)}")
    return _OPTIONS[name]


def _expected(name: str) -> str:
    return f"expected {', '.join(_OPTIONS[name])}"


def bin_files(listed: Sequence[str]) -> dict[str, str]:
    """The verification sets that verify_data lists, {name: file}: "lfw.bin" is named lfw."""
    files = [listed] if isinstance(listed, str) else list(listed)
    unlike = [f for f in files if not (isinstance(f, str) and f.endswith(".bin"))]
    if unlike or not files:
        raise UserError(
            f"verify_data lists {unlike[0] if unlike else 'nothing'!r}: expected verification "
            'sets, such as ("lfw.bin", "cfp_fp.bin"), or a data set by its name'
        )
    named = {Path(file).stem: file for file in files}
    if len(named) < len(files):
        raise UserError(f"verify_data lists {', '.join(files)}: expected files of different names")
    return named


def load_faces(config: ConfigDict, *, data_dir: str | os.PathLike[str], seed: int) -> FaceDataset:
    """The faces that a config's train_data or eval_data names.

    Args:
      config: `name` and the options of that source: "rendered" (synthetic, no files), "lfw"
        (DATA_DIR/lfw), "tfds" with `dataset` (DATA_DIR/DATASET), or "recordio", InsightFace's
        train.rec and train.idx in DATA_DIR/DATASET, read where they lie.
    """
    options = config.to_dict()
    match options.pop("name"):
        case "rendered":
            return rendered_faces(seed=seed, **options)
        case "lfw":
            return load_lfw(Path(data_dir) / "lfw", **options)
        case "tfds":
            return load_tfds(options.pop("dataset"), data_dir=data_dir, **options)
        case "recordio":
            return load_recordio(Path(data_dir) / options.pop("dataset"))
        case name:
            raise UserError(f"data set '{name}' is unknown: choose rendered, lfw, tfds or recordio")


def require_faces(config: ConfigDict, *, data_dir: str | os.PathLike[str]) -> None:
    """Raises the UserError of `load_faces` where files are missing, without reading them."""
    match config.name:
        case "lfw":
            find_crops(Path(data_dir) / "lfw")
        case "tfds":
            find_tfds(config.dataset, data_dir=data_dir)
        case "recordio":
            find_recordio(Path(data_dir) / config.dataset)
        case "rendered":
            pass
        case name:
            raise UserError(f"data set '{name}' is unknown: choose rendered, lfw, tfds or recordio")


def require_verification(
    config: ConfigDict | Sequence[str], *, data_dir: str | os.PathLike[str]
) -> None:
    """Raises a UserError where a file of verify_data's is missing, without reading it."""
    if isinstance(config, Mapping | ConfigDict):
        if config.name == "pairs":
            find_tfds(config.dataset, data_dir=data_dir, source="bin --from=X.bin")
        else:
            require_faces(config, data_dir=data_dir)
        return
    for file in bin_files(config).values():
        require_file(Path(data_dir) / file, what="verification set (verify_data)")
