"""What embeddings and networks' arrays must be before anything is computed with them.

N faces, D embedding.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError

# Products of four variances are then float32; the uncertainty module's are above e^−14.
_LARGEST_LOG_VARIANCE = 20.0
_BLOCK = 1 << 20  # entries: a few MiB, which stay in cache


# Below, log F = log k hides the neighbours from float32; above, nothing changes any more.
_TAUS = (1e-3, 1e6)


def require_tau(tau: float, *, what: str = "tau") -> float:
    """τ as a float, refused where scores computed in float32 would all be alike, or infinite.

    Raises:
      UserError: not a number from 0.001 to 1,000,000.
    """
    least, most = _TAUS
    if isinstance(tau, bool | str) or not least <= tau <= most:
        raise UserError(
            f"{what} is {tau}: expected a finite number above 0, from {least:g} to {most:,.0f}"
        )
    return float(tau)


class UnitRows(NamedTuple):
    """Embeddings made unit vectors.

    Attributes:
      embeddings: float32 [N, D]; a bad row is NaN.
      bad: bool [N], rows that were zero, NaN or infinite.
      norms: float64 [N], what each row's norm was; NaN of a bad row.
    """

    embeddings: np.ndarray
    bad: np.ndarray
    norms: np.ndarray


def unit_embeddings(embeddings: ArrayLike, *, what: str = "embeddings") -> np.ndarray:
    """float32 [N, D] with unit rows: x / ‖x‖.

    Args:
      embeddings: [N, D] floating point, rows of any norm.
      what: how an error names them.

    Raises:
      UserError: another rank or type; rows that are zero, NaN or infinite, named by number.
    """
    return unit_rows(embeddings, what=what).embeddings


def unit_rows(
    embeddings: ArrayLike,
    *,
    rows: np.ndarray | None = None,
    skip_bad: bool = False,
    what: str = "embeddings",
    place: Callable[[int], str] | None = None,
) -> UnitRows:
    """As `unit_embeddings`, and able to skip bad rows.

    Beside the result it takes the memory of one block of rows: the embeddings may be a map of a
    file.

    Args:
      embeddings: [N, D] floating point, rows of any norm.
      rows: int [n], which of them, and no others are read; all if None.
      skip_bad: makes rows that are zero, NaN or infinite NaN instead of raising.
      what: how an error names them.
      place: where a row is, in words, by its number; an error then names the first bad row's.

    Raises:
      UserError: another rank or type; bad rows, named by number, unless they are skipped.
    """
    embeddings = _floating(embeddings, what)
    count, width = len(embeddings) if rows is None else len(rows), embeddings.shape[1]
    out = _aligned(count, width)
    bad, norms = np.zeros(count, bool), np.empty(count)
    step = max(1, _BLOCK // max(1, width))
    for start in range(0, count, step):
        some = slice(start, start + step)
        block = embeddings[some if rows is None else rows[some]]
        out[some], bad[some], norms[some] = _unit_block(block)
    if bad.any() and not skip_bad:
        wrong = np.flatnonzero(bad) if rows is None else rows[bad]
        first = "" if place is None else f" ({place(int(wrong[0]))})"
        raise UserError(
            f"{what}: {rows_are(wrong)} zero, NaN or infinite{first}; such a face cannot "
            "match: leave it out or embed it again"
        )
    return UnitRows(out, bad, norms)


def _aligned(rows: int, width: int) -> np.ndarray:
    """Float32 [rows, width] where jax, on a CPU, takes an array's memory instead of copying it."""
    room = np.empty(rows * width + 16, np.float32)
    start = -(room.ctypes.data // 4) % 16
    return room[start : start + rows * width].reshape(rows, width)


def row_norms(embeddings: np.ndarray, *, halves: bool = False) -> np.ndarray:
    """float64 [N]: ‖x‖ of each row, in blocks, so that a memory-mapped file is not held.

    Args:
      embeddings: [N, D], rows of any kind: the norm of a bad row is 0, NaN or infinite.
      halves: takes the norm of the sum of a row's halves.
    """
    step = max(1, _BLOCK // max(1, embeddings.shape[1]))
    norms = np.empty(len(embeddings))
    for start in range(0, len(norms), step):
        block = np.asarray(embeddings[start : start + step], np.float64)
        if halves:
            block = sum(np.split(block, 2, axis=1))
        norms[start : start + step] = np.linalg.norm(block, axis=1)
    return norms


def _unit_block(block: np.ndarray) -> UnitRows:
    block = block.astype(np.result_type(block, np.float32), copy=False)
    # Scaled by the largest entry first, so that squares neither over- nor underflow.
    largest = np.max(np.abs(block), axis=1, initial=0.0)
    bad = ~np.isfinite(largest) | (largest == 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # a bad row becomes NaN by its largest
        scaled = (block / largest[:, None]).astype(np.float32, copy=False)
        length = np.linalg.norm(scaled, axis=1, keepdims=True)
        norms = np.where(bad, np.nan, largest.astype(np.float64) * length[:, 0])
        return UnitRows(scaled / length, bad, norms)


def require_same_model(
    what: str,
    made_by: str,
    made_for: int,
    *,
    fingerprint: str,
    width: int,
    whose: str = "the model",
) -> None:
    """Refuses what was made with another model's embeddings.

    Args:
      what: "anchors" or "SSR module".
      made_by: the fingerprint that it carries; "" where unknown.
      made_for: the width of the embeddings that it takes.
      fingerprint: the model's; "" where unknown.
      width: the model's.
      whose: what an error says that these two are of.

    Raises:
      UserError: another width, or another fingerprint where both are known.
    """
    owner = f"{what}'" if what.endswith("s") else f"{what}'s"
    if width != made_for:
        raise UserError(
            f"{whose}'s embeddings are {width} wide, the {owner} {made_for}: "
            "make both with the same model"
        )
    if fingerprint and made_by and fingerprint != made_by:
        raise UserError(
            f"{whose}'s fingerprint is {fingerprint}, the {owner} {made_by}: "
            "make both with the same model"
        )


def require_unit(faces: np.ndarray, *, what: str = "faces") -> np.ndarray:
    """The faces as float32 [N, D], refused where a row is not unit-norm.

    Raises:
      UserError: another rank or type, or a row whose norm is not 1 within 1e-3, named by number.
    """
    faces = _floating(faces, what)
    faces = faces.astype(np.float32, copy=False)
    norms = np.sqrt(np.einsum("nd,nd->n", faces, faces))
    # NaN fails the comparison too.
    bad = np.flatnonzero(~(np.abs(norms - 1) <= 1e-3))
    if bad.size:
        raise UserError(
            f"{what}: row {bad[0]} has norm {norms[bad[0]]:g}, expected 1: "
            "pass them through ida_jax.unit_embeddings"
        )
    return faces


def require_log_variances(log_variances: np.ndarray, *, what: str = "log-variances") -> np.ndarray:
    """log σ² of faces as it is, refused where likelihoods cannot be computed from a σ².

    Raises:
      UserError: not floating point [N, D], or an entry that is NaN or beyond ±20, named by row.
    """
    log_variances = _floating(log_variances, what)
    # NaN fails the comparison too.
    bad = np.argwhere(~(np.abs(log_variances) <= _LARGEST_LOG_VARIANCE))
    if len(bad):
        row, column = bad[0]
        raise UserError(
            f"{what}: row {row} holds {log_variances[row, column]:g}, expected the logarithms of "
            f"variances, within ±{_LARGEST_LOG_VARIANCE:g}: leave the face out or embed it again"
        )
    return log_variances


def _floating(given: ArrayLike, what: str) -> np.ndarray:
    """The array [N, D] of what may be a list, a network's output in bfloat16, or a mistake."""
    if isinstance(given, str | os.PathLike):
        raise UserError(
            f"{what} are {os.fspath(given)!r}: expected floating point [N, D]; read the file, by "
            "np.load for one"
        )
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # rows that differ; a foreign tensor
        said = " ".join(str(error).split())
        raise UserError(
            f"{what} are not an array: {said}; expected floating point [N, D]"
        ) from error
    # NumPy does not count bfloat16, which JAX adds to its types, among its own.
    floating = np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"
    if array.ndim != 2 or not floating:
        raise UserError(
            f"{what} are {array.dtype} {list(array.shape)}: expected floating point [N, D]"
        )
    return array


def rows_are(rows: np.ndarray) -> str:
    """Rows of an array in words, the first five by number: "rows 1, 5 are"."""
    if rows.size == 1:
        return f"row {rows[0]} is"
    shown = ", ".join(str(row) for row in rows[:5])
    more = "" if rows.size <= 5 else f" and {rows.size - 5} more"
    return f"rows {shown}{more} are"


def require_variables(variables: Mapping[str, Any], init: Callable[[], Any]) -> None:
    """Raises ValueError where arrays that were read are not those of their network.

    Args:
      variables: nested, of arrays.
      init: gives the network's own; it is traced, not run.
    """
    import jax

    try:
        expected = _by_name(jax.eval_shape(init))
    except Exception as error:  # options of any kind have flax and JAX raise whatever they may
        raise ValueError(f"no network has its options: {error}") from error
    found = _by_name(variables)
    for name in sorted(expected.keys() | found.keys()):
        array, own = found.get(name), expected.get(name)
        if array is None or own is None:
            raise ValueError(f"{name[:80]} is {'missing' if array is None else 'unknown'}")
        if (array.dtype, array.shape) != (own.dtype, own.shape):
            raise ValueError(
                f"{name} is {array.dtype} {list(array.shape)}, expected {own.dtype} "
                f"{list(own.shape)}"
            )


def _by_name(tree: Any) -> dict[str, Any]:
    """{"params/conv/kernel": array}."""
    from jax.tree_util import keystr, tree_flatten_with_path

    leaves, _ = tree_flatten_with_path(tree)
    return {keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
