"""The package as pip installs it: what the archives hold, and what each extra brings and its absence says."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from skt_components import __version__
from skt_components.models import pretrained_names
from skt_components.training.config import read_toml

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PROJECT = read_toml(ROOT / "pyproject.toml")["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


# the archives


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist, built with the backend that is installed."""
    for package in ("build", "hatchling", "twine"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def tracked(*folders: str) -> set[str]:
    """Files of the checkout that git does not ignore."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip("not a checkout")
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()}


def test_the_wheel_has_the_package_and_the_loop_and_nothing_else(archives):
    files = set(zipfile.ZipFile(archives[0]).namelist())
    about = f"skt_components-{__version__}.dist-info"
    added = {f"{about}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    assert files == tracked("skt_components") | {"skt_components/commands/train_full.py"} | added
    assert {name for name in files - added if not name.endswith(".py")} == {
        "skt_components/py.typed",
        "skt_components/data/challenge123.toml",
        "skt_components/data/hu.toml",
        "skt_components/evaluation/html_report.css",
        "skt_components/evaluation/html_report.html.jinja",
        "skt_components/evaluation/html_report.js",
        "skt_components/evaluation/html_scene.html.jinja",
        *(f"skt_components/pretrained/{name}.safetensors" for name in pretrained_names()),
        "skt_components/training/run_summary.md.jinja",
    }
    assert archives[0].stat().st_size < 2e6


def test_the_sdist_has_all_that_builds_tests_and_explains_the_package(archives):
    with tarfile.open(archives[1]) as archive:
        files = {name.split("/", 1)[1] for name in archive.getnames()}
    folders = ("skt_components", "tests", "examples", "benchmarks", "docs")
    single = {"CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}
    assert files == tracked(*folders) | single


def test_the_metadata_is_complete_and_names_no_address_that_does_not_exist(archives):
    with zipfile.ZipFile(archives[0]) as archive:
        about = f"skt_components-{__version__}.dist-info"
        metadata = message_from_bytes(archive.read(f"{about}/METADATA"))
        entry_points = archive.read(f"{about}/entry_points.txt").decode()
    assert (metadata["Name"], metadata["Version"]) == ("skt-components", __version__)
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("Apache-2.0", ">=3.10")
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata["Summary"]
    assert metadata["Keywords"]
    assert set(metadata.get_all("Provides-Extra")) == set(EXTRAS)
    assert metadata.get_all("Project-URL") is None
    assert metadata["Home-page"] is None
    assert entry_points.strip() == "[console_scripts]\nskt = skt_components.commands:main"
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, archives)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# the extras

# For each extra what needs it: it works with this extra alone, and without it the error names the extra. Nothing is
# downloaded: an environment is a folder of links to the packages that the metadata require, in the versions installed
# here. So the tests prove that an extra declares all packages it needs, and not that pip finds them or other versions.
PROMISES = {
    "cpu": ["skt.soft_histogram(x, backend='numba')"],
    "data": [
        "skt.write_image('a.hdr', x[0]); skt.read_image('a.hdr')",
        "skt.write_image('a.exr', x[0]); skt.read_image('a.exr')",
        "write_tif(Path('a.tif'), x[0].permute(1, 2, 0).mul(65535).to(torch.uint16).numpy()); skt.read_image('a.tif')",
        "from skt_components.banks import read_label_map; read_label_map(png)",
    ],
    "timm": ["skt.TimmFeatureExtractor()", "skt.VGG19Features(weights='random')"],
    "fastsam": ["skt.load_pretrained('ahdrnet-small')"],
    "tmrnet": ["skt.TMRNet(features=8, num_blocks=(1, 1, 1, 1))(torch.rand(1, 5, 4, 32, 32))"],
    "onnx": ["skt.export_onnx(skt.AHDRNet(features=4, num_layers=1, growth=2), 'a.onnx')"],
    "hub": [
        "skt.AHDRNet(features=4, num_layers=1, growth=2).save_pretrained('folder')",
        "skt.AHDRNet.from_pretrained('folder')",
    ],
    "lpips": ["skt.lpips(x, x, weights='random')"],
    "cvvdp": ["from skt_components.metrics import color_video_vdp; color_video_vdp(y, y)"],
    "photo": ["from skt_components.reconstruct.exposures import read_light; read_light(png)"],
    "transformers": [
        "from skt_components.banks import SegmenterRegions\n"
        "try: SegmenterRegions.from_pretrained('nowhere')\n"
        "except FileNotFoundError: pass",
    ],
    "train": [
        "from skt_components.training import Engine, parse_options; Engine(parse_options([]))",
        "skt.data.save_contact_sheet('a.png', [skt.SyntheticScenes(1, 32)[0]])",
    ],
}
PLAIN = [  # needs no extra
    "skt.SemanticHistogramLoss()(x, x, labels=torch.zeros(1, 32, 32, dtype=torch.long), num_regions=1)",
    "skt.AHDRNet(features=4, num_layers=1, growth=2)(skt.SyntheticScenes(1, 32)[0].bracket[None])",
    "from skt_components import commands; assert commands.main(['networks']) == 0",
    "from skt_components import commands; assert commands.main(['--help']) == 0",
]
# One process imports torch where no extra is installed, which takes seconds. Its forks import the package and run the
# statements of one extra each, where this extra is installed too.
CHILD = """
import importlib, json, os, sys
runs = json.loads(sys.stdin.read())
sys.path.append(runs[0][0])
import torch, torch._dynamo
from pathlib import Path
for folder, statements in runs:
    if os.fork():
        os.wait()
        continue
    sys.path[-1] = folder
    importlib.invalidate_caches()
    import skt_components as skt
    from skt_components.data.formats import write_tif
    torch.manual_seed(0)
    scope = {"skt": skt, "torch": torch, "Path": Path, "write_tif": write_tif, "png": "given.png"}
    scope |= {"x": torch.rand(1, 3, 32, 32), "y": torch.rand(1, 3, 64, 64)}
    outcomes = []
    for statement in statements:
        try:
            exec(statement, scope)
            outcomes.append("")
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    Path(folder, "outcomes.json").write_text(json.dumps(outcomes))
    os._exit(0)
"""
# A PNG file of one gray pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c636800000082008177cd72b6"
    "0000000049454e44ae426082"
)


def installed_with(requirements: Iterable[str]) -> set[str]:
    """Distributions that pip installs for these requirements, as far as they are installed here."""
    found: set[tuple[str, str]] = set()

    def add(text: str, extra: str) -> None:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            return
        name = canonicalize_name(requirement.name)
        for wanted in ("", *sorted(requirement.extras)):
            if (name, wanted) in found:
                continue
            found.add((name, wanted))
            if name == "skt-components":
                needed = EXTRAS[wanted] if wanted else PROJECT["dependencies"]
            else:
                try:
                    needed = importlib.metadata.requires(name) or []
                except importlib.metadata.PackageNotFoundError:
                    continue
            for one in needed:
                add(one, wanted)

    for text in requirements:
        add(text, "")
    return {name for name, _ in found}


def install(extra: str | None, folder: Path) -> Path:
    """Make a folder of links to the package and to what pip installs with it and an extra; nothing else is in it."""
    folder.mkdir()
    visible = installed_with([f"skt-components[{extra}]" if extra else "skt-components"])
    for distribution in importlib.metadata.distributions():
        if canonicalize_name(distribution.name) in visible:
            for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__", "skt_components"}:
                if not (folder / name).exists():
                    (folder / name).symlink_to(distribution.locate_file(name))
    (folder / "skt_components").symlink_to(ROOT / "skt_components")
    return folder


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, list[str]]:
    """For each extra the errors of the statements that need it; for None, without extras, of all statements."""
    root = tmp_path_factory.mktemp("environments")
    promised = [statement for statements in PROMISES.values() for statement in statements]
    statements: dict[str | None, list[str]] = {None: PLAIN + promised, **PROMISES}
    folders = {extra: install(extra, root / str(extra)) for extra in statements}
    (root / "given.png").write_bytes(PNG)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CHILD],  # without any site-packages
        input=json.dumps([[str(folders[extra]), lines] for extra, lines in statements.items()]),
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return {extra: json.loads((folder / "outcomes.json").read_text()) for extra, folder in folders.items()}


def test_every_extra_promises_something():
    assert set(PROMISES) == set(EXTRAS) - {"all", "dev", "docs"}


def test_without_extras_the_components_work_and_the_rest_names_its_extra(outcomes):
    assert outcomes[None][: len(PLAIN)] == [""] * len(PLAIN)
    promised = [(extra, statement) for extra, statements in PROMISES.items() for statement in statements]
    errors = outcomes[None][len(PLAIN) :]
    named = [re.search(r"skt-components\[(\w+)\]", error) for error in errors]
    extras = [match[1] if match else error or "no error" for match, error in zip(named, errors, strict=True)]
    assert [*zip(extras, (statement for _, statement in promised), strict=True)] == promised


@pytest.mark.parametrize("extra", PROMISES)
def test_an_extra_alone_brings_what_it_promises(extra, outcomes):
    missing = [r for r in EXTRAS[extra] if not _is_installed(Requirement(r))]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    assert outcomes[extra] == [""] * len(PROMISES[extra])


def _is_installed(requirement: Requirement) -> bool:
    if requirement.name == "skt-components" or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
        return True
    try:
        importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
