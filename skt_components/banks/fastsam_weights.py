"""Find, download, read and convert FastSAM's weights, which are not part of this package."""

from __future__ import annotations

import http.client
import importlib.util
import os
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from skt_components.banks.fastsam_architecture import BATCH_NORM_EPS, YOLOv8Seg
from skt_components.banks.yolo11_architecture import YOLO11Seg
from skt_components.files.atomic import atomic_write
from skt_components.files.digest import file_digest
from skt_components.files.unpickle import read_pickled_model
from skt_components.files.weights import hub_cache, import_safetensors, read_state_dict, write_safetensors

LICENSE_NOTE = "FastSAM's weights are under AGPL-3.0 and were trained on SA-1B, whose license is for research."
_FIRST_CHANNELS = {"FastSAM-s": 32, "FastSAM-x": 80}  # tells the two networks apart
_NAMES = tuple(_FIRST_CHANNELS)
_VARIABLE = "SKT_FASTSAM_WEIGHTS"
_RELEASE = "https://github.com/ultralytics/assets/releases/download/v8.4.0"
_TIMEOUT = 10.0  # seconds without data
_CHUNK = 1 << 20
_WHERE = (
    "Get {name}.pt from https://github.com/ultralytics/assets/releases or from the links in FastSAM's repository, "
    "https://github.com/CASIA-LMC-Lab/FastSAM; then pass its path, set {variable} to it, or put it into {cache}; "
    "or pass download=True. " + LICENSE_NOTE
)


def find_fastsam_weights(weights: str | os.PathLike[str] | None = None, *, download: bool = False) -> Path:
    """Return the existing file of FastSAM's weights; nothing is downloaded unless ``download``.

    Args:
        weights: "FastSAM-s" or "FastSAM-x" finds ``<name>.safetensors`` or ``<name>.pt`` in PyTorch's cache,
            ``torch.hub.get_dir()/checkpoints``. A name with a suffix finds only this file, first in the working
            directory. Anything else is a path. None: the file in the environment variable SKT_FASTSAM_WEIGHTS, or
            "FastSAM-s" without it.
        download: download named weights from the releases of ultralytics/assets if the cache lacks them.

    Raises:
        TypeError: ``weights`` is not a path.
        FileNotFoundError, IsADirectoryError: there is no such file; the message says how to get it.
        OSError: the download fails or is not FastSAM. No file is left then.
    """
    if weights is None:
        named = os.environ.get(_VARIABLE)
        if named:
            return _existing(Path(named).expanduser(), f"the environment variable {_VARIABLE}")
        weights = "FastSAM-s"
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(f"weights must be a path, {_NAMES[0]!r} or {_NAMES[1]!r}, got {type(weights).__name__}")
    path = Path(weights).expanduser()
    name = path.name if path.name in _NAMES else path.stem
    if str(path) not in (name, f"{name}.pt", f"{name}.safetensors") or name not in _NAMES:
        return _existing(path, "weights")
    if path.suffix and path.is_file():
        return path
    cache = hub_cache()
    places = [cache / path] if path.suffix else [cache / f"{name}.safetensors", cache / f"{name}.pt"]
    found = next((place for place in places if place.is_file()), None)
    if found is not None:
        return found
    if download and path.suffix != ".safetensors":  # only the pickle is published
        return _download(name, cache)
    looked = " and ".join(map(str, ([path.absolute()] if path.suffix else []) + places))
    raise FileNotFoundError(f"no weights of {name}: looked for {looked}. {_advice(name)}")


def load_fastsam_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, a pickled model or a pickled state dict, without running code in it.

    See :func:`read_pickled_model` and :func:`read_state_dict` for the errors.
    """
    file = Path(path)
    if file.suffix == ".safetensors" or not zipfile.is_zipfile(file):
        return read_state_dict(file, prefix="module.")
    return read_pickled_model(file)


def make_network(state: Mapping[str, Tensor], source: str) -> YOLOv8Seg:
    """Make the YOLOv8 or YOLO11 segmentation network that a state dict belongs to, in float32 and eval mode.

    A network whose batch normalizations were fused into its convolutions gets normalizations that change nothing.

    Raises:
        ValueError: it is not the state dict of such a network.
    """
    network = YOLO11Seg if any(name.startswith("model.23.") for name in state) else YOLOv8Seg
    return network.from_state_dict(_separate(state), source)


def live_state(model: object) -> dict[str, Tensor]:
    """Return the state dict of a model object of ultralytics (FastSAM, YOLO) or of its network, with the file's names.

    Raises:
        TypeError: ``model`` is neither.
    """
    network = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(network, nn.Module):
        raise TypeError(f"weights must be a path, a name or a model of ultralytics, got {type(model).__name__}")
    state = network.state_dict()
    while state and all(name.startswith("model.model.") for name in state):
        state = {name.removeprefix("model."): value for name, value in state.items()}
    return dict(state)


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move the biases of fused convolutions into normalizations of their own; other states stay as they are."""
    separate = dict(state)
    for name, bias in state.items():
        layer = name.removesuffix(".conv.bias")
        if layer == name or f"{layer}.bn.weight" in state:
            continue
        one = torch.ones_like(bias)
        del separate[name]
        separate |= {
            f"{layer}.bn.weight": one,
            f"{layer}.bn.bias": bias,
            f"{layer}.bn.running_mean": torch.zeros_like(bias),
            f"{layer}.bn.running_var": one - BATCH_NORM_EPS,
            f"{layer}.bn.num_batches_tracked": torch.zeros((), dtype=torch.int64),
        }
    return separate


def convert_checkpoint(src: str | os.PathLike[str], dst: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Convert the weights of FastSAM, or of a YOLOv8 or YOLO11 segmentation network, to safetensors without rounding.

    Args:
        src: a checkpoint such as the published ``FastSAM-s.pt``.
        dst: the ``.safetensors`` file to write and return; its metadata has the architecture, the number of classes,
            ``reg_max`` and the source's SHA-256.
        overwrite: replace ``dst`` if it exists.

    Raises:
        FileNotFoundError, FileExistsError: if ``src`` or the folder of ``dst`` is missing, or ``dst`` is in the way.
        ValueError: if ``src`` is not such a network or ``dst`` is ``src`` or not a ``.safetensors`` file.
        ImportError, OSError: if safetensors is not installed, or ``dst`` cannot be written.
    """
    source, target = Path(src), Path(dst)
    if target.suffix != ".safetensors":
        raise ValueError(f"dst must end in .safetensors, got {target}")
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"dst must be another file than src, got {target} twice")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"folder of dst does not exist: {target.parent}")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; it is replaced only with overwrite=True")
    import_safetensors("converting")  # before the work
    state = load_fastsam_state(source)
    network = make_network(state, str(source))
    config = network.config
    metadata = {
        "format": "pt",
        "architecture": f"{network.name.lower()}-seg",
        "nc": str(config.num_classes),
        "reg_max": str(config.reg_max),
        "source_sha256": file_digest(source),
    }
    # Clones, because safetensors rejects tensors that share memory.
    clones = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    write_safetensors(target, clones, metadata)
    return target


def _existing(path: Path, origin: str) -> Path:
    if path.is_dir():
        raise IsADirectoryError(f"{origin} must name a file, got the folder {path}")
    if not path.is_file():
        raise FileNotFoundError(f"{origin} names a file that does not exist: {path.absolute()}. {_advice(_NAMES[0])}")
    return path


def _advice(name: str) -> str:
    return _WHERE.format(name=name, variable=_VARIABLE, cache=hub_cache())


def _download(name: str, cache: Path) -> Path:
    url, target = f"{_RELEASE}/{name}.pt", cache / f"{name}.pt"
    with closing(_chunks(url, name)) as chunks:
        first = next(chunks, b"")  # before any folder is made
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            with open(temporary, "wb") as file:
                file.writelines(chain([first], chunks))
            try:
                network = YOLOv8Seg.from_state_dict(load_fastsam_state(temporary), str(temporary))
                if network.config.channels[0] != _FIRST_CHANNELS[name]:
                    raise ValueError(f"its first layer has {network.config.channels[0]} channels")
            except ValueError as error:
                raise OSError(f"{url} did not give the weights of {name} ({error}). {_advice(name)}") from error
    return target


def _chunks(url: str, name: str) -> Generator[bytes, None, None]:
    """Yield the body of ``url`` in one attempt; raise ConnectionError for every failure of the network."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, _progress(response, name) as report:
            while block := response.read(_CHUNK):
                report(len(block))
                yield block
            if response.length:  # bytes announced by the server and not received
                raise ConnectionError(f"it ended with {response.length} bytes missing")
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        reason = repr(error) if isinstance(error, http.client.HTTPException) else reason
        raise ConnectionError(f"could not download {url}: {reason}. {_advice(name)}") from error


@contextmanager
def _progress(response: http.client.HTTPResponse, name: str) -> Iterator[Callable[[int], object]]:
    """Yield a function of the number of bytes received; on a terminal it shows a progress bar."""
    if sys.stderr is None or not sys.stderr.isatty() or importlib.util.find_spec("tqdm") is None:
        yield lambda size: None
        return
    from tqdm import tqdm

    with tqdm(total=response.length, unit="B", unit_scale=True, desc=name) as bar:
        yield bar.update
