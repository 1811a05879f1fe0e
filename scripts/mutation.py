#!/usr/bin/env python3
"""Mutation test: change one small thing in the source of minibert at a time; some test must fail.

A mutant is the source with one change: an operator, a number, a condition, a statement that is left out; the list is in
scripts/source_changes.py. Not mutated is the command line, most of whose work is printing.

One run of the tests, with coverage, finds which of them reach which line (in .mutation/, about 6 minutes). For each
mutant a child process runs, in a copy of the project, the tests that reach its line, until one fails: first those of
the file or the package of its name, then the quickest. After 2 minutes the mutant has survived. A test has failed, too,
if it takes 10 times as long as it should, and 30 seconds more. Tests in a browser and tests/ecosystem are not run.
Results are kept: the same command continues where it was stopped.

    python scripts/mutation.py --sample 200 --seed 1              # 200 mutants, drawn at random
    python scripts/mutation.py --sample 200 --seed 1 --minutes 9  # a part of them, and what is known so far
    python scripts/mutation.py --only kernels.py:72 model.py      # all mutants of a line, and of a file
    python scripts/mutation.py --cover                            # after a change of tests or source
"""

import argparse
import gc
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import SequenceMatcher
from hashlib import sha256
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is compiled once need not be compiled for each mutant
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # as in tests/conftest.py
os.environ.setdefault("MINIBERT_REQUIRE", "batch_invariant,int8")  # as in CI: a mutant that loses them is not skipped

import coverage
import pytest
from source_changes import Mutant, find_mutants

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".mutation"
MAP, RESULTS = KEPT / "tests.json", KEPT / "results.jsonl"
PRELOADED = [  # where they are installed
    *"torch torch._dynamo torch.onnx safetensors.torch huggingface_hub hypothesis tokenizers".split(),
    "transformers.models.distilbert.modeling_distilbert",
]
ALL = ["tests", "--ignore=tests/ecosystem", "--ignore-glob=*browser.py"]
MEMORY = 6 << 30  # bytes that a child may allocate
SECONDS = 120  # at most, for the tests of one mutant


def sources() -> list[str]:
    """The files that are mutated."""
    paths = [path.relative_to(ROOT) for path in sorted((ROOT / "minibert").rglob("*.py"))]
    return [path.as_posix() for path in paths if "cli" not in path.parts]


class Plugin:
    """For pytest: run the known tests, in their order, each within its time; or, with coverage, all tests."""

    def __init__(self, seconds: dict[str, float], cover: coverage.Coverage | None):
        self.known, self.cover, self.end = seconds, cover, time.monotonic() + SECONDS
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self.running = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Choose and sort."""
        if not self.cover:
            order = {name: number for number, name in enumerate(self.known)}
            items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Tell coverage the name of the test, or give the test its time."""
        self.running = item.nodeid
        if self.cover:
            self.cover.switch_context(item.nodeid)
        elif time.monotonic() < self.end:
            signal.alarm(int(30 + 10 * self.known[item.nodeid]))
        else:
            item.session.shouldstop = "the time for one mutant is over"
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what happened."""
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.passed:
            self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration


def in_child(folder: Path, files: list[str], seconds: dict[str, float] | None = None) -> int:
    """Run tests in a copy of the project, write what happened to a log, and return the wait status of the child.

    Without `seconds` of the known tests: all tests, with coverage.
    """
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what the tests had started
        return status
    try:
        os.setsid()
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)
        sys.path[:] = [str(folder), *(p for p in sys.path if Path(p).resolve() not in (ROOT, ROOT / "scripts"))]
        sys.argv[:], sys.dont_write_bytecode = ["pytest"], False
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        output = os.open(folder.with_name("output.txt"), os.O_RDWR | os.O_CREAT)
        for stream in range(3):
            os.dup2(output, stream)
        cover = None
        if seconds is None:
            cover = coverage.Coverage(data_file=None, config_file=False, source=[str(folder / "minibert")])
            cover.start()
        signal.alarm(0 if cover else 120)  # to import and collect
        plugin = Plugin(seconds or {}, cover)
        temporary = f"--basetemp={folder.with_name('tmp')}"  # not the folder that all runs of pytest share
        options = [
            "-q",
            temporary,
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore:Module already imported",
            *(["-x"] if seconds else []),
        ]
        try:
            code = int(pytest.main([*options, *files], plugins=[plugin]))
        except Exception:  # a mutant that takes modules out of sys.modules breaks pytest too
            if not plugin.running:
                raise
            plugin.failed.append(plugin.running)
            code = int(pytest.ExitCode.TESTS_FAILED)
        signal.alarm(0)
        lines: dict[str, dict[int, list[str]]] = {}
        if cover:
            cover.stop()
            for file in cover.get_data().measured_files():
                lines[Path(file).relative_to(folder).as_posix()] = cover.get_data().contexts_by_lineno(file)
        done = {"seconds": plugin.seconds, "failed": plugin.failed, "code": code, "lines": lines}
        folder.with_name("log.json").write_text(json.dumps(done))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def read_log(folder: Path) -> dict[str, Any]:
    """What the child wrote, and what pytest printed."""
    log, output = folder.with_name("log.json"), folder.with_name("output.txt")
    done = json.loads(log.read_text()) if log.exists() else {"seconds": {}, "failed": [], "code": None}
    return done | {"output": output.read_text(errors="replace") if output.exists() else ""}


@contextmanager
def copied(project: Path) -> Iterator[Path]:
    """Copy a project, with its compiled files, into a new folder's folder `project`; delete it afterwards."""
    left_out = shutil.ignore_patterns(".venv", ".git", ".mutation", ".*_cache", ".hypothesis")
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copytree(project, Path(folder, "project"), ignore=left_out))


def read_map() -> dict[str, Any]:
    """The map, each line where it is now. A new line has no tests of its own: those of its function are taken."""
    known = json.loads(MAP.read_text("utf-8"))
    for file, source in known["sources"].items():
        now = (ROOT / file).read_text("utf-8").splitlines() if (ROOT / file).exists() else []
        blocks = SequenceMatcher(None, source.splitlines(), now, autojunk=False).get_matching_blocks()
        place = {str(block.a + i + 1): block.b + i + 1 for block in blocks for i in range(block.size)}
        lines = known["lines"].get(file, {})
        known["lines"][file] = {place[line]: tests for line, tests in lines.items() if line in place}
    return known


def make_map(files: list[str]) -> None:
    """Run all tests, or those of some files, and write which of them reach which line, and how long each takes."""
    print("running the tests, with coverage", flush=True)
    with copied(ROOT) as project:
        in_child(project, files or ALL)
        new = read_log(project) | {"made": time.time()}
    if not new["seconds"]:
        sys.exit(f"the tests did not run to their end: {new['output'][-2000:]}")
    for test in new["failed"]:
        print(f"not used, since it fails without a mutant: {test}")
        new["seconds"].pop(test, None)
    if files and MAP.exists():  # what is known of the other files stays
        old = read_map()
        kept = {test for test in old["seconds"] if test.partition("::")[0] not in files}
        new["seconds"] |= {test: old["seconds"][test] for test in kept}
        for file, lines in old["lines"].items():
            for line, tests in lines.items():
                new["lines"].setdefault(file, {}).setdefault(str(line), []).extend(kept & set(tests))
    new["sources"] = {file: (ROOT / file).read_text("utf-8") for file in sources()}
    KEPT.mkdir(exist_ok=True)
    MAP.write_text(json.dumps(new), "utf-8")
    print(f"{len(new['seconds'])} tests are known", flush=True)


def draw(mutant: Mutant, seed: int) -> str:
    """A random text, which sorts the mutants; after a change of a line the other lines have the same."""
    text = f"{seed} {mutant.file} {mutant.within} {mutant.column} {mutant.old} {mutant.new}"
    return sha256(text.encode()).hexdigest()


def tests_of(mutant: Mutant, known: dict[str, Any]) -> dict[str, float]:
    """The tests that reach a mutant, and how long each takes: those of its file first, then the quickest.

    What runs at import, such as a constant, is taken to be reached by all tests that reach its file, and by those in a
    test file of its name or that names it. So is what runs in a forked process, where coverage sees nothing.
    """
    lines, seconds = known["lines"].get(mutant.file, {}), known["seconds"]
    first, last = mutant.reach
    topics = Path(mutant.file).stem, Path(mutant.file).parent.name
    files = [path for path in (ROOT / "tests").glob("test_*.py") if any(topic in path.stem for topic in topics)]
    found = {test for line in range(first, last + 1) for test in lines.get(line, ()) if test in seconds}
    if not found or "" in lines.get(first, ()):  # "": outside of any test
        files += [path for path in (ROOT / "tests").glob("test_*.py") if mutant.within in path.read_text("utf-8")]
        found |= {test for tests in lines.values() for test in tests if test in seconds}
        found |= {test for test in seconds if ROOT / test.partition("::")[0] in files}
    order = sorted(found, key=lambda test: (ROOT / test.partition("::")[0] not in files, seconds[test]))
    return {test: seconds[test] for test in order}


def fate(mutant: Mutant, known: dict[str, Any], base: Path) -> tuple[str, str]:
    """Run the tests of a mutant: what became of it, and the test that found it."""
    tests = tests_of(mutant, known)
    files = sorted({test.partition("::")[0] for test in tests})
    with copied(base) as project:
        source = (project / mutant.file).read_bytes()
        (project / mutant.file).write_bytes(mutant.apply(source))
        status = in_child(project, files, tests) if tests else 0
        done = read_log(project)
    if os.WIFSIGNALED(status):
        return ("hang" if os.WTERMSIG(status) == signal.SIGALRM else "crash"), signal.Signals(os.WTERMSIG(status)).name
    if status or done["code"] == pytest.ExitCode.NO_TESTS_COLLECTED:
        sys.exit(f"the tests of {mutant} could not be run:\n{done['output'][-2000:]}")
    if done["failed"]:
        return "killed", done["failed"][0]
    if tests and not done["seconds"]:
        return "killed", "at import"
    return "survived", f"{len(done['seconds'])} of {len(tests)} tests passed"


def try_all(mutants: list[Mutant], end: float) -> dict[Mutant, tuple[str, str]]:
    """Try mutants until a time; what was tried before is read from results.jsonl, survivors only of the same map."""
    known, kept, results = read_map(), {}, {}
    digests = {file: sha256((ROOT / file).read_bytes()).hexdigest() for file in sources()}
    for line in RESULTS.read_text("utf-8").splitlines() if RESULTS.exists() else ():
        result = json.loads(line)
        if result["fate"] != "survived" or result["map"] == known["made"]:
            kept[tuple(result["key"])] = result["fate"], result["by"]
    with copied(ROOT) as base:
        in_child(base, ["--collect-only", *ALL], {})  # compile all tests, once
        for mutant in mutants:
            key = digests[mutant.file], mutant.start, mutant.end, mutant.new
            if key not in kept and time.monotonic() < end:
                begin, kept[key] = time.monotonic(), fate(mutant, known, base)
                result = {"mutant": str(mutant), "fate": kept[key][0], "by": kept[key][1]}
                print(f"{result['fate']:8}  {mutant}  {result['by']}  {time.monotonic() - begin:.1f} s", flush=True)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result | {"key": key, "map": known["made"]}) + "\n")
            if key in kept:
                results[mutant] = kept[key]
    return results


def main() -> int:
    """Try the mutants that were asked for; exit status 1 if too many survive, 2 for a bad call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, metavar="N", help="try N mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--only", nargs="+", default=[], metavar="FILE[:LINE]", help="mutants of files, lines")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many minutes")
    parser.add_argument("--at-least", type=float, default=95, metavar="PERCENT", help="that must be found (95)")
    parser.add_argument("--cover", nargs="*", metavar="TEST", help="run the tests, or some files, with coverage again")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    mutants = [mutant for file in sources() for mutant in find_mutants(file, (ROOT / file).read_bytes())]
    wanted = {name.removeprefix("minibert/") for name in args.only}
    if unknown := wanted - {name for mutant in mutants for name in mutant.names()}:
        parser.error(f"no mutants at {', '.join(unknown)}: name a file under minibert/, or file:line")
    mutants = [mutant for mutant in mutants if not wanted or mutant.names() & wanted]
    if args.sample is not None:
        if not 0 < args.sample <= len(mutants):
            parser.error(f"--sample {args.sample}: it must be 1 to {len(mutants)}, the number of mutants")
        mutants = sorted(mutants, key=lambda mutant: draw(mutant, args.seed))[: args.sample]
    for name in PRELOADED:  # once, for all children
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    gc.freeze()  # pytest collects garbage at its end
    if args.cover is not None or not MAP.exists():
        make_map(args.cover or [])
    if args.sample is None and not wanted:
        return 0
    print(f"{len(mutants)} mutants, seed {args.seed}", flush=True)
    results = try_all(mutants, end)
    survivors = [mutant for mutant in results if results[mutant][0] == "survived"]
    print(*(f"survived  {mutant}  {results[mutant][1]}" for mutant in survivors), sep="\n")
    found = len(results) - len(survivors)
    print(f"{len(results)} of {len(mutants)} mutants tried, {found} found ({100 * found / len(results):.1f}%)")
    return 1 if 100 * found < args.at_least * len(results) else 0


if __name__ == "__main__":
    sys.exit(main())
