"""Keep the priors of a bank on disk, so that it describes each picture once."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from skt_components.banks.frozen import Frozen
from skt_components.banks.priors import KnowledgeBank, SemanticPriors, priors_from_labels
from skt_components.files.atomic import atomic_write
from skt_components.files.weights import import_safetensors

_FORMAT = 1  # part of every key: increase it when the content of the files changes
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


class _Record(NamedTuple):
    """Priors of one picture on the CPU; ``masks`` is None if ``labels`` are enough to make them."""

    features: list[Tensor]  # (C, h, w)
    labels: Tensor | None  # (H, W), the smallest integers that hold them
    masks: Tensor | None  # (R, H, W) bool
    valid: Tensor  # (R,) bool


class CachedBank(nn.Module):
    """Wrap a bank and store its priors on disk. The content of the picture is the key.

    Use it for pictures that repeat in every epoch: ground truth or a fixed validation set, whole or in fixed crops. A
    call hashes every picture, which waits for the device, and reads one file per picture (8 MB for FastSAM-s and
    256 x 256 pixels, 17 ms on one CPU core). So it saves time only if the bank is slower. No file is ever deleted.

    The bank is stored in :class:`Frozen` and runs without autocast, once for all missing pictures of a batch. Later
    calls return the same result bit for bit. Several processes may share the folder.

    Args:
        bank: the bank. The number of its regions must not change between calls.
        folder: created if missing; priors go to ``<fingerprint[:16]>/<key[:2]>/<key>.safetensors``.
        fingerprint: identifies weights, options and dtype, in letters, digits, ``_``, ``-`` and ``.``; default:
            ``bank.fingerprint``, read again when the bank is moved.
        dtype: dtype of the returned and stored features: torch.float32, or torch.float16 with 11 bits.

    Raises:
        TypeError: ``bank`` is not an ``nn.Module`` with the members of a bank, or ``dtype`` is not supported.
        ValueError: there is no valid fingerprint.
        ImportError, OSError: safetensors is not installed, or the folder or a file cannot be written.

    Example:
        >>> import tempfile
        >>> class Thirds(nn.Module):
        ...     channels, reduction, fingerprint = (3,), (2,), "thirds"
        ...     def forward(self, images):
        ...         labels = (images[:, 0] * 3).long()
        ...         return priors_from_labels([nn.functional.avg_pool2d(images, 2)], labels, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bank = CachedBank(Thirds(), folder)
        ...     once, again = bank(torch.ones(1, 3, 4, 4) / 2), bank(torch.ones(1, 3, 4, 4) / 2)
        ...     len(list(Path(folder).rglob("*.safetensors")))
        1
        >>> bool((once.masks == again.masks).all()), again.valid.tolist()
        (True, [[False, True, False]])
    """

    def __init__(
        self,
        bank: nn.Module,
        folder: str | os.PathLike[str],
        *,
        fingerprint: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not isinstance(bank, nn.Module) or not isinstance(bank, KnowledgeBank):
            raise TypeError(f"bank must be an nn.Module with channels and reduction, got {type(bank).__name__}")
        if dtype not in (torch.float32, torch.float16):
            raise TypeError(f"dtype must be torch.float32 or torch.float16, got {dtype}")
        import_safetensors("CachedBank")
        self._own_fingerprint = fingerprint
        self.fingerprint, self.dtype = _check_fingerprint(fingerprint, bank), dtype
        self.channels, self.reduction = tuple(bank.channels), tuple(bank.reduction)
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(error.errno, f"cannot create folder: {error.strerror}", str(folder)) from error
        self.bank = Frozen(bank)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CachedBank:
        super()._apply(fn, recurse)
        self.fingerprint = _check_fingerprint(self._own_fingerprint, self.bank.network)  # half precision changes it
        return self

    @torch.no_grad()
    def forward(self, tonemapped: Float[Tensor, "b 3 h w"]) -> SemanticPriors:
        """Describe tone-mapped RGB pictures in [0, 1]; the bank runs only for pictures that are not on disk.

        Raises:
            ValueError: if ``tonemapped`` does not have four axes, or a feature is too large for float16.
            OSError: if a file cannot be written.
        """
        if torch.compiler.is_compiling():  # the decorator would load the compiler at import
            return torch.compiler.disable(self.forward)(tonemapped)
        if not isinstance(tonemapped, Tensor) or tonemapped.ndim != 4:
            got = tuple(tonemapped.shape) if isinstance(tonemapped, Tensor) else type(tonemapped).__name__
            raise ValueError(f"tonemapped must have 4 axes (B, 3, H, W), got {got}")
        if not len(tonemapped):
            return self.bank(tonemapped)
        keys = self._keys(tonemapped)
        records = {key: record for key in dict.fromkeys(keys) if (record := self._read(key)) is not None}
        missing = {key: i for i, key in enumerate(keys) if key not in records}
        if missing:
            computed = self._compute(tonemapped[list(missing.values())])
            for key, record in zip(missing, computed, strict=True):
                self._write(key, record)
                records[key] = record
        return _join([records[key] for key in keys], tonemapped.device)

    def extra_repr(self) -> str:
        """Show folder, fingerprint and dtype."""
        return f"folder={str(self.folder)!r}, fingerprint={self.fingerprint!r}, dtype={self.dtype}"

    def _keys(self, pictures: Tensor) -> list[str]:
        head = f"{_FORMAT} {self.fingerprint} {self.dtype} {pictures.dtype} {tuple(pictures.shape[1:])}".encode()
        return [hashlib.sha256(head + b"\0" + _bytes(picture)).hexdigest() for picture in pictures.cpu()]

    def _file(self, key: str) -> Path:
        return self.folder / self.fingerprint[:16] / key[:2] / f"{key}.safetensors"

    def _compute(self, pictures: Tensor) -> list[_Record]:
        with torch.autocast(pictures.device.type, enabled=False):
            priors = self.bank(pictures)
        features = [feature.to("cpu", self.dtype) for feature in priors.features]
        for exact, kept in zip(priors.features, features, strict=True):
            if self.dtype == torch.float16 and kept.isinf().any() and exact.isfinite().all():
                raise ValueError(f"features must fit float16, got {exact.abs().max():g}: use dtype=torch.float32")
        labels, masks, valid = priors.labels, priors.masks, priors.valid.cpu()
        if labels is not None:
            masks = None if torch.equal(priors_from_labels([], labels, masks.shape[1]).masks, masks) else masks
            labels = _smallest(labels.cpu())
        masks = None if masks is None else masks.cpu()
        return [
            _Record(
                [feature[i].contiguous() for feature in features],
                None if labels is None else labels[i],
                None if masks is None else masks[i],
                valid[i],
            )
            for i in range(len(pictures))
        ]

    def _read(self, key: str) -> _Record | None:
        file = self._file(key)
        try:
            return _unpack(file.read_bytes())
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged file can raise anything, and the bank can compute it again
            warnings.warn(f"{file} is damaged, its priors are computed again ({error})", stacklevel=3)
            return None

    def _write(self, key: str, record: _Record) -> None:
        file = self._file(key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file, sync=False) as temporary:  # the checksum detects files cut by a power failure
                temporary.write_bytes(_pack(record))
        except OSError as error:
            reason = f"cannot write priors: {error.strerror or error}"
            raise OSError(error.errno, reason, str(self.folder)) from error


def _pack(record: _Record) -> bytes:
    """Return the content of a file, with masks as bits and a checksum."""
    tensors = {f"feature_{i}": feature for i, feature in enumerate(record.features)} | {"valid": record.valid}
    if record.labels is not None:
        tensors["labels"] = record.labels
    if record.masks is not None:
        tensors["bits"] = torch.from_numpy(np.packbits(record.masks.numpy(), axis=-1))
        tensors["width"] = torch.tensor([record.masks.shape[-1]])
    return import_safetensors("CachedBank").torch.save(tensors | {"checksum": _checksum(tensors)})


def _unpack(content: bytes) -> _Record:
    tensors = import_safetensors("CachedBank").torch.load(content)
    if not torch.equal(tensors.pop("checksum"), _checksum(tensors)):
        raise ValueError("the checksum is wrong")
    masks = None
    if "bits" in tensors:
        bits = np.unpackbits(tensors["bits"].numpy(), axis=-1, count=int(tensors["width"]))
        masks = torch.from_numpy(bits).bool()
    features = [tensors[f"feature_{i}"] for i in range(sum(name.startswith("feature_") for name in tensors))]
    return _Record(features, tensors.get("labels"), masks, tensors["valid"])


def _join(records: list[_Record], device: torch.device) -> SemanticPriors:
    features = [torch.stack(maps).to(device) for maps in zip(*(r.features for r in records), strict=True)]
    labels = [record.labels.to(device).long() for record in records if record.labels is not None]
    masks = [_masks(record, device) for record in records]
    valid = torch.stack([record.valid for record in records]).to(device)
    joined = torch.stack(labels) if len(labels) == len(records) else None
    return SemanticPriors(features, torch.stack(masks), joined, valid)


def _masks(record: _Record, device: torch.device) -> Tensor:
    if record.masks is not None:
        return record.masks.to(device)
    assert record.labels is not None
    return priors_from_labels([], record.labels[None].to(device), len(record.valid)).masks[0]


def _smallest(labels: Tensor) -> Tensor:
    low, high = (int(bound) for bound in labels.aminmax())
    dtype = next(t for t in _INTEGERS if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max)
    return labels.to(dtype)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _checksum(tensors: dict[str, Tensor]) -> Tensor:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(_bytes(tensors[name]), zlib.crc32(name.encode(), total))
    return torch.tensor([total])


def _check_fingerprint(given: str | None, bank: nn.Module) -> str:
    found = given if given is not None else getattr(bank, "fingerprint", None)
    if not isinstance(found, str) or not re.fullmatch(r"[\w-][\w.-]*", found, re.ASCII):
        raise ValueError(
            "fingerprint must identify the bank's weights and options in letters, digits, '_', '-' and '.', got "
            f"{found!r} from the argument or {type(bank).__name__}.fingerprint"
        )
    return found
