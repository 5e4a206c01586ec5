"""Inter-class Discrepancy Alignment for face recognition, in JAX.

The public API; README.md has the five lines that use it. What a name needs is imported when it is
asked for: a command says what is wrong with its flags, and ends on Ctrl-C, before jax is there.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "anchors.anchor_set": ("AnchorSet",),
    "anchors.search": ("support_sets",),
    "artefacts.calibration": ("Calibration",),
    "artefacts.face_model": ("FaceModel",),
    "artefacts.ssr_module": ("SSRModule",),
    "artefacts.uncertainty_model": ("UncertaintyModel",),
    "common.errors": ("UserError",),
    "common.validation": ("unit_embeddings",),
    "interop.exported": ("deployable",),
    "ops.dao": (
        "dao",
        "density",
        "log_dao",
        "log_density",
    ),
    "anchors.supported_weight": ("supported_weight",),
    "rescoring.batch": ("BatchFaceTerms", "BatchPairScores"),
    "rescoring.certificate": (
        "certified_above",
        "certified_search",
        "certified_top_k",
    ),
    "rescoring.csn_fit": ("Csn", "fit_csn"),
    "rescoring.dao_fit": ("DaoFit", "fit_dao"),
    "rescoring.quality_fit": ("QualityFit", "fit_quality"),
    "rescoring.index_vectors": ("IndexSpace",),
    "rescoring.density": ("searched_log_density",),
    "rescoring.likelihood": (
        "score_all_pairs_mls",
        "score_pairs_mls",
    ),
    "rescoring.gallery": ("Gallery",),
    "rescoring.pairs": (
        "score_all_pairs",
        "score_pairs",
    ),
    "rescoring.rescorer": ("Rescorer",),
    "rescoring.terms": (
        "FaceTerms",
        "dao_terms",
    ),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ida_jax' has no attribute '{name}'")
    return getattr(import_module(f"ida_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
