"""Every scoring method, one entry each: what it is called, what it needs, and how it scores.

`Rescorer`, the commands, the check of a config and the reports read this table and nothing else, so
that a method is added by one entry in it. A method gives each face a few numbers (`Method.values`);
its rule (`ida_jax.rescoring.terms`) joins two faces' numbers to the pair's cosine.

N faces, K support, S numbers of a face.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ida_jax.anchors.search import usual_neighbours
from ida_jax.common.command_line import did_you_mean
from ida_jax.common.errors import UserError
from ida_jax.rescoring.cohort_scores import cohort_statistics, nearest_statistics
from ida_jax.rescoring.density import log_density_of

if TYPE_CHECKING:
    from ida_jax.rescoring.rescorer import Rescorer


class Artefact(NamedTuple):
    """What a method may need besides the faces.

    Attributes:
      name: what messages call it.
      advice: what to do where it is missing.
      description: of its file, in the help of commands.
    """

    name: str
    advice: str
    description: str


# The keys are the flags of the commands that take the files.
ARTEFACTS = {
    "anchors": Artefact(
        "anchors", "give an anchor set or embeddings [A, D]", "an anchor set, or embeddings as E"
    ),
    "ssr": Artefact("an SSR module", "use Rescorer.from_ssr(path)", "the SSR module"),
    "csn": Artefact(
        "its trained classifier",
        "make one with ida_jax.fit_csn",
        "the classifier (ida-jax fit csn)",
    ),
    "dao_fit": Artefact(
        "its constants",
        "make them with ida_jax.fit_dao",
        "the fitted constants (ida-jax fit dao)",
    ),
    "quality_fit": Artefact(
        "its constants",
        "make them with ida_jax.fit_quality",
        "the fitted constants (ida-jax fit quality)",
    ),
}

# The label-free IDA-Q's, found by hand with three models on faces of half of LFW's people.
_LABEL_FREE_SUPPORT, _LABEL_FREE_NORM_WEIGHT = 30, 0.06


# What a scorer is set to.
SETTINGS = ("k", "tau", "top_n", "ddof", "weight")


@dataclass(frozen=True)
class Method:
    """A scoring method.

    Attributes:
      title: its name in tables and figures.
      explanation: what it is, as HTML, for the page of a report.
      rule: of `ida_jax.rescoring.terms.RULES`; "dao" makes its scores log-DAO.
      needs: of `ARTEFACTS`, in the order in which a missing one is named.
      values: (scorer, faces float32 [N, D], similarities to the nearest anchors float32 [N, K]) to
        float32 [N, S]; None for what other modules score (PFE's), which a report only names.
      neighbours: the anchors searched for each face, and what their number is called; None without
        a search.
      log_norm: (scorer, l = ln ‖x‖ of the raw embeddings, float32 [N]) to a face's last number,
        beside `values`; None for what takes unit rows alone.
      constants: the rule's constants.
      own_constants: its k and τ come from its artefact, and cannot be given.
      settings: the scorer's attributes that its scores depend on beside faces, anchors and
        artefacts; all of `SETTINGS` but the weight by default.
      usual: an evaluation includes it where no methods are named.
      style: colour, line and marker in figures; a spare one if None.
      score_name: what its score is called; by the rule if "".
      fused: the method that it becomes on the means of PFE's fused templates, or "".
    """

    title: str
    explanation: str
    rule: str = "cosine"
    needs: tuple[str, ...] = ()
    values: "Callable[[Rescorer, np.ndarray, np.ndarray | None], np.ndarray] | None" = None
    neighbours: "Callable[[Rescorer], tuple[str, int]] | None" = None
    log_norm: "Callable[[Rescorer, np.ndarray], np.ndarray] | None" = None
    constants: "Callable[[Rescorer], tuple[float, ...]]" = lambda scorer: ()
    own_constants: bool = False
    settings: tuple[str, ...] = SETTINGS[:-1]
    usual: bool = True
    style: tuple | None = None
    score_name: str = ""
    fused: str = ""


def _support(scorer: "Rescorer") -> tuple[str, int]:
    return "k", scorer.k


def _tau(scorer: "Rescorer") -> tuple[float, ...]:
    return (scorer.tau,)


def _column(numbers: np.ndarray) -> np.ndarray:
    return numbers[:, None]


def _whole_cohort(scorer: "Rescorer", faces: np.ndarray, _: None) -> np.ndarray:
    return np.stack(cohort_statistics(faces, scorer.cohort_moments, ddof=scorer.ddof), axis=1)


# In the order of tables and figures.
METHODS: dict[str, Method] = {
    "cosine": Method(
        "Cosine",
        "The inner product ⟨f₁, f₂⟩ of the two faces’ unit embeddings, and nothing else.",
        values=lambda scorer, faces, _: np.empty((len(faces), 0), np.float32),
        style=("#222222", "--", "o"),
        fused="pfe_fusion",
        settings=(),
    ),
    "ida_r": Method(
        "IDA-R",
        "The cosine, set against how crowded each face’s surroundings are with other people: "
        '<span class="formula">DAO(f₁, f₂) = e<sup>τ⟨f₁,f₂⟩</sup> · (F(f₁) + F(f₂))</span>'
        '<span class="formula">F(f) = 1 / (e<sup>τs₁</sup> + … + e<sup>τsₖ</sup>)</span>'
        "where s₁ … sₖ are the inner products of f with its support set: the k nearest of many "
        "anchor faces, found by search.",
        rule="dao",
        needs=("anchors",),
        neighbours=_support,
        values=lambda scorer, _, nearest: _column(log_density_of(nearest, tau=scorer.tau)),
        constants=_tau,
        style=("#0072B2", "-", "s"),
        fused="pfe_ida_r",
        settings=("k", "tau"),
    ),
    "ida_r_fallback": Method(
        "IDA-R fallback",
        "IDA-R with a weight w of log F that unlabelled faces support with these anchors, from 0 "
        "(the cosine: the anchors say nothing of their impostor pairs) to 1 (IDA-R): the anchors "
        "may be of another domain. Ours, not the paper’s.",
        rule="dao",
        needs=("anchors",),
        neighbours=_support,
        values=lambda scorer, _, nearest: _column(
            np.float32(scorer.weight) * log_density_of(nearest, tau=scorer.tau)
        ),
        constants=_tau,
        style=("#56B4E9", "--", "X"),
        settings=("k", "tau", "weight"),
    ),
    "ida_r_fitted": Method(
        "IDA-R fitted",
        "IDA-R with the densities’ weight and the support set’s size fitted on development faces. "
        "Ours, not the paper’s.",
        rule="dao",
        needs=("anchors", "dao_fit"),
        neighbours=lambda scorer: ("the fit's support set", scorer.k),
        values=lambda scorer, _, nearest: _column(scorer.dao_fit.log_density(nearest)),
        constants=lambda scorer: (scorer.dao_fit.cosine_tau,),
        own_constants=True,
        style=("#1B4B8A", ":", "*"),
        settings=(),
    ),
    "ida_l": Method(
        "IDA-L",
        "The same DAO, with F predicted from the face’s own embedding by a small network (the SSR "
        "module), so that scoring needs no anchors.",
        rule="dao",
        needs=("ssr",),
        values=lambda scorer, faces, _: _column(scorer.ssr.log_density(faces)),
        constants=_tau,
        own_constants=True,
        style=("#D55E00", "-.", "^"),
        fused="pfe_ida_l",
        settings=(),
    ),
    "ida_q": Method(
        "IDA-Q",
        "The cosine, set against how crowded each face’s surroundings are, and against the quality "
        "of its image as the norm of its raw embedding tells it: "
        '<span class="formula">T c − θ<sub>u</sub>(u₁ + u₂) − θ<sub>l</sub>(l₁ + l₂) − '
        "max(0, a + b(l₁ + l₂) − c)² / 2σ²</span>"
        "where c is the cosine, u the mean inner product of a face with its nearest anchors and l "
        "the logarithm of the norm; the constants were fitted on development faces. Ours, not the "
        "paper’s.",
        rule="quality",
        needs=("anchors", "quality_fit"),
        neighbours=lambda scorer: ("the quality fit's support set", scorer.k),
        values=lambda scorer, _, nearest: _column(nearest.mean(axis=1)),
        log_norm=lambda scorer, log_norms: scorer.quality_fit.clipped(log_norms),
        constants=lambda scorer: scorer.quality_fit.constants,
        own_constants=True,
        settings=(),
        style=("#7B3294", "-", "p"),
    ),
    # Not usual: it refuses embeddings that were normalised.
    "ida_q_label_free": Method(
        "IDA-Q label-free",
        "DAO by the mean inner product u with each face’s 30 nearest anchors, less 0.06 for each "
        "unit of the logarithms of the two raw embeddings’ norms. Ours, not the paper’s.",
        rule="dao_norm",
        needs=("anchors",),
        neighbours=lambda scorer: ("k", usual_neighbours(scorer.anchors, _LABEL_FREE_SUPPORT)),
        values=lambda scorer, _, nearest: _column(-nearest.mean(axis=1)),
        log_norm=lambda scorer, log_norms: log_norms,
        constants=lambda scorer: (1.0, _LABEL_FREE_NORM_WEIGHT),
        own_constants=True,
        settings=(),
        usual=False,
        style=("#C2A5CF", "--", "d"),
    ),
    "pfe_fusion": Method(
        "PFE fusion",
        "Probabilistic face embeddings: each embedding comes with a variance for each dimension. A "
        "template’s images are averaged with the weights 1/σ², and templates compared by cosine.",
        style=("#66C2A5", "--", "D"),
    ),
    "pfe": Method(
        "PFE",
        "The same, scored by the likelihood that both are of one person (the mutual likelihood "
        "score).",
        style=("#009E73", ":", "D"),
        score_name="PFE score",
    ),
    "pfe_ida_r": Method(
        "PFE & IDA-R",
        "IDA-R on the means of PFE’s fused templates.",
        rule="dao",
        style=("#CC79A7", "-", "P"),
    ),
    "pfe_ida_l": Method(
        "PFE & IDA-L",
        "IDA-L on the means of PFE’s fused templates.",
        rule="dao",
        style=("#E7A6CB", "-.", "P"),
    ),
    "pfe_mls_ida_r": Method(
        "PFE & IDA-R, MLS",
        "IDA-R with the mutual likelihood score, brought to the cosine’s scale, in the place of "
        "every inner product: of the pair, and of each face with its anchors.",
        rule="dao",
        style=("#8E2F72", "-", "h"),
    ),
    "pfe_mls_ida_l": Method(
        "PFE & IDA-L, MLS",
        "The mutual likelihood score, brought to the cosine’s scale, for the pair, with F by the "
        "SSR module.",
        rule="dao",
        style=("#8E2F72", ":", "H"),
    ),
    # By one side's statistics alone, and a list of pairs does not say which side is enrolled.
    "z_norm": Method(
        "Z-norm",
        "The cosine, less the mean and over the deviation of the first face’s scores with all "
        "anchors (the cohort).",
        rule="z_norm",
        needs=("anchors",),
        values=_whole_cohort,
        usual=False,
        settings=("ddof",),
    ),
    "t_norm": Method(
        "T-norm",
        "The same with the second face’s cohort scores.",
        rule="t_norm",
        needs=("anchors",),
        values=_whole_cohort,
        usual=False,
        settings=("ddof",),
    ),
    "s_norm": Method(
        "S-norm",
        "The cosine, standardised by mean and deviation of each face’s scores with all anchors "
        "(the cohort), then averaged over the two faces.",
        rule="s_norm",
        needs=("anchors",),
        values=_whole_cohort,
        style=("#999999", ":", "<"),
        settings=("ddof",),
    ),
    "as_norm": Method(
        "AS-norm",
        "The cosine, standardised by mean and deviation of each face’s highest cohort scores, then "
        "averaged over the two faces.",
        rule="s_norm",
        needs=("anchors",),
        neighbours=lambda scorer: ("top_n", scorer.top_n),
        values=lambda scorer, _, nearest: np.stack(
            nearest_statistics(nearest, ddof=scorer.ddof), axis=1
        ),
        style=("#E69F00", (0, (5, 1, 1, 1, 1, 1)), "v"),
        settings=("top_n", "ddof"),
    ),
    "csn": Method(
        "CSN",
        "A logistic regression on the cosine and on the shape of both faces’ sorted highest cohort "
        "scores, trained on pairs of the training set.",
        rule="csn",
        needs=("anchors", "csn"),
        neighbours=lambda scorer: ("the classifier's top_n", scorer.csn.top_n),
        values=lambda scorer, _, nearest: _column(scorer.csn.face_term(nearest)),
        constants=lambda scorer: (scorer.csn.weight, scorer.csn.bias),
        style=("#8C6D1F", "-.", ">"),
        settings=(),
    ),
}


# The paper's two: log F by a search among the anchors, and by the SSR module.
SEARCHED, REGRESSED = "ida_r", "ida_l"
# Gains are over the baseline; a report shows the pairs that the headline decides otherwise.
BASELINE, HEADLINE = "cosine", SEARCHED


def scoring_methods() -> dict[str, Method]:
    """The methods that score embeddings: what `Rescorer` and the commands take."""
    return {name: method for name, method in METHODS.items() if method.values is not None}


def require_method(name: str) -> Method:
    """A scoring method's entry."""
    known = scoring_methods()
    if name not in known:
        raise UserError(f"method '{name}' is unknown: {did_you_mean(name, known)}")
    return known[name]


def methods_with(
    artefacts: Collection[str], *, usual: bool = False, norms: bool = True
) -> tuple[str, ...]:
    """The scoring methods that need no other artefacts than these.

    Args:
      usual: only those that an evaluation takes where no methods are named.
      norms: whether the norms of the embeddings as the model gave them are known.
    """
    return tuple(
        name
        for name, method in scoring_methods().items()
        if set(method.needs) <= set(artefacts)
        and (method.usual or not usual)
        and (norms or method.log_norm is None)
    )


def methods_by_norm() -> tuple[str, ...]:
    """The scoring methods of a usual evaluation that take the raw embeddings' norms."""
    known = scoring_methods().items()
    return tuple(name for name, method in known if method.log_norm is not None and method.usual)


def methods_set_by(setting: str) -> tuple[str, ...]:
    """The scoring methods whose scores depend on one of `SETTINGS`."""
    return tuple(name for name, method in scoring_methods().items() if setting in method.settings)


def add_artefact_flags(add: Callable[..., object]) -> None:
    """Adds the flags of the files that methods need: what each is, and which methods need it.

    Args:
      add: an argparse parser's or group's `add_argument`.
    """
    for flag, artefact in ARTEFACTS.items():
        needing = [name for name, method in scoring_methods().items() if flag in method.needs]
        others = [name for name in scoring_methods() if name not in needing]
        few = needing if len(needing) <= len(others) else others
        relation = "for" if few is needing else "not for"
        add(
            f"--{flag}",
            type=Path,
            metavar="A" if flag == "anchors" else "FILE",
            help=f"{artefact.description}; {relation} {', '.join(few)}",
        )


def add_setting_flags(add: Callable[..., object], *, ddof: bool = True) -> None:
    """Adds the flags of the methods' settings, and of how the anchors are searched."""
    # fmt: off
    add("--k", type=int, help="size of the support set (the anchor set's own, 10)")
    add("--tau", type=float, help="τ (the anchor set's own, 1)")
    add("--weight", type=float, help=f"of log F in {', '.join(methods_set_by('weight'))}, 0 … 1 "
        "(what E's faces support)")
    add("--top_n", type=int, help=f"the cohort of {', '.join(methods_set_by('top_n'))}: each "
        "face's nearest anchors (300, or as many as the anchors allow)")
    if ddof:
        add("--ddof", type=int, help="of the norms' standard deviation (0)")
    add("--searcher", default="auto", help="auto (default), exact, bfloat16_x6, …_x3, scann, "
        "scann_partitioned")
    # fmt: on


def check_settings(methods: Collection[str], given: Mapping[str, object]) -> None:
    """Refuses the flag of a setting on which the scores of none of these methods depend.

    Args:
      methods: scoring methods.
      given: {setting: the flag's value or None}; others than `SETTINGS` are not looked at.
    """
    for setting in SETTINGS:
        value, takers = given.get(setting), methods_set_by(setting)
        # Those with constants of their own say more about a k or τ (`Rescorer`).
        own = setting in ("k", "tau") and any(METHODS[name].own_constants for name in methods)
        if value is None or own or not set(methods).isdisjoint(takers):
            continue
        raise UserError(
            f"--{setting}={value} is for {', '.join(takers)}, not for {', '.join(methods)}: "
            "leave it out"
        )


def require_flags(method: str, given: Mapping[str, object], *, whose: str = "") -> None:
    """Refuses a method without the files that it needs, by their flags.

    Args:
      given: {flag: its value or None}.
      whose: what an error says that takes the method; its flag if "".
    """
    for need in require_method(method).needs:
        if given[need] is None:
            raise UserError(f"{whose or f'--method={method}'} needs --{need}=FILE")


def is_dao(name: str) -> bool:
    """Whether a method's scores are log-DAO; an unknown one's are not."""
    return name in METHODS and METHODS[name].rule == "dao"
