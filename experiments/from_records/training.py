"""Training: fine-tuning, parity with InsightFace, the networks."""

from typing import Any

from from_records.words import FARS, NAMES, interval, percent, points, record, table

_SOURCES = {
    "iresnet_nano": "the quickstart's",
    "iresnet": "arcface_torch's `r18` … `r200`",
    "mobilefacenet": "the article's, in the PyTorch variant with ReLU",
    "mbf": "arcface_torch's `mbf`, `mbf_large`",
    "vit": "arcface_torch's `vit_t` … `vit_l`",
    "ir_se": "InsightFace_Pytorch's IR-SE",
}


_STATISTICS = {"global": "moving", "frozen": "frozen"}


def finetune_choice() -> str:
    """TAR on the anchor half's other people, by statistics and rate; and with exchanged parts."""
    choice = record("finetune_lfw")["choice"]
    given, *tuned = choice["candidates"]
    rows = [["as given", "as given", "", percent(given["tar"])]]
    rows += [
        ["tuned", _STATISTICS[of["batch_norm"]], f"{of['rate']:g}", percent(of["tar"])]
        for of in tuned
    ]
    names = {"given": "as given", "tuned": "of the tuned model"}
    rate = f"{choice['best']['global']['rate']:g}"
    for of in choice["exchanged_statistics"]:
        weights = "as given" if of["weights"] == "given" else "tuned"
        rows.append([weights, names[of["statistics"]], rate, percent(of["tar"])])
    return table(["weights", "statistics", "rate", "TAR@1e-4"], rows, words=2)


def finetune_lfw() -> str:
    """TAR on LFW's eval half before and after a fine-tuning, and the gain on the given cosine."""
    rows: list[list[str]] = []
    for batch_norm, heads in record("finetune_lfw")["tuned"].items():
        for head, found in heads.items():
            for name, figures in found["with_the_given"].items():
                model = "as given"
                if name.startswith("tuned_"):
                    model = f"{head}, {_STATISTICS[batch_norm]} statistics"
                elif len(rows) >= 2:  # the same with every head
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
