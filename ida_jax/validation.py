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


def _rows(rows: np.ndarray) -> str:
    if rows.size == 1:
        return f"row {rows[0]} is"
    shown = ", ".join(str(row) for row in rows[:5])
    more = "" if rows.size <= 5 else f" and {rows.size - 5} more"
    return f"rows {shown}{more} are"
