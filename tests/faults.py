"""Kills, full disks, networks that fail, and several processes at once: is anything lost, half-written or mixed?

`scripts/faults` runs every part and prints a table: how often each was tried, what was found afterwards, and what was
lost. Two checkpoints, "old" and "new", have files that fit each other, so that a mixture would load without an error.
Processes are forked from this one, which has imported torch, so that a kill costs milliseconds; Windows cannot fork.

    scripts/faults                                     # every part, at most 10 minutes
    scripts/faults --minutes 3 full_disks hub_faults   # some of them
    scripts/faults --seed 1 --scale 0.1                # the same choices as in another run, a tenth as often
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from minibert import DistilBertForSequenceClassification, DistilBertTokenizer
from minibert.checkpoint import CheckpointFiles
from minibert.cli.output import write_file
from minibert.study.report import table

from .checkpoints import CLASSIFIER, NAME
from .hub import BREAK, DROP, DROP_HEAD, GARBAGE, LONG, SHORT, SLOW, STALL, Hub, connect, files
from .models import model

FORK = multiprocessing.get_context("fork")
SCRIPTS = Path(__file__).parents[1] / "scripts"
HANGS = 120  # seconds
SETTINGS = {  # of huggingface_hub, which reads them when it is imported
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DOWNLOAD_TIMEOUT": "1",  # seconds, so that a stall is short
    "HF_HUB_ETAG_TIMEOUT": "1",
}
NOBODY = 65534  # a user without rights
PAGES = {name: name.encode() * 10_000 for name in ("old", "new")}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "nice", "day"]
HUB_FAULTS = [DROP, DROP_HEAD, BREAK, SHORT, LONG, GARBAGE, SLOW, STALL, 429, 500, 502, 503, 504]


class LostError(Exception):
    """What must not happen."""


class World:
    """A folder to work in, the two checkpoints, and the seeded choice of what happens when.

    Args:
        folder: an empty folder.
        seed: of every choice; the moment of a kill also depends on the machine.
    """

    def __init__(self, folder, seed):
        self.folder, self.random, self.numbers = Path(folder), random.Random(seed), itertools.count()
        torch.manual_seed(seed)
        self.made = {}
        for name, lowercase in (("old", True), ("new", False)):
            made = model(CLASSIFIER, id2label={0: f"{name} no", 1: f"{name} yes"})
            tokenizer = DistilBertTokenizer({word: i for i, word in enumerate([*WORDS, name])}, do_lower_case=lowercase)
            self.made[name] = made, tokenizer
            self.save(name, self.folder / name)
        self.files = {name: files(self.folder / name) for name in self.made}

    def save(self, name, folder):
        """Save a checkpoint with its tokenizer."""
        for part in self.made[name]:
            part.save_pretrained(folder)

    def save_in_turn(self, folder, names=("new", "old"), parts=(0, 1)):
        """Save these checkpoints in turn, the model, the tokenizer or both, until killed."""
        for name in itertools.cycle(names):
            for part in parts:
                self.made[name][part].save_pretrained(folder)

    def write_all(self, folder):
        """Write everything that minibert writes: a model, a config, a tokenizer, and a file of a command."""
        self.save("new", folder)
        self.made["new"][0].config.save_pretrained(folder)
        write_file(folder / "page.html", PAGES["new"])
        return "written"

    def new_folder(self, copy_of=None):
        """Return a folder that does not exist so far, or a copy."""
        folder = self.folder / f"{next(self.numbers)}"
        if copy_of is not None:
            shutil.copytree(self.folder / copy_of, folder)
            (folder / "page.html").write_bytes(PAGES[copy_of])
        return folder

    def model_of(self, loaded):
        """Return whose config and weights these are."""
        for name, (made, _) in self.made.items():
            same = map(torch.equal, loaded.state_dict().values(), made.state_dict().values())
            if loaded.config.id2label == made.config.id2label and all(same):
                return name
        raise LostError("a mixture of two models")

    def tokenizer_of(self, loaded):
        """Return whose vocabulary and settings these are."""
        for name, (_, made) in self.made.items():
            if loaded.get_vocab() == made.get_vocab() and loaded.do_lower_case == made.do_lower_case:
                return name
        raise LostError("a mixture of two tokenizers")

    def check(self, folder):
        """Return whose model a folder holds; its tokenizer and page must be whole too."""
        if (page := folder / "page.html").exists() and page.read_bytes() not in PAGES.values():
            raise LostError("half a page")
        self.tokenizer_of(DistilBertTokenizer.from_pretrained(folder))
        return self.model_of(DistilBertForSequenceClassification.from_pretrained(folder))

    def check_next_save(self, folder):
        """Save once more, in peace: it succeeds, and nothing of an interrupted save remains."""
        self.write_all(folder)
        if self.check(folder) != "new":
            raise LostError("the next save did not save")
        if extra := files(folder).keys() - self.files["new"].keys() - {"page.html"}:
            raise LostError(f"left behind: {', '.join(sorted(extra))}")


def start(work, *arguments):
    """Call a function in a new process, which prints nothing; status 0 means that it returned."""

    def run():
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        work(*arguments)

    process = FORK.Process(target=run)
    process.start()
    return process


def kill_within(world, seconds, process):
    """Kill a process at a random moment; return whether it was still at work."""
    process.join(world.random.uniform(0, seconds))
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def result_of(work, *arguments):
    """Call a function in a new process; return the str that it returns, or "an error" for one that a user can read.

    Raises:
        LostError: it ended in another way, or not at all.
    """
    reader, writer = FORK.Pipe(duplex=False)

    def run():
        try:
            writer.send(work(*arguments))
        except (OSError, ValueError) as error:
            writer.send(LostError(f"an error of several lines: {error}") if "\n" in str(error) else "an error")
        except BaseException as error:
            writer.send(LostError(f"{type(error).__name__}: {error}"))

    process = start(run)
    writer.close()
    try:
        found = reader.recv() if reader.poll(HANGS) else LostError(f"hangs for {HANGS} s")
    except EOFError:
        found = LostError("the process ended without a result")
    process.kill()
    process.join()
    if isinstance(found, LostError):
        raise found
    return found


# Saving and loading


def kills_of_saves(world, part):
    """Save into one folder and kill, again and again; what a kill leaves is there at the next one."""
    folder = world.new_folder(copy_of="old")
    begin = time.monotonic()
    start(world.made["new"][part].save_pretrained, folder).join()
    seconds = 2 * (time.monotonic() - begin)
    while True:
        names = world.random.sample(("old", "new"), 2)
        kill_within(world, seconds, start(world.save_in_turn, folder, names, [part]))
        yield world.check(folder)
        if world.random.random() < 0.1:
            world.check_next_save(folder)


def kills_of_model_saves(world):
    """A model's save, killed."""
    return kills_of_saves(world, 0)


def kills_of_tokenizer_saves(world):
    """A tokenizer's save, killed."""
    return kills_of_saves(world, 1)


def loads_during_saves(world):
    """A load while another process saves."""
    folder = world.new_folder(copy_of="old")
    saver = start(world.save_in_turn, folder)
    try:
        while saver.is_alive():
            yield world.check(folder)
        raise LostError("the saver failed")
    finally:
        saver.kill()
        saver.join()


def pairs_of_savers(world):
    """Two processes that save at once; one is killed in every second case."""
    folder = world.new_folder(copy_of="old")
    for number in itertools.count():
        savers = [start(world.save, name, folder) for name in world.random.sample(("old", "new"), 2)]
        if number % 2:
            kill_within(world, 0.05, savers.pop())
        for saver in savers:
            saver.join(HANGS)
            if saver.exitcode != 0:
                raise LostError("a saver failed")
        yield world.check(folder)


# Disks


@contextlib.contextmanager
def small_disk(world):
    """Mount a file system of 1 MB in memory."""
    folder = world.new_folder()
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        raise NotImplementedError("not tried: only root can mount a file system in memory")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def full_disks(world):
    """All files written to a disk with too little room, or just enough."""
    with small_disk(world) as disk:
        folder, filler = disk / "checkpoint", disk / "filler"
        while True:
            shutil.copytree(world.new_folder(copy_of="old"), folder)
            room = world.random.randrange(0, 200_000)
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - room))
            told = result_of(world.write_all, folder)
            found = world.check(folder)
            filler.unlink()
            world.check_next_save(folder)
            shutil.rmtree(folder)
            yield f"{told}, {found}"


def file_size_limits(world):
    """All files written where no file may exceed a number of bytes."""

    def write_limited(folder, n_bytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
        return world.write_all(folder)

    while True:
        folder = world.new_folder(copy_of="old")
        told = result_of(write_limited, folder, world.random.randrange(0, 120_000))
        found = world.check(folder)
        world.check_next_save(folder)
        yield f"{told}, {found}"


def read_only_folders(world):
    """All files written into a folder of another user."""

    def write_as_nobody(folder):
        if os.geteuid() == 0:
            os.setuid(NOBODY)
        return world.write_all(folder)

    while True:
        folder = world.new_folder(copy_of="old")
        folder.chmod(0o555)
        told = result_of(write_as_nobody, folder)
        folder.chmod(0o755)
        yield f"{told}, {world.check(folder)}"


def read_only_disks(world):
    """All files written to a disk that is mounted read-only."""
    with small_disk(world) as disk:
        shutil.copytree(world.folder / "old", disk / "checkpoint")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        while True:
            told = result_of(world.write_all, disk / "checkpoint")
            yield f"{told}, {world.check(disk / 'checkpoint')}"


# The Hub


class FaultyHub(Hub):
    """A Hub that fails at random, and whose branch moves between two requests."""

    def __init__(self, world, faulty):
        super().__init__()
        self.random, self.faulty, self.stall = random.Random(world.random.random()), faulty, 1.5
        self.known = {self.commit(NAME, content): name for name, content in world.files.items()}

    def fault(self, filename):
        """Nothing in half of the cases, and always before faults are wanted."""
        if not self.faulty.value:
            return None
        if self.random.random() < 0.2:
            self.repositories[NAME].main = self.random.choice(list(self.known))
        return self.random.choice([*HUB_FAULTS, *[None] * len(HUB_FAULTS)])


@contextlib.contextmanager
def serving(world):
    """Start a Hub in a process of its own; yield its switch for faults and its commits, id to name."""
    from huggingface_hub.utils import get_session

    reader, writer = FORK.Pipe(duplex=False)
    faulty = FORK.Value("b", 0)

    def serve():
        hub = FaultyHub(world, faulty)
        writer.send((hub.url, hub.known))
        signal.pause()

    process = start(serve)
    try:
        url, commits = reader.recv()
        with pytest.MonkeyPatch.context() as patch:
            connect(patch, url, world.new_folder(), lambda seconds: None)
            get_session()  # made once, not in each process
            yield faulty, commits
    finally:
        process.kill()
        process.join()


def load_from_hub(world, cache):
    """Return whose model and tokenizer the Hub gives."""
    checkpoint = CheckpointFiles(NAME, cache_dir=cache)
    found = world.model_of(DistilBertForSequenceClassification.from_files(checkpoint))
    if world.tokenizer_of(DistilBertTokenizer.from_files(checkpoint)) != found:
        raise LostError("model and tokenizer are of two commits")
    return "loaded"


def check_cache(world, cache, commits):
    """Every file that a commit has in the cache is whole, and of this commit."""
    for path in cache.glob("models--*/snapshots/*/*"):
        if path.read_bytes() != world.files[commits[path.parent.name]][path.name]:
            raise LostError(f"{path.name} in the cache is not that of its commit")


def kills_of_downloads(world):
    """A download, killed; then once more, in peace."""
    with serving(world) as (_, commits):
        start_time = time.perf_counter()
        result_of(load_from_hub, world, world.new_folder())
        seconds = time.perf_counter() - start_time
        while True:
            cache = world.new_folder()
            at_work = kill_within(world, seconds, start(load_from_hub, world, cache))
            check_cache(world, cache, commits)
            yield f"{'killed' if at_work else 'ended before'}, then {result_of(load_from_hub, world, cache)}"
            check_cache(world, cache, commits)


def pairs_of_downloads(world):
    """Two processes that download at once into one cache; one is killed in every second case."""
    with serving(world) as (_, commits):
        for number in itertools.count():
            cache = world.new_folder()
            other = start(load_from_hub, world, cache)
            if number % 2:
                kill_within(world, 0.2, other)
            found = result_of(load_from_hub, world, cache)
            other.join(HANGS)
            if other.exitcode not in (0, -signal.SIGKILL):
                raise LostError("the other process failed")
            check_cache(world, cache, commits)
            yield found


def hub_faults(world):
    """A download from a Hub that fails at random; then once more, without faults."""
    with serving(world) as (faulty, commits):
        while True:
            cache = world.new_folder()
            faulty.value = 1
            told = result_of(load_from_hub, world, cache)
            faulty.value = 0
            check_cache(world, cache, commits)
            yield f"{told}, then {result_of(load_from_hub, world, cache)}"
            check_cache(world, cache, commits)


# Scripts


def run_script(script, *arguments):
    """Run one of the scripts in this process, as a command does."""
    sys.argv = [script, *map(str, arguments)]
    try:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise OSError(f"{script} ended with status {end.code}") from None
    return "ended"


def kills_of_runs(world, script, *arguments):
    """Kill a script a few times, then let it end; its results are the bytes of a run without a kill."""
    if not (SCRIPTS / script).exists():
        raise NotImplementedError(f"not tried: no scripts/{script} here")
    sys.path.insert(0, str(SCRIPTS))
    runpy.run_path(str(SCRIPTS / script))  # only its imports, so that a process which is forked later has them
    whole = world.new_folder()
    begin = time.monotonic()
    result_of(run_script, script, *arguments, "-o", whole)
    seconds, expected = time.monotonic() - begin, files(whole)
    while True:
        out, tries = world.new_folder(), range(world.random.randint(1, 5))
        kills = sum(kill_within(world, seconds, start(run_script, script, *arguments, "-o", out)) for _ in tries)
        if result_of(run_script, script, *arguments, "-o", out) != "ended":
            raise LostError("the run after the kills failed")
        found = files(out)
        if other := [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]:
            raise LostError(f"other bytes after kills: {', '.join(sorted(other))}")
        yield f"the same bytes, kills before: {kills}"


def kills_of_corpus_runs(world):
    """scripts/classify_corpus.py, killed some times and then run to its end."""
    inputs = [world.folder / f"input{number}.txt" for number in range(4)]
    for path in inputs:
        path.write_text("".join(f"{' '.join(world.random.choices(WORDS[5:], k=5))}\n" for _ in range(50)))
    return kills_of_runs(world, "classify_corpus.py", *inputs, "--model", world.folder / "old")


def kills_of_trainings(world):
    """scripts/finetune.py, killed some times and then resumed to its end."""
    import torch._inductor  # noqa: F401  torch.use_deterministic_algorithms imports it, which takes seconds

    rows = [
        (" ".join(world.random.choices(WORDS[5:], k=5)), f"old {world.random.choice(['no', 'yes'])}") for _ in range(40)
    ]
    data = world.folder / "train.tsv"
    data.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    settings = ["--epochs", 2, "--batch-rows", 4, "--checkpoint-every", 1, "--threads", 1, "--resume"]
    model = ["--model", world.folder / "old"]
    return kills_of_runs(world, "finetune.py", "sequence", "--train", data, *model, *settings)


# All of it

PARTS = {  # what is tried, and how often; the longest parts last, because each part leaves its time to the next
    read_only_folders: 10,
    read_only_disks: 10,
    full_disks: 100,
    file_size_limits: 100,
    kills_of_tokenizer_saves: 100,
    kills_of_model_saves: 250,
    pairs_of_downloads: 50,
    kills_of_downloads: 100,
    kills_of_corpus_runs: 20,
    kills_of_trainings: 20,
    hub_faults: 200,
    pairs_of_savers: 500,
    loads_during_saves: 5000,
}


def tried(part, world, number, seconds):
    """Try a part so many times, if the time is enough; return what was found, how often, and what was lost."""
    found, end = Counter(), time.monotonic() + seconds
    attempts = part(world)
    try:
        while not found or (found.total() < number and time.monotonic() < end):
            found[next(attempts)] += 1
    except NotImplementedError as reason:
        return Counter({str(reason): 0}), None
    except Exception as error:  # whatever else comes of a fault is a loss
        return found, f"{type(error).__name__}: {error}"
    finally:
        attempts.close()
    return found, None


def main(arguments=None):
    """Print the table; 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        prog="scripts/faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(part.__name__ for part in PARTS)}")
    parser.add_argument("--minutes", type=float, default=10, help="in all; default: 10")
    parser.add_argument("--scale", type=float, default=1, help="how often, times the usual numbers; default: 1")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: another one each time")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - {part.__name__ for part in PARTS}:
        parser.error(f"no part {', '.join(sorted(unknown))}: see --help")
    if options.minutes <= 0 or options.scale <= 0:
        parser.error(f"--minutes {options.minutes:g}, --scale {options.scale:g}: give numbers above 0")
    os.environ.update(SETTINGS)
    torch.set_num_threads(1)  # a process that has run several threads cannot be forked
    print(f"seed {options.seed}", flush=True)
    chosen = [part for part in PARTS if not options.parts or part.__name__ in options.parts]
    end, rows = time.monotonic() + 60 * options.minutes, []
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # another user may read it
        for position, part in enumerate(chosen):
            (world_folder := Path(folder, part.__name__)).mkdir()
            begin = time.monotonic()
            share = (end - begin) / (len(chosen) - position)  # what one part leaves, the others get
            number = max(1, round(PARTS[part] * options.scale))
            found, loss = tried(part, World(world_folder, options.seed), number, share)
            shutil.rmtree(world_folder)
            counts = "; ".join(f"{count} {what}" if count else what for what, count in found.most_common())
            seconds = round(time.monotonic() - begin)
            rows.append((part.__name__, f"{found.total()} of {number}", counts, loss or "nothing", seconds))
            print(f"{part.__name__}, {rows[-1][1]} tried, lost: {rows[-1][3]}", flush=True)
    print("", table(("part", "tried", "found afterwards", "lost", "seconds"), rows), "", sep="\n")
    print(*(f"{part.__name__}: {part.__doc__}" for part in chosen), sep="\n")
    return int(any(loss != "nothing" for *_, loss, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
