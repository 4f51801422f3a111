"""The page of a run says what its folder holds, links what is there, and leaves out what is not."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from torch import nn

from skt_components.models import AHDRNet, save_weights
from skt_components.training import TrainConfig, make_run_folder, write_environment, write_options, write_run_summary


class Own(nn.Linear):
    """A network of somebody else."""

    def __init__(self) -> None:
        super().__init__(2, 2)


def make_run(folder: Path, **options) -> Path:
    run = make_run_folder(TrainConfig(out=folder, **options))
    write_environment(run)
    lines = [
        {"run": "framework", "step": 3, "terms": {"org": 1.0}},
        {"run": "framework", "step": options.get("steps", 300), "validation": {}},
        {"run": "framework", "step": 5, "notice": "a\nspike"},
    ]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"run": "fra', encoding="utf-8")
    (run / "table.txt").write_text("           PSNR-mu\nORM after   40.123\n")
    for name in ("curves.png", "samples.png", "checkpoints/framework-00000005.ckpt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).touch()
    (run / "samples").mkdir()
    for step in (1000, 900):
        (run / "samples" / f"orm-{step}.png").touch()
    save_weights(run / "orm.safetensors", AHDRNet(features=8, num_layers=2, growth=4))
    return run


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_page_of_a_whole_run(tmp_path):
    run = make_run(tmp_path / "run", steps=7, batch_size=2, accumulate=3)
    assert write_run_summary(run) == run / "README.md"
    page = (run / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# run\n\n`ahdrnet-small` on `synthetic`, with the knowledge of `tf_efficientnet_lite0`: ")
    assert "7 steps, batches of 6, crops of 64 pixels" in page
    assert "Not finished" not in page
    options = set(re.findall(r"`(\w+) = [^`]*`", page))
    assert options == {"steps", "batch_size", "accumulate"}
    assert "ORM after   40.123" in section(page, "Result")
    assert "framework step 5: a spike" in section(page, "Notices")
    assert "![losses, gradients and validation](curves.png)" in section(page, "Pictures")
    assert section(page, "Pictures").index("orm-900") < section(page, "Pictures").index("orm-1000")
    assert f"--resume {run.as_posix()}" in section(page, "Continue")
    assert f"torch {torch.__version__.split('+')[0]}" in section(page, "Made with")
    assert "- [checkpoints](checkpoints/) (1): the states to continue from" in section(page, "Files")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "framework 36"),
        ({"bare": True}, "bare 4"),
        ({"compare": True}, "framework 36, bare 4"),
        ({"seeds": 2}, "seed-0 framework 36, seed-1 framework 0"),
        ({"steps": 36}, None),
        ({"steps": 36, "compare": True}, "bare 4"),
        ({"seed": 7, "seeds": 2}, None),  # of which there is no trace
    ],
)
def test_a_run_that_was_stopped_says_how_far_it_came(tmp_path, options, said):
    run = make_run_folder(TrainConfig(out=tmp_path / "run", **{"steps": 400, **options}))
    traces = run / "seed-0" if "seeds" in options else run
    (traces / "checkpoints").mkdir(parents=True)
    (traces / "checkpoints" / "framework-00000036.ckpt").touch()
    lines = [
        {"run": "framework", "step": 25, "terms": {"org": 1.0}},
        {"run": "bare", "step": 0, "validation": {}},
        {"run": "bare", "step": 3, "terms": {"org": 1.0}},
        {"run": "end", "step": 36, "notice": "no space"},
    ]
    (traces / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{")
    page = write_run_summary(run).read_text()
    found = re.search(r"\*\*Not finished\*\*: (.*) of (\d+) steps\.", page)
    assert (found and found[1]) == said
    assert found is None or int(found[2]) == options.get("steps", 400)


def test_every_link_leads_somewhere_and_every_file_is_listed(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "notes of mine #1.txt").touch()
    (run / "evaluation" / "sections").mkdir(parents=True)
    (run / "evaluation" / "report.html").touch()
    (run / "evaluation" / "sections" / "part.html").touch()
    page = write_run_summary(run).read_text(encoding="utf-8")
    links = [unquote(link) for link in re.findall(r"\]\(([^)]*)\)", page)]
    assert [link for link in links if not (run / link).exists()] == []
    listed = {link.strip("/") for link in links}
    assert {path.name for path in run.iterdir()} - listed == {"README.md"}
    assert not any("part.html" in link for link in links)


def test_only_options_that_differ_from_the_defaults_are_named(tmp_path):
    page = write_run_summary(make_run_folder(TrainConfig(out=tmp_path, knowledge_bank="none"))).read_text()
    assert "without semantic knowledge" in page
    assert re.findall(r"`\w+ = [^`]*`", page) == ['`knowledge_bank = "none"`']
    assert (
        "All options are the defaults."
        in write_run_summary(make_run_folder(TrainConfig(out=tmp_path / "b"))).read_text()
    )


def test_an_evaluation_that_comes_later_is_linked(tmp_path):
    run = make_run(tmp_path / "run")
    assert "Evaluation" not in write_run_summary(run).read_text()
    (run / "evaluation").mkdir()
    (run / "evaluation" / "report.html").touch()
    page = write_run_summary(run).read_text()
    assert "Evaluation: [evaluation/report.html](evaluation/report.html)." in section(page, "Result")


@pytest.mark.parametrize("own", [False, True])
def test_the_code_of_the_page_loads_the_network(tmp_path, monkeypatch, own):
    run = make_run(tmp_path / "run", **({"orm": f"{__name__}:Own"} if own else {}))
    if own:
        save_weights(run / "orm.safetensors", Own())
    block = re.search("```python\n(.*?)```", write_run_summary(run).read_text(), re.DOTALL)
    assert block is not None
    monkeypatch.chdir(run)
    scope: dict = {"bracket": torch.rand(1, 2) if own else torch.rand(1, 3, 6, 16, 16)}
    exec(compile(block[1], "README.md", "exec"), scope)
    assert type(scope["network"]).__name__ == ("Own" if own else "AHDRNet")
    assert not scope["network"].training
    assert scope["hdr"].shape == ((1, 2) if own else (1, 3, 16, 16))


def test_the_code_of_the_page_calls_a_network_of_ones_own_as_it_is_called(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", orm="own_pair:make")
    (tmp_path / "own_pair.py").write_text(
        "import torch\n\ndef make():\n"
        "    return torch.nn.Linear(2, 2), lambda network, bracket: {'hdr': network(bracket)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    save_weights(run / "orm.safetensors", torch.nn.Linear(2, 2))
    block = re.search("```python\n(.*?)```", write_run_summary(run).read_text(), re.DOTALL)
    monkeypatch.chdir(run)
    scope: dict = {"bracket": torch.rand(1, 2)}
    exec(compile(block[1], "README.md", "exec"), scope)
    assert scope["hdr"]["hdr"].shape == (1, 2)


def test_seeds_are_linked_and_what_they_hold_is_found(tmp_path):
    run = make_run_folder(TrainConfig(out=tmp_path / "run", seeds=2))
    for seed in (2, 10):
        make_run(run / f"seed-{seed}", seed=seed)
    (run / "seed-10" / "README.md").touch()
    page = write_run_summary(run).read_text()
    lines = section(page, "Seeds").strip().splitlines()
    links = [re.findall(r"\]\(([^)]*)\)", line) for line in lines]
    assert links[0] == ["seed-2/", *(f"seed-2/{name}" for name in ("curves.png", "samples.png", "orm.safetensors"))]
    assert links[1][:2] == ["seed-10/", "seed-10/README.md"]
    assert "seed-2 framework step 5: a spike" in page
    assert 'skt.load_model("seed-2/orm.safetensors")' in page
    assert f"--resume {run.as_posix()}" in page  # whose seeds have the checkpoints


def test_many_notices_are_counted(tmp_path):
    lines = [{"run": "bare", "step": step, "notice": f"spike {step}"} for step in range(50)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    notices = section(write_run_summary(tmp_path).read_text(), "Notices")
    assert notices.count("spike") == 20
    assert "and 30 more in metrics.jsonl" in notices


def test_an_empty_folder_gives_a_page_with_its_name(tmp_path):
    assert write_run_summary(tmp_path).read_text() == f"# {tmp_path.name}\n"
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        write_run_summary(tmp_path / "none")


@pytest.mark.parametrize("name", ["config.toml", "environment.json", "metrics.jsonl", "table.txt", "orm.safetensors"])
def test_a_broken_file_does_not_keep_the_others_from_the_page(tmp_path, name):
    run = make_run(tmp_path / "run")
    (run / name).write_bytes(b"\xff\xfe[{\x00")
    page = write_run_summary(run).read_text(encoding="utf-8")
    assert "## Files" in page
    assert ("40.123" in page) == (name != "table.txt")


def test_a_command_line_that_is_no_text_is_written_all_the_same(tmp_path):
    entry = {"arguments": ["train.py", "--root", "\udcff"], "date": "today"}
    (tmp_path / "environment.json").write_text(json.dumps([entry, entry]))
    page = write_run_summary(tmp_path).read_text(encoding="utf-8")
    assert "- Started today: `train.py --root" in page
    assert "- Continued today" in page


def test_several_processes_are_continued_as_several(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    run = make_run(tmp_path / "run", steps=7, batch_size=2)
    write_run_summary(run)
    page = (run / "README.md").read_text(encoding="utf-8")
    assert "batches of 8" in page
    assert "\ntorchrun --nproc-per-node 4 " in section(page, "Continue")
    monkeypatch.setenv("WORLD_SIZE", "1")  # with batches that are four times as large
    write_environment(run)
    write_options(run, dataclasses.replace(TrainConfig(), steps=7, batch_size=8))
    write_run_summary(run)
    page = (run / "README.md").read_text(encoding="utf-8")
    assert "batches of 8" in page
    assert "\npython " in section(page, "Continue")
