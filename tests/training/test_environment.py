"""What made a run: versions, devices and the state of the code, kept for every start of it."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys

import pytest
import torch

from skt_components.training import describe_environment, environment, write_environment

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder, *arguments) -> str:
    names = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *names, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one commit, with the script that runs; the working directory is in another one."""
    folder, elsewhere = tmp_path / "code", tmp_path / "elsewhere"
    elsewhere.mkdir()
    git(elsewhere, "init", "-q", "-b", "mine")
    monkeypatch.chdir(elsewhere)
    (folder / "deep").mkdir(parents=True)
    run_from(monkeypatch, folder)
    git(folder, "init", "-q", "-b", "trunk")
    (folder / "net.py").write_text("x = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def run_from(monkeypatch, folder) -> None:
    """Let a script of this folder be what runs."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(folder / "train.py"), raising=False)


def entries(folder) -> list[dict]:
    return json.loads((folder / "environment.json").read_text())


def test_it_says_what_ran(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["examples/train_full.py", "--steps", "5"])
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = describe_environment()
    assert found["arguments"] == ["examples/train_full.py", "--steps", "5"]
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    assert found["threads"] == torch.get_num_threads()
    assert found["processes"] == 4
    assert found["cuda"] == torch.version.cuda
    assert len(found["devices"]) == torch.cuda.device_count()
    assert json.loads(json.dumps(found)) == found


def test_packages_that_are_not_installed_are_left_out(monkeypatch):
    def version(name):
        if name != "numpy":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert describe_environment()["packages"] == {"numpy": "1.2.3"}


@needs_git
def test_a_clean_tree_is_its_commit(repository):
    (repository / "runs.txt").write_text("not tracked")  # as a run's folder is
    state = describe_environment()["git"]
    assert state == {"commit": git(repository, "rev-parse", "HEAD"), "branch": "trunk", "dirty": False, "diff": ""}


@needs_git
def test_the_diff_gives_the_code_back_also_from_a_folder_below(repository, monkeypatch, tmp_path):
    text = "x = 2  # \N{LATIN SMALL LETTER E WITH ACUTE}\n".encode("latin-1")  # of any encoding
    (repository / "net.py").write_bytes(text)
    git(repository, "config", "color.ui", "always")
    git(repository, "config", "diff.relative", "true")
    run_from(monkeypatch, repository / "deep")
    write_environment(tmp_path)
    state = entries(tmp_path)[0]["git"]
    assert (state["dirty"], state["diff"]) == (True, "git.diff")
    git(repository, "checkout", "-q", "net.py")
    git(repository, "apply", str(tmp_path / "git.diff"))
    assert (repository / "net.py").read_bytes() == text


@needs_git
def test_a_huge_diff_is_cut_and_says_so(repository):
    (repository / "net.py").write_text("a line of text\n" * 40_000)
    diff = describe_environment()["git"]["diff"]
    assert 200_000 < len(diff) < 200_100
    assert diff.splitlines()[-1].startswith("[cut here: 200000 of 6")


@needs_git
def test_a_repository_without_a_commit_and_a_detached_one_are_no_errors(tmp_path, monkeypatch, repository):
    git(repository, "checkout", "-q", "--detach")
    assert describe_environment()["git"]["branch"] is None
    (tmp_path / "new").mkdir()
    run_from(monkeypatch, tmp_path / "new")
    git(tmp_path / "new", "init", "-q", "-b", "trunk")
    assert describe_environment()["git"] == {"commit": None, "branch": "trunk", "dirty": False, "diff": ""}


@needs_git
@pytest.mark.parametrize("main", ["outside", "ignored", "notebook"])
def test_a_script_that_is_in_no_repository_leaves_that_of_the_package(repository, tmp_path, monkeypatch, main):
    monkeypatch.setattr(environment, "__file__", str(repository / "deep" / "environment.py"))
    (repository.parent / "elsewhere" / ".gitignore").write_text("bin/\n")
    (repository.parent / "elsewhere" / "bin").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    run_from(monkeypatch, tmp_path if main == "outside" else tmp_path / "elsewhere" / "bin")
    if main == "notebook":
        monkeypatch.delattr(sys.modules["__main__"], "__file__")
    assert describe_environment()["git"]["branch"] == "trunk"


def test_neither_git_nor_a_repository_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    run_from(monkeypatch, tmp_path)
    assert describe_environment()["git"] is None
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    write_environment(tmp_path)
    assert entries(tmp_path)[0]["git"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


@needs_git
def test_a_run_that_goes_on_adds_to_what_is_there(repository, tmp_path):
    write_environment(tmp_path)
    for number in (2, 2, 3):
        (repository / "net.py").write_text(f"x = {number}\n")
        write_environment(tmp_path)
    runs = entries(tmp_path)
    assert [run["git"]["diff"] for run in runs] == ["", "git.diff", "git.diff", "git-2.diff"]
    assert "+x = 2" in (tmp_path / "git.diff").read_text()
    assert "+x = 3" in (tmp_path / "git-2.diff").read_text()


@pytest.mark.parametrize("content", ["[{", '{"date": 1}', "[1]"])
def test_a_file_of_something_else_is_rejected_and_left_alone(tmp_path, content):
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(ValueError, match=r"environment\.json is not the file of a run, move it away: "):
        write_environment(tmp_path)
    assert (tmp_path / "environment.json").read_text() == content


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        write_environment(tmp_path / "none")
