"""The checkpoints of a run: whole ones only, the newest few and the best."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from skt_components.training import CheckpointFolder, load_checkpoint, restore_state


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_few_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path / "new", "run", keep=2)
    for step in (5, 10, 100, 20):
        checkpoints.save(step, {"value": step})
    checkpoints.save_best(5, {"value": 5})
    assert names(tmp_path / "new") == ["run-00000020.ckpt", "run-00000100.ckpt", "run-best.ckpt"]
    assert checkpoints.steps() == [20, 100]
    assert checkpoints.load_newest() == {"value": 100, "step": 100}
    assert load_checkpoint(checkpoints.best) == {"value": 5, "step": 5}


def test_runs_with_other_names_are_left_alone(tmp_path: Path) -> None:
    ours, theirs = CheckpointFolder(tmp_path, "run", keep=1), CheckpointFolder(tmp_path, "run-b", keep=1)
    theirs.save(1, {})
    for step in (2, 3):
        ours.save(step, {})
    assert names(tmp_path) == ["run-00000003.ckpt", "run-b-00000001.ckpt"]
    assert (ours.steps(), theirs.steps()) == ([3], [1])


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "none", "run").load_newest() is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "other step", "one bit"])
def test_a_broken_newest_falls_back_to_the_one_before_with_a_notice(tmp_path: Path, damage: str) -> None:
    checkpoints = CheckpointFolder(tmp_path, "run", keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, {"weight": torch.rand(1000)})
    path = checkpoints.path(3)
    whole = path.read_bytes()
    other = checkpoints.path(2).read_bytes()
    place = len(whole) // 2  # among the weights
    flipped = whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :]
    contents = {"truncated": whole[:place], "empty": b"", "text": b"hello", "other step": other, "one bit": flipped}
    path.write_bytes(content := contents[damage])
    state = checkpoints.load_newest()
    assert state is not None
    assert state["step"] == 2
    (notice,) = checkpoints.notices
    assert "run-00000003.ckpt" in notice
    assert notice.endswith("continued from the one before")
    assert names(tmp_path) == ["run-00000001.ckpt", "run-00000002.ckpt", "run-00000003.ckpt.broken"]
    assert checkpoints.path(3).with_suffix(".ckpt.broken").read_bytes() == content  # kept for whoever asks


@pytest.mark.parametrize("kind", ["folder", "broken link", "link to itself"])
def test_what_is_no_file_falls_back_too(tmp_path: Path, kind: str) -> None:
    checkpoints = CheckpointFolder(tmp_path, "run", keep=2)
    checkpoints.save(1, {"value": 1})
    for _ in "ab":  # what is set aside does not replace what was set aside before
        if kind == "folder":
            checkpoints.path(2).mkdir()
            (checkpoints.path(2) / "precious").write_text("mine")
        else:
            checkpoints.path(2).symlink_to(tmp_path / "nowhere" if kind == "broken link" else checkpoints.path(2))
        state = checkpoints.load_newest()
        assert state is not None
        assert state["value"] == 1
    assert names(tmp_path) == ["run-00000001.ckpt", "run-00000002.ckpt.broken", "run-00000002.ckpt.broken-2"]


def test_a_folder_in_the_place_of_a_new_checkpoint_is_set_aside(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path, "run", keep=1)
    for place in (checkpoints.path(1), checkpoints.path(2), checkpoints.best):
        place.mkdir()
    checkpoints.save(2, {"value": 2})
    checkpoints.save(3, {"value": 3})
    checkpoints.save_best(3, {"value": 3})
    assert load_checkpoint(checkpoints.best)["value"] == load_checkpoint(checkpoints.path(3))["value"] == 3
    assert checkpoints.path(1).is_dir()
    assert checkpoints.path(2).with_suffix(".ckpt.broken").is_dir()


def test_the_best_is_the_last_that_is_tried(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path, "run")
    checkpoints.save_best(3, {"value": 3})
    assert checkpoints.load_newest() == {"value": 3, "step": 3}
    assert checkpoints.notices[0].endswith("has no checkpoint but run-best.ckpt; continued from its step 3")
    checkpoints.save(5, {"value": 5})
    checkpoints.path(5).write_bytes(b"")
    assert checkpoints.load_newest() == {"value": 3, "step": 3}
    assert names(tmp_path) == ["run-00000005.ckpt.broken", "run-best.ckpt"]


def test_no_flipped_bit_gives_other_values(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path, "run")
    state = {"weight": torch.rand(40), "note": "ü", "numbers": [1, 2.5]}
    whole = checkpoints.save(1, state).read_bytes()
    for place in range(0, len(whole), 29):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        checkpoints.path(1).write_bytes(damaged)
        with suppress(ValueError):  # or a bit that means nothing, such as padding
            found = load_checkpoint(checkpoints.path(1))
            assert torch.equal(found.pop("weight"), state["weight"])
            assert found == {"note": "ü", "numbers": [1, 2.5], "step": 1}


def test_checksums_are_written_whatever_the_global_option_says(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        checkpoints = CheckpointFolder(tmp_path, "run")
        checkpoints.save(1, {"weight": torch.rand(9)})
        assert checkpoints.load_newest() is not None
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)


def test_when_all_are_broken_nothing_is_renamed_and_the_error_names_them(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path, "run")
    for step in (1, 2):
        checkpoints.save(step, {})
        checkpoints.path(step).write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* can be read: .*00000002.*00000001"):
        checkpoints.load_newest()
    assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")])
def test_a_full_disk_is_reported_and_the_one_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    checkpoints = CheckpointFolder(tmp_path, "run", keep=1)
    checkpoints.save(10, {"value": 10})

    def full(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"checkpoint of step 20 could not be written .*; the newest is of step 10"):
            checkpoints.save(20, {"value": 20})
    assert names(tmp_path) == ["run-00000010.ckpt"]
    assert checkpoints.load_newest() == {"value": 10, "step": 10}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = CheckpointFolder(tmp_path, "run")
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda state, path: save(state, "/dev/full"))
    with pytest.raises(OSError, match=r"could not be written .*there is none yet"):
        checkpoints.save(1, {"weight": torch.rand(100_000)})
    assert checkpoints.steps() == []


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path, "run")
    checkpoints.save(1, {})
    for name in (".run-00000002.ckpt.0123abcd", ".run-best.ckpt.0123abcd", ".other-00000002.ckpt.0123abcd", "mine.txt"):
        (tmp_path / name).write_bytes(b"half")
    checkpoints.clear_leftovers()
    assert names(tmp_path) == [".other-00000002.ckpt.0123abcd", "mine.txt", "run-00000001.ckpt"]


def test_rejects_a_folder_that_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be"):
        CheckpointFolder(tmp_path, "run", keep=0)


# restore_state


def make_parts(features: int = 4) -> dict:
    model = nn.Sequential(nn.Conv2d(3, features, 3), nn.BatchNorm2d(features))
    return {"module": model, "optimizer": torch.optim.Adam(model.parameters(), fused=True)}


def make_state(parts: dict, **more: object) -> dict:
    parts["module"](torch.rand(2, 3, 6, 6)).square().mean().backward()
    parts["optimizer"].step()
    state = {name: part.state_dict() for name, part in parts.items()}
    return {**state, "step": 4, "best": 1.5, "samples_per_step": 8, **more}


def test_a_state_comes_back_whole_through_a_file(tmp_path: Path) -> None:
    parts = make_parts()
    checkpoints = CheckpointFolder(tmp_path, "run")
    checkpoints.save(4, make_state(parts))
    state = checkpoints.load_newest()
    assert state is not None
    twin = make_parts()
    assert restore_state(state, twin, per_step=8, steps=10) == (4, 1.5)
    for name, value in parts["module"].state_dict().items():
        assert torch.equal(twin["module"].state_dict()[name], value)
    moments = [list(p["optimizer"].state_dict()["state"].values()) for p in (parts, twin)]
    assert all(torch.equal(a[k], b[k]) for a, b in zip(*moments, strict=True) for k in a)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"steps": 3}, "--steps 3, but the newest checkpoint is already at step 4"),
        ({}, {"per_step": 16}, r"made with 8 samples per step, now there are 16: .*--batch-size"),
        ({"ema": {}}, {}, "does not fit, other options: ema"),
    ],
)
def test_a_state_of_another_run_is_explained(refused, change: dict, options: dict, message: str) -> None:
    parts = make_parts()
    with refused(message):
        restore_state(make_state(parts, **change), parts, **{"per_step": 8, "steps": 10, **options})


def test_a_state_of_another_network_is_explained() -> None:
    state = make_state(make_parts(5))
    with pytest.raises(ValueError, match="checkpoint of step 4 does not fit: it was made with other options"):
        restore_state(state, make_parts(4), per_step=8, steps=10)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="could not be written"):
        CheckpointFolder(tmp_path, "run").save(1, {})
