"""What README and docs/ say of the records in results/, so that no figure there is typed by hand.

The pages hold calls of these functions in comments, and cog (cogapp) writes what they return below:

  cog -r -I experiments -p "import from_records as r" README.md docs/*.md        # writes
  cog --check -I experiments -p "import from_records as r" README.md docs/*.md   # as CI does
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FARS = ("0.001", "0.0001", "1e-05")


def record(name: str) -> dict[str, Any]:
    """The record results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def percent(share: float, digits: int = 2) -> str:
    """A share in percent, or a difference of shares in points without its sign."""
    return f"{100 * share:.{digits}f}"


def points(difference: float, digits: int = 2) -> str:
    """A difference of shares in points with its sign, typeset: +0.17, −0.06."""
    return f"{100 * difference:+.{digits}f}".replace("-", "−")


def interval(bounds: Sequence[float], digits: int = 2) -> str:
    """[low, high] of a difference of shares, in points."""
    return f"[{points(bounds[0], digits)}, {points(bounds[1], digits)}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A Markdown table: the first `words` columns are text, the others numbers."""
    lines = [
        list(header),
        ["---"] * words + ["---:"] * (len(header) - words),
        *map(list, rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# The project's words for the methods of its records.
NAMES = {
    "cosine": "cosine",
    "ida_r": "IDA-R",
    "ida_l": "IDA-L",
    "s_norm": "S-norm",
    "as_norm": "AS-norm",
    "csn": "CSN",
}


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


def ssr_speed() -> str:
    """Training the SSR module and searching its targets, on two cores."""
    found = record("bench_ssr")
    narrow, wide = (found["training"][f"hidden {width}"] for width in (256, 512))
    minutes = [m["minutes of 30,000 steps, ours"]["median"] for m in (narrow, wide)]
    ratios = [m["ours / torch"]["wall"]["median"] for m in (narrow, wide)]
    search = found["search"]
    return (
        f"On 2 CPU cores 30,000 steps of 512 embeddings of {found['width']} numbers take "
        f"{minutes[0]:.1f} minutes ({minutes[1]:.1f} with\n`ssr.hidden=512`; {ratios[0]:.2f} and "
        f"{ratios[1]:.2f} of PyTorch's time), and the search of {search['faces']:,} faces among\n"
        f"{found['anchors']:,} anchors {search['seconds']:.1f} s "
        "([record](../experiments/results/bench_ssr.json))."
    )


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


def rescore_speed() -> str:
    """rescore beside FAISS and NumPy on a list of IJB-C's size."""
    bench = record("bench_rescore")
    seconds, peak, base = bench["seconds"], bench["peak_mib"], bench["baseline_stages"]
    error = bench["largest_error_of_log_dao"]
    pairs = bench["stages"]["pairs"][str(bench["settings"]["pairs"])]["seconds"]
    rows = [
        ["whole", *_seconds(seconds["command"], seconds["baseline"])],
        ["search", *_seconds(bench["stages"]["search"], base["search"])],
        ["pairs", *_seconds(pairs, base["pairs"])],
        ["peak memory", f"{peak['command']:.0f} MiB", f"{peak['baseline']:.0f} MiB", ""],
        ["with ten times the pairs", f"{peak['command_ten_times_the_pairs']:.0f} MiB", "", ""],
        ["largest error of log-DAO, against float64", f"{error:.0e}", "", ""],
    ]
    return table(["", "`rescore`", "FAISS flat, then NumPy", "ratio"], rows)


def index_speed() -> str:
    """FAISS flat with the certificate beside the cosine alone and `identify`."""
    flat = record("bench_index")["flat"]
    seconds, ratio = flat["seconds"], flat["ratio_to_cosine"]
    return (
        f"{flat['probes']:,} probes in {flat['faces']:,} made-up faces of 512 dimensions on 2 CPU "
        f"cores: FAISS flat with the certificate\n{seconds['certified']:.1f} s "
        f"({ratio['certified']:.2f} times its search by the cosine alone), `identify` "
        f"{seconds['identify']:.1f} s; {100 * flat['certified_at_first']:.0f} % of the probes\n"
        f"were certified at the first {flat['first_candidates']} candidates "
        "([record](../experiments/results/bench_index.json))."
    )


def gallery_on_disk() -> str:
    """Enrolment of a stored gallery, its search, and their memory."""
    bench = record("bench_gallery")
    made, enrolment, peaks = bench["settings"], bench["enrolment"], bench["peak_mib"]
    (few, _), (many, whole) = bench["sizes"].items()
    return (
        f"{int(many):,} made-up faces of {made['width']} dimensions in {made['dtype']}, "
        f"{whole['mib'] / 1024:.1f} GiB on disk, on {_recorded_cores('bench_gallery')} CPU cores: "
        f"enrolled at {enrolment['faces_a_second']:,.0f} faces a second\n"
        f"({made['anchors']:,} anchors), in {peaks['enrolment']['RssAnon'] / 1024:.1f} GiB of "
        f"memory; {bench['probes_a_block']} probes searched in {whole['block_seconds']:.0f} s, "
        f"{bench['whole_over_tenth']:.1f} times as long as in {int(few):,}, in\n"
        f"{peaks['identification']['RssAnon'] / 1024:.1f} GiB beside the mapped file "
        "([record](../experiments/results/bench_gallery.json))."
    )


def _seconds(ours: float, theirs: float) -> list[str]:
    return [f"{ours:.1f} s", f"{theirs:.1f} s", f"{ours / theirs:.2f}"]


def _tar_rows(figures: dict[str, Any], methods: Iterable[str]) -> list[list[str]]:
    """Rows of TAR@FAR in percent, the best of each column as shown in bold."""
    rows = {m: [percent(figures[m]["tar@far"][far]) for far in FARS] for m in methods}
    best = [max(column, key=float) for column in zip(*rows.values(), strict=True)]
    return [
        [NAMES[m], *(f"**{s}**" if s == b else s for s, b in zip(row, best, strict=True))]
        for m, row in rows.items()
    ]


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


_PLANNED = {
    "train": "train ResNet-50, batch 512, 85,742 classes",
    "train_r100": "train ResNet-100, likewise",
    "embed": "embed, ResNet-50, 128 at once, each with its mirror image",
    "search": "search support sets, 50,000 anchors, 512-d",
    "search_x6": "likewise, `--searcher=bfloat16_x6`",
    "pairs": "score pairs of 1,000,000 faces, 512-d",
    "identify": "identify in a gallery of 1,000,000, 512-d",
    "identify_x6": "likewise, `--searcher=bfloat16_x6`",
    "likelihood": "PFE's likelihood: support sets and pairs",
    "gan": "train StyleGAN2, 128 px, batch 64",
    "pfe": "train PFE's module behind ResNet-50, batch 256",
    "ssr": "train the SSR module, batch 512",
}


def gpu_bounds() -> str:
    """Each program's bound on one H200 and on eight, as compiled without them."""
    one, eight = (record("bench_compiled")["topologies"][f"h200:{n}"] for n in (1, 8))
    header = ["program", "kernels", "GB moved", "temporaries, GiB", "at least, ms a step",
              "at most, a second", "at most, on 8"]  # fmt: skip
    rows = []
    for name, described in _PLANNED.items():
        plan, costs = one[name], [(p["costs"], p["every"]) for p in one[name]["parts"].values()]
        count, moved = (
            sum(figure(c) / every for c, every in costs)
            for figure in (lambda c: c["kernels"]["count"], lambda c: c["memory_bytes"] / 1e9)
        )
        temporaries = max(c["memory"]["temporaries"] for c, _ in costs) / 2**30
        unit = next(key for key in plan["bound"] if key.endswith("_per_second"))
        alone = eight[name]["devices"] == 1
        rows.append([
            described, f"{count:,.0f}", f"{moved:,.3g}", f"{temporaries:,.2g}",
            f"{1e3 * plan['bound']['step_seconds']:,.3g}",
            f"{_three(plan['bound'][unit])} {unit.removesuffix('_per_second')}",
            "one device" if alone else _three(eight[name]["bound"][unit]),
        ])  # fmt: skip
    return table(header, rows)


_CORES, _NODES = 64, 16  # of the clusters of `billion_costs`


def billion_costs() -> str:
    """10⁹ pairs and 10⁹ gallery faces on clusters of CPUs and GPUs, from the records' rates."""
    bench, flat = record("bench_rescore"), record("bench_index")["flat"]
    gpus = record("bench_compiled")["topologies"]["h200:8"]
    made, stages = bench["settings"], bench["stages"]
    cores = _recorded_cores("bench_rescore")
    more = bench["command_ten_times_the_pairs_seconds"] - bench["seconds"]["command"]
    few, apart = list(stages["pairs"].items())[1]
    # A second and core: faces searched in `made["anchors"]`, pairs, and cosines of a 1:N search.
    searched = made["faces"] / stages["search"] / cores
    pairs = 9 * made["pairs"] / more / cores
    scattered = int(few) / apart["seconds"] / cores
    compared = flat["faces"] * flat["probes"] / flat["seconds"]["identify"]
    compared /= _recorded_cores("bench_index")
    faces_gpu = gpus["search"]["bound"]["faces_per_second"]
    pairs_gpu = 8 * gpus["pairs"]["bound"]["pairs_per_second"] / gpus["pairs"]["devices"]
    compared_gpu = gpus["identify"]["bound"]["probes_per_second"] * gpus["identify"]["faces"]
    anchors, list_gpu = f"{made['anchors']:,} anchors", 1e9 / pairs_gpu
    jobs = [
        (f"densities of 10⁷ faces, {anchors}", 1e7 / searched, 1e7 / faces_gpu),
        (
            f"10⁹ pairs, {made['pairs'] / made['faces']:.0f} a face (as IJB-C's)",
            1e9 / pairs,
            list_gpu,
        ),
        (f"10⁹ pairs, {int(few) / made['faces']:.0f} a face", 1e9 / scattered, list_gpu),
        (f"enrol 10⁹ faces, {anchors}", 1e9 / searched, 1e9 / faces_gpu),
        ("1,000 probes in 10⁹ faces, exactly", 1e12 / compared, 1e12 / compared_gpu),
        ("10⁶ probes in 10⁹ faces, exactly", 1e15 / compared, 1e15 / compared_gpu),
    ]
    rows = [
        [
            job, _two(cpu / 3600), _two(cpu / _CORES / 3600), _duration(cpu / _CORES / _NODES),
            _two(gpu / 3600), _duration(gpu),
        ]
        for job, cpu, gpu in jobs
    ]  # fmt: skip
    header = ["", "core-hours", f"node-hours, {_CORES} cores", f"time on {_NODES} such nodes",
              "node-hours, 8 × H200, at least", "time on one such node, at least"]  # fmt: skip
    return table(header, rows)


def _recorded_cores(name: str) -> int:
    """How many cores a record was made on."""
    return int(re.fullmatch(r".* (\d+) cores", record(name)["provenance"]["processor"])[1])


def _two(number: float) -> str:
    """Two digits, and noughts."""
    rounded = float(f"{number:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:.6f}".rstrip("0").rstrip(".")


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{_two(seconds / size)} {unit}"
    return f"{_two(seconds)} s"


_SOURCES = {
    "iresnet_nano": "the quickstart's",
    "iresnet": "arcface_torch's `r18` … `r200`",
    "mobilefacenet": "the article's, in the PyTorch variant with ReLU",
    "mbf": "arcface_torch's `mbf`, `mbf_large`",
    "vit": "arcface_torch's `vit_t` … `vit_l`",
    "ir_se": "InsightFace_Pytorch's IR-SE",
}


def finetune_lfw() -> str:
    """TAR on LFW's eval half before and after a fine-tuning, and the gain on the given cosine."""
    rows = []
    for head, found in record("finetune_lfw")["heads"].items():
        for name, figures in found["with_the_given"].items():
            model = f"after, {head}" if name.startswith("tuned_") else "as given"
            if model == "as given" and len(rows) >= 2:  # the same with every head
                continue
            row = [NAMES[name.removeprefix("tuned_")], model]
            for far in FARS[1:]:
                row.append(_tar_and_interval(figures, far))
                gain = figures.get("tar_gain@far")
                bounds = figures.get("tar_gain_interval@far")
                row.append(f"{points(gain[far])} {interval(bounds[far])}" if gain else "")
            rows.append(row)
    header = ["method", "weights", "TAR@1e-4", "gain", "TAR@1e-5", "gain"]
    return table(header, rows, words=2)


def _tar_and_interval(figures: dict[str, Any], far: str) -> str:
    low, high = figures["tar_interval@far"][far]
    return f"{percent(figures['tar@far'][far])} [{percent(low)}, {percent(high)}]"


def insightface_parity() -> str:
    """Every item of the record, with its largest difference from InsightFace."""
    rows = [
        [of["item"], of["theirs"], of["ours"], of["measured"], _power(of["largest_difference"])]
        for of in record("parity_insightface")["items"]
    ]
    header = ["item", "theirs", "ours", "measured on", "largest difference"]
    return table(header, rows, words=4)


def insightface_networks() -> str:
    """Largest differences of unit embeddings from the peers' networks, in float32 and float64."""
    columns = {
        "from_pth": "from `.pth`",
        "from_onnx": "from `.onnx`",
        "to_onnx": "to `.onnx`",
        "ours_from_float64": "ours from float64",
        "theirs_from_float64": "theirs from float64",
        "both_in_float64": "both in float64",
    }
    rows = [
        [
            f"`{of['network']}`",
            "near the activations'" if of["near_activations"] else "far from them",
            f"{of['largest_activation']:,.0f}",
            *(_power(of[column]) for column in columns),
        ]
        for of in record("parity_insightface")["networks"]
    ]
    header = ["network", "statistics", "largest activation", *columns.values()]
    return table(header, rows, words=2)


def _power(number: float) -> str:
    """0, or 2·10⁻⁷: one digit and a power of ten."""
    if number == 0:
        return "0"
    digit, exponent = f"{number:.0e}".split("e")
    return f"{digit}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def networks() -> str:
    """Every network's size at 512 numbers and 112 pixels: counted, not measured."""
    from functools import partial

    import jax
    import numpy as np

    from ida_jax.artefacts.face_model import NETWORK_NAMES, build_network
    from ida_jax.planning.flops import count_flops

    rows = []
    for name in NETWORK_NAMES:
        network = build_network(name, {"embedding_dim": 512})
        image = jax.ShapeDtypeStruct((1, 112, 112, 3), np.float32)
        variables = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), image)
        weights = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        traced = jax.make_jaxpr(partial(network.apply, train=False))(variables, image)
        source = next(text for start, text in _SOURCES.items() if name.startswith(start))
        rows.append([
            f"`{name}`", source, f"{weights / 1e6:.1f}", f"{count_flops(traced).flops / 2e9:.2f}"
        ])  # fmt: skip
    header = ["`model.network`", "whose", "M weights", "G multiply-adds an image"]
    return table(header, rows, words=2)


def _three(number: float) -> str:
    """Three digits of a large number, and noughts."""
    return f"{float(f'{number:.3g}'):,.0f}"
