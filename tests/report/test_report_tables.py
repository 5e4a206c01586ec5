import pytest

from ida_jax.common.errors import UserError
from ida_jax.report.cells import Cell, legend, protocol_tables
from ida_jax.report.report_page import write_report
from ida_jax.report.style import far_name
from ida_jax.report.tables import latex_table, markdown_table, results_table, write_tables

BOTH = {
    "false_accepts": {"1e-05": 134, "0.001": 13484, "1e-07": 1},
    "genuine": 7070,
    "impostor": 13484345,
}
LFW = {
    "ida_r": BOTH
    | {"accuracy": 0.9903, "accuracy_deviation": 0.0045, "eer": 0.00612}
    | {"tar@far": {"1e-05": 0.94088, "0.001": 0.98883, "1e-07": 0.5}}
    | {"tar_interval@far": {"1e-05": [0.93, 0.9512], "0.001": [0.97, None]}}
    | {"tar_gain_interval@far": {"1e-05": [0.001, 0.012], "1e-07": [0.1, 0.2]}},
    "cosine": BOTH
    | {"accuracy": 0.9873, "accuracy_deviation": 0.0051, "eer": 0.00598}
    | {"tar@far": {"1e-05": 0.93465, "0.001": 0.98883, "1e-07": 0.3}},
    "my<method>_&": {"tar@far": {"1e-05": float("nan")}, "eer": None},
}
RESULTS = {
    "protocols": {
        "LFW": LFW,
        "Rendered": {"cosine": {"eer": 0.25}, "ida_l": {"eer": 0.2}},
    },
    "notes": {"LFW": ["A 50 % remark."]},
    "ssr": {"r2": 0.712, "rank_correlation": 0.8534},
}


def cells(methods):
    """{method: {title: cell}}, and the table."""
    (table,) = protocol_tables({"protocols": {"P": methods}})
    rows = {
        name: {column.title: column.cells[i] for column in table.columns}
        for i, name in enumerate(table.methods)
    }
    return rows, table


def test_cells_hold_the_figures_and_mark_the_best():
    rows, table = cells(LFW)
    assert list(rows) == ["Cosine", "IDA-R", "my<method>_&"]
    titles = ["Accuracy %", "TAR@1e-3 %", "TAR@1e-5 %", "TAR@1e-7 %", "EER %"]
    assert list(rows["Cosine"]) == titles
    assert rows["Cosine"]["Accuracy %"] == Cell("98.73 ± 0.51")
    assert rows["IDA-R"]["Accuracy %"] == Cell("99.03 ± 0.45", best=True)
    assert rows["IDA-R"]["TAR@1e-5 %"] == Cell("94.09", True, interval="93.00–95.12", change="▲")
    assert rows["Cosine"]["TAR@1e-5 %"] == Cell("93.47")
    # Equal figures: nothing is best. An interval with an unknown end is none.
    assert rows["IDA-R"]["TAR@1e-3 %"] == rows["Cosine"]["TAR@1e-3 %"] == Cell("98.88")
    # One false accept decides: neither best nor a gain.
    assert rows["IDA-R"]["TAR@1e-7 %"] == Cell("50.00", few=True)
    assert rows["Cosine"]["EER %"] == Cell("0.60", best=True)
    assert rows["IDA-R"]["EER %"] == Cell("0.61")
    assert set(rows["my<method>_&"].values()) == {Cell("–")}
    bases = ["", "13,484 false accepts", "134 false accepts", "1 false accept", ""]
    assert [column.basis for column in table.columns] == bases
    assert table.notes == (
        "7,070 genuine and 13,484,345 impostor pairs.",
        "TAR@1e-5: IDA-R 94.09 %, cosine 93.47 %: +0.62 percentage points "
        "(95 % interval +0.10 to +1.20).",
    )


def test_columns_that_no_method_has_are_left_out():
    rows, table = cells(RESULTS["protocols"]["Rendered"])
    assert rows == {"Cosine": {"EER %": Cell("25.00")}, "IDA-L": {"EER %": Cell("20.00", True)}}
    assert table.notes == ()


def test_search_and_distractors_have_their_columns():
    rows, table = cells(
        {
            "cosine": {
                "tpir@fpir": {"0.01": 0.8, "0.1": 0.9},
                "false_alarms": {"0.01": 9, "0.1": 97},
                "rank": {"10": 0.99, "1": 0.95},
                "mated_probes": 1000, "nonmated_probes": 970, "gallery": 50,
            },
            "ida_r": {
                "tpir@fpir": {"0.01": 0.7, "0.1": 0.95},
                "false_alarms": {"0.01": 11, "0.1": 97},
                "tpir_interval@fpir": {"0.1": [0.94, 0.96]},
                "tpir_gain_interval@fpir": {"0.01": [-0.2, -0.01], "0.1": [-0.01, 0.1]},
                "rank": {"10": 0.98, "1": 0.96},
                "rank_interval": {"1": [0.95, 0.97]},
                "rank_gain_interval": {"1": [0.005, 0.02], "10": [-0.02, 0.0]},
                "mated_probes": 1000, "nonmated_probes": 970, "gallery": 50,
            },
        }
    )  # fmt: skip
    assert list(rows["IDA-R"].items()) == [
        ("TPIR@0.1 %", Cell("95.00", True, interval="94.00–96.00")),
        ("TPIR@0.01 %", Cell("70.00", count="11", change="▼")),
        ("Rank-1 %", Cell("96.00", True, interval="95.00–97.00", change="▲")),
        ("Rank-10 %", Cell("98.00")),
    ]
    assert rows["Cosine"]["TPIR@0.01 %"] == Cell("80.00", True, count="9", few=True)
    assert [column.basis for column in table.columns[:2]] == ["97 false alarms", "false alarms"]
    assert table.notes[0] == "1,000 mated and 970 non-mated probes, a gallery of 50."
    # At FPIR 0.01 nine false alarms decide cosine's figure: told is the next.
    assert table.notes[1].startswith("TPIR@0.1: IDA-R 95.00 %, cosine 90.00 %: +5.00 percentage")
    assert table.notes[1].endswith("which includes 0: no difference is shown).")
    rows, table = cells(
        {
            "cosine": {
                "rank1@distractors": {"1000000": 0.9, "10": 0.99, "2500": 0.95},
                "faults@distractors": {"1000000": 353, "10": 35, "2500": 176},
                "probes": 3530,
            }
        }
    )
    assert list(rows["Cosine"]) == ["Rank-1@10 %", "Rank-1@2.5k %", "Rank-1@1M %"]
    assert table.columns[-1].basis == "353 failed"
    assert table.notes == ("3,530 probes.",)


def test_equal_best_values_share_the_mark():
    methods = {name: {"eer": eer} for name, eer in [("a", 0.1), ("b", 0.100001), ("c", 0.2)]}
    rows, _ = cells(methods)
    assert [row["EER %"].best for row in rows.values()] == [True, True, False]


def test_an_interval_that_touches_0_is_no_gain():
    def change(*ends):
        gains = {"accuracy": 0.9, "accuracy_gain_interval": ends}
        rows, _ = cells({"cosine": {"accuracy": 0.8}, "ida_r": gains})
        return rows["IDA-R"]["Accuracy %"].change

    changes = [change(*e) for e in [(0.0, 0.1), (0.001, 0.1), (-0.1, 0.0), (-0.1, -0.001)]]
    assert changes == ["", "▲", "", "▼"]


def test_several_methods_are_judged_at_once(tmp_path):
    """A gain of its own 95 % interval is none where the simultaneous one includes 0."""
    names = ("cosine", "ida_r", "ida_l", "as_norm", "csn")
    tars = dict(zip(names, (0.9, 0.95, 0.94, 0.93, 0.8), strict=True))
    methods = {
        name: {"tar@far": {"1e-3": tar}, "tar_among_best@far": {"0.001": tar > 0.92}}
        for name, tar in tars.items()
    }
    for name, alone, at_once in (
        ("ida_r", [0.04, 0.06], [0.03, 0.07]),
        ("ida_l", [0.01, 0.07], [-0.001, 0.081]),
        ("as_norm", [0.02, 0.04], None),
        ("csn", [-0.12, -0.08], [-0.15, -0.05]),
    ):
        methods[name]["tar_gain_interval@far"] = {"1e-3": alone}
        if at_once is not None:
            methods[name]["tar_gain_simultaneous_interval@far"] = {"1e-3": at_once}
    rows, table = cells(methods)
    marks = {name: (row["TAR@1e-3 %"].change, row["TAR@1e-3 %"].tied) for name, row in rows.items()}
    assert list(marks.values()) == [
        ("", False), ("▲", False), ("", True), ("▲", True), ("▼", False)
    ]  # fmt: skip
    assert table.notes[0].endswith(
        "+5.00 percentage points (95 % interval, all methods taken together, +3.00 to +7.00)."
    )
    results = {"protocols": {"P": methods}}
    (gain, _, tied) = legend(protocol_tables(results))
    assert gain[1].startswith(
        "above cosine: the 95 % interval of the difference, all methods taken"
    )
    assert tied[0] == "≈"
    assert "94.00≈" in results_table(results)
    assert "| 93.00 ≈▲ |" in markdown_table(results)
    assert r"93.00$^\approx$$^\uparrow$" in latex_table(results)
    write_report(tmp_path / "page.html", title="P", results=results, figures={}, settings={})
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('<span class="value">94.00<span class="mark tied"') == 1
    # Where nine false accepts decide, nothing is compared.
    for of in methods.values():
        of["false_accepts"] = {"1e-3": 9}
    rows, _ = cells(methods)
    assert not any(row["TAR@1e-3 %"].tied or row["TAR@1e-3 %"].change for row in rows.values())


def test_the_gain_is_told_only_where_ten_false_accepts_decide():
    def note(false_accepts):
        methods = {
            name: {"tar@far": {"1e-6": tar, "1e-2": tar}, "false_accepts": false_accepts}
            for name, tar in [("cosine", 0.9), ("ida_l", 0.85), ("pfe", 0.8)]
        }
        return cells(methods)[1].notes

    (told,) = note({"1e-6": 9, "1e-2": 10})
    assert told == "TAR@1e-2: IDA-L 85.00 %, cosine 90.00 %: -5.00 percentage points."
    assert note({"1e-6": 1, "1e-2": 9}) == ()


@pytest.mark.parametrize(
    ("far", "name"), [("1e-05", "1e-5"), (0.001, "1e-3"), (0.0025, "2.5e-3"), (1.0, "1e0")]
)
def test_far_names(far, name):
    assert far_name(far) == name


def test_legend_explains_only_what_is_there():
    assert [mark for mark, _ in legend(protocol_tables(RESULTS))] == ["▲", "†"]
    assert legend(protocol_tables({"protocols": {"P": {"cosine": {"eer": 0.1}}}})) == ()


def test_terminal_table_is_aligned():
    text = results_table(RESULTS)
    lines = text.split("\n\n")[0].splitlines()
    assert lines[0] == "LFW"
    row = {line.split("  ")[0]: i for i, line in enumerate(lines)}
    cosine, ida = lines[row["Cosine"]], lines[row["IDA-R"]]
    assert cosine.index("93.47") == ida.index("94.09")
    assert "94.09*▲" in ida
    assert "93.47*" not in cosine
    # The interval ends below its figure.
    below = lines[row["IDA-R"] + 1]
    assert below.index("95.12]") == ida.index("94.09")
    assert lines[row["my<method>_&"]].count("–") == 5
    assert "R² 0.712, rank correlation 0.853." in text
    assert text.splitlines()[-1] == "in brackets: 95 % intervals"


def test_terminal_table_wraps_at_120_columns():
    methods = {
        m: {"tar@far": {f"1e-{i}": 0.5 for i in range(12)}, "false_accepts": {"1e-1": 10**7}}
        for m in ("cosine", "a_method_of_a_long_name")
    }
    text = results_table({"protocols": {"P": methods}})
    assert max(map(len, text.splitlines())) <= 120
    for i in range(12):
        assert text.count(f"TAR@1e-{i} %" if i else "TAR@1e0 %") == 1
    assert sum(line.startswith("Cosine") for line in text.splitlines()) == 2


def test_markdown_table():
    text = markdown_table(RESULTS)
    lines = text.splitlines()
    assert (
        "| Method | Accuracy % | TAR@1e-3 %, 13,484 false accepts | TAR@1e-5 %, 134 false accepts "
        "| TAR@1e-7 %, 1 false accept | EER % |"
    ) in lines
    row = "| IDA-R | **99.03 ± 0.45** | 98.88 | **94.09** ▲ [93.00–95.12] | 50.00† | 0.61 |"
    assert row in lines
    assert "A 50 % remark." in lines
    assert r"| a\|b | 1.00 |" in markdown_table({"protocols": {"P": {"a|b": {"eer": 0.01}}}})


def test_latex_table():
    text = latex_table(RESULTS)
    lines = text.splitlines()
    assert (
        r"IDA-R & \textbf{99.03 $\pm$ 0.45} & 98.88 & \textbf{94.09}$^\uparrow$ & "
        r"\textcolor{gray}{50.00}$^\dagger$ & 0.61 \\"
    ) in lines
    assert r" &  &  & {\scriptsize 93.00--95.12} &  & \\" in lines
    assert r"my<method>\_\& & -- & -- & -- & -- & -- \\" in lines
    (head,) = (line for line in lines if line.startswith("Method") and "TAR" in line)
    assert r"TAR@$10^{-5}$ \%" in head
    assert r"A 50 \% remark." in text
    for environment in ("table", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 2
    assert text.count("{") == text.count("}")
    # Every row has a place for each column.
    rows = text.split(r"\toprule")[1].split(r"\bottomrule")[0].splitlines()
    rows = [row.replace(r"\&", "") for row in rows if "&" in row]
    assert {row.count("&") for row in rows} == {5}


def test_write_tables(tmp_path):
    write_tables(tmp_path, RESULTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.md", "results.tex"]
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert text == markdown_table(RESULTS) + "\n"
    with pytest.raises(UserError, match="writable folder"):
        write_tables(tmp_path / "absent", RESULTS)


@pytest.mark.parametrize("table", [results_table, markdown_table])
def test_no_results_give_no_table(table):
    assert table({}) == ""
    assert "P" in table({"protocols": {"P": {"cosine": {}}}})
    assert "tabular" not in latex_table({"protocols": {"P": {"cosine": {}}}})
