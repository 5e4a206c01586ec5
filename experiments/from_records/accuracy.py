"""What the methods gain, how sure that is, and calibration."""

from collections.abc import Iterable
from typing import Any

from from_records.words import FARS, NAMES, interval, percent, points, record, table


def lfw_pretrained(*methods: str) -> str:
    """TAR of `methods` behind the given model: all pairs of LFW's eval half."""
    figures = record("lfw_pretrained")["protocols"]["lfw_all_pairs"]
    header = ["a pretrained MobileFaceNet", "1e-3", "1e-4", "1e-5"]
    return table(header, _tar_rows(figures, methods))


def lfw_two_models() -> str:
    """TAR behind the given model and one trained on the anchor half, on LFW's eval half."""
    given = record("lfw_pretrained")["protocols"]["lfw_all_pairs"]
    trained = record("lfw_mobilefacenet")["protocols"]["lfw_flip_all_pairs"]
    models = {
        "a pretrained MobileFaceNet ([`lfw_pretrained`](../configs/lfw_pretrained.py))": _tar_rows(
            given, NAMES
        ),
        "MobileFaceNet trained on the 6,311 images of the anchor half, 6 epochs "
        "([`lfw_mobilefacenet`](../configs/lfw_mobilefacenet.py))": _tar_rows(
            trained, ("cosine", "ida_r", "ida_l")
        ),
    }
    rows = [
        ["" if place else model, *row]
        for model, block in models.items()
        for place, row in enumerate(block)
    ]
    return table(["model", "method", "TAR@FAR 1e-3", "1e-4", "1e-5"], rows, words=2)


def lfw_gain() -> str:
    """IDA-R's gain on LFW's eval half, with the paired bootstrap's intervals over identities."""
    found = record("lfw_bootstrap")
    people = found["bootstrap"]["units"]
    gains = [
        f"{points(found['difference']['tar@far'][far])} "
        f"{interval(found['difference']['tar_interval@far'][far])} at {name}"
        for far, name in zip(FARS, ("1e-3", "1e-4", "1e-5"), strict=True)
    ]
    return (
        f"IDA-R's gain over the cosine on these {people:,} identities, with the 95 % interval of "
        f"the paired\nbootstrap over identities: {gains[0]}, {gains[1]},\n{gains[2]} "
        "([record](../experiments/results/lfw_bootstrap.json))."
    )


def lfw_10fold() -> str:
    """10-fold accuracy on LFW's own pairs, with the intervals of the gains over the cosine."""
    found = record("lfw_10fold")["protocols"]["lfw_10fold"]
    names = {
        "ida_r": "IDA-R",
        "ida_r_fallback": "fall-back",
        "ida_l": "IDA-L",
        "as_norm": "AS-norm",
    }
    gains = [
        f"{name} {percent(found[m]['accuracy'])} {interval(found[m]['accuracy_gain_interval'])}"
        for m, name in names.items()
    ]
    cosine = found["cosine"]
    low, high = cosine["accuracy_interval"]
    return (
        "LFW's own 6,000 pairs (all 13,233 images, people among the anchors left out of their own "
        "support sets), 10-fold\naccuracy, with the gains' 95 % intervals: cosine "
        f"{percent(cosine['accuracy'])} ± {percent(cosine['accuracy_deviation'])} "
        f"({percent(low)} … {percent(high)}),\n{gains[0]}, {gains[1]}, {gains[2]},\n{gains[3]} "
        "([record](../experiments/results/lfw_10fold.json))."
    )


def table1_small() -> str:
    """Table 1 on rendered identities: TAR@FAR 1e-3 with the interval of the gain."""
    heads = {"l2_softmax": "L2-Face", "cosface": "CosFace", "arcface": "ArcFace"}
    ours = record("table1_small")["ours"]
    methods = ("cosine", "ida_r", "ida_l")
    rows = [
        [name, *(_tar_and_gain(ours[head][m], "0.001", "tar_gain_interval@far") for m in methods)]
        for head, name in heads.items()
    ]
    return table(["Table 1, small", "cosine", "+ IDA-R", "+ IDA-L"], rows)


def table4_lfw() -> str:
    """Table 4 on LFW's eval half: TAR with the interval of the difference to the real-db."""
    names = {
        "cosine": "none: the cosine",
        "class_weights": "class weights",
        "real_db": "real-db",
        "fake_db_aligned": "fake-db, aligned",
        "fake_db": "fake-db as it is",
        "rendered": "rendered faces",
        "normal": "no faces: normal draws with the real-db's mean and covariance",
    }
    ours = record("table4_small")["ours"]
    for figures in ours.values():
        figures["over"] = figures["over_real_db"].get("tar_gain_interval@far")
    rows = [
        [name, *(_tar_and_gain(ours[source], far, "over") for far in FARS)]
        for source, name in names.items()
    ]
    return table(["anchors", "TAR@FAR 1e-3", "1e-4", "1e-5"], rows)


def table5_lfw() -> str:
    """PFE on LFW: images, and templates of mixed quality; bold where the gain excludes 0."""
    names = {
        "cosine": "cosine (of mean pooled templates)",
        "pfe_fusion": "PFE fusion, cosine",
        "pfe": "PFE (fusion, likelihood)",
        "ida_r": "IDA-R",
        "pfe_ida_r": "PFE & IDA-R, fused means",
        "pfe_mls_ida_r": "PFE & IDA-R, likelihood",
        "pfe_mls_ida_l": "PFE & IDA-L, likelihood",
    }
    ours = record("table5_small")["ours"]
    sets = (ours["LFW images"], ours["LFW templates of mixed quality"])
    rows = [
        [name, *(_bold_if_gained(figures.get(m), far) for figures in sets for far in FARS)]
        for m, name in names.items()
    ]
    header = ["", "images 1e-3", "1e-4", "1e-5", "mixed templates 1e-3", "1e-4", "1e-5"]
    return table(header, rows)


def ssr_auto_gain() -> str:
    """IDA-L with settings chosen on held-out people beside fixed ones: log F, and gains at 1e-4."""
    models = {
        "given": "MobileFaceNet",
        "24 pixels": "its images reduced to 24 pixels",
        "32 dimensions": "projected to 32 dimensions",
        "noisy": "with noise of length 0.7",
        "weights perturbed": "its weights perturbed",
        "random directions": "directions drawn at random",
    }
    found, ways = record("ssr_auto")["models"], ("chosen", "fixed")
    rows = []
    for model, title in models.items():
        for half in ("eval", "anchor"):
            case = found[model][f"figures on the {half} half"]
            fits = [case["log F on the tested half"][way] for way in ways]
            gains = [case["methods"][m] for m in ("ida_r", *(f"ida_l, {way}" for way in ways))]
            rows.append([
                title if half == "eval" else "",
                half,
                *(f"{_signed(fit['r2'], '.2f')} ({_signed(fit['bias'], '+.2f')})" for fit in fits),
                *(
                    f"{points(of['tar_gain@far'][FARS[1]])} "
                    f"{interval(of['tar_gain_interval@far'][FARS[1]])}"
                    for of in gains
                ),
            ])  # fmt: skip
    header = ["model", "half", "R² (bias), chosen", "fixed", "IDA-R's gain", "IDA-L's, chosen",
              "fixed"]  # fmt: skip
    return table(header, rows, words=2)


def _signed(number: float, form: str) -> str:
    """A number of two digits, typeset; nought has no minus."""
    return f"{round(number, 2) + 0.0:{form}}".replace("-", "−")


def dao_fit_gain() -> str:
    """Mean gains over the cosine in fit_dao's six cases; how often intervals are above 0."""
    names = {
        "ida_r": "`ida_r`",
        "ida_r, k = 40": "`ida_r`, k = 40",
        "as_norm": "`as_norm`",
        "fitted at 0.0001": "`ida_r_fitted`, `--far=1e-4`",
    }
    cases = [case for name, case in record("fit_dao").items() if name != "provenance"]
    rows = []
    for method, name in names.items():
        row = [name]
        for far in FARS[1:]:
            gains = [case["gain over cosine"][method][far] for case in cases]
            row.append(points(sum(gain for gain, _, _ in gains) / len(gains)))
            row.append(f"{sum(low > 0 for _, low, _ in gains)} of {len(gains)}")
        rows.append(row)
    return table(["method", "mean gain at 1e-4", "above 0", "at 1e-5", "above 0"], rows)


def interval_coverage() -> str:
    """How often the intervals hold the truth, by what decides the figure, in percent."""
    lines = {
        "20 people and more, ten false accepts": ["units 20 and more"],
        "5 to 20 people, ten false accepts": ["units 5 to 10", "units 10 to 20"],
        "2 to 5 people, ten false accepts": ["units 2 to 3", "units 3 to 5"],
        "fewer than 2 people, ten false accepts": ["units 0 to 2"],
        "3 people, 3 to 10 false accepts": ["false accepts 3 to 10"],
        "3 people, 1 or 2 false accepts": ["false accepts 1 to 3"],
    }
    parts = [part["bins"] for name, part in record("bootstrap_coverage").items() if "tar_" in name]
    rows = []
    for name, keys in lines.items():
        shares = []
        for figure in ("tar", "better", "equal"):
            tallies = [part.get(key, {}).get(f"{figure}, now") for part in parts for key in keys]
            held, intervals = (sum(column) for column in zip(*filter(None, tallies), strict=True))
            shares.append(f"{100 * held / intervals:.0f}")
        rows.append([name, *shares])
    header = ["what decides", "TAR", "gain of a better method", "gain of an equal one"]
    return table(header, rows)


def calibration_leak() -> str:
    """What a threshold made of the anchors' own people is worth, on LFW's halves in turn."""
    names = {
        "no leak": "who are not among the anchors",
        "labels": "who are the anchors, `rescore --labels=WHO`",
        "leak": "who are the anchors, without labels",
    }
    found = [of for name, of in record("calibration_leak").items() if name != "provenance"]
    rows = []
    for people, name in names.items():
        spans = []
        for far in FARS[:2]:
            factors = [half["realised FAR"]["ida_r"][people][far] / float(far) for half in found]
            spans.append(" and ".join(f"{factor:.2g}" for factor in factors))
        rows.append([name, *spans])
    header = ["threshold made of people", "FAR over the one asked for, at 1e-3", "at 1e-4"]
    return table(header, rows)


def calibration_shift() -> str:
    """By how much LLRs move where a calibration at k = 10 is used at k = 20."""
    shifts = [
        abs(of["mismatch"]["k = 20"][f"LLR shift of {kind} pairs, nats"])
        for name, of in record("calibration_leak").items()
        if name != "provenance"
        for kind in ("genuine", "impostor")
    ]
    return (
        "`rescore` writes beside its scores what made them, and a calibration keeps it. It is "
        "refused for another method,\nmodel, anchor set, module, fit, k or τ: k = 20 in place of "
        f"10 shifts LLRs by {min(shifts):.0f} to {max(shifts):.0f} nats on LFW."
    )


def trial_verdict() -> str:
    """The verdict of the recorded trial on LFW, as a quotation."""
    return "> " + record("trial_lfw")["verdict"]


def _tar_rows(figures: dict[str, Any], methods: Iterable[str]) -> list[list[str]]:
    """Rows of TAR@FAR in percent, the best of each column as shown in bold."""
    rows = {m: [percent(figures[m]["tar@far"][far]) for far in FARS] for m in methods}
    best = [max(column, key=float) for column in zip(*rows.values(), strict=True)]
    return [
        [NAMES[m], *(f"**{s}**" if s == b else s for s, b in zip(row, best, strict=True))]
        for m, row in rows.items()
    ]


def _tar_and_gain(figures: dict[str, Any], far: str, gains: str) -> str:
    """TAR in percent and the interval of a gain in points, where the record has one."""
    tar = percent(figures["tar@far"][far])
    return f"{tar} {interval(figures[gains][far])}" if figures.get(gains) else tar


def _bold_if_gained(figures: dict[str, Any] | None, far: str) -> str:
    if figures is None:
        return ""
    tar = percent(figures["tar@far"][far])
    gains = figures.get("tar_gain_interval@far")
    return f"**{tar}**" if gains and gains[far][0] > 0 else tar
