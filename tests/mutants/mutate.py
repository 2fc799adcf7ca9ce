#!/usr/bin/env python3
"""Plants the faults of the lists in a copy of the project, one at a time: which check sees each?

README.md beside this file says how it is used. Python 3's own library is all that it needs.
"""

import argparse
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
FOLDERS = ["core", "kernels", "autograd", "layers", "data", "train"]
BUILD_SECONDS = 7200  # a compiler may be slow; this is no check of the mutant


class Stop(Exception):
    """What the user has to know before anything can be measured."""


# --- The lists ------------------------------------------------------------------------------------


class Mutant:
    def __init__(self, fields, old, new, where):
        missing = [key for key in ("mutant", "fault", "file") if not fields.get(key)]
        if missing:
            raise Stop(f"{where}: the entry lacks {', '.join(missing)}")
        unknown = set(fields) - {"mutant", "fault", "file", "ops", "why"}
        if unknown:
            raise Stop(f"{where}: unknown field {', '.join(sorted(unknown))}")
        self.name, self.fault, self.file = fields["mutant"], fields["fault"], fields["file"]
        self.ops, self.old, self.new, self.where = fields.get("ops", "").split(), old, new, where
        if old == new or not old:
            raise Stop(f"{where}: {self.name}: the old text is empty, or the new one is the same")
        parts = self.file.split("/")
        if not self.ops and parts[0] == "kernels" and len(parts) > 2:
            if (PROJECT / "kernels" / parts[1] / "cpu.cpp").is_file():  # a mechanism
                self.ops = [parts[1]]

    @property
    def cuda(self):
        return self.file.endswith((".cu", ".cuh"))

    def key(self):
        return digest([self.file, self.old, self.new])


def digest(texts):
    whole = hashlib.sha256()
    for text in texts:
        whole.update(text.encode() + b"\0")
    return whole.hexdigest()[:16]


def read_list(path):
    """Entries of a list: `key: value` lines, then <<<<, old text, ====, new text, >>>>."""
    entries, fields, lines, part, begin = [], {}, {"old": [], "new": []}, None, 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path.name}:{number}"
        if part:
            if line == "====" and part == "old":
                part = "new"
            elif line == ">>>>" and part == "new":
                entries.append(Mutant(fields, "\n".join(lines["old"]), "\n".join(lines["new"]),
                                      f"{path.name}:{begin}"))
                fields, lines, part = {}, {"old": [], "new": []}, None
            else:
                lines[part].append(line)
        elif line == "<<<<":
            part = "old"
        elif line.strip() and not line.startswith("#"):
            key, colon, value = line.partition(":")
            if not colon:
                raise Stop(f"{where}: expected `key: value`, or <<<< before the old text")
            begin = begin if fields else number
            fields[key.strip()] = value.strip()
    if part or fields:
        raise Stop(f"{path.name}:{begin}: the last entry is not whole")
    return entries


def read_lists(paths):
    mutants = [m for path in paths for m in read_list(path)]
    seen = {}
    for m in mutants:
        if m.name in seen:
            raise Stop(f"{m.where}: the name {m.name} is taken, see {seen[m.name]}")
        seen[m.name] = m.where
    return mutants


def misfit(m, root):
    """Why the mutant cannot be planted, or an empty text."""
    path = root / m.file
    if not path.is_file():
        return f"there is no file {m.file}"
    count = path.read_text(encoding="utf-8").count(m.old)
    return "" if count == 1 else "the old text is not there" if count == 0 else (
        f"the old text is there {count} times")


# --- Commands -------------------------------------------------------------------------------------


stopped = threading.Event()  # set by Ctrl-C: every command that runs ends
refused = []  # why the program as it is can tell nothing: no worker goes on


def end_group(process):
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            pass


def run(command, cwd, seconds, env=None):
    """(exit status or None where the time was up, output)."""
    end = time.monotonic() + seconds
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        status = None
        try:
            while status is None and time.monotonic() < end and not stopped.is_set():
                try:
                    status = process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    pass
        finally:
            end_group(process)  # also what the command left running
        if stopped.is_set():
            raise KeyboardInterrupt
        out.seek(max(0, out.seek(0, os.SEEK_END) - 400_000))
        return status, out.read().decode("utf-8", "replace")


def first_failure(output):
    """The name of the first failed test or check that the output tells of."""
    parts = re.split(r"^-{70,}\n(.+)\n(?:.*\n)*?-{70,}", output, flags=re.M)
    for name, told in zip(parts[1::2], parts[2::2]):  # a test that is skipped is told of as well
        if "FAILED" in told or "fatal error" in told:
            return name.strip()
    found = re.search(r"^FAILED +(.+)$", output, re.M)
    if found:
        return found.group(1).split(": case")[0].strip()
    found = re.search(r"^weft: (.+)$", output, re.M)
    return found.group(1).strip()[:80] if found else ""


# --- The copy -------------------------------------------------------------------------------------


class Copy:
    """The project in a folder of its own, with its build. Each worker has one."""

    def __init__(self, args, number):
        whole = args.build.resolve()
        if whole == PROJECT or PROJECT in whole.parents or whole in PROJECT.parents:
            raise Stop(f"--build {whole}: expected a folder outside of {PROJECT}")
        mark = whole / "made-by-mutate"
        if whole.exists() and any(whole.iterdir()) and not mark.exists():
            raise Stop(f"--build {whole}: is not empty and was not made by this program")
        self.args, self.number, self.root = args, number, whole / f"worker{number}"
        self.tree, self.out = self.root / "tree", self.root / "build"
        self.temporary = self.root / "tmp"
        for folder in (self.tree, self.out, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
        self.hash = self.synchronise()

    def synchronise(self):
        """Makes the copy what the checkout is, touching only what differs. The hash of all."""
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others",
                                 "--exclude-standard"], cwd=PROJECT, check=True,
                                capture_output=True).stdout.decode().split("\0")
        names = sorted(n for n in listed if n and (PROJECT / n).is_file()
                       and not n.startswith("tests/mutants/"))
        whole = hashlib.sha256()
        for name in names:
            data, to = (PROJECT / name).read_bytes(), self.tree / name
            whole.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
            if to.is_file() and to.read_bytes() == data:
                continue
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(data)
            to.chmod((PROJECT / name).stat().st_mode & 0o777)
        kept = set(names)
        for path in sorted(self.tree.rglob("*")):
            if path.is_file() and str(path.relative_to(self.tree)) not in kept:
                path.unlink()
        return whole.hexdigest()[:16]

    def environment(self):
        env = dict(os.environ, OMP_WAIT_POLICY="PASSIVE", TMPDIR=str(self.temporary),
                   CCACHE_BASEDIR=str(self.root), CCACHE_NOHASHDIR="1")
        if self.args.workers > 1:
            share = (os.cpu_count() or 1) // self.args.workers
            env.setdefault("OMP_NUM_THREADS", str(max(2, share)))
            env.setdefault("CUDA_VISIBLE_DEVICES", str(self.number % self.args.gpus))
        return env

    def clear(self):
        subprocess.run(["find", str(self.temporary), "-mindepth", "1", "-delete"],
                       stderr=subprocess.DEVNULL, check=False)

    def configure(self):
        cuda = "ON" if self.args.device == "cuda" else "OFF"
        status, output = run(["cmake", "-S", str(self.tree), "-B", str(self.out), "-G", "Ninja",
                              "-DCMAKE_BUILD_TYPE=Release", f"-DWEFT_CUDA={cuda}",
                              *self.args.define],
                             self.root, BUILD_SECONDS, self.environment())
        if status != 0:
            raise Stop("cmake failed:\n" + output[-4000:])

    def build(self, *targets, jobs=None):
        return run(["ninja", "-C", str(self.out), "-j", str(jobs or self.args.jobs), *targets],
                   self.root,
                   BUILD_SECONDS, self.environment())

    def check(self, stage):
        return run([str(self.out / stage.words[0]), *stage.words[1:]], self.tree,
                   self.args.timeout, self.environment())


class Stage:
    def __init__(self, name, *words):
        self.name, self.words = name, list(words)


def test_tags(copy):
    """The test files that weft_tests knows, as Catch2's tags for them."""
    status, output = copy.check(Stage("tags", "weft_tests", "-#", "--list-tags"))
    if status not in (0, None) and "[#" not in output:
        raise Stop("weft_tests does not list its tags:\n" + output[-2000:])
    return set(re.findall(r"\[#([^\]]+)\]", output))


def tags_of(folder, known):
    files = sorted((PROJECT / "tests" / folder).rglob("*_test.c*"))
    return [f"[#{f.stem}]" for f in files if f.stem in known]


def without(skipped):
    """What a choice of tests ends with, to leave tests out by their names."""
    return "".join(f'~"{name}"' for name in skipped)


def stages_of(m, args, known):
    """What is run for a mutant, the cheapest and likeliest first."""
    on = ["--device", args.device] if args.device != "cpu" else []
    left_out = without(args.skip)
    stages, named = [], []
    if m.ops:
        words = [w for op in m.ops for w in ("--op", op)]
        stages.append(Stage("gradcheck " + " ".join(m.ops), "weft", "gradcheck", *words, *on))
    path = Path(m.file)
    candidates = [path.stem] if path.stem not in ("cpu", "problem") else []
    candidates += [path.stem.replace("_cuda", ""), path.parent.name]
    for stem in candidates:
        tag = f"{stem}_test"
        if tag in known and tag not in named:
            named.append(tag)
    if named:
        spec = ",".join(f"[#{t}]{left_out}" for t in named)
        stages.append(Stage("tests of the file", "weft_tests", "-a", "-#", spec))
    folder = tags_of(path.parts[0], known)
    if folder:
        stages.append(Stage(f"tests of {path.parts[0]}", "weft_tests", "-a", "-#",
                            ",".join(tag + left_out for tag in folder)))
    stages += whole_stages(args)
    return stages


def whole_stages(args):
    on = ["--device", args.device] if args.device != "cpu" else []
    chosen = ["~[.]" + without(args.skip)] if args.skip else []
    return [Stage("whole certificate", "weft", "gradcheck", *on),
            Stage("whole suite", "weft_tests", "-a", *chosen)]


# --- One mutant -----------------------------------------------------------------------------------


def judge(m, copy, known):
    """(outcome, by what, seconds); the copy is as it was afterwards."""
    started = time.monotonic()
    seconds = lambda: round(time.monotonic() - started, 1)
    path = copy.tree / m.file
    why = misfit(m, copy.tree)
    if why:
        return "not planted", why, 0.0
    before = path.read_bytes()
    try:
        path.write_text(before.decode("utf-8").replace(m.old, m.new), encoding="utf-8")
        stages = stages_of(m, copy.args, known)
        early = stages[:1] if m.ops else []  # needs no tests to be built
        for target, checks in (("weft", early), ("weft_tests", stages[len(early):])):
            status, output = copy.build(target)
            if status != 0:
                error = re.search(r"error: .+", output)
                if error:
                    return "does not compile", error.group(0)[:120], seconds()
                # The build also lets weft_tests list its tests.
                return "caught", "the build: a program that it made does not run", seconds()
            for stage in checks:
                status, output = copy.check(stage)
                if status is None:
                    return "caught", f"{stage.name}: ran past {copy.args.timeout:g} s", seconds()
                if status != 0:
                    detail = first_failure(output) or f"exit status {status}"
                    return "caught", f"{stage.name}: {detail}", seconds()
        return "SURVIVED", "", seconds()
    finally:
        path.write_bytes(before)
        copy.clear()


# --- Results --------------------------------------------------------------------------------------


class Results:
    """A file in the build's folder: what is done is kept as it comes, and skipped next time."""

    def __init__(self, copy):
        self.path = copy.root.parent / f"results-{copy.args.device}.json"
        self.lock = threading.Lock()
        self.data = {"tree": copy.hash, "baseline": None, "mutants": {}}
        if self.path.is_file():
            old = json.loads(self.path.read_text(encoding="utf-8"))
            if old.get("tree") == copy.hash:
                self.data = old

    def has(self, m):
        found = self.data["mutants"].get(m.name)
        return found is not None and found["key"] == m.key()

    def put(self, m, outcome, what, seconds):
        with self.lock:
            self.data["mutants"][m.name] = {"key": m.key(), "file": m.file, "fault": m.fault,
                                            "outcome": outcome, "by": what, "seconds": seconds}
            self.save()

    def save(self):
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        fresh.replace(self.path)


def print_table(mutants, results):
    rows = [("mutant", "outcome", "seconds", "by what")]
    for m in mutants:
        found = results.data["mutants"].get(m.name)
        if found and results.has(m):
            rows.append((m.name, found["outcome"], f"{found['seconds']:.1f}", found["by"]))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}")
    counts = {}
    for row in rows[1:]:
        counts[row[1]] = counts.get(row[1], 0) + 1
    print(f"\n{len(rows) - 1} of {len(mutants)} mutants: "
          + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    for m in mutants:
        if results.has(m) and results.data["mutants"][m.name]["outcome"] == "SURVIVED":
            print(f"SURVIVED  {m.name}: {m.fault}")
    print(results.path)
    return counts


def build_baseline(copy):
    """Builds the program as it is. The tags of its tests."""
    copy.configure()
    status, output = copy.build("weft", "weft_tests", jobs=os.cpu_count())
    if status != 0:
        raise Stop("the program as it is does not build:\n" + output[-4000:])
    return test_tags(copy)


def check_baseline(copy, results):
    """The program as it is must pass, or nothing that fails afterwards tells anything."""
    times = {}
    for stage in whole_stages(copy.args):
        print(f"unchanged: {stage.name} ...", flush=True)
        started = time.monotonic()
        status, output = copy.check(stage)
        if status is None:
            raise Stop(f"unchanged: {stage.name} takes longer than --timeout "
                       f"{copy.args.timeout:g}")
        if status != 0:
            raise Stop(f"unchanged: {stage.name} fails: {first_failure(output)}\n"
                       + output[-4000:])
        times[stage.name] = round(time.monotonic() - started, 1)
    copy.clear()
    results.data["baseline"] = times
    results.save()


def work(copy, todo, results, known):
    """What one worker does: it takes mutants until none is left. Worker 0 has its build already; it
    checks the unchanged program before its first mutant."""
    if copy.number:
        copy.configure()
        copy.build("weft", "weft_tests")
    elif results.data["baseline"] is None:
        check_baseline(copy, results)
    while not refused:
        try:
            number, m = todo.pop(0)
        except IndexError:
            return
        outcome, what, seconds = judge(m, copy, known)
        results.put(m, outcome, what, seconds)
        print(f"[{number}] {m.name}: {m.fault}\n"
              f"    {outcome}{': ' + what if what else ''} ({seconds:.0f} s)", flush=True)


def planted(args, mutants):
    first = Copy(args, 0)
    results = Results(first)
    failures = []

    def guarded(copy):
        try:
            work(copy, todo, results, known)
        except KeyboardInterrupt:
            pass
        except Stop as why:
            refused.append(why)
        except Exception as why:  # the other workers and the table go on
            failures.append(f"worker {copy.number}: {why}")

    try:
        known = build_baseline(first)
        todo = [(f"{number}/{len(mutants)}", m) for number, m in enumerate(mutants, 1)
                if not results.has(m)]
        copies = [first] + [Copy(args, n) for n in range(1, min(args.workers, len(todo)))]
        threads = [threading.Thread(target=guarded, args=(copy,)) for copy in copies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        stopped.set()
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join()
        print("\nstopped; the same command goes on from here\n")
        print_table(mutants, results)
        return 130
    if refused:
        raise refused[0]
    counts = print_table(mutants, results)
    for why in failures:
        print(f"mutate.py: {why}", file=sys.stderr)
    return 2 if failures else 1 if counts.get("SURVIVED") else 0


def check_lists(mutants):
    bad = 0
    for m in mutants:
        why = misfit(m, PROJECT)
        if why:
            bad += 1
            print(f"{m.where}: {m.name}: {why}")
    per_file = {}
    for m in mutants:
        part = "cuda" if m.cuda else m.file.split("/")[0]
        per_file[part] = per_file.get(part, 0) + 1
    print(", ".join(f"{part} {n}" for part, n in sorted(per_file.items()))
          + f": {len(mutants)} mutants, {bad} that do not fit")
    return 2 if bad else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", nargs="+", type=Path, metavar="FILE",
                        help="lists to take (standard: all beside this program that fit --device)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only the mutants of these names")
    parser.add_argument("--sample", type=int, metavar="N",
                        help="N of the mutants, drawn by a hash of their names")
    parser.add_argument("--build", type=Path, metavar="DIR",
                        default=Path(tempfile.gettempdir()) / f"weft-mutants-{os.getuid()}",
                        help="where copy, build and results lie (standard: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N",
                        help="compilers at a time (standard: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, metavar="N",
                        help="mutants at a time, each in a copy of its own (standard: 1)")
    parser.add_argument("--gpus", type=int, default=1, metavar="N",
                        help="GPUs that the workers share (standard: 1)")
    parser.add_argument("--define", action="append", default=[], type=lambda text: "-D" + text,
                        metavar="KEY=VALUE", help="a setting for cmake")
    parser.add_argument("--skip", action="append", default=[], metavar="TEST",
                        help="the name of a test that fails on this machine anyway")
    parser.add_argument("--timeout", type=float, default=1200, metavar="S",
                        help="seconds that one check may take (standard: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu",
                        help="cuda: build with CUDA, and plant the mutants of .cu and .cuh files")
    parser.add_argument("--check", action="store_true",
                        help="only see that each old text is there exactly once")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a mutant that crashes leaves no file
    try:
        lists = args.list or sorted(HERE.glob("*.txt"))
        for path in lists:
            if not path.is_file():
                raise Stop(f"{path}: there is no such list")
        mutants = read_lists(lists)
        if args.only:
            names = {m.name for m in mutants}
            absent = [name for name in args.only if name not in names]
            if absent:
                raise Stop(f"no mutant is named {', '.join(absent)}")
            mutants = [m for m in mutants if m.name in args.only]
        if args.check:
            return check_lists(mutants)
        fitting = [m for m in mutants if m.cuda == (args.device == "cuda")]
        if len(fitting) < len(mutants):
            other = "cpu" if args.device == "cuda" else "cuda"
            print(f"{len(mutants) - len(fitting)} mutants are left to --device {other}")
        if not fitting:
            raise Stop("no mutant is left to plant")
        if args.sample:
            fitting = sorted(fitting, key=lambda m: digest([m.name]))[:args.sample]
        return planted(args, fitting)
    except Stop as why:
        print(f"mutate.py: {why}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
