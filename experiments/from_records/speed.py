"""Speed and memory: measured, or compiled for a GPU."""

import re

from from_records.words import percent, record, table


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


def index_at_the_same_recall() -> str:
    """How much longer an approximate index searches by ŝ than by the cosine, at equal recalls."""
    hnsw = record("bench_index_hnsw")["hnsw"]
    equal = hnsw["at_the_same_recall"]
    ratios, recalls = ([row[key] for row in equal] for key in ("ratio", "recall"))
    return (
        f"An HNSW of {hnsw['faces']:,} faces with the certificate finds "
        f"{percent(min(recalls), 1)} to {percent(max(recalls), 1)} % of the ten best in\n"
        f"{min(ratios):.2f} to {max(ratios):.2f} times the time that one by the cosine takes for "
        "as many of its own\n([record](../experiments/results/bench_index_hnsw.json))."
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


def _three(number: float) -> str:
    """Three digits of a large number, and noughts."""
    return f"{float(f'{number:.3g}'):,.0f}"
