"""python -m ida_jax.main --config=FILE[:variant] --workdir=DIR [--config.key=value …]

Runs the stages that the config names: train or import, gan, anchors, ssr, pfe, csn, evaluate; or,
from a file of embeddings, targets, ssr, evaluate. After an interruption run the same command again:
every stage resumes.

--config takes a path or the name of a config that is installed with ida_jax, such as quickstart;
any of its keys is a flag, such as --config.train.batch_size=256. Its sections, with every entry
explained in ida_jax/runs/config.py:

  title, stages, seed, data_dir     the run: its name, what it does, where the data is
  k, tau, searcher, flip            IDA's support set, and mirrored images' embeddings
  train_data, eval_data, verify_data  the data sets; verify_data is looked at during the training
  model                             the network and its input
  train                             head, optimiser, augmentation, records of its training
  anchors, ssr, csn                 where anchors come from; IDA-L's module; CSN's classifier
  pfe, gan                          the uncertainty module; the generator of the fake-db
  evaluate                          methods, FARs, pairs, groups

Several processes (SLURM, Open MPI, TPU pods, Kubernetes) run the same command, and are one run if
jax.distributed finds them. Where it does not, each is told:

  --coordinator=HOST:PORT           of process 0, any free port
  --processes=N                     how many they are; 1 alone: there are no others to look for
  --process=I                       which of 0 … N−1 this one is

examples:
  ida-jax train --config=quickstart --workdir=runs/quickstart
  python -m ida_jax.main --config=configs/ms1m_arcface.py:smoke --workdir=runs/smoke
"""

import sys
from typing import TYPE_CHECKING, Any

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import UserError, exit_code, printable

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def main(argv: list[str]) -> None:
    """Parses flags, runs the config's stages, prints the table of results."""
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return
    joined, argv = _processes(argv)
    config, workdir = _flags(argv)
    from ida_jax.common.processes import join_processes

    join_processes(coordinator=joined.coordinator, count=joined.processes, number=joined.process)

    from ida_jax.common.files import complete
    from ida_jax.report.tables import results_table
    from ida_jax.runs.stages import run
    from ida_jax.runs.workdir import REPORT, RESULTS, workdir_of_one_job

    with workdir_of_one_job(config, workdir):
        results = run(config, workdir)
    if results:
        with complete(f"{workdir}/{RESULTS}"):
            table = results_table(results)
        print(printable(table))
        print(f"report: {workdir}/{REPORT}")


def _processes(argv: list[str]) -> tuple[Any, list[str]]:
    """The flags that name the other processes, and the arguments without them."""
    parser = Parser("train", description=None)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    return parser.parse_known_args(argv)


def _flags(argv: list[str]) -> "tuple[ConfigDict, str]":
    from ida_jax.runs.config_flags import parse_config

    config, others = parse_config(argv, workdir="Where the run keeps its files.")
    workdir = others["workdir"]
    if config is None or workdir is None:
        raise UserError(
            "expected --config=FILE and --workdir=DIR, e.g. "
            "--config=configs/quickstart.py --workdir=runs/quickstart"
        )
    return config, workdir


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
