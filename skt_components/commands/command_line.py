"""The command line ``skt``: its table of commands, its help, its errors and its exit status."""

from __future__ import annotations

import difflib
import inspect
import itertools
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from typing import Any

import torch

from skt_components.commands import banks, data
from skt_components.commands.evaluate import evaluate
from skt_components.commands.networks import networks
from skt_components.commands.reconstruct import reconstruct
from skt_components.commands.train import train
from skt_components.files.names import printable
from skt_components.ops import use_huge_pages
from skt_components.training.config import name_options

COMMANDS: dict[str, dict[str, Callable[..., int | None]]] = {
    "networks": {"reconstruct": reconstruct, "evaluate": evaluate, "networks": networks, "train": train},
    "data sets": {
        "data verify": data.verify,
        "data prepare": data.prepare,
        "data preview": data.preview,
        "data simulate": data.simulate,
    },
    "knowledge banks": {"banks show": banks.show, "banks convert": banks.convert},
}
"""The function of each command by its words, in the groups of the help; its signature is the command's options."""

_RESUMED = ("evaluate", "data prepare", "data simulate")  # they continue where they were interrupted
_FAILURES = (OSError, ValueError, ImportError, MemoryError, torch.OutOfMemoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 failed, with one line on standard error, 130 interrupted.

    Args:
        arguments: without the program's name; None: the arguments of the process.

    Raises:
        SystemExit: with status 2 the options are wrong, which was explained; with 0 the help was printed.
    """
    use_huge_pages()
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = {name: command for group in COMMANDS.values() for name, command in group.items()}
    name = next((name for name in (" ".join(given[:2]), *given[:1]) if name in commands), None)
    if name is None:
        return _explain(given, list(commands))
    command, options = commands[name], given[len(name.split()) :]
    try:
        return _call(name, command, options) or 0
    except _FAILURES as error:
        message = name_options(" ".join(str(error).split()) or type(error).__name__, _option_names(command))
        print(printable(f"skt {name}: {message}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = "; the same command continues" if name in _RESUMED else ""
        print(f"skt {name}: interrupted{again}", file=sys.stderr)
        return 130


def _call(name: str, command: Callable[..., int | None], options: list[str]) -> int | None:
    if command is train:  # its options are those of the loop
        train(options)
        return 0
    import tyro  # not above: it takes a third of a second

    short = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    return tyro.cli(command, prog=f"skt {name}", args=options, config=short)


def _explain(given: list[str], names: list[str]) -> int:
    """Print the help, of all commands or of those that begin with a word; return 2 if that was not asked for."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), given))
    if given[:1] == ["--version"]:
        print(f"skt {version('skt-components')}")
        return 0
    begins = bool(words) and any(name.startswith(f"{words[0]} ") for name in names)
    if words and (not begins or len(words) > 1):
        wrong = " ".join(words[: 1 + begins])
        similar = difflib.get_close_matches(wrong, names, n=1)
        hint = f"is {similar[0]!r} meant?" if similar else "skt --help lists them"
        print(printable(f"skt: there is no command {wrong!r}: {hint}"), file=sys.stderr)
        return 2
    asked = any(word in ("-h", "--help") for word in given)
    print(_help(words[0] if words else ""), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def _help(word: str) -> str:
    lines = [f"usage: skt {word or 'COMMAND'} ...    skt COMMAND --help for its options"]
    for title, group in COMMANDS.items():
        shown = {name: command for name, command in group.items() if name.startswith(word)}
        lines += ["", title] * bool(shown)
        for name, command in shown.items():
            lines.append(f"  {name:15} {(inspect.getdoc(command) or '').splitlines()[0]}")
    return "\n".join(lines)


def _option_names(command: Callable[..., Any]) -> Iterator[str]:
    """Yield the names of a command's options; its other arguments have no name on the command line."""
    kinds = typing.get_type_hints(command)
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(kinds[name]):
            yield from (field.name for field in fields(kinds[name]))
        elif parameter.kind is not parameter.POSITIONAL_ONLY:
            yield name
