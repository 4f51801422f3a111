from __future__ import annotations

import hashlib
import http.server
import os
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skt_components.banks import fastsam_weights
from skt_components.banks.fastsam_weights import convert_checkpoint, find_fastsam_weights, load_fastsam_state
from skt_components.files.unpickle import read_pickled_model

Handler = http.server.BaseHTTPRequestHandler


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PyTorch's folder of downloaded weights, which does not exist yet; the working directory is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.delenv("SKT_FASTSAM_WEIGHTS", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home" / "hub" / "checkpoints"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def touch(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


# find_fastsam_weights


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["FastSAM-s", "FastSAM-x"])
def test_names_are_looked_up_in_the_usual_cache(cache: Path, name: str) -> None:
    touch(cache.parents[2] / "work" / name)  # not a weights file: the plain name means the cache
    pickled = touch(cache / f"{name}.pt")
    assert find_fastsam_weights(name) == pickled
    converted = touch(cache / f"{name}.safetensors")
    assert find_fastsam_weights(name) == converted
    assert find_fastsam_weights(name, download=True) == converted
    assert find_fastsam_weights(f"{name}.pt") == pickled
    assert find_fastsam_weights(Path(f"{name}.safetensors")) == converted
    here = touch(Path(f"{name}.pt"))
    assert find_fastsam_weights(f"{name}.pt") == here


@pytest.mark.usefixtures("no_network")
def test_none_means_the_variable_or_the_small_network(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = touch(cache / "FastSAM-s.pt")
    assert find_fastsam_weights(None) == find_fastsam_weights() == small
    monkeypatch.setenv("SKT_FASTSAM_WEIGHTS", "")
    assert find_fastsam_weights() == small
    own = touch(tmp_path / "own.pt")
    monkeypatch.setenv("SKT_FASTSAM_WEIGHTS", str(own))
    assert find_fastsam_weights() == own
    assert find_fastsam_weights("FastSAM-s") == small
    monkeypatch.setenv("SKT_FASTSAM_WEIGHTS", str(tmp_path / "absent.pt"))
    for download in (False, True):  # a wrong variable is not made good by other weights
        with pytest.raises(FileNotFoundError, match=r"variable SKT_FASTSAM_WEIGHTS names .*absent\.pt"):
            find_fastsam_weights(download=download)
    monkeypatch.setenv("SKT_FASTSAM_WEIGHTS", str(tmp_path))
    with pytest.raises(IsADirectoryError, match="variable SKT_FASTSAM_WEIGHTS must name a file, got the folder"):
        find_fastsam_weights()


@pytest.mark.usefixtures("no_network", "cache")
def test_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    file = touch(tmp_path / "FastSAM-s.pt")
    assert find_fastsam_weights(file) == find_fastsam_weights(str(file)) == file
    for download in (False, True):  # a path is never downloaded to
        with pytest.raises(FileNotFoundError, match=r"weights names a file that does not exist: .*none.FastSAM-x\.pt"):
            find_fastsam_weights(tmp_path / "none" / "FastSAM-x.pt", download=download)
    assert not (tmp_path / "none").exists()
    with pytest.raises(IsADirectoryError, match="weights must name a file, got the folder"):
        find_fastsam_weights(tmp_path)
    with pytest.raises(TypeError, match=r"weights must be a path, 'FastSAM-s' or 'FastSAM-x', got int"):
        find_fastsam_weights(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"does not exist: .*fastsam-s"):
        find_fastsam_weights("fastsam-s")


@pytest.mark.usefixtures("no_network")
def test_missing_weights_say_what_to_do(cache: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        find_fastsam_weights("FastSAM-x")
    for part in (
        *(f"looked for {cache / 'FastSAM-x.safetensors'} and {cache / 'FastSAM-x.pt'}", "Get FastSAM-x.pt from"),
        *("https://github.com/ultralytics/assets/releases", "https://github.com/CASIA-LMC-Lab/FastSAM"),
        *("download=True", "SKT_FASTSAM_WEIGHTS", "AGPL-3.0", "SA-1B"),
    ):
        assert part in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no weights of FastSAM-s: looked for .*work.FastSAM-s\.pt and"):
        find_fastsam_weights("FastSAM-s.pt")
    with pytest.raises(FileNotFoundError, match=r"looked for .*work.FastSAM-s\.safetensors and"):
        find_fastsam_weights("FastSAM-s.safetensors", download=True)  # nobody publishes it
    assert not cache.parents[1].exists()


# download


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[Handler], None]], list[str]]]:
    """Give a function that answers downloads with another function; it returns the list of paths asked for."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(answer: Callable[[Handler], None]) -> list[str]:
        asked: list[str] = []

        class Answer(Handler):
            def do_GET(self) -> None:
                asked.append(self.path)
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(fastsam_weights, "_RELEASE", f"http://127.0.0.1:{server.server_port}/v")
        return asked

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(handler: Handler, body: bytes, length: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)
    handler.wfile.flush()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_download_goes_to_the_cache_and_is_not_repeated(cache: Path, serve: Any, fastsam_s: Path) -> None:
    body = (fastsam_s / "FastSAM-s.pt").read_bytes()
    asked = serve(lambda handler: send(handler, body))
    assert find_fastsam_weights("FastSAM-s", download=True) == cache / "FastSAM-s.pt"
    assert (cache / "FastSAM-s.pt").read_bytes() == body
    assert files(cache) == ["FastSAM-s.pt"]
    assert find_fastsam_weights("FastSAM-s", download=True) == find_fastsam_weights() == cache / "FastSAM-s.pt"
    assert asked == ["/v/FastSAM-s.pt"]


def test_none_and_the_name_with_its_suffix_download_too(cache: Path, serve: Any, fastsam_s: Path) -> None:
    body = (fastsam_s / "FastSAM-s.pt").read_bytes()
    asked = serve(lambda handler: send(handler, body))
    assert find_fastsam_weights(None, download=True) == cache / "FastSAM-s.pt"
    (cache / "FastSAM-s.pt").unlink()
    assert find_fastsam_weights("FastSAM-s.pt", download=True) == cache / "FastSAM-s.pt"
    assert asked == ["/v/FastSAM-s.pt"] * 2


def test_the_address_is_that_of_the_releases() -> None:
    release = r"https://github.com/ultralytics/assets/releases/download/v8.4.0"
    assert release == fastsam_weights._RELEASE
    assert fastsam_weights._TIMEOUT == 10


def wait(handler: Handler) -> None:
    send(handler, b"PK", length=1000)
    time.sleep(6)


FAULTS: dict[str, tuple[Callable[[Handler], None], str]] = {
    "not found": (lambda handler: handler.send_error(404), r"could not download .*/v/FastSAM-s\.pt: HTTP Error 404"),
    "cut": (lambda handler: send(handler, b"PK" * 500, length=2000), r"could not download .*(missing|IncompleteRead)"),
    "hanging": (wait, r"could not download .*timed out"),
    "nonsense": (lambda handler: handler.wfile.write(b"\x00\x01\r\n\r\n"), r"could not download .*: BadStatusLine"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_network_are_told_and_leave_nothing(
    cache: Path, serve: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, message = FAULTS[fault]
    asked = serve(answer)
    monkeypatch.setattr(fastsam_weights, "_TIMEOUT", 0.3)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"{message}.*SKT_FASTSAM_WEIGHTS"):
        find_fastsam_weights("FastSAM-s", download=True)
    assert time.monotonic() - start < 5
    assert files(cache) == []
    assert asked == ["/v/FastSAM-s.pt"]  # one attempt


def test_without_a_network_it_fails_at_once_and_makes_no_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown_host(*_: object, **__: object) -> None:
        raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr(urllib.request, "urlopen", unknown_host)
    with pytest.raises(
        ConnectionError, match=r"FastSAM-x\.pt: \[Errno -3\] Temporary failure in name resolution\. Get"
    ):
        find_fastsam_weights("FastSAM-x", download=True)
    assert not cache.parents[1].exists()


@pytest.mark.parametrize("what", ["page", "nothing", "other network", "code"])
def test_what_is_not_fastsam_is_not_kept(cache: Path, serve: Any, what: str, tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    if what == "other network":
        torch.save(nn.Linear(1, 1), file)
    elif what == "code":
        torch.save({"model": os.system}, file)
    else:
        file.write_bytes(b"<html>" if what == "page" else b"")
    serve(lambda handler: send(handler, file.read_bytes()))
    with pytest.raises(OSError, match=r"FastSAM-s\.pt did not give the weights of FastSAM-s \(.*SKT_FASTSAM_WEIGHTS"):
        find_fastsam_weights("FastSAM-s", download=True)
    assert files(cache) == []


def test_an_interrupted_download_leaves_nothing(cache: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    serve(lambda handler: send(handler, b"PK"))
    monkeypatch.setattr(fastsam_weights, "load_fastsam_state", interrupt)
    with pytest.raises(KeyboardInterrupt):
        find_fastsam_weights("FastSAM-s", download=True)
    assert files(cache) == []


def test_a_folder_that_cannot_be_made_is_named(cache: Path, serve: Any) -> None:
    touch(cache)  # a file where the folder shall be
    serve(lambda handler: send(handler, b"PK"))
    with pytest.raises(FileExistsError, match="checkpoints"):
        find_fastsam_weights("FastSAM-s", download=True)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.usefixtures("cache")
def test_only_a_terminal_sees_progress(
    serve: Any, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(lambda handler: send(handler, b"x" * 2000))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with pytest.raises(OSError, match="did not give"):
        find_fastsam_weights("FastSAM-s", download=True)
    shown = capsys.readouterr().err
    assert ("FastSAM-s" in shown and "2.00k/2.00k" in shown) if terminal else shown == ""


# load_fastsam_state


def test_every_format_reads_the_same(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).half()
    torch.save({"model": model}, tmp_path / "model.pt")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.save(model.state_dict(), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(model.state_dict(), tmp_path / "converted.safetensors")
    for name in ("model.pt", "state.pt", "legacy.pth", "converted.safetensors"):
        assert_same(load_fastsam_state(tmp_path / name), model.state_dict())
        assert_same(load_fastsam_state(str(tmp_path / name)), model.state_dict())


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights file not found: .*absent\.pt"):
        load_fastsam_state(tmp_path / "absent.pt")
    for name in ("odd.pt", "odd.safetensors"):
        (tmp_path / name).write_bytes(b"odd")
        with pytest.raises(ValueError, match=rf"{name}"):
            load_fastsam_state(tmp_path / name)
    torch.save({"model": os.system}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt was rejected: it names"):
        load_fastsam_state(tmp_path / "evil.pt")


# convert_checkpoint


def test_conversion_keeps_every_bit(tmp_path: Path, fastsam_s: Path) -> None:
    source, target = fastsam_s / "FastSAM-s.pt", tmp_path / "FastSAM-s.safetensors"
    assert convert_checkpoint(str(source), str(target)) == target
    wanted = read_pickled_model(source)
    assert wanted["model.0.conv.weight"].dtype == torch.float16
    assert_same(load_file(target), wanted)
    assert_same(load_fastsam_state(target), wanted)
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
        assert re.fullmatch("[0-9a-f]{64}", metadata.pop("sha256"))  # of what the file holds
        assert metadata == {
            "format": "pt",
            "architecture": "yolov8-seg",
            "nc": "1",
            "reg_max": "16",
            "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
    assert files(tmp_path) == [target.name]
    again = convert_checkpoint(target, tmp_path / "again.safetensors")  # other sources than pickles do as well
    assert_same(load_file(again), wanted)


def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path, fastsam_s: Path) -> None:
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"a\.safetensors exists; .*overwrite=True"):
        convert_checkpoint(fastsam_s / "FastSAM-s.pt", target)
    torch.save(nn.Linear(1, 1), tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt"):
        convert_checkpoint(tmp_path / "odd.pt", target, overwrite=True)
    assert target.read_bytes() == b"precious"
    convert_checkpoint(fastsam_s / "FastSAM-s.pt", target, overwrite=True)
    assert len(load_file(target)) > 400


def test_wrong_targets_and_sources_are_named(tmp_path: Path) -> None:
    odd = tmp_path / "odd.pt"
    torch.save(nn.Linear(1, 1), odd)
    with pytest.raises(ValueError, match=r"odd\.pt is not a YOLOv8 segmentation network"):
        convert_checkpoint(odd, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"dst must end in \.safetensors, got .*b\.pt"):
        convert_checkpoint(odd, tmp_path / "b.pt")
    with pytest.raises(FileNotFoundError, match=r"folder of dst does not exist: .*none"):
        convert_checkpoint(odd, tmp_path / "none" / "a.safetensors")
    with pytest.raises(FileNotFoundError, match=r"weights file not found: .*absent\.pt"):
        convert_checkpoint(tmp_path / "absent.pt", tmp_path / "a.safetensors")
    save_file(nn.Linear(1, 1).state_dict(), tmp_path / "same.safetensors")
    before = (tmp_path / "same.safetensors").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"dst must be another file than src, got .*same\.safetensors twice"):
            convert_checkpoint(tmp_path / "same.safetensors", tmp_path / "same.safetensors", overwrite=overwrite)
    assert (tmp_path / "same.safetensors").read_bytes() == before
    assert files(tmp_path) == ["odd.pt", "same.safetensors"]


def test_missing_safetensors_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r'safetensors: pip install "skt-components\[fastsam\]"'):
        convert_checkpoint(touch(tmp_path / "a.pt"), tmp_path / "a.safetensors")
