"""The help of the training loop: options in groups, the most used first."""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_MOST_USED = (
    *("data", "root", "camera", "orm", "init", "knowledge_bank", "steps", "batch_size"),
    *("lr", "recipe", "compare", "bare", "out", "config", "resume"),
)
_GROUPS = {  # title -> its first option; the others follow in the order of the fields
    "data": "procedural_share",
    "network": "init_official",
    "knowledge bank": "weights",
    "losses": "loss_weights",
    "teacher and routing": "joint",
    "optimization": "accumulate",
    "run": "seed",
}


def flag(name: str) -> str:
    """Return the name of an argument as an option of a command line."""
    return "--" + name.replace("_", "-")


def format_options(kind: type, description: str) -> str:
    """Return the help of all options of a dataclass with the options of :class:`TrainConfig`.

    Args:
        kind: the dataclass; its fields have docstrings.
        description: what the command does.
    """
    by_name = {field.name: field for field in fields(kind)}
    parser = argparse.ArgumentParser(
        usage="%(prog)s [OPTIONS]",
        description=description,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=110),
        add_help=False,
    )
    documented, types = _docstrings(kind), get_type_hints(kind)
    for title, names in _grouped(list(by_name)).items():
        group = parser.add_argument_group(title)
        for name in names:
            _add(group, by_name[name], types[name], documented[name])
    return parser.format_help()


def _grouped(names: Sequence[str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {"most used": [name for name in _MOST_USED if name in names]}
    starts, title = {first: title for title, first in _GROUPS.items()}, "data"
    for name in names:
        title = starts.get(name, title)
        if name not in _MOST_USED:
            found.setdefault(title, []).append(name)
    return found


def _docstrings(kind: type) -> dict[str, str]:
    """Return the docstring below each field, of the base classes too."""
    found = {}
    for each in reversed(kind.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        body = tree.body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                found[field.target.id] = " ".join(ast.literal_eval(below.value).split())  # type: ignore[union-attr]
    return found


def _add(group: Any, field: Field[Any], kind: Any, text: str) -> None:
    default = None if field.default is MISSING else field.default
    options: dict[str, Any] = {"help": text.replace("%", "%%")}
    if kind is bool:
        options["help"] += " (default: yes)" if default else ""
        names = [field.name, *([f"no_{field.name}"] if default else [])]
        group.add_argument(*map(flag, names), action="store_true", **options)
        return
    if default is not None and default != ():
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        options["help"] += f" (default: {shown})".replace("%", "%%")
    if get_origin(kind) is tuple:
        options["nargs"], kind = "*", get_args(kind)[0]
    group.add_argument(flag(field.name), metavar=_metavar(kind), **options)


def _metavar(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return {int: "N", float: "X", Path: "PATH", str: "NAME"}[kind]
