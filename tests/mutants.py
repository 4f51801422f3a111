"""Would the tests notice? Change one thing in a file of the package, run the tests of that file, and count.

    python tests/mutants.py                      # a sample of each module; goes on where it stopped
    python tests/mutants.py --again ops losses   # run the survivors of these modules once more, after new tests

A mutant is a file with one change: another comparison, operator, constant or function, swapped arguments, a statement
that is left out. It is killed if a test fails, and survives if all pass: then a test is missing, or the change makes
no difference. The working tree is not touched: the tests run in a copy of it, each mutant in a fork of one process
that has imported torch already. Tests that compile are left out, as they take longer than all others together.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PYTEST = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not slow and not inductor and not gpu"]
PYTEST += ["-k", "not compil and not interpreter and not memory"]

# Files of each module with their tests, the quickest first.
TARGETS: dict[str, dict[str, list[str]]] = {
    "ops": {
        "ops/attention.py": ["ops/test_attention.py", "modules/test_fusion.py"],
        "ops/checks.py": ["ops/test_checks.py", "ops/test_masking.py", "ops/test_raw.py", "ops/test_transfer.py"],
        "ops/masking.py": ["ops/test_masking.py", "modules/test_skam.py"],
        "ops/merge.py": ["ops/test_merge.py"],
        "ops/raw.py": ["ops/test_raw.py", "modules/test_domain_transfer.py"],
        "ops/tone_mapping.py": ["ops/test_tone_mapping.py"],
        "ops/transfer.py": ["ops/test_transfer.py", "modules/test_domain_transfer.py"],
    },
    "histogram": {
        "histogram/checks.py": ["histogram/test_soft_histogram.py", "losses/test_histogram.py"],
        "histogram/engines.py": ["histogram/test_soft_histogram.py"],
        "histogram/kernels.py": ["histogram/test_soft_histogram.py", "losses/test_histogram.py"],
        "histogram/mask_atoms.py": ["histogram/test_mask_atoms.py", "histogram/test_soft_histogram.py"],
        "histogram/numba_engine.py": ["histogram/test_soft_histogram.py", "losses/test_histogram.py"],
        "histogram/regions.py": ["histogram/test_soft_histogram.py", "losses/test_histogram.py"],
        "histogram/soft_histogram.py": ["histogram/test_soft_histogram.py", "losses/test_histogram.py"],
        "histogram/target.py": ["histogram/test_target.py"],
        "histogram/torch_engine.py": ["histogram/test_soft_histogram.py", "losses/test_histogram.py"],
    },
    "losses": {
        "losses/content.py": ["losses/test_content.py"],
        "losses/histogram.py": ["losses/test_histogram.py", "histogram/test_target.py"],
        "losses/perceptual.py": ["losses/test_perceptual.py"],
        "losses/reconstruction.py": ["losses/test_reconstruction.py"],
    },
    "modules": {
        "modules/domain_transfer.py": ["modules/test_domain_transfer.py"],
        "modules/fusion.py": ["modules/test_fusion.py"],
        "modules/pyramid.py": ["modules/test_pyramid.py"],
        "modules/skam.py": ["modules/test_skam.py", "modules/test_stage_layout.py"],
        "modules/stage_layout.py": ["modules/test_stage_layout.py", "framework/test_semantic_transfer.py"],
        "modules/taps.py": ["modules/test_taps.py"],
    },
    "metrics": {
        "metrics/psnr.py": ["metrics/test_psnr.py"],
        "metrics/pu21.py": ["metrics/test_pu21.py"],
        "metrics/ssim.py": ["metrics/test_ssim.py"],
    },
    "framework": {
        "framework/baseline.py": ["framework/test_baseline.py"],
        "framework/checks.py": ["framework/test_semantic_transfer.py"],
        "framework/diagnosis.py": ["framework/test_diagnosis.py", "framework/test_semantic_transfer.py"],
        "framework/loss_weights.py": ["framework/test_semantic_transfer.py"],
        "framework/probe.py": ["framework/test_semantic_transfer.py"],
        "framework/semantic_transfer.py": ["framework/test_semantic_transfer.py"],
    },
    "data": {
        "data/prepare.py": ["data/test_prepare.py"],
        "data/windows.py": ["data/test_prepare.py", "data/test_kalantari.py", "data/test_bracketire.py"],
    },
}

COMPARISONS = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
COMPARISONS |= {ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in"}
OPERATORS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "+", ast.Pow: "*"}
OPERATORS |= {ast.BitAnd: "|", ast.BitOr: "&", ast.BitXor: "&", ast.LShift: ">>", ast.RShift: "<<"}
EXCHANGED = [("min", "max"), ("minimum", "maximum"), ("amin", "amax"), ("clamp_min", "clamp_max"), ("any", "all")]
EXCHANGED += [
    ("floor", "ceil"),
    ("log", "exp"),
    ("mean", "sum"),
    ("zeros_like", "ones_like"),
    ("new_zeros", "new_ones"),
]
OTHER = dict(EXCHANGED) | {b: a for a, b in EXCHANGED}
LEFT_OUT = {
    "clamp",
    "clamp_",
    "clamp_min",
    "clamp_max",
    "detach",
    "abs",
    "square",
    "contiguous",
    "flip",
    "clone",
    "sqrt",
}


class Mutant(NamedTuple):
    """Bytes ``start`` to ``stop`` of a file of the package, and what stands there instead."""

    file: str
    line: int
    start: int
    stop: int
    old: str
    new: str

    @property
    def key(self) -> str:
        """Name it in the file of results; after an edit of its line it is another one."""
        return f"{self.file}:{self.line}: {self.old} -> {self.new} @{self.start}"


def _is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def alternatives(node: ast.AST) -> Iterator[str]:
    """Yield source text to stand in the place of an expression or a statement."""
    text = ast.unparse
    if isinstance(node, ast.Compare):
        places = [text(node.left), *map(text, node.comparators)]
        for changed, operator in enumerate(node.ops):
            if type(operator) in COMPARISONS:
                names = [text(ast.Compare(ast.Name("_"), [op], [ast.Name("_")]))[2:-2] for op in node.ops]
                names[changed] = COMPARISONS[type(operator)]
                yield "(" + places[0] + "".join(f" {n} {p}" for n, p in zip(names, places[1:], strict=True)) + ")"
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield f"(({text(node.left)}) {OPERATORS[type(node.op)]} ({text(node.right)}))"
    elif isinstance(node, ast.BoolOp):
        yield (
            "(" + (" or " if isinstance(node.op, ast.And) else " and ").join(f"({text(v)})" for v in node.values) + ")"
        )
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield f"({text(node.operand)})"
    elif isinstance(node, ast.IfExp):
        yield f"({text(node.orelse)} if {text(node.test)} else {text(node.body)})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield repr(node.value + 1 if isinstance(node.value, int) else node.value * 2 or 1.0)
    elif isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        arguments = [text(x) for x in (*node.args, *node.keywords)]
        if name in OTHER:
            function = text(node.func)[: -len(name)] + OTHER[name]
            yield f"{function}({', '.join(arguments)})"
        if name in LEFT_OUT and isinstance(node.func, ast.Attribute):
            yield f"({text(node.func.value)})"
        if name == "where" and len(node.args) == 3:
            yield f"{text(node.func)}({', '.join([arguments[0], arguments[2], arguments[1]])})"
    elif isinstance(node, ast.Raise | ast.AugAssign | ast.Continue | ast.Break) or _is_call(node):
        yield "pass"


def mutants(file: str) -> list[Mutant]:
    """Return all mutants of a file of the package, except in annotations, texts and the messages of errors."""
    source = (ROOT / "skt_components" / file).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.expr | ast.stmt):
            start = starts[node.lineno - 1] + node.col_offset
            stop = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
            old = " ".join(source[start:stop].decode().split())
            found.extend(Mutant(file, node.lineno, start, stop, old, new) for new in alternatives(node))
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert):
            return
        for name, field in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for child in field if isinstance(field, list) else [field]:
                if isinstance(child, ast.AST):
                    visit(child)

    visit(ast.parse(source))
    return found


def copy_tree(folder: Path) -> None:
    """Copy all files of the working tree that git knows or would add."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def run_tests(tests: list[str], cpu_seconds: int, wall_seconds: float) -> tuple[str, float]:
    """Run the tests in a fork, in the current folder; return "survived", "killed" or "timeout", and its CPU time."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()  # so that what the tests start ends with it
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        import pytest

        os._exit(int(pytest.main([*PYTEST, *(f"tests/{test}" for test in tests)])))
    try:
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() - started > wall_seconds:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.05)
    except BaseException:
        os.killpg(child, signal.SIGKILL)
        raise
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if status in (4, 5):
        raise SystemExit(f"pytest found no tests to run: {tests}")
    outcome = {0: "survived", -signal.SIGXCPU: "timeout", -signal.SIGKILL: "timeout"}.get(status, "killed")
    return outcome, seconds


def show(results: dict[str, dict]) -> None:
    """Print the table and the survivors."""
    counts = Counter((r["module"], r["outcome"]) for r in results.values())
    print("| module | mutants | killed | survived | share killed |\n|---|---|---|---|---|")
    rows = [name for name in TARGETS if any(module == name for module, _ in counts)]
    for name in [*rows, "all"]:
        chosen = {o: sum(n for (m, k), n in counts.items() if k == o and name in (m, "all")) for _, o in counts}
        whole, survived = sum(chosen.values()), chosen.get("survived", 0)
        print(f"| {name} | {whole} | {whole - survived} | {survived} | {(whole - survived) / max(whole, 1):.0%} |")
    for key, result in sorted(results.items()):
        if result["outcome"] == "survived":
            print(f"survived  {key.rpartition(' @')[0]}")


def main() -> None:
    """Run a sample of mutants of each module and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(TARGETS), metavar="module", help=", ".join(TARGETS))
    parser.add_argument("--sample", type=int, default=45, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=ROOT / "runs/mutants.jsonl", help="a JSON line for each mutant")
    parser.add_argument("--minutes", type=float, default=60, help="begin no mutant after this time")
    parser.add_argument("--again", action="store_true", help="run the survivors once more")
    options = parser.parse_args()
    if unknown := set(options.modules) - set(TARGETS):
        parser.error(f"no module {sorted(unknown)}, only {list(TARGETS)}")
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    results: dict[str, dict] = {(result := json.loads(line))["key"]: result for line in lines}
    todo = []
    for module in options.modules:
        everything = [mutant for file in TARGETS[module] for mutant in mutants(file)]
        chosen = random.Random(f"{options.seed} {module}").sample(everything, min(options.sample, len(everything)))
        again = {key for key, result in results.items() if options.again and result["outcome"] == "survived"}
        todo.append([(module, m) for m in chosen if m.key not in results or m.key in again])
    order = [pair for i in range(max(map(len, todo), default=0)) for pairs in todo for pair in pairs[i : i + 1]]

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is ended and the copy removed
    options.results.parent.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True  # a mutant of the same size and second would be taken for the file before it
    end, normal = time.monotonic() + 60 * options.minutes, {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        copy_tree(folder)
        os.environ["PYTHONPATH"] = name
        os.chdir(folder)
        sys.path[:] = [name, *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, ROOT / "tests"))]
        import hypothesis  # noqa: F401
        import jaxtyping  # noqa: F401
        import pytest  # noqa: F401
        import torch  # noqa: F401

        for module, mutant in order:
            if time.monotonic() > end:
                break
            tests = TARGETS[module][mutant.file]
            if mutant.file not in normal:
                outcome, normal[mutant.file] = run_tests(tests, 600, 3600)
                if outcome != "survived":
                    raise SystemExit(f"the tests of {mutant.file} fail without a mutant: {tests}")
            path = folder / "skt_components" / mutant.file
            source, times = path.read_bytes(), (path.stat().st_atime, path.stat().st_mtime)
            path.write_bytes(source[: mutant.start] + mutant.new.encode() + source[mutant.stop :])
            outcome, seconds = run_tests(tests, int(30 + 4 * normal[mutant.file]), 1200)
            path.write_bytes(source)
            os.utime(path, times)  # numba's cache goes by it
            result = {"key": mutant.key, "module": module, "outcome": outcome, "seconds": round(seconds, 1)}
            results[mutant.key] = result
            with options.results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{outcome:9} {seconds:6.1f} s  {mutant.key.rpartition(' @')[0]}", flush=True)
    show({key: result for key, result in results.items() if result["module"] in options.modules})


if __name__ == "__main__":
    main()
