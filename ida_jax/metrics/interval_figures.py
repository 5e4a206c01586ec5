"""The bootstrap's results as entries of a method's figures, plain numbers that JSON can hold."""

from collections.abc import Mapping, Sequence
from typing import Any

from ida_jax.metrics.bootstrap import Bootstrap, MeanBootstrap
from ida_jax.metrics.evaluation import far_key
from ida_jax.metrics.few_units import FEWEST_UNITS


def tar_intervals(
    bootstrap: Bootstrap, *, fars: Sequence[float] | None = None
) -> dict[str, dict[str, Any]]:
    """{method: entries for its figures}, by the FARs' keys.

    They are `tar_interval@far`, `tar_units@far` (the effective number of units behind the TAR), of
    a method with a difference `tar_gain@far`, `tar_gain_interval@far` and
    `tar_gain_simultaneous_interval@far`, and of several methods `tar_among_best@far`.

    Args:
      bootstrap: the result of `bootstrap_tails` or `bootstrap_tar`.
      fars: those to take of the bootstrap's FARs, in this order; all where None.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name, points in bootstrap.methods.items():
        place = {point.far: k for k, point in enumerate(points)}
        at = {far_key(far): place[float(far)] for far in (place if fars is None else fars)}

        def listed(values: Sequence[Any], at: Mapping[str, int] = at) -> dict[str, Any]:
            return {key: values[k] for key, k in at.items()}

        of = entries[name] = {
            "tar_interval@far": listed([list(p.tar) for p in points]),
            "tar_units@far": listed([p.units for p in points]),
        }
        if gains := bootstrap.differences.get(name):
            of["tar_gain@far"] = listed([d.gain for d in gains])
            of["tar_gain_interval@far"] = listed([list(d.tar) for d in gains])
        if compared := bootstrap.compared.get(name):
            of["tar_among_best@far"] = listed([c.among_best for c in compared])
            if gains:
                ends = [list(c.gain) for c in compared]
                of["tar_gain_simultaneous_interval@far"] = listed(ends)
    return entries


def mean_intervals(bootstrap: MeanBootstrap) -> dict[str, dict[str, Any]]:
    """{method: entries for its figures}, to be put behind the figure's name.

    They are `interval`, `units`, `among_best`, and of a method with a difference `gain_interval`
    and `gain_simultaneous_interval`; as in `tar_intervals`.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name, ends in bootstrap.methods.items():
        of = entries[name] = {"interval": list(ends), "units": bootstrap.behind[name]}
        if name in bootstrap.differences:
            of["gain_interval"] = list(bootstrap.differences[name])
        if compared := bootstrap.compared.get(name):
            of["among_best"] = compared.among_best
            if compared.gain is not None:
                of["gain_simultaneous_interval"] = list(compared.gain)
    return entries


def note_of_few_units(
    figures: Mapping[str, Mapping[str, Any]], figure: str, *, over: str
) -> tuple[str, ...]:
    """A sentence where errors of fewer than `FEWEST_UNITS` units decide a method's interval.

    Args:
      figures: the methods' figures, with the units' number under "FIGURE_units", or by place under
        "FIGURE_units@PLACE".
      figure: "accuracy" or "tar@far", say.
      over: what the units are.
    """
    name, at, suffix = figure.partition("@")
    units = [of[key] for of in figures.values() if (key := f"{name}_units{at}{suffix}") in of]
    by_place = units if at else [{"": number} for number in units]
    few = {place for of in by_place for place, number in of.items() if number < FEWEST_UNITS}
    listed = [place for place in (by_place[0] if by_place else ()) if place in few]
    if not listed:
        return ()
    what = f"{name.upper()} at {suffix.upper()} {', '.join(listed)}" if at else name
    return (
        f"{what}: the errors of a method are those of fewer than {FEWEST_UNITS} {over} (counted by "
        "their shares), so that its 95 % interval is too narrow",
    )
