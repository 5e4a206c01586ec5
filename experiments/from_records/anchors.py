"""Anchors, quality and groups: what helps, what harms, and what the check says."""

from collections.abc import Iterable
from typing import Any

from from_records.words import FARS, interval, percent, points, record, table


def quality_gain() -> str:
    """IDA-Q's gains over IDA-R on LFW, each half fitted on and tested once, for several models."""
    models = {
        "MobileFaceNet": "MobileFaceNet",
        "56 pixels": "its images reduced to 56 pixels",
        "64 dimensions": "half of its dimensions",
        "24 pixels": "its images reduced to 24 pixels",
        "perturbed weights": "its weights perturbed until the cosine fails",
    }
    found = record("ida_q")
    rows = [
        [name, *_gains(found[model]["gain over ida_r"], ("ida_q", "ida_q_label_free"))]
        for model, name in models.items()
    ]
    degraded = found["half degraded"]["gain over ida_r"]
    for fit in ("clean", "half degraded"):
        cells = _gains(degraded, (f"ida_q, fitted on {fit} faces", "ida_q_label_free"))
        rows.append([f"MobileFaceNet, half of the probes degraded, fitted on {fit} faces", *cells])
    header = ["model", "`ida_q` 1e-4", "1e-5", "`ida_q_label_free` 1e-4", "1e-5"]
    return table(header, rows)


def quality_limits() -> str:
    """When not to take IDA-Q: what was lost there."""
    degraded = record("ida_q")["half degraded"]
    lost, like = (
        [-degraded["gain over cosine"][f"ida_q, fitted on {fit} faces"][far][0] for far in FARS[1:]]
        for fit in ("clean", "half degraded")
    )
    assert max(like) < 0, "a fit on such faces loses as well"
    apart, halves = (
        max(d[f"{share}% degraded"] for d in degraded["distance of the norms"].values())
        for share in ("50", "0")
    )
    ratios = record("ida_q")["MobileFaceNet"][
        "FAR of the 5% of pairs with the lowest norms over that of all"
    ]
    spans = {}
    for method in ("ida_q", "ida_r", "ida_q_label_free"):
        of = [ratio for half in ratios[method].values() for ratio in half.values()]
        spans[method] = f"{min(of):.2g} to {max(of):.2g}"
    return (
        "- where the development faces differ from the probes in kind or quality: with half of the "
        "probes degraded, a fit on\n  clean faces lost "
        f"{percent(lost[0], 1)} points to the cosine at FAR 1e-4 and {percent(lost[1], 1)} at "
        "1e-5, a fit on such faces none. `rescore` and\n  `evaluate` warn where the distribution "
        "of the norms differs from the fit's by more than 0.05 + 1.63/√N, with N faces\n  "
        f"(it was {apart:.2f} there, and {halves:.2f} between LFW's halves);\n"
        "- for images that may not be faces, and for models whose norm says nothing about quality "
        "(in the table: 24 pixels,\n  perturbed weights);\n"
        "- where an attacker chooses the image: at one threshold for all, the 5 % of pairs with "
        f"the lowest norms had {spans['ida_q']}\n  times the FAR of all (IDA-R {spans['ida_r']}, "
        f"`ida_q_label_free` {spans['ida_q_label_free']}), which degrading an image exploits."
    )


def quality_of_few_people() -> str:
    """How often fits on few people lost to IDA-R at FAR 1e-4."""
    found = record("ida_q")["few people"]
    losses = {}
    for people in (10, 40):
        draws = [
            gain[1]
            for way in ("anchor to eval", "eval to anchor")
            for gain in found[f"{people} people, {way}"]["gains over ida_r"]
        ]
        losses[people] = f"of {len(draws)} fits on {people} people {sum(g < 0 for g in draws)}"
    return (
        f"`fit quality` needs {found['people that fit quality asks for']} people with two images "
        f"or more: {losses[10]}\nlost to IDA-R at 1e-4, {losses[40]}."
    )


def degraded_gain() -> str:
    """What degraded copies among the anchors give: gains over the cosine on LFW's eval half."""
    anchors = {
        "clean": "clean",
        "mixed": "clean, and degraded copies of half of them (`--degrade`)",
        "degraded": "degraded copies alone",
        "faces as the mixed probes are": "faces like the mixed probes, without images",
        "clean faces and copies of 300 people": "600 clean and degraded faces of 300 other people",
    }
    shown = {
        "ida_r": "IDA-R",
        "ida_r_fallback": "fall-back",
        "ida_l": "IDA-L",
        "ida_q": "IDA-Q",
        "as_norm": "AS-norm",
        "pfe_mls_ida_r": "PFE & IDA-R",
    }
    found = record("degraded_anchors")["eval"]
    rows = []
    for probes in ("clean", "mixed"):
        cosine = found["clean"]["probes"][probes]["methods"]["cosine"]["tar"]
        stated = f"{probes}; the cosine {percent(cosine[FARS[1]])} / {percent(cosine[FARS[2]])}"
        for key, name in anchors.items():
            methods = found[key]["probes"][probes]["methods"]
            cells = [_harmful(methods.get(m)) for m in shown]
            rows.append([stated, name, *cells])
            stated = ""
    return table(["probes", "anchors", *shown.values()], rows, words=2)


def degraded_fallback() -> str:
    """How often the fall-back harms with degraded anchors or probes, and what PFE alone does."""
    found = record("degraded_anchors")
    cells = [
        of["methods"]
        for part in ("eval", "choice", "weaker")
        for row in found[part].values()
        for of in row["probes"].values()
    ]
    harmed = {m: sum(of[m]["harms"] for of in cells) for m in ("ida_r", "ida_r_fallback")}
    mixed = found["eval"]["clean"]["probes"]["mixed"]["methods"]
    fallback, pfe = mixed["ida_r_fallback"], mixed["pfe"]["gain"][FARS[1]]
    return (
        f"Of the record's {len(cells)} pairs of probes and anchors, IDA-R does harm in "
        f"{harmed['ida_r']}, the fall-back in {harmed['ida_r_fallback']}. With clean anchors\n"
        f"and mixed probes its weight is {fallback['weight']:g}. PFE's likelihood alone, without "
        f"anchors, changes the mixed probes' TAR by {points(pfe)} points\nat FAR 1e-4."
    )


def anchor_checks() -> str:
    """What `anchors check` and the fall-back make of right, wrong and few anchors, by model."""
    rows = []
    runs = {
        name: run
        for of in ("safe_anchors", "safe_anchors_faceres")
        for name, run in record(of)["runs"].items()
    }
    for name, run in runs.items():
        sets = list(run["sets"].values())
        harmful = [one for one in sets if one["methods"]["ida_r"]["harms"]]
        harmless = [one for one in sets if not one["methods"]["ida_r"]["harms"]]
        passed, kept = (sum(not one["check"] for one in some) for some in (harmful, harmless))
        fallen = sum(one["methods"]["ida_r_fallback"]["harms"] for one in sets)
        right = {m: run["sets"]["right"]["methods"][m] for m in ("ida_r", "ida_r_fallback")}
        rows.append([
            name.replace(", pairs of the", ",").removesuffix(" half"),
            str(len(harmful)),
            str(passed),
            f"{kept} of {len(harmless)}",
            str(fallen),
            *(points(figures["gain"][FARS[1]]) for figures in right.values()),
        ])  # fmt: skip
    header = [
        "model, half", "IDA-R harms with", "of these passed", "harmless, passed",
        "the fall-back harms with", "right anchors: IDA-R's gain at 1e-4", "the fall-back's",
    ]  # fmt: skip
    return table(header, rows)


def group_ratios() -> str:
    """FAR of pairs of women over that of men by anchor sets, on both halves of LFW."""
    names = {
        "cosine": "none: the cosine",
        "ida_r, own": "LFW's own, 73 % men",
        "ida_r, balanced": "as many women as men (`--balance=GROUPS`)",
        "ida_r, random": "as few at random",
        "ida_r, clusters": "as many of each cluster (`--balance=clusters`)",
    }
    halves = [
        record("group_fairness")["cases"][f"MobileFaceNet, pairs of the {half} half"]["methods"]
        for half in ("eval", "anchor")
    ]
    rows = []
    for method, name in names.items():
        cells = []
        for figures in (half[method] for half in halves):
            ratio = figures["far_ratio"][FARS[0]]
            low, high = ratio["interval"]
            cells += [
                f"{ratio['ratio']:.2f} [{low:.2f}, {high:.2f}]",
                percent(figures["tar@far"][FARS[1]]),
            ]
        rows.append([name, *cells])
    header = ["anchors", "ratio at FAR 1e-3", "TAR@1e-4", "the other half", "TAR@1e-4"]
    return table(header, rows)


def _gains(gains: dict[str, Any], methods: Iterable[str]) -> list[str]:
    """Gains of methods with their intervals at 1e-4 and 1e-5; "" where a record has none."""
    return [
        f"{points(gained)} {interval((low, high))}"
        for m in methods
        for gained, low, high in (gains[m][far] for far in FARS[1:])
    ]


def _harmful(figures: dict[str, Any] | None) -> str:
    """A method's gains at 1e-4 and 1e-5, bold where it harms."""
    if figures is None:
        return ""
    gains = " / ".join(points(figures["gain"][far]) for far in FARS[1:])
    return f"**{gains}**" if figures["harms"] else gains
