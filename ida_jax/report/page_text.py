"""The page's fixed texts and its style: HTML and CSS."""

# How to read a table, by how the titles of the columns begin that a sentence is about.
READINGS = {
    "TAR@": "TAR@f is the share of genuine pairs accepted when at most the share f of impostor "
    "pairs is; below the title stands how many false accepts that rests on.",
    "TPIR@": "TPIR@f is the share of searches that find the right person, at rank 1 and above the "
    "threshold, when at most the share f of searches for absent people raises an alarm.",
    "Rank-1@": "Rank-1@n is the share of probes whose mate is nearer than n other people’s faces; "
    "in parentheses, how many fail.",
    "EER": "EER is the rate at which false accepts and false rejects are equally frequent.",
    "Accuracy": "Accuracy is the mean over folds ± their deviation, each fold scored with the "
    "threshold that is best on the others.",
    "": "Small ranges are 95 % intervals. The best value of a column is bold and framed; a frame "
    "alone says nothing of chance.",
}
STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #57606a;
  --line: #dfe3e8; --best: #0a5fa8; --mark: #e8f2fb; --few: #767d86; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1e2329; --ink: #e6e9ed;
  --soft: #a2abb5; --line: #343b44; --best: #7cc0ff; --mark: #1b3550;
  --few: #8b949e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; }
h3 { font-size: 1rem; margin: 0 0 .7rem; }
p { margin: .5rem 0; }
.soft, figcaption, dd { color: var(--soft); }
code { font: .875em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.25rem; margin: 0 0 1.1rem; }
.card > :last-child { margin-bottom: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; font-size: .85rem; }
tbody th { font-weight: 600; }
table.results { width: auto; min-width: min(100%, 26rem); }
table.results td, table.results th { vertical-align: top; padding: .45rem .6rem; }
table.results th:first-child { padding-left: 0; position: sticky; left: 0; z-index: 1;
  background: var(--card); }
table.results :is(td, th):last-child { padding-right: 1.7rem; }
td strong { color: var(--best); background: var(--mark); border-radius: 4px; padding: .1rem .3rem;
  margin-right: -.3rem; outline: 1.5px solid currentColor; outline-offset: -1px; }
td .value { position: relative; display: inline-block; }
td .mark, td sup { position: absolute; left: calc(100% + .15rem); color: var(--ink); }
td .mark { font-size: .7rem; left: calc(100% + .45rem); top: .18rem; } td sup { top: .7rem; }
td .mark + sup { left: calc(100% + 1.2rem); }
td small, th small { display: block; color: var(--soft); font-weight: 400; font-size: .76rem; }
h3 small { color: var(--soft); font-weight: 400; margin-left: .3rem; }
td.few { color: var(--few); } td.few strong { color: inherit; }
.legend { list-style: none; padding: 0; margin: .5rem 0; } .legend .mark { font-size: .8rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .9rem; }
.pair { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: .6rem; }
.pair div { display: flex; gap: .3rem; justify-content: center; }
.pair img { width: 50%; max-width: 7rem; height: auto; border-radius: 4px; }
.pair figcaption { text-align: center; font-size: .8rem; line-height: 1.3; }
.pair table { font-size: .8rem; margin-top: .3rem; }
.pair th, .pair td { padding: .15rem .2rem; } .pair th { font-weight: 400; }
.changed.corrected { border-left: 4px solid #0072b2; }
.changed.broken { border-left: 4px dashed #d55e00; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .45rem 1.2rem; margin: 0; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0 0 1.4rem; }
figure h3 { margin: 0 0 .5rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.plot { background: #ffffff; border: 1px solid var(--line); border-radius: 10px; padding: .9rem; }
figcaption { margin-top: .5rem; font-size: .925rem; }
summary { cursor: pointer; font-weight: 600; } details dl { margin-top: .9rem; }
sup, sub { line-height: 0; font-size: .75em; }
.formula { display: block; margin: .3rem 0; color: var(--ink); font-size: 1.1em;
  font-family: Cambria, Georgia, serif; overflow-x: auto; white-space: nowrap; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; gap: .1rem; }
  dd { margin-bottom: .6rem; } main { padding-top: 1.5rem; }
  .plot { overflow-x: auto; } .plot img { max-width: 40rem; } }
@media print { body { background: none; } .card, .plot { break-inside: avoid; } }
"""
