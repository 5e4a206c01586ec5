"""What embeddings must be before anything is computed with them.

N faces, D embedding.
"""

import numpy as np

from ida_jax.errors import UserError


def unit_embeddings(embeddings: np.ndarray, *, what: str = "embeddings") -> np.ndarray:
    """float32 [N, D] with unit rows.

    Args:
      embeddings: [N, D] floating point, rows of any norm.
      what: how an error names them.

    Raises:
      UserError: another rank or type; rows that are zero, NaN or infinite, named by number.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or not np.issubdtype(embeddings.dtype, np.floating):
        raise UserError(
            f"{what} are {embeddings.dtype} {list(embeddings.shape)}: "
            "expected floating point [N, D]"
        )
    embeddings = embeddings.astype(np.float32, copy=False)
    # Scaled by the largest entry first, so that squares neither over- nor underflow.
    largest = np.max(np.abs(embeddings), axis=1, initial=0.0)
    bad = np.flatnonzero(~np.isfinite(largest) | (largest == 0))
    if bad.size:
        raise UserError(
            f"{what}: {_rows(bad)} zero, NaN or infinite; such a face can match nobody: "
            "leave it out or embed it again"
        )
    scaled = embeddings / largest[:, None]
    return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)


def require_same_model(
    what: str, made_by: str, made_for: int, *, fingerprint: str, width: int
) -> None:
    """Refuses what was made with another model's embeddings.

    Args:
      what: "anchors" or "SSR module".
      made_by: the fingerprint that it carries; "" where unknown.
      made_for: the width of the embeddings that it takes.
      fingerprint: the model's; "" where unknown.
      width: the model's.

    Raises:
      UserError: another width, or another fingerprint where both are known.
    """
    if width != made_for:
        raise UserError(
            f"the model's embeddings are {width} wide, the {what}'s {made_for}: "
            "make both with the same model"
        )
    if fingerprint and made_by and fingerprint != made_by:
        raise UserError(
            f"the model's fingerprint is {fingerprint}, the {what}'s {made_by}: "
            "make both with the same model"
        )


def require_unit(faces: np.ndarray, *, what: str = "faces") -> np.ndarray:
    """The faces as float32 [N, D], refused where a row is no unit vector.

    Raises:
      UserError: another rank or type, or a row whose norm is not 1 within 1e-3, named by number.
    """
    faces = np.asarray(faces)
    if faces.ndim != 2 or not np.issubdtype(faces.dtype, np.floating):
        raise UserError(
            f"{what} are {faces.dtype} {list(faces.shape)}: expected floating point [N, D]"
        )
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


def _rows(rows: np.ndarray) -> str:
    if rows.size == 1:
        return f"row {rows[0]} is"
    shown = ", ".join(str(row) for row in rows[:5])
    more = "" if rows.size <= 5 else f" and {rows.size - 5} more"
    return f"rows {shown}{more} are"
