"""The package keeps its shape: import directions, light imports, public names, file layout, annotations."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import skt_components

ROOT = Path(skt_components.__file__).parent
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))

# A package imports from itself and from packages of a lower level, never from its own level or above.
LEVELS = {
    **dict.fromkeys(("ops",), 0),
    **dict.fromkeys(("histogram", "files"), 1),
    **dict.fromkeys(("losses", "modules", "metrics", "data"), 2),
    **dict.fromkeys(("simulation", "models", "banks"), 3),
    "framework": 4,
    "evaluation": 5,
    "training": 6,
    "reconstruct": 6,
    "commands": 7,
}
# Optional or slow to import: only inside the functions that need them.
HEAVY = {
    *(
        "accelerate",
        "cv2",
        "huggingface_hub",
        "imagecodecs",
        "kornia",
        "lpips",
        "matplotlib",
        "numba",
        "onnx",
        "onnxruntime",
        "OpenEXR",
        "pycvvdp",
    ),
    *("jinja2", "PIL", "rich", "safetensors", "skimage", "tifffile", "timm", "torchvision", "tqdm", "triton", "tyro"),
    *("exifread", "transformers", "ultralytics"),
}
# What stands for a heavy package: only this file may import it at its top, and only functions may import the file.
ENGINES = {"triton": "histogram/triton_engine.py", "numba": "histogram/numba_engine.py"}


class Import(NamedTuple):
    """One imported name, ``a.b.c``, and whether importing the file is enough to run the import."""

    name: str
    line: int
    at_import: bool


def imports(tree: ast.AST, package: str, at_import: bool = True) -> Iterator[Import]:
    """Yield everything that a file of ``package`` (dotted) imports; ``from a import b`` yields ``a.b``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (Import(f"{base}.{alias.name}", node.lineno, at_import) for alias in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports(node, package, at_import=False)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            yield from imports(ast.Module(node.body, []), package, at_import=False)
            yield from imports(ast.Module(node.orelse, []), package, at_import)
        else:
            yield from imports(node, package, at_import)


def offence(found: Import, file: str) -> str | None:
    """Return what is wrong with this import in ``file`` (``package/file.py``), or None."""
    top, *rest = found.name.split(".")
    if file != ENGINES.get(top, file):
        return f"only {ENGINES[top]} may import {top}"
    if top in HEAVY and found.at_import and file != ENGINES.get(top):
        return f"{top} must be imported inside the function that needs it"
    if top in {"benchmarks", "examples", "tests"}:
        return f"the package must not import {top}"
    if top != "skt_components":
        return None
    if rest[:2] == ["ops", "reference"]:
        return "ops.reference is for tests and benchmarks only"
    engine = f"{'/'.join(rest[:2])}.py"
    if engine in ENGINES.values() and found.at_import:
        return f"{engine} must be imported inside a function, because it imports a heavy package"
    if "/" not in file:
        return None  # the root gathers everything
    target, package = (rest or [""])[0], file.split("/")[0]
    if target not in LEVELS or package not in LEVELS:
        return f"{package} may import only from {sorted(LEVELS)} inside the package, not {found.name}"
    if target != package and LEVELS[target] >= LEVELS[package]:
        return f"{package} (level {LEVELS[package]}) must not import {target} (level {LEVELS[target]})"
    return None


def offences(source: str, file: str) -> list[str]:
    """Return every forbidden import in the source of ``file`` (path below skt_components, with ``/``)."""
    package = ".".join(["skt_components", *file.split("/")[:-1]])
    checked = ((found, offence(found, file)) for found in imports(ast.parse(source), package))
    return [f"{file}:{found.line}: {wrong}" for found, wrong in checked if wrong]


def run_python(code: str) -> str:
    """Run ``code`` in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


# import directions


def test_imports_go_one_way():
    assert len(FILES) > 100
    assert [found for file, path in FILES.items() for found in offences(path.read_text(encoding="utf-8"), file)] == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("ops/raw.py", "from skt_components.losses import x", r"ops \(level 0\) must not import losses"),
        ("losses/content.py", "import skt_components.modules.taps", "losses .* must not import modules"),
        ("metrics/psnr.py", "from skt_components import data", "metrics .* must not import data"),
        ("metrics/psnr.py", "from ..models import ahdrnet", "metrics .* must not import models"),
        ("models/spgrm.py", "def f():\n    from skt_components.banks import x", "models .* must not import banks"),
        ("models/spgrm.py", "from skt_components.training.config import x", "models .* must not import training"),
        ("framework/semantic_transfer.py", "from .. import evaluation", "framework .* must not import evaluation"),
        ("modules/skam.py", "import skt_components", "modules may import only from"),
        ("modules/skam.py", "from skt_components import SPGRM", "modules may import only from"),
        ("modules/skam.py", "if TYPE_CHECKING:\n    from skt_components.banks import x", "must not import banks"),
        ("losses/histogram.py", "from skt_components.ops import reference", "for tests and benchmarks only"),
        ("histogram/soft_histogram.py", "def f():\n    from ..ops.reference import x", "for tests and benchmarks only"),
        ("__init__.py", "from skt_components.ops.reference import x", "for tests and benchmarks only"),
        ("histogram/soft_histogram.py", "def f():\n    import triton.language as tl", "may import triton"),
        ("histogram/soft_histogram.py", "from skt_components.histogram import triton_engine", "inside a function"),
        ("histogram/soft_histogram.py", "from skt_components.histogram import numba_engine", "inside a function"),
        ("histogram/soft_histogram.py", "import numba", "only histogram/numba_engine.py may import numba"),
        ("banks/timm.py", "try:\n    import timm\nexcept ImportError:\n    timm = None", "timm must be imported"),
        ("data/io.py", "class A:\n    from PIL import Image", "PIL must be imported"),
        ("training/config.py", "from examples import train_full", "must not import examples"),
    ],
)
def test_forbidden_imports_are_reported(file, source, complaint):
    (reported,) = offences(source, file)
    assert reported.startswith(f"{file}:")
    assert re.search(complaint, reported)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ops/raw.py", "import torch\nfrom skt_components.ops.checks import check_tensor"),
        ("histogram/triton_engine.py", "import triton\nimport triton.language as tl"),
        ("histogram/soft_histogram.py", "def f():\n    from skt_components.histogram import triton_engine"),
        ("losses/content.py", "from ..ops.transfer import mu_law\nfrom .histogram import x"),
        ("banks/timm.py", "def f():\n    import timm\nfrom skt_components.banks.timm import x"),
        ("data/io.py", "if TYPE_CHECKING:\n    from PIL import Image"),
        ("evaluation/figures.py", "from skt_components import metrics\nfrom skt_components.models import SPGRM"),
        ("__init__.py", "from skt_components.training import x"),
    ],
)
def test_allowed_imports_are_not_reported(file, source):
    assert offences(source, file) == []


# light imports


def test_importing_every_module_loads_no_heavy_package():
    # Whatever torch loads by itself is torch's business.
    engines = {f"skt_components.{file[:-3].replace('/', '.')}" for file in ENGINES.values()}
    names = [m.name for m in pkgutil.walk_packages([str(ROOT)], "skt_components.") if m.name not in engines]
    loaded = run_python(
        "import sys, importlib, torch\n"
        "before = {name.split('.')[0] for name in sys.modules}\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "print(*({name.split('.')[0] for name in sys.modules} - before))"
    )
    assert HEAVY.isdisjoint(loaded.split())


@pytest.mark.slow
def test_import_time_is_close_to_that_of_torch():
    # The minimum of processor seconds is what a busy machine disturbs least; stop as soon as it is decided.
    code = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"
    times: dict[str, list[float]] = {"torch": [], "skt_components": []}
    for _ in range(8):
        for name, measured in times.items():
            measured.append(float(run_python(code.format(name))))
        ratio = min(times["skt_components"]) / min(times["torch"])
        if len(times["torch"]) >= 2 and ratio <= 1.3:
            return
    pytest.fail(f"import skt_components takes {ratio:.2f} times as long as import torch, at most 1.3 is wanted")


# public names


def public_names(package: str) -> list[str]:
    return importlib.import_module(f"skt_components.{package}").__all__


def test_the_root_has_the_components_and_the_packages_have_the_rest():
    homes = {name: package for package in PACKAGES for name in public_names(package)}
    assert set(skt_components.__all__) <= set(homes)
    assert len(set(skt_components.__all__)) == len(skt_components.__all__)
    # the components alone: losses, modules, networks, banks, data, metrics
    assert 70 <= len(skt_components.__all__) <= 90
    assert not {name for name in skt_components.__all__ if homes[name] == "training"}


def test_the_old_name_of_a_bank_still_works():
    with pytest.warns(DeprecationWarning, match="NoKnowledge is now called EmptyBank"):
        assert skt_components.NoKnowledge is skt_components.EmptyBank
    with pytest.raises(AttributeError, match="has no attribute 'SomeKnowledge'"):
        _ = skt_components.SomeKnowledge


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist_and_are_documented(package):
    # A dataclass without a docstring gets its signature as one, which documents nothing.
    module = importlib.import_module(f"skt_components.{package}")
    assert len(set(module.__all__)) == len(module.__all__)
    values = {name: getattr(module, name) for name in module.__all__}
    documented = {name: value for name, value in values.items() if isinstance(value, type) or inspect.isfunction(value)}
    assert [n for n, value in documented.items() if (value.__doc__ or f"{n}(").startswith(f"{n}(")] == []


# file layout


def test_files_are_shallow_and_named_for_what_they_hold():
    assert [file for file in FILES if file.count("/") > 1] == []
    drawers = {"utils", "helpers", "common", "misc", "_parts", "parts", "setup"}
    assert [file for file, path in FILES.items() if path.stem in drawers] == []


OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+|\b(train_full|evaluate)\.py\b")


def test_the_library_names_arguments_and_no_options_of_a_script():
    known = ("--logdir", "--nproc-per-node", "--porcelain", "--quiet", "--untracked-files", "--verify", "--is-inside")
    found = [
        f"{file}:{number}: {line.strip()}"
        for file, path in FILES.items()
        if path.parent.name != "commands"  # they have options of their own
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if OPTION.search(line)
    ]
    assert [line for line in found if not any(word in line for word in (*known, "--no-color", "--short"))] == []


def test_every_package_has_a_level():
    assert set(PACKAGES) <= set(LEVELS)


# annotations

# Per line: the package, a call that its annotations allow, one that they refuse. ``x`` is a (2, 3, 16, 16)
# picture and ``ones`` is torch.ones; every name of the package's ``__all__`` is in scope.
TYPED_CALLS = [
    ("metrics", "psnr(x, x, peak=1.0)", "psnr(x[0], x[0], peak=1.0)"),
    ("metrics", "psnr_l(x, x)", "psnr_l(x, x[:1])"),
    ("metrics", "psnr_mu(x.double(), x.double())", "psnr_mu(x, x[:, :1])"),
    ("metrics", "ssim(x, x, peak=1.0)", "ssim(x, x[..., :12], peak=1.0)"),
    ("metrics", "ssim_l(x, x)", "ssim_l(x.int(), x.int())"),
    ("metrics", "ssim_mu(x, x)", "ssim_mu(x, None)"),
    ("metrics", "MeanMetric('psnr').update(ones(3))", "MeanMetric('psnr').update(ones(2, 3))"),
    ("ops", "pack_raw(ones(2, 1, 4, 6), 'GRBG')", "pack_raw(x)"),
    ("ops", "unpack_raw(ones(2, 4, 4, 6))", "unpack_raw(x)"),
    ("ops", "mosaic(x)", "mosaic(x[:, :1])"),
    ("ops", "demosaic(mosaic(x), 'GRBG', 'malvar')", "demosaic(x)"),
    ("ops", "white_balance(x, (2.0, 1.0, 1.5))", "white_balance(x, ones(1, 3))"),
    ("ops", "apply_color_matrix(x, ones(2, 3, 3))", "apply_color_matrix(x, ones(4, 4))"),
    ("ops", "render_raw(ones(2, 4, 8, 8), color_matrix=ones(3, 3))", "render_raw(x, color_matrix=ones(3))"),
    ("ops", "mu_law(x)", "mu_law(x.long())"),
    ("ops", "mu_law_inverse(x)", "mu_law_inverse(None)"),
    ("ops", "linearize_ldr(ones(2, 3, 4, 4), ones(2))", "linearize_ldr(ones(2, 3, 4, 4), ones(3))"),
    ("ops", "srgb_decode(srgb_encode(x))", "srgb_encode(0.5)"),
    ("ops", "transposed_attention(x, x, x)", "transposed_attention(x, x[..., :8], x)"),
    ("ops", "mix_features(x, x, x)", "mix_features(x, x, x[:1])"),
    ("histogram", "soft_histogram(x, labels=labels)", "soft_histogram(x, labels=labels[:1])"),
    ("losses", "histogram_loss(x, x)", "histogram_loss(x, x[:1])"),
    (
        "losses",
        "semantic_histogram_loss(x, x, ones(2, 4, 16, 16) > 0)",
        "semantic_histogram_loss(x, x, ones(2, 4, 8, 8))",
    ),
    ("losses", "content_loss(x, x)", "content_loss(x, x[0])"),
    ("losses", "mu_l1_loss(x, x)", "mu_l1_loss(x, x[:1])"),
    ("losses", "perceptual_loss(x, x, lambda p: [p])", "perceptual_loss(x, x[..., :8], lambda p: [p])"),
    ("metrics", "psnr_pu21(x, x)", "psnr_pu21(x, x[:1])"),
    ("metrics", "pu21_encode(x)", "pu21_encode(x.int())"),
    ("modules", "DomainTransfer()(x)", "DomainTransfer()(x[0])"),
    (
        "data",
        "show_radiance(ones(3, 8, 8), HDRSample(ones(3, 6, 8, 8), ones(3), ones(3, 8, 8), 'a', 'srgb'))",
        "show_radiance(ones(1, 3, 8, 8), HDRSample(ones(3, 6, 8, 8), ones(3), ones(3, 8, 8), 'a', 'srgb'))",
    ),
    (
        "simulation",
        "simulate_raw_bracket(ones(3, 16, 16), RawCamera(), Motion.still(), torch.Generator())",
        "simulate_raw_bracket(ones(1, 3, 16, 16), RawCamera(), Motion.still(), torch.Generator())",
    ),
    ("modules", "PriorFusionBlock(3, 3)(x, x[..., :8])", "PriorFusionBlock(3, 3)(x, x[0])"),
    ("modules", "SKAM(3, 3, 4)(x, x)", "SKAM(3, 3, 4)(x, x[:1])"),
    ("models", "AHDRNet(features=4)(ones(1, 3, 6, 8, 8))", "AHDRNet(features=4)(ones(3, 6, 8, 8))"),
    (
        "models",
        "HDRTransformer(features=4, depths=(1,) * 3, num_heads=(1,) * 3)(ones(1, 3, 6, 8, 8))",
        "HDRTransformer(features=4, depths=(1,) * 3, num_heads=(1,) * 3)(ones(3, 6, 8, 8))",
    ),
    (
        "models",
        "SCTNet(features=12, depths=(1,) * 4, num_heads=(1,) * 4)(ones(1, 3, 6, 8, 8))",
        "SCTNet(features=12, depths=(1,) * 4, num_heads=(1,) * 4)(ones(3, 6, 8, 8))",
    ),
    (
        "models",
        "TMRNetPlus(features=8, num_blocks=(1,) * 4)(ones(1, 5, 4, 8, 8))",
        "TMRNetPlus(features=8, num_blocks=(1,) * 4)(ones(5, 4, 8, 8))",
    ),
    ("models", "SPGRM([3], features=4)(x, [x])", "SPGRM([3], features=4)(x[0], [x])"),
]

OUTCOMES = ("accepted", "refused by its annotations")

TYPED_CALLS_RUNNER = """
import importlib, json, sys
from jaxtyping import TypeCheckError, install_import_hook

outcomes = []
with install_import_hook("skt_components", "beartype.beartype"):
    import torch
    torch.set_printoptions(threshold=0, edgeitems=1)  # a refusal prints its tensors, which takes long
    for package, *calls in json.loads(sys.stdin.read()):
        module = importlib.import_module("skt_components." + package)
        scope = {name: getattr(module, name) for name in module.__all__}
        scope |= {"torch": torch, "ones": torch.ones, "x": torch.rand(2, 3, 16, 16)}
        scope["labels"] = torch.zeros(2, 16, 16, dtype=torch.long)
        for call in calls:
            try:
                eval(call, scope)
                outcomes.append("accepted")
            except TypeCheckError:
                outcomes.append("refused by its annotations")
            except Exception as error:
                outcomes.append(f"{type(error).__name__}: {error}")
print(json.dumps(outcomes))
"""


def test_annotations_hold_when_they_are_checked_at_run_time():
    command = [sys.executable, "-c", TYPED_CALLS_RUNNER]
    given = json.dumps(TYPED_CALLS)
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    wanted = {call: outcome for _, *calls in TYPED_CALLS for call, outcome in zip(calls, OUTCOMES, strict=True)}
    assert dict(zip(wanted, json.loads(done.stdout), strict=True)) == wanted
