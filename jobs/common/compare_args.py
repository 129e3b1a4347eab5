"""The command line of a comparison: a predefined comparison of one recipe, or several recipes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile

from jobs.common.cli import default_config, parse_recipe, resolve
from jobs.common.parsing import UsageError, nearest
from jobs.recipes.catalog import RECIPES
from jobs.recipes.comparisons import COMPARISONS, fixed_stages
from pipeline.compare.config import CompareOptions, Comparison
from pipeline.compare.peer_flags import differences, is_progressive
from pipeline.config import TrainConfig

PROG = "python -m jobs.compare"


def parse(argv: Sequence[str]) -> tuple[Comparison, CompareOptions]:
    """Return the comparison that a command line asks for.

    Raises:
        UsageError: no such comparison, recipe or field.
    """
    if not argv or argv[0] in ("-h", "--help", "--help-all"):
        print(_usage())
        sys.exit(0 if argv else 2)
    names = list(takewhile(lambda argument: not argument.startswith("-"), argv))
    rest = argv[len(names) :]
    if {"-h", "--help", "--help-all"} & {*rest}:
        print(_usage(), end="\n\n")
    _check_flags(names, rest)
    if len(names) == 1 and names[0] in COMPARISONS:
        config, options = _recipe(_recipe_flag(rest), rest)
        comparison = COMPARISONS[names[0]](config)
        own_name = config.name != _default_name(_recipe_flag(rest), rest)
    else:
        for name in names:
            _check_known(name, names)
        if len(names) != len(set(names)) or not names:
            raise UsageError(f"name each recipe once, and at least one comparison or recipe: {' '.join(names)}")
        parsed = [_recipe(name, rest) for name in names]
        config, options = parsed[0]
        own_name = config.name != _default_name(names[0], rest)
        variants = {name: one for name, (one, _) in zip(names, parsed, strict=True)}
        comparison = Comparison(
            name="-".join(name.replace("_", "-") for name in names),
            question="Recipes as they are, each at its own stages.",
            variants=variants,
            baseline=names[0],
        )
    comparison = _chosen(_named(comparison, config.name if own_name else ""), options.variants)
    return _with_peer(comparison, config, options), options


def _recipe(name: str, rest: Sequence[str]) -> tuple[TrainConfig, CompareOptions]:
    config, options = parse_recipe([name, *rest], prog=PROG, extra=CompareOptions)
    assert options is not None
    return config, options


def _default_name(recipe: str, rest: Sequence[str]) -> str:
    return default_config(resolve([recipe, *rest]).argv).name


def _check_flags(names: Sequence[str], rest: Sequence[str]) -> None:
    """Refuse flags that would do nothing."""
    flags = {argument.partition("=")[0] for argument in rest}
    if "--seed" in flags:
        raise UsageError("--seed differs between the runs of a comparison: give all seeds as --seeds 0 1 2")
    if "--recipe" in flags and not COMPARISONS.keys() & {*names}:
        for name in names:
            _check_known(name, names)
        raise UsageError(
            f"--recipe is for a predefined comparison ({', '.join(COMPARISONS)}); leave it out for recipes"
        )


def _recipe_flag(rest: Sequence[str]) -> str:
    """Return the recipe that the flags name: it must be known before the others can be read."""
    for index, argument in enumerate(rest):
        flag, equals, value = argument.partition("=")
        if flag == "--recipe":
            with suppress(IndexError):
                return value if equals else rest[index + 1]
    return CompareOptions().recipe


def _check_known(name: str, names: Sequence[str]) -> None:
    if name in COMPARISONS:
        recipe = next((other for other in names if other not in COMPARISONS), "")
        raise UsageError(
            f"a comparison takes its recipe as --recipe {recipe}" if recipe else "one comparison at a time"
        )
    if name not in RECIPES:
        otherwise = f"comparisons: {', '.join(COMPARISONS)}; or recipes"
        hint = nearest(name, [*COMPARISONS, *RECIPES], otherwise)
        raise UsageError(f"no comparison or recipe is named {name!r}: {hint}")


def _named(comparison: Comparison, own: str) -> Comparison:
    """Give the comparison the name that the user gave, or one of recipe and kind."""
    base = comparison.variants[comparison.baseline]
    name = own or (f"{base.name}-{comparison.name}" if comparison.name in COMPARISONS else f"compare-{comparison.name}")
    return replace(comparison, name=name)


def _chosen(comparison: Comparison, names: Sequence[str]) -> Comparison:
    """Keep the variants that the user named, and the baseline."""
    if unknown := [name for name in names if name not in comparison.variants]:
        why = comparison.about.get(unknown[0], "none is named so")
        raise UsageError(f"--variants {unknown[0]!r}: {why}; there are {', '.join(map(repr, comparison.variants))}")
    if not names:
        return comparison
    kept = {name: one for name, one in comparison.variants.items() if name in (*names, comparison.baseline)}
    whole = comparison.grid is not None and kept.keys() >= {*comparison.grid.cells.values()}
    about = {name: text for name, text in comparison.about.items() if name in kept}
    return replace(comparison, variants=kept, about=about, grid=comparison.grid if whole else None)


def _with_peer(comparison: Comparison, recipe: TrainConfig, options: CompareOptions) -> Comparison:
    """Add what another library trains: the baseline at one size, and the recipe's growing sizes if it has any."""
    if options.peer == "none":
        return comparison
    base = comparison.variants[comparison.baseline]
    peers = {f"{options.peer} fixed": replace(base, stages=fixed_stages(base.stages))}
    if is_progressive(recipe):
        peers[f"{options.peer} progressive"] = replace(base, stages=recipe.stages)
    about = {name: f"{options.peer}'s train.py; {'; '.join(differences(one))}" for name, one in peers.items()}
    return replace(
        comparison,
        variants={**comparison.variants, **peers},
        about={**comparison.about, **about},
        peers=frozenset(peers),
    )


def _usage() -> str:
    lines = [
        f"usage: {PROG} COMPARISON [--recipe RECIPE] [--train URL --val URL] [--seeds 0 1 2] [--epochs E]",
        f"       {PROG} RECIPE RECIPE... [--field value ...]",
        f"       ({PROG} COMPARISON --help lists the fields)",
        "",
        "comparisons:",
    ]
    for name, make in COMPARISONS.items():
        lines.append(f"  {name:24} {(make.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join([*lines, "", f"recipes: {', '.join(RECIPES)}"])
