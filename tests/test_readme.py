"""The README's Python examples run as they stand, and print what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import skt_components as skt

EXAMPLES = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text("utf-8"), flags=re.S)


def test_the_loss_alone_prints_what_the_comment_says(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(EXAMPLES[0], "README.md", "exec"), {})
    (wanted,) = re.findall(r"print\(.*\)  # (.*)", EXAMPLES[0])
    assert capsys.readouterr().out.strip() == wanted


def test_a_trained_network_goes_on_in_the_framework_and_keeps_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = EXAMPLES[1].replace("(8, 96,", "(8, 32,").replace("(96, 48,", "(4, 32,")
    exec(compile(short, "README.md", "exec"), {})
    assert re.fullmatch(r"\d+\.\d dB -> \d+\.\d dB\n", capsys.readouterr().out)
    state = torch.load("network.pt", weights_only=True)
    assert state.keys() == skt.load_pretrained("ahdrnet-small").state_dict().keys()


@pytest.mark.slow
def test_the_printed_gain_is_as_the_comment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[1], "README.md", "exec"), {})
    (comment,) = re.findall(r"print\(.*\)  # (.* dB)$", EXAMPLES[1], flags=re.MULTILINE)
    found, wanted = (
        [float(value) for value in re.findall(r"\d+\.\d", text)] for text in (capsys.readouterr().out, comment)
    )
    assert found == pytest.approx(wanted, abs=1.5), "seeds and processors differ by about 1 dB"
