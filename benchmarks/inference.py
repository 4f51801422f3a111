"""Compare ways to run the networks on one large picture: time, memory, and the difference of the result.

python benchmarks/inference.py                                     # all networks: a quarter of an hour of two cores
python benchmarks/inference.py --networks ahdrnet --size 500 750
Writes benchmarks/results/inference--<device>.json and prints a table. The weights are random; cost does not depend on
them. Every measurement is a process of its own, so that the memory is its own. A way whose package is not installed
is left out by name. The speed of one large matrix product stands beside them, as the processor's measured peak.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from networks import bracket_of
from timing import environment, write_result
from torch.utils.flop_counter import FlopCounterMode

import skt_components as skt
from skt_components.ops import use_huge_pages

ROOT = Path(__file__).parents[1]
WAYS = {  # name: whole picture or tiles, huge pages, and what runs a tile
    "whole picture": (True, False, "torch"),
    "whole picture, huge pages": (True, True, "torch"),
    "tiles": (False, False, "torch"),
    "tiles, huge pages": (False, True, "torch"),  # what skt reconstruct does
    "tiles, huge pages, channels last": (False, True, "channels_last"),
    "tiles, onnxruntime": (False, True, "onnxruntime"),
    "tiles, openvino": (False, True, "openvino"),
}
FIRST = "whole picture"


@dataclass(frozen=True)
class Options:
    """Measure this machine's CPU."""

    size: tuple[int, int] = (1000, 1500)
    """Height and width of the picture; packed RAW has half of them."""
    networks: tuple[str, ...] = ("ahdrnet", "hdr-transformer", "sctnet", "tmrnet")
    """Names of the networks."""
    ways: tuple[str, ...] = tuple(WAYS)
    """Ways to run them; the first one is what the others are compared with."""
    tile: int = 768
    """Largest side of the tiles."""
    overlap: int = 96
    """Pixels that adjacent tiles share."""
    out: Path = ROOT / "benchmarks" / "results"
    """Folder of the JSON."""
    one: str = ""
    """For internal use: "NETWORK/WAY/FILE" in a process of its own."""


def make(name: str, size: tuple[int, int]) -> tuple[skt.models.ReconstructionNetwork, torch.Tensor]:
    """Return the network and a random bracket, the same in every process."""
    torch.manual_seed(0)
    network = skt.models.NETWORKS[name]().eval()
    return network, bracket_of(network, *size, torch.device("cpu"))


def engine(network: skt.models.ReconstructionNetwork, runner: str) -> Callable[..., torch.Tensor]:
    """Return what maps tiles to their pictures."""
    if runner == "torch":
        return network
    if runner == "channels_last":
        return network.to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        skt.export_onnx(network, file)
        if runner == "onnxruntime":
            import onnxruntime

            threads = onnxruntime.SessionOptions()
            threads.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(file, threads, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            return lambda tiles: torch.from_numpy(session.run(None, {name: tiles.numpy()})[0])
        import openvino

        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.Core().compile_model(file, "CPU", hints)
        return lambda tiles: torch.from_numpy(compiled(tiles.numpy())[0].copy())


def measure_one(options: Options) -> None:
    """Run the network once after a small picture; print seconds and memory, and save the result to FILE."""
    name, way, file = options.one.split("/", 2)
    whole, huge, runner = WAYS[way]
    if huge:
        use_huge_pages()
    network, bracket = make(name, options.size)
    run = engine(network, runner)
    tiles = {
        "tile": options.tile,
        "overlap": options.overlap,
        "size_multiple": network.size_multiple,
        "progress": False,
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        run(bracket[..., :64, :64])  # the first call prepares
        start = time.perf_counter()
        picture = run(bracket) if whole else skt.tiled_inference(run, bracket, **tiles)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    torch.save(picture, file)
    print(json.dumps({"seconds": round(seconds, 2), "peak_mib_beyond_start": round(peak / 1024)}))


def matrix_speed() -> float:
    """Return the GFLOP/s of a product of large matrices, the best of five."""
    use_huge_pages()
    left, right, seconds = torch.rand(2048, 2048), torch.rand(2048, 2048), []
    for _ in range(5):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds) / 1e9


def gmacs(name: str, size: tuple[int, int]) -> float:
    """Return the multiply-adds of the convolutions and matrix products for the whole picture, in 1e9."""
    network, bracket = make(name, (256, 256))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(bracket)
    return counter.get_total_flops() / 2e9 * size[0] * size[1] / 256**2


def main(options: Options) -> None:
    """Measure all, print and write the results."""
    if options.one:
        measure_one(options)
        return
    rows: dict[str, dict[str, object]] = {}
    written: dict[str, object] = {"command": " ".join(["python benchmarks/inference.py", *sys.argv[1:]])}
    written |= {**environment(torch.device("cpu")), "size": options.size, "tile": options.tile, "networks": rows}
    for name in options.networks:
        rows[name] = {"gmacs": round(gmacs(name, options.size), 1), "matrix_gflops": round(matrix_speed())}
        first: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            for index, way in enumerate(options.ways):
                runner = WAYS[way][2]
                if runner in ("onnxruntime", "openvino") and importlib.util.find_spec(runner) is None:
                    print(f"{name}: no {way}: {runner} is not installed", flush=True)
                    continue
                file = os.path.join(folder, f"{index}.pt")
                command = [sys.executable, __file__, "--size", *map(str, options.size), "--tile", str(options.tile)]
                command += ["--overlap", str(options.overlap), "--one", f"{name}/{way}/{file}"]
                plain = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}
                done = subprocess.run(command, env=plain, capture_output=True, text=True, check=False)
                if done.returncode:
                    reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
                    rows[name][way] = {"failed": reason}
                    print(f"{name}, {way}: {reason}", flush=True)
                    continue
                row = json.loads(done.stdout.splitlines()[-1])
                first = first or row
                row["times_as_fast"] = round(first["seconds"] / row["seconds"], 2)
                row["share_of_matrix_speed"] = round(
                    2 * float(str(rows[name]["gmacs"])) / row["seconds"] / float(str(rows[name]["matrix_gflops"])), 2
                )
                result, expected = torch.load(file), torch.load(os.path.join(folder, "0.pt"))
                row["largest_difference"] = float((result - expected).abs().max())
                rows[name][way] = row
                print(f"{name}, {way}: {row}", flush=True)
                write_result(options.out, "inference", written)  # each row, so that a stopped run has its results


if __name__ == "__main__":
    main(tyro.cli(Options))
