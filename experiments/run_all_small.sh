#!/bin/sh
# The paper's tables and figures at small scale, recorded in experiments/results, with the seconds
# that each took. Usage, in the repository: experiments/run_all_small.sh DATA_DIR [WORKDIR]
# DATA_DIR may have lfw/ and weights/mobilefacenet.npz; WORKDIR (runs/paper) keeps what was trained.
# The first script that needs a run trains it: about 2 minutes a head, as long for LFW, 9 for PFE there.
set -eu
data=${1:?"expected DATA_DIR, which may have lfw/ and weights/"}
workdir=${2:-runs/paper}
for name in table1 table2 table3 table4 table5 fig3 fig6 fig7 fig8 fig9 fig10; do
    begun=$(date +%s)
    PYTHONPATH=. python "experiments/$name.py" --scale=small --data_dir="$data" \
        --workdir="$workdir" --output="experiments/results/${name}_small.json"
    echo "$name: $(($(date +%s) - begun)) s" >&2
done
