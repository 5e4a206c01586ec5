"""Inter-class Discrepancy Alignment for face recognition, in JAX.

The public API; README.md has the five lines that use it.
"""

from ida_jax.anchors.anchor_set import AnchorSet as AnchorSet
from ida_jax.anchors.search import support_sets as support_sets
from ida_jax.artefacts.calibration import Calibration as Calibration
from ida_jax.artefacts.face_model import FaceModel as FaceModel
from ida_jax.artefacts.ssr_module import SSRModule as SSRModule
from ida_jax.artefacts.uncertainty_model import UncertaintyModel as UncertaintyModel
from ida_jax.common.errors import UserError as UserError
from ida_jax.common.validation import unit_embeddings as unit_embeddings
from ida_jax.interop.exported import deployable as deployable
from ida_jax.ops.dao import dao as dao
from ida_jax.ops.dao import density as density
from ida_jax.ops.dao import log_dao as log_dao
from ida_jax.ops.dao import log_density as log_density
from ida_jax.rescoring.csn_fit import Csn as Csn
from ida_jax.rescoring.csn_fit import fit_csn as fit_csn
from ida_jax.rescoring.dao_fit import DaoFit as DaoFit
from ida_jax.rescoring.dao_fit import fit_dao as fit_dao
from ida_jax.rescoring.density import searched_log_density as searched_log_density
from ida_jax.rescoring.likelihood import score_all_pairs_mls as score_all_pairs_mls
from ida_jax.rescoring.likelihood import score_pairs_mls as score_pairs_mls
from ida_jax.rescoring.pairs import score_all_pairs as score_all_pairs
from ida_jax.rescoring.pairs import score_pairs as score_pairs
from ida_jax.rescoring.rescorer import Rescorer as Rescorer
from ida_jax.rescoring.terms import FaceTerms as FaceTerms
from ida_jax.rescoring.terms import dao_terms as dao_terms
