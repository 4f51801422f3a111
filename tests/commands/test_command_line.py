"""skt: one table of commands, its help, its errors and its exit status."""

from __future__ import annotations

import inspect
import re
import runpy
import sys
from pathlib import Path

import pytest

from skt_components import __version__, commands
from skt_components.commands import COMMANDS, command_line, main
from skt_components.commands.train import loop_file
from skt_components.models import NETWORKS, load_pretrained, pretrained_names

NAMES = [name for group in COMMANDS.values() for name in group]
EXAMPLES = Path(__file__).parents[2] / "examples"


# help


def test_the_help_lists_every_command_in_its_group(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in shown if line.startswith("  ")] == NAMES
    assert [line for line in shown[1:] if line and not line.startswith(" ")] == list(COMMANDS)
    assert len(shown) <= 24
    assert max(map(len, shown)) <= 120


def test_a_group_has_a_help_of_its_own(capsys):
    assert main(["data", "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^  (\w+ \w+)", shown, re.MULTILINE) == [name for name in NAMES if name.startswith("data ")]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "train"])
def test_every_command_explains_itself_and_each_option(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*name.split(), "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: skt {name} ")
    assert (inspect.getdoc(command_line.COMMANDS[_group(name)][name]) or "").splitlines()[0] in shown
    lines = "\n".join(line.strip(" │╭╰─╮╯") for line in shown.splitlines())
    options = re.split(r"(?m)^(?=-h|--[a-z])", lines)[1:]
    assert len(options) > 1 or name == "networks"
    for option in options:
        explained = re.sub(r"\((default|required).*", "", option.replace("\n", " "))
        assert len(explained.split()) >= 3, option


def _group(name: str) -> str:
    return next(title for title, group in COMMANDS.items() if name in group)


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"skt {__version__}\n"


# usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: skt COMMAND"),
        (["data"], "usage: skt data"),
        (["evalate"], "skt: there is no command 'evalate': is 'evaluate' meant?"),
        (["data", "verfy", "kalantari"], "skt: there is no command 'data verfy': is 'data verify' meant?"),
        (["xyz"], "skt: there is no command 'xyz': skt --help lists them"),
        (["--stepz", "4"], "usage: skt COMMAND"),
    ],
)
def test_wrong_commands_end_with_2(arguments, message, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(message)


@pytest.mark.parametrize("options", [["--stepz", "4"], ["--protocol", "mine", "--out", "a"], []])
def test_wrong_options_end_with_2(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", *options])
    assert "skt evaluate --help" in capsys.readouterr().err


# failures


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("tile must be a whole number >= 1,\n got 0"), "--tile must be a whole number >= 1, got 0"),
        (FileExistsError("a.hdr exists: replace it with `overwrite`"), "a.hdr exists: replace it with --overwrite"),
        (FileExistsError("a.hdr exists; only with overwrite=True"), "a.hdr exists; only with --overwrite"),
        (ValueError("pictures must have one size"), "pictures must have one size"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_failures_are_one_line_that_names_options(error, message, monkeypatch, capsys):
    def fail(pictures: tuple[Path, ...], /, *, tile: int = 1, overwrite: bool = False) -> None:
        raise error

    monkeypatch.setitem(COMMANDS["networks"], "reconstruct", fail)
    assert main(["reconstruct"]) == 1
    assert capsys.readouterr().err == f"skt reconstruct: {message}\n"


@pytest.mark.parametrize(("name", "again"), [("reconstruct", ""), ("evaluate", "; the same command continues")])
def test_an_interrupt_ends_with_130(name, again, monkeypatch, capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS["networks"], name, interrupted)
    assert main([name]) == 130
    assert capsys.readouterr().err == f"skt {name}: interrupted{again}\n"


def test_python_m_is_the_same_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["skt", "banks", "convert", str(tmp_path / "absent.pt"), "a.safetensors"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("skt_components", run_name="__main__")
    assert end.value.code == 1
    shown = capsys.readouterr().err
    assert shown.startswith("skt banks convert: weights file not found")
    assert shown.count("\n") == 1


# networks


def test_networks_lists_every_network_with_its_size(capsys):
    assert main(["networks"]) == 0
    rows = {line.split()[0]: re.split(r" {2,}", line) for line in capsys.readouterr().out.split("\n\n")[0].splitlines()}
    assert list(rows) == ["network", *NETWORKS]
    assert {name for name, row in rows.items() if row[-1] == "included"} == set(pretrained_names())
    for name in pretrained_names():
        assert rows[name][1] == f"{sum(p.numel() for p in load_pretrained(name).parameters()):,}"
    assert rows["tmrnet-plus"][2:4] == ["5 packed RAW", "4x"]
    assert rows["ahdrnet"][2:4] == ["3 sRGB", "1x"]
    assert rows["hdr-transformer"][5] == "nearly, sides multiples of 8"


# train


def test_train_is_the_loop_of_the_examples(tmp_path, monkeypatch, capsys):
    assert loop_file() == EXAMPLES / "train_full.py"
    calls = []
    monkeypatch.setattr(runpy, "run_path", lambda path, run_name: calls.append((path, run_name, list(sys.argv))))
    before = list(sys.argv)
    assert main(["train", "--steps", "4", "--orm", "ahdrnet-small"]) == 0
    path = str(loop_file())
    assert calls == [(path, "__main__", [path, "--steps", "4", "--orm", "ahdrnet-small"])]
    assert sys.argv == before


def test_the_status_of_the_loop_is_the_status_of_train(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--stepz", "4"])
    assert end.value.code == 2
    with pytest.raises(SystemExit, match="no configuration file"):
        main(["train", "--config", "absent.toml"])


def test_eject_writes_the_loop_once(tmp_path, capsys):
    mine = tmp_path / "my_train.py"
    assert main(["train", "--eject", str(mine)]) == 0
    assert mine.read_bytes() == loop_file().read_bytes()
    mine.write_text("changed")
    assert main(["train", "--eject", str(mine)]) == 1
    assert capsys.readouterr().err == f"skt train: {mine} exists: choose another name\n"
    assert mine.read_text() == "changed"
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--eject", str(tmp_path / "b.py"), "--steps", "4"])
    assert not (tmp_path / "b.py").exists()


def test_the_public_names_are_the_table_and_the_function():
    assert commands.COMMANDS is COMMANDS
    assert sorted(commands.__all__) == ["COMMANDS", "main"]
