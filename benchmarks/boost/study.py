"""Does the framework pay? Arms x seeds of the reference loop, paired, and what came of it.

python benchmarks/boost/study.py benchmarks/boost/studies/trial.toml --out DIR              # procedural scenes
python benchmarks/boost/study.py benchmarks/boost/studies/ahdrnet-photos.toml --root PHOTOS --out DIR --processes 2
python benchmarks/boost/study.py ... --report                 # only table and figures, of what is there
python benchmarks/boost/study.py ... --judge OTHER_PHOTOS     # also the networks' scores on other photographs
The same command continues a study that was interrupted; benchmarks/boost/README.md says what it leaves.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from plan import (
    Study,
    check_options,
    check_seeds,
    join_studies,
    list_data,
    load_study,
    read_study,
    root_arguments,
    write_study,
)
from units import Unit, list_units, locked, make_environment, run_units

HERE = Path(__file__).parent
NOTE = (
    "In brackets: 95 % intervals over seeds and pictures; with one seed over pictures alone, which says nothing about "
    "other seeds. All gains are paired."
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="TOML file of the study")
    parser.add_argument("--root", type=Path, help="folder of the data; synthetic needs none")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study, new or to be continued")
    parser.add_argument("--processes", type=int, help="runs at a time; the file's, or 1, when not given")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="cuda takes GPUs in turn")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the file's")
    parser.add_argument("--arms", nargs="+", help="run these alone")
    parser.add_argument("--steps", type=int, help="instead of the file's, for a trial")
    parser.add_argument("--report", action="store_true", help="run nothing, only table and figures")
    parser.add_argument("--judge", type=Path, metavar="PHOTOS", help="also score the networks on other photographs")
    options = parser.parse_args(arguments)
    for name in ("file", "root", "out", "judge"):  # in the study's folder they are kept for other working directories
        value = getattr(options, name)
        setattr(options, name, None if value is None else value.resolve())
    return options


def make_study(options: argparse.Namespace) -> Study:
    """The study of the file, with what the command line says."""
    import skt_components as skt

    study = read_study(options.file)
    if options.seeds is not None:
        check_seeds("--seeds", options.seeds)
        study = replace(study, seeds=tuple(options.seeds))
    if options.steps is not None:
        study = replace(study, base={**study.base, "steps": options.steps})
    check_options(options.file, study, options.root)
    if ":" in (orm := study.base.get("orm", "")):
        skt.models.load_network(orm, {})  # what is wrong with it shows before anything is trained
    device = skt.training.pick_device(options.device).type
    return replace(study, device=device, data=list_data(study, options.root))


def read_ratios(out: Path) -> dict[str, float]:
    """Time per step of each arm, as a multiple of the baseline's, where it was measured."""
    file = out / "timing.json"
    return json.loads(file.read_text(encoding="utf-8"))["ratios"] if file.is_file() else {}


def time_steps(study: Study, options: argparse.Namespace, processes: int) -> None:
    """Measure in a process like those of the runs, while none of them works; once for each arm."""
    if study.equal_compute is None:
        return
    asked = {study.baseline, study.equal_compute, *(options.arms or study.arms)}
    arms = [arm for arm in study.arms if arm in asked and arm not in read_ratios(options.out)]
    if not arms:
        return
    print("timing the arms' steps in turns; on a busy machine they are only as good as the turns", flush=True)
    command = [sys.executable, str(HERE / "steptime.py"), str(options.out), *root_arguments(study, options.root)]
    command += ["--arms", *arms]
    subprocess.run(command, env=make_environment(0, processes, study.device), check=True)


def run(options: argparse.Namespace) -> tuple[Study, list[Unit]]:
    """Run what the command line asks for and is not finished; return the folder's study and what failed."""
    wanted = make_study(options)
    processes = wanted.processes if options.processes is None else options.processes
    if processes < 1:
        raise ValueError(f"--processes must be >= 1, got {processes}")
    known = [*wanted.arms, *([wanted.equal_name] if wanted.equal_compute else [])]
    if unknown := [arm for arm in options.arms or () if arm not in known]:
        raise ValueError(f"--arms must be among {', '.join(known)}, got {', '.join(unknown)}")
    with locked(options.out):
        study = join_studies(options.out, wanted)
        write_study(options.out, study)
        time_steps(study, options, processes)
        study = study.with_equal_compute(read_ratios(options.out))
        arms = options.arms or known
        units = [unit for unit in list_units(study, options.out) if unit.arm in arms and unit.seed in wanted.seeds]
        failed = run_units(units, study, options.root, processes=processes)
    return study, failed


def describe_command(study: Study, file: Path) -> str:
    """The command that makes the whole study, without where this machine keeps its files."""
    written, words = read_study(file), ["python", "benchmarks/boost/study.py", f"benchmarks/boost/studies/{file.name}"]
    roots = {"synthetic": [], "hdr-folder": ["--root", "PHOTOS"]}
    words += roots.get(study.base.get("data", "synthetic"), ["--root", "SCENES"])
    words += ["--steps", str(study.base["steps"])] if study.base["steps"] != written.base["steps"] else []
    words += ["--seeds", *map(str, study.seeds)] if study.seeds != written.seeds else []
    return " ".join([*words, "--out", "DIR"])


def report(study: Study, options: argparse.Namespace) -> None:
    """Collect what is finished; write lines, table, summary and figures."""
    from results import (
        collect,
        find_mixed,
        find_unpaired,
        make_table,
        mean_baselines,
        summarise,
        write_rows,
        write_summary,
    )
    from timing import environment
    from torch import device

    out, units, ratios = options.out, list_units(study, options.out), read_ratios(options.out)
    rows = collect(units, study)
    if not rows:
        print("no run is finished: there is nothing to report")
        return
    unpaired, summary = find_unpaired(rows, study.baseline), summarise(rows, study, ratios)
    free = mean_baselines(rows)
    table, notes = make_table(summary, study, free), [f"Not paired: {text}" for text in unpaired]
    notes += [f"Beware: {text}" for text in find_mixed(rows)]
    write_rows(out / "results.jsonl", rows)
    text = "\n\n".join([f"# {study.title}", table, NOTE, *notes]).rstrip()
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    made = {"command": describe_command(study, options.file), "environment": environment(device(study.device))}
    made |= {"study": asdict(study), "time per step": ratios, "notes": notes}
    write_summary(out / "summary.json", rows, **made, baselines=free, arms=summary)
    print(table)
    for note in notes:
        print(note, file=sys.stderr)
    draw(study, options, units, summary)
    print(f"{len(rows)} of {len(units)} runs are finished; table, figures and summary.json are in {out}")


def draw(study: Study, options: argparse.Namespace, units: Sequence[Unit], summary: dict) -> None:
    """Draw the figures."""
    from figures import draw_curves, draw_diagnosis, draw_gains
    from judge import draw_pictures

    draw_gains(options.out / "gains.png", summary, study)
    draw_curves(options.out / "curves.png", units, study)
    draw_diagnosis(options.out / "diagnosis.png", units, study)
    try:
        draw_pictures(options.out / "pictures.png", units, study, options.root)
    except (OSError, ValueError, SystemExit) as error:  # as when the data was moved
        print(f"pictures.png is not drawn: {error}", file=sys.stderr)


def judge_networks(study: Study, options: argparse.Namespace) -> None:
    """Score the networks of all finished runs on other photographs; write lines and table."""
    from judge import judge, merge_folds
    from results import make_table, mean_baselines, summarise, write_rows

    rows = judge(list_units(study, options.out), study, options.root, options.judge)
    if not rows:
        return
    merged, of = merge_folds(rows, study)
    table = make_table(summarise(merged, of, read_ratios(options.out)), of, mean_baselines(rows))
    name = f"judge-{options.judge.resolve().name}"
    write_rows(options.out / f"{name}.jsonl", rows)
    title = f"# {study.title}, on the photographs of {options.judge.resolve().name}"
    (options.out / f"{name}.md").write_text(f"{title}\n\n{table}\n\n{NOTE}\n", encoding="utf-8")
    print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, report; 1 if a run failed."""
    options = parse(arguments)
    failed: list[Unit] = []
    if options.report:
        found = load_study(options.out)
        if found is None:
            raise ValueError(f"--report: there is no study in {options.out}")
        if found.title != read_study(options.file).title:
            raise ValueError(f"--report: {options.out} holds {found.title!r}, not the study of {options.file}")
        study = found.with_equal_compute(read_ratios(options.out))
    else:
        study, failed = run(options)
    report(study, options)
    if options.judge is not None:
        judge_networks(study, options)
    if failed:
        print(f"{len(failed)} runs failed: {'; '.join(map(str, failed))}", file=sys.stderr)
    return 1 if failed else 0


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's background has it ignored
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(main())
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"study.py: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"study.py: the steps could not be timed (status {error.returncode}); the same command tries again")
    except KeyboardInterrupt:
        print("study.py: stopped; the same command continues the study", file=sys.stderr)
        sys.exit(130)
