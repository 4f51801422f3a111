from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.banks.cache import CachedBank
from skt_components.banks.priors import KnowledgeBank, SemanticPriors, priors_from_labels


class Bank(nn.Module):
    """A bank with weights, whose answer to a picture does not depend on the others of its batch; counts pictures."""

    channels, reduction = (6, 3), (2, 1)

    def __init__(self, *, overlapping: bool = False, regions: int = 5, fingerprint: str | None = "bank-1") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 6)[:, None, None])
        self.overlapping, self.regions = overlapping, regions
        self.asked: list[int] = []
        if fingerprint is not None:
            self.fingerprint = fingerprint

    def forward(self, images: Tensor) -> SemanticPriors:
        self.asked.append(len(images))
        padded = F.pad(images, (0, images.shape[-1] % 2, 0, images.shape[-2] % 2))
        # No convolution: its rounding depends on the size of the batch.
        pooled = F.avg_pool2d(padded, 2).repeat(1, 2, 1, 1) * self.weight
        features = [pooled.contiguous(memory_format=torch.channels_last), images.sqrt()]
        labels = (images[:, 1] * (self.regions + 1)).long() - 1
        if not self.overlapping:
            return priors_from_labels(features, labels, self.regions)
        masks = labels[:, None] >= torch.arange(self.regions, device=labels.device)[:, None, None]
        return SemanticPriors(features, masks, None, masks.flatten(2).any(-1))  # type: ignore[arg-type]


def assert_same(found: SemanticPriors, wanted: SemanticPriors, *, rounded: bool = False) -> None:
    for mine, theirs in zip(found.features, wanted.features, strict=True):
        assert mine.dtype == (torch.float16 if rounded else torch.float32)
        assert not mine.requires_grad
        assert torch.equal(mine, theirs.half() if rounded else theirs)
    assert found.masks.dtype == torch.bool
    assert torch.equal(found.masks, wanted.masks)
    assert torch.equal(found.valid, wanted.valid)
    if wanted.labels is None:
        assert found.labels is None
    else:
        assert found.labels.dtype == torch.int64
        assert torch.equal(found.labels, wanted.labels)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# matches_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 3)])
def test_priors_are_those_of_the_bank(
    tmp_path: Path, overlapping: bool, size: tuple[int, int], dtype: torch.dtype
) -> None:
    bank, images = Bank(overlapping=overlapping), torch.rand(4, 3, *size)
    wanted = bank(images)
    assert wanted.valid.any()
    assert not wanted.masks.all()
    cached = CachedBank(bank, tmp_path, dtype=dtype)
    for _ in range(2):
        assert_same(cached(images), wanted, rounded=dtype == torch.float16)
    assert bank.asked == [4, 4]  # ours and the first of the two
    assert_same(CachedBank(Bank(), tmp_path, dtype=dtype)(images), wanted, rounded=dtype == torch.float16)


def test_a_region_map_that_says_less_than_the_masks_keeps_both(tmp_path: Path) -> None:
    class Odd(Bank):
        def forward(self, images: Tensor) -> SemanticPriors:
            priors = super().forward(images)
            return priors._replace(labels=priors.labels * 1000, masks=priors.masks.flip(1))

    images = torch.rand(2, 3, 8, 8)
    cached = CachedBank(Odd(), tmp_path)
    for _ in range(2):
        assert_same(cached(images), Odd()(images))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=1, max_size=5))
def test_any_order_of_pictures_gives_the_same(tmp_path_factory: pytest.TempPathFactory, calls: list[list[int]]) -> None:
    pictures = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    bank = Bank()
    cached, seen = CachedBank(bank, tmp_path_factory.mktemp("priors")), set()
    for call in calls:
        bank.asked.clear()
        found = cached(pictures[call])
        assert bank.asked == ([len(set(call) - seen)] if set(call) - seen else [])
        seen |= set(call)
        assert_same(found, Bank()(pictures[call]))


# what is kept


def test_only_missing_pictures_reach_the_bank_and_only_once(tmp_path: Path) -> None:
    bank, images = Bank(), torch.rand(5, 3, 8, 8)
    cached = CachedBank(bank, tmp_path)
    cached(images[:2])
    assert_same(cached(images[[3, 1, 4, 3, 0]]), Bank()(images[[3, 1, 4, 3, 0]]))
    assert bank.asked == [2, 2]
    cached(images)
    assert bank.asked == [2, 2, 1]
    found = files(tmp_path)
    assert len(found) == 5
    for file in found:
        fingerprint, start, name = file.relative_to(tmp_path).parts
        assert fingerprint == "bank-1"
        assert name.startswith(start)
        assert len(start) == 2
        assert name.endswith(".safetensors")
        assert len(name) == 64 + len(".safetensors")


def test_everything_that_matters_is_part_of_the_key(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 4, 8)
    long = "0123456789abcdef"
    asked = []
    for fingerprint, dtype, pictures in [
        ("a", torch.float32, images),
        ("b", torch.float32, images),
        ("a", torch.float16, images),
        ("a", torch.float32, images.view(1, 3, 8, 4)),
        ("a", torch.float32, images + 2**-20),
        (long + "1", torch.float32, images),
        (long + "2", torch.float32, images),  # the folder has the same name
    ]:
        bank = Bank(fingerprint=None)
        CachedBank(bank, tmp_path, fingerprint=fingerprint, dtype=dtype)(pictures)
        asked.append(bank.asked)
    assert asked == [[1]] * 7
    assert len(files(tmp_path)) == 7
    assert sorted(os.listdir(tmp_path)) == [long, "a", "b"]
    bank, halves = Bank(), images.half()
    CachedBank(bank, tmp_path)(halves)
    CachedBank(bank, tmp_path)(halves.view(torch.bfloat16))  # the same bytes say something else
    assert bank.asked == [1, 1]


def test_files_are_small(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 64, 64)
    features = 4 * (6 * 32 * 32 + 3 * 64 * 64)
    sizes = {}
    for name, options, extra in [
        ("labels", {}, {}),
        ("many", {"regions": 200}, {}),
        ("masks", {"overlapping": True, "regions": 16}, {}),
        ("half", {}, {"dtype": torch.float16}),
    ]:
        CachedBank(Bank(**options), tmp_path / name, **extra)(images)
        (file,) = files(tmp_path / name)
        sizes[name] = file.stat().st_size
        labels = load_file(file).get("labels")
        assert (None if labels is None else labels.dtype) == {"many": torch.int16, "masks": None}.get(name, torch.int8)
    assert sizes["labels"] - features < 64 * 64 + 1000
    assert sizes["many"] - features < 2 * 64 * 64 + 1200
    assert sizes["masks"] - features < 16 * 64 * 64 / 8 + 1000
    assert sizes["half"] - features / 2 < 64 * 64 + 1000


def test_autocast_does_not_leak_into_what_is_kept(tmp_path: Path) -> None:
    class Convolution(Bank):
        def forward(self, images: Tensor) -> SemanticPriors:
            return super().forward(images)._replace(features=[F.conv2d(images, images)])

    images = torch.rand(2, 3, 8, 8)
    cached, wanted = CachedBank(Convolution(), tmp_path), Convolution()(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert Convolution()(images).features[0].dtype == torch.bfloat16
        assert_same(cached(images), wanted)


def test_float16_rejects_what_it_cannot_hold(tmp_path: Path) -> None:
    class Large(Bank):
        def forward(self, images: Tensor) -> SemanticPriors:
            return priors_from_labels([images * 1e5], images[:, 0].long(), 1)

    with pytest.raises(ValueError, match=r"features must fit float16, got 100000: use dtype=torch\.float32"):
        CachedBank(Large(), tmp_path, dtype=torch.float16)(torch.ones(1, 3, 4, 4))
    assert files(tmp_path) == []
    assert CachedBank(Large(), tmp_path)(torch.ones(1, 3, 4, 4)).features[0].max() == 1e5


# damage and full disks


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped bit", "other file"])
def test_a_damaged_file_is_made_again_with_a_warning(tmp_path: Path, damage: str) -> None:
    bank, images = Bank(), torch.rand(2, 3, 8, 8)
    cached = CachedBank(bank, tmp_path)
    cached(images)
    file = files(tmp_path)[0]
    content = bytearray(file.read_bytes())
    if damage == "flipped bit":
        content[-200] ^= 1
    file.write_bytes({"empty": b"", "cut": content[:-50], "other file": b"x" * 500}.get(damage, content))
    with pytest.warns(UserWarning, match=rf"{file.name} is damaged, its priors are computed again"):
        assert_same(cached(images), Bank()(images))
    assert bank.asked == [2, 1]
    assert_same(cached(images), Bank()(images))
    assert bank.asked == [2, 1]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    cached = CachedBank(Bank(), tmp_path)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="cannot write priors: No space left on device") as caught:
        cached(torch.rand(1, 3, 4, 4))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path)
    assert files(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write priors"):
        CachedBank(Bank(), tmp_path)(torch.rand(1, 3, 4, 4))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"cannot create folder: .*file"):
            CachedBank(Bank(), folder)
    CachedBank(Bank(), tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def write_again_and_again(folder: Path) -> None:
    warnings.simplefilter("error", UserWarning)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    wanted = Bank()(images)
    for _ in range(15):
        cached = CachedBank(Bank(), folder)
        assert_same(cached(images), wanted)
        for file in list(cached.folder.rglob("[!.]*.safetensors")):  # not the temporary files of the others
            file.unlink(missing_ok=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, because a new process imports torch for seconds")
def test_processes_may_write_the_same_pictures(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=write_again_and_again, args=(tmp_path,)) for _ in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
        assert process.exitcode == 0
    assert not any(file.name.startswith(".") for file in files(tmp_path))


def test_threads_may_share_a_bank(tmp_path: Path) -> None:
    images = torch.rand(6, 3, 8, 8)
    cached, wanted = CachedBank(Bank(), tmp_path), Bank()(images)

    def ask(_: int) -> None:
        assert_same(cached(images), wanted)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(12)))


# a bank, frozen


def test_it_is_a_bank_that_stays_out_of_its_parent(tmp_path: Path) -> None:
    bank = Bank()
    cached = CachedBank(bank, tmp_path)
    assert isinstance(cached, KnowledgeBank)
    assert (cached.channels, cached.reduction, cached.fingerprint) == ((6, 3), (2, 1), "bank-1")
    parent = nn.Sequential(nn.Conv2d(3, 3, 1), cached).train()
    assert sorted(parent.state_dict()) == ["0.bias", "0.weight"]
    assert len(list(parent.parameters())) == 2
    assert not bank.training
    assert not any(p.requires_grad for p in bank.parameters())
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    assert not cached(images).features[0].requires_grad
    again = copy.deepcopy(cached)
    assert_same(again(images.detach()), Bank()(images.detach()))
    assert again.bank.network.asked == [1]  # the copied count: nothing new
    assert "bank-1" in repr(cached)
    assert str(tmp_path) in repr(cached)
    parent.double()
    assert bank.weight.dtype == torch.float64


def test_it_works_in_a_compiled_step(tmp_path: Path) -> None:
    cached, images = CachedBank(Bank(), tmp_path), torch.rand(2, 3, 8, 8)
    step = torch.compile(lambda x: cached(x).features[0] * 2, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the compiler warns when it traces into files
        for _ in range(2):
            assert torch.equal(step(images), Bank()(images).features[0] * 2)


def test_an_empty_batch_passes(tmp_path: Path) -> None:
    assert CachedBank(Bank(), tmp_path)(torch.rand(0, 3, 8, 8)).masks.shape == (0, 5, 8, 8)
    assert files(tmp_path) == []


@pytest.mark.gpu
def test_priors_come_back_on_the_device_of_the_pictures(tmp_path: Path) -> None:
    images = torch.rand(3, 3, 8, 8, device="cuda")
    for overlapping in (False, True):
        bank = Bank(overlapping=overlapping, fingerprint=f"gpu-{overlapping}").cuda()
        wanted, cached = bank(images), CachedBank(bank, tmp_path)
        for _ in range(2):
            found = cached(images)
            assert_same(found, wanted)
            assert found.masks.is_cuda
            assert found.valid.is_cuda
            assert found.features[0].is_cuda
        assert bank.asked == [3, 3]


# rejects_bad_input


def test_a_bank_without_a_fingerprint_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"fingerprint must identify .* got None from the argument or Bank\.fingerprint"
    ):
        CachedBank(Bank(fingerprint=None), tmp_path)
    for wrong in ("", "a/b", "..", ".hidden", "a b", "ü", 3):
        with pytest.raises(ValueError, match="fingerprint must identify the bank's weights and options"):
            CachedBank(Bank(), tmp_path, fingerprint=wrong)  # type: ignore[arg-type]
    assert files(tmp_path) == []
    assert CachedBank(Bank(), tmp_path, fingerprint="other").fingerprint == "other"


def test_bad_arguments_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (nn.Linear(1, 1), lambda x: x, None):
        with pytest.raises(TypeError, match=r"bank must be an nn\.Module with channels and reduction, got "):
            CachedBank(wrong, tmp_path, fingerprint="a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"dtype must be torch\.float32 or torch\.float16, got torch\.bfloat16"):
        CachedBank(Bank(), tmp_path, dtype=torch.bfloat16)
    cached: Any = CachedBank(Bank(), tmp_path)
    with pytest.raises(ValueError, match=r"tonemapped must have 4 axes \(B, 3, H, W\), got \(3, 8, 8\)"):
        cached(torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match=r"tonemapped must have 4 axes .*got list"):
        cached([1])
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r'CachedBank needs safetensors: pip install "skt-components\[fastsam\]"'):
        CachedBank(Bank(), tmp_path)
