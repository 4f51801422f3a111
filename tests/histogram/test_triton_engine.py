"""The CUDA kernels without a GPU: their mathematics under Triton's interpreter, their code compiled for sm_90.

The interpreter has to be chosen before triton is imported, so ``test_under_the_interpreter`` runs the tests marked
``interpreted`` in a process of its own. What needs a device is in tests/test_gpu.py.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from skt_components.histogram import engines, soft_histogram
from skt_components.histogram.kernels import Bins
from skt_components.ops import reference

triton = pytest.importorskip("triton", minversion="3.3", reason="needs triton, which comes with torch for CUDA")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs inside test_under_the_interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="compiles, so not under the interpreter")
DEFAULT = Bins(256, 0.0, 1.0, 1 / 400)
operators = import_module("skt_components.histogram.soft_histogram")  # not the function of the same name


def kernels():
    from skt_components.histogram import triton_engine

    return triton_engine


def pictures(*shape: int, noise: float | None = None, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    """Student, a little beyond the range, and teacher: far from it, or the student with a little noise."""
    student = torch.rand(shape) * 1.1 - 0.05
    teacher = student.clamp_min(0) ** 0.9 if noise is None else student + noise * torch.randn(shape)
    return student * (high - low) + low, teacher * (high - low) + low


def region_map(*shape: int, regions: int = 3) -> Tensor:
    """Labels in [-1, regions]: one below and one above the valid ones."""
    return torch.randint(-1, regions + 1, shape)


def dense(values: Tensor, labels: Tensor | None, regions: int, bins: Bins = DEFAULT) -> Tensor:
    """Eqs. 6 to 8 in float64, region by region."""
    centers = reference.eq6_centers(bins.num, (bins.low, bins.high))
    kernel = reference.eq7_kernel(values.double()[..., None], centers, bins.bandwidth)
    if labels is None:
        return kernel.sum(dim=(2, 3))[:, None]
    weights = (labels.long()[:, None] == torch.arange(regions)[:, None, None]).double()
    return torch.einsum("brhw,bchwn->brcn", weights, kernel)


def distance(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    assert wanted.norm() > 0
    return float((got.double() - wanted.detach()).norm() / wanted.detach().norm())


def check(student: Tensor, teacher: Tensor | None, labels: Tensor | None, regions: int, tolerance=1e-6, **options):
    """Table, loss and gradient against the dense float64 form."""
    bins = DEFAULT._replace(**options)
    table = kernels().histogram_difference(student, teacher, labels, regions, bins)
    leaf = student.double().requires_grad_()
    wanted = dense(leaf, labels, regions, bins)
    if teacher is not None:
        wanted = wanted - dense(teacher, labels, regions, bins)
    (gradient,) = torch.autograd.grad(wanted.square().sum(), leaf)
    got = kernels().histogram_gradient(2 * table, student, labels, bins)
    assert table.dtype == torch.float64
    assert got.dtype == torch.float32
    assert distance(table, wanted) <= 2 * tolerance
    assert distance(table.square().sum(), wanted.square().sum()) <= tolerance
    assert distance(got, gradient) <= tolerance


# the process of the interpreter


def test_under_the_interpreter():
    if INTERPRETED:
        return
    if (
        tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
        and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0"
    ):
        pytest.skip("the interpreter of this triton takes scalars from arrays in a way that numpy no longer allows")
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(Path(__file__))]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 30


# matches the reference

SPACINGS = {
    "default": {},
    "two bins": {"bandwidth": 1 / 128},
    "coarse grid": {"bandwidth": 0.05},
    "half the range": {"bandwidth": 0.5},
    "odd range": {"num": 100, "low": -0.3, "high": 1.7, "bandwidth": 0.01},
    "few bins": {"num": 7, "bandwidth": 0.1},
    "one bin": {"num": 1, "bandwidth": 0.7},
    "more bins than a program holds": {"num": 1024},
}


@interpreted
@pytest.mark.parametrize("options", SPACINGS.values(), ids=SPACINGS)
def test_matches_reference(options):
    bins = DEFAULT._replace(**options)
    student, teacher = pictures(1, 1, 11, 21, low=bins.low, high=bins.high)
    check(student, teacher, region_map(1, 11, 21), 3, **options)


@interpreted
@pytest.mark.parametrize(
    ("spacing", "noise"), [("default", 1e-4), ("default", 3e-4), ("coarse grid", 1e-4), ("odd range", 3e-4)]
)  # 3e-4 is about where the kernels change the method
def test_near_pictures_match_reference(spacing, noise):
    bins = DEFAULT._replace(**SPACINGS[spacing])
    student, teacher = pictures(1, 1, 9, 14, noise=noise, low=bins.low, high=bins.high)
    check(student, teacher, region_map(1, 9, 14), 3, **SPACINGS[spacing])


@interpreted
@pytest.mark.parametrize(("with_labels", "options"), [(True, {}), (False, {"bandwidth": 0.05})])
def test_one_picture_matches_reference_and_torch(options, with_labels):
    values, _ = pictures(2, 1, 9, 14)
    labels = region_map(2, 9, 14) if with_labels else None
    regions = 3 if with_labels else 1
    check(values, None, labels, regions, **options)
    given = {"labels": labels, "num_regions": regions} if with_labels else {}
    wanted = soft_histogram(values.double(), backend="torch", **given, **options)
    got = kernels().histogram_difference(values, None, labels, regions, DEFAULT._replace(**options))
    assert distance(got, wanted) < 1e-6


@interpreted
@pytest.mark.parametrize("kind", ["global", "labels", "masks", "weights"])
def test_the_operator_gives_what_torch_gives(kind, monkeypatch):
    monkeypatch.setattr(engines, "_broken", set())  # so that a kernel that fails warns, which is an error here
    values, upstream = torch.rand(2, 1, 6, 9), torch.rand(2, 1 if kind == "global" else 3, 1, 16, dtype=torch.float64)
    labels, masks = torch.arange(108).view(2, 6, 9) % 4 - 1, torch.rand(2, 3, 6, 9) > 0.5
    regions = {
        "global": (None, None, 1),
        "labels": (None, labels, 3),
        "masks": (masks, None, 3),
        "weights": (masks.float(), None, 3),
    }[kind]
    found = []
    for engine in ("triton", "torch"):
        monkeypatch.setattr(operators, "choose_backend", lambda *_, engine=engine: engine)
        leaf = values.clone().requires_grad_()
        counts = operators.histogram_difference(leaf, 0.9 * values, *regions, num_bins=16, bandwidth=0.05)
        found.append((counts.detach(), *torch.autograd.grad(counts, leaf, upstream)))
    for got, wanted in zip(*found, strict=True):
        assert got.dtype == wanted.dtype
        assert distance(got, wanted) <= 1e-6


@interpreted
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 1, 150), (1, 1, 150, 1), (1, 1, 17, 18)])
def test_any_picture_size(shape):
    student, teacher = pictures(*shape)
    check(student, teacher, None, 1)
    check(student, teacher, torch.zeros(shape[0], *shape[2:], dtype=torch.uint8), 1)


@interpreted
def test_any_strides():
    student, teacher = pictures(2, 2, 7, 12)
    labels = region_map(2, 7, 12)
    plain = kernels().histogram_difference(student, teacher, labels, 3, DEFAULT)
    strange = student.to(memory_format=torch.channels_last), teacher.repeat_interleave(2, -1)[..., ::2]
    table = kernels().histogram_difference(*strange, labels.mT.contiguous().mT, 3, DEFAULT)
    assert torch.equal(table, plain)
    gradients = [kernels().histogram_gradient(plain, x, labels, DEFAULT) for x in (student, strange[0])]
    assert torch.equal(*gradients)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_pictures(dtype):
    student, teacher = (x.to(dtype) for x in pictures(1, 1, 9, 14))
    check(student, teacher, region_map(1, 9, 14), 3)


# regions


@interpreted
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_labels(dtype):
    student, teacher = pictures(1, 1, 9, 14)
    labels = region_map(1, 9, 14).to(dtype)  # -1 is 255 in uint8
    check(student, teacher, labels, 3)


@interpreted
def test_empty_and_one_pixel_regions():
    student, teacher = pictures(1, 1, 6, 7)
    labels = torch.full((1, 6, 7), 4)
    labels[0, 2, 3] = 1
    check(student, teacher, labels, 6)
    table = kernels().histogram_difference(student, teacher, labels, 6, DEFAULT)
    assert table[:, [0, 2, 3, 5]].eq(0).all()


@interpreted
def test_as_many_regions_as_pixels():
    student, teacher = pictures(1, 1, 3, 6)
    check(student, teacher, (torch.randperm(18) + 12).reshape(1, 3, 6), 30)


@interpreted
def test_nothing_to_count():
    student, teacher = pictures(1, 2, 4, 5)
    none = torch.full((1, 4, 5), -1)
    assert kernels().histogram_difference(student, teacher, none, 3, DEFAULT).eq(0).all()
    for batch, regions in [(0, 3), (1, 0)]:
        x, labels = student[:batch], none[:batch]
        table = kernels().histogram_difference(x, x, labels, regions, DEFAULT)
        assert table.shape == (batch, regions, 2, 256)
        gradient = kernels().histogram_gradient(table, x, labels, DEFAULT._replace(bandwidth=0.01))
        assert gradient.shape == x.shape
        assert gradient.eq(0).all()


@interpreted
def test_the_plan_lists_every_pixel_once_and_clears_the_table():
    labels, table = region_map(2, 20, 35, regions=5), torch.ones(3, 7, dtype=torch.int64)
    plan = kernels()._plan(labels, 5, (16, 16), table)
    assert sum(int((part >> 16).sum()) for part in plan) == int(((labels >= 0) & (labels < 5)).sum())
    assert table.eq(0).all()


@interpreted
def test_offsets_beyond_32_bits():
    rows = torch.empty(2**31 + 64, dtype=torch.int8).as_strided((1, 3, 14), (0, 2**30 + 8, 1))  # mostly untouched
    rows.copy_(region_map(1, 3, 14))
    student, teacher = pictures(1, 1, 3, 14)
    check(student, teacher, rows, 3)


# what a histogram means


@interpreted
def test_equal_pictures_cancel_exactly():
    student, _ = pictures(1, 1, 12, 20)
    student[..., :5] = 1.0
    assert kernels().histogram_difference(student, student.clone(), None, 1, DEFAULT).eq(0).all()


@interpreted
@pytest.mark.parametrize("value", [0.503, 1.0, 1.004])
def test_constant_pictures(value):
    student = torch.full((1, 1, 16, 16), value)
    check(student, student + 1e-4 * torch.randn(student.shape), None, 1, tolerance=2e-6)
    check(student, None, None, 1, tolerance=1e-6 if value <= 1 else 1e-5)  # a tail alone has fewer digits


@interpreted
def test_batch_and_channels_do_not_mix():
    student, teacher = pictures(2, 2, 6, 9)
    labels = region_map(2, 6, 9)
    both = kernels().histogram_difference(student, teacher, labels, 3, DEFAULT)
    alone = kernels().histogram_difference(student[1:, 1:], teacher[1:, 1:], labels[1:], 3, DEFAULT)
    assert torch.equal(both[1:, :, 1:], alone)


@interpreted
def test_far_values_count_nothing():
    values = torch.tensor([math.inf, -math.inf, 1e30, -1e30, -2.0, 3.0, 0.3]).reshape(1, 1, 1, 7)
    for teacher in (None, values.flip(-1)):
        table = kernels().histogram_difference(values, teacher, None, 1, DEFAULT)
        seen = dense(values[..., -1:], None, 1, DEFAULT)
        wanted = seen if teacher is None else seen * 0
        torch.testing.assert_close(table, wanted, rtol=0, atol=1e-6)
    upstream = torch.randn(1, 1, 1, 256)
    gradient = kernels().histogram_gradient(upstream, values, None, DEFAULT)
    assert gradient[..., :-1].eq(0).all()
    assert gradient[..., -1].ne(0).all()


@interpreted
@pytest.mark.parametrize("side", ["student", "teacher", "teacher where the student is 1/512", "both"])
def test_nan_marks_its_region_and_channel_only(side):
    student, teacher = pictures(1, 2, 6, 10)
    student[0, 0, 2, 3] = 1 / 512  # where the kernels put a NaN
    for picture in [student] * (side in ("student", "both")) + [teacher] * (side != "student"):
        picture[0, 0, 2, 3 if picture is student or "where" in side else 4] = math.nan
    labels = torch.zeros(1, 6, 10, dtype=torch.long)
    labels[:, 4:] = 1
    table = kernels().histogram_difference(student, teacher, labels, 2, DEFAULT)
    assert table[0, 0, 0].isnan().all()
    table[0, 0, 0] = 0
    assert table.isfinite().all()


@interpreted
def test_gradient_of_nan_and_of_pixels_without_region():
    values = torch.tensor([math.nan, math.nan, 0.3, 0.4]).reshape(1, 1, 1, 4)
    labels = torch.tensor([[[0, -1, 0, -1]]])
    upstream = torch.randn(1, 1, 1, 256, dtype=torch.float64)
    gradient = kernels().histogram_gradient(upstream, values, labels, DEFAULT).flatten()
    assert gradient[0].isnan()
    assert gradient[[1, 3]].eq(0).all()
    assert gradient[2] != 0


# the grid, which needs no triton


@pytest.mark.parametrize("bandwidth", [3.0, 7.5, 100.0, 1e5])
def test_coarse_grid_gives_the_same_kernel(bandwidth):
    grid = kernels().make_grid(Bins(256, 0.0, 256.0, bandwidth))
    x = torch.linspace(-4 * bandwidth, 256 + 4 * bandwidth, 999, dtype=torch.float64)
    points = x * grid.scale + grid.shift
    assert grid.num < 400
    narrow = torch.exp(-(((points[:, None] - torch.arange(grid.num)) / grid.bandwidth) ** 2))
    wanted = reference.eq7_kernel(x[:, None], reference.eq6_centers(256, (0.0, 256.0)), bandwidth)
    torch.testing.assert_close(narrow @ kernels().projection(grid, 256, x.device), wanted, rtol=1e-6, atol=2e-8)


@pytest.mark.parametrize("num_bins", [1, 7, 256, 5000])
@pytest.mark.parametrize("bandwidth", [0.01, 0.64, 2.99, 3.0, 50.0])
def test_cells_hold_every_window(num_bins, bandwidth):
    grid = kernels().make_grid(Bins(num_bins, 0.0, float(num_bins), bandwidth))
    cells = kernels().make_cells(grid)
    assert cells.low >= 1
    assert cells.low + 2 * grid.half - 1 <= cells.cols
    assert cells.parts * cells.rows * cells.low >= grid.num
    assert cells.rows * cells.cols <= 1024
    assert min(cells.rows, cells.cols) >= 16  # the matrix unit's least


# compiled for sm_90

POINTERS = {"student": "*fp32", "teacher": "*fp32", "values": "*fp32", "labels": "*i32", "plan": "*i32"}
POINTERS |= {"table": "*i64", "table_size": "i64", "upstream": "*fp64", "out": "*fp32"}
FLOATS = {"scale_high", "scale_low", "shift_high", "shift_low", "sharpness", "near", "factor"}


def build(name: str, constants: dict, warps: int, **pointers: str):
    """Compile a kernel as it would be on an H100 or H200, with the default bins."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(kernels(), name)
    types = POINTERS | dict.fromkeys(FLOATS, "fp32") | pointers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        fn=kernel,
        signature={argument: types.get(argument, "i32") for argument in kernel.arg_names},
        constexprs={(kernel.arg_names.index(argument),): value for argument, value in constants.items()},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": 1})


def resources(binary: bytes, folder: Path) -> dict[str, int]:
    """Registers, stack (where spilled registers go) and so on of a cubin."""
    (folder / "kernel.cubin").write_bytes(binary)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


@compiled
@pytest.mark.parametrize(
    ("pair", "options"),
    [(True, {}), (False, {}), (True, {"bandwidth": 0.05})],
    ids=["pair", "single", "pair on a coarse grid"],
)
def test_forward_compiles_to_the_matrix_unit_without_float_atomics(pair, options, tmp_path):
    grid = kernels().make_grid(DEFAULT._replace(**options))
    cells = kernels().make_cells(grid)
    constants = {"NUM": grid.num, "HALF": grid.half, "LOW": cells.low, "ROWS": cells.rows, "COLS": cells.cols}
    constants |= {"TILE_H": 32, "TILE_W": 32, "BLOCK": 64, "FRACTION_BITS": 36, "PAIR": pair, "LABELS": pair}
    constants |= {"s_x": 1} | ({} if pair else {"teacher": None, "labels": None, "plan": None})
    built = build("difference_kernel", constants, warps=1)
    ptx = built.asm["ptx"]
    assert re.search(r"mma\.sync\.aligned\.m16n8k16\S*\.f32\.f16\.f16\.f32", ptx)
    atomics = set(re.findall(r"\b(?:red|atom)\.\S+", ptx))
    assert atomics
    assert all(name.endswith(("u64", "s64")) for name in atomics), atomics
    used = resources(built.asm["cubin"], tmp_path)
    assert used["REG"] <= 255
    assert used["STACK"] + used["LOCAL"] <= 64
    assert built.metadata.shared <= 8192  # so that 16 programs, and more, share a multiprocessor


@compiled
@pytest.mark.parametrize("upstream", ["*fp32", "*fp64"])
def test_backward_compiles_without_atomics_or_spills(upstream, tmp_path):
    constants = {"NUM": 256, "HALF": 3, "TILE_H": 32, "TILE_W": 32, "LABELS": True, "v_x": 1}
    built = build("gradient_kernel", constants, warps=8, upstream=upstream)
    assert not re.search(r"\b(?:red|atom)\.", built.asm["ptx"])
    used = resources(built.asm["cubin"], tmp_path)
    assert used["REG"] <= 128
    assert used["STACK"] == used["LOCAL"] == 0


@compiled
def test_the_small_kernels_compile():
    plan = build("plan_kernel", {"TILE_H": 32, "TILE_W": 32}, warps=4, labels="*i64")
    assert "st.global" in plan.asm["ptx"]
    finish = build("finish_kernel", {"NUM": 256, "FRACTION_BITS": 36, "BLOCK": 256}, warps=4, out="*fp64")
    assert "st.global" in finish.asm["ptx"]


@compiled
@pytest.mark.parametrize("name", ["plan_kernel", "difference_kernel", "gradient_kernel"])
def test_compiles_for_one_pixel(name):
    # Triton makes constants of the arguments that are 1: here all of them.
    kernel = getattr(kernels(), name)
    ones = dict.fromkeys({"tiles", "tiles_x", "channels", "height", "width", "regions"} & set(kernel.arg_names), 1)
    ones |= {argument: 1 for argument in kernel.arg_names if re.fullmatch(r"(\w|stride)_[bcyx]", argument)}
    shape = {"NUM": 256, "HALF": 3, "LOW": 11, "ROWS": 32, "COLS": 16, "TILE_H": 16, "TILE_W": 16, "BLOCK": 64}
    shape |= {"FRACTION_BITS": 36, "PAIR": True, "LABELS": True}
    shape = {argument: value for argument, value in shape.items() if argument in kernel.arg_names}
    assert build(name, ones | shape, warps=1).asm["cubin"]
