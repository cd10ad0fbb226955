#!/usr/bin/env python3
"""Appends one record to a results file: what the machine is, or what one command measured.

  record.py RESULTS.jsonl run --command LINE --pairs FILE --model DIR --core N [--quick]
  record.py RESULTS.jsonl measure --set SET --name NAME [--round N] [--progress TEXT] -- COMMAND...

A measured command prints JSON lines on stdout, which are kept as they are, or else lines of text, kept too. One that fails is recorded with the end of
its stderr, and this program still exits 0: the other measurements go on. Only an interrupt ends it otherwise.
Paths below the current folder (the repository) are written relative to it, others by their last part alone.
Not here: which commands (launch/bench.sh), what the figures come to (summarize.py). Standard library only.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

# A measurement that takes longer hangs. The slowest peer takes a quarter of this on a slow machine.
LIMIT_SECONDS = 3 * 3600
PACKAGES = ("torch", "transformers", "trl", "datasets", "accelerate", "tokenizers", "numpy", "matplotlib")
# Instruction sets that decide how fast bf16 and f32 products can be.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def shown(text: str) -> str:
    """An argument or a line without this machine's folders."""
    text = text.replace(f"{Path.cwd()}/", "")
    return re.sub(r"(?<![\w.:/])/(?:[\w.+@-]+/)+([\w.+@-]+)", r"\1", text)


def output_of(*command: str) -> str:
    """What a command prints, or nothing."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def first_line(text: str) -> str:
    """The first line of a text that may be empty."""
    return text.splitlines()[0] if text else ""


def machine() -> dict:
    """Processor, cores, instruction sets and memory of this machine."""
    fields = dict(line.split(":", 1) for line in output_of("lscpu").splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    have = set(fields.get("Flags", "").split())
    memory = re.search(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    return {
        "processor": fields.get("Model name", "unknown"),
        "family_model": f"{fields.get('CPU family', '?')}/{fields.get('Model', '?')}",
        "cores": os.cpu_count(),
        "l3_cache": fields.get("L3 cache", "unknown"),
        "hypervisor": fields.get("Hypervisor vendor", "none"),
        "flags": [flag for flag in FLAGS if flag in have],
        "memory_gb": round(int(memory[1]) * 1024 / 1e9, 1) if memory else None,
        "system": f"{os.uname().sysname} {os.uname().release.split('-')[0]}",
    }


def version_of(package: str) -> str:
    """The version of an installed Python package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def run_record(arguments: argparse.Namespace) -> dict:
    """Everything a reader needs to judge the measurements that follow."""
    pairs = Path(arguments.pairs)
    # Results of earlier runs are no change to what is measured.
    changed = output_of("git", "status", "--porcelain", "--", ".", ":!benches/results")
    versions = {package: version_of(package) for package in PACKAGES}
    versions |= {
        "python": sys.version.split()[0],
        "rustc": first_line(output_of("rustc", "--version")).removeprefix("rustc ").split(" ")[0],
        "mpirun": first_line(output_of("mpirun", "--version")).removeprefix("mpirun "),
    }
    return {
        "set": "run",
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shown(arguments.command),
        "quick": arguments.quick,
        "commit": output_of("git", "rev-parse", "HEAD") or "unknown",
        "changed": bool(changed),
        "pairs": pairs.name,
        "pairs_sha256": hashlib.sha256(pairs.read_bytes()).hexdigest(),
        "model": Path(arguments.model).name,
        "core": arguments.core,
        "load": os.getloadavg()[0],
        "machine": machine(),
        "versions": versions,
    }


def json_objects(text: str) -> list[dict]:
    """The lines of a text that are JSON objects."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def ended(status: int) -> str:
    """How a command that failed has ended."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
    return f"exit code {status}"


def measure(arguments: argparse.Namespace) -> dict:
    """Runs the command to its end and tells what it printed or how it failed."""
    start = time.monotonic()
    record = {"set": arguments.set, "name": arguments.name, "round": arguments.round,
              "command": shown(" ".join(arguments.words))}
    results, text, error = [], [], None
    try:
        # A group of its own, so that nothing of it is left behind.
        job = subprocess.Popen(arguments.words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True)
    except OSError as failure:
        return record | {"seconds": 0.0, "results": [], "text": [], "error": f"does not start: {shown(str(failure))}"}
    try:
        out, err = job.communicate(timeout=LIMIT_SECONDS)
        results = json_objects(out)
        if job.returncode != 0:
            lines = [line for line in (err.strip() or out.strip()).splitlines() if line.strip()]
            error = f"{ended(job.returncode)}: " + shown(" | ".join(lines[-3:]))[-600:]
        elif not results:
            # A benchmark that prints a table for people.
            text = [shown(line.rstrip()) for line in out.splitlines() if line.strip()]
            error = None if text else "printed nothing"
    except subprocess.TimeoutExpired:
        error = f"not over after {LIMIT_SECONDS} s"
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    return record | {"seconds": round(time.monotonic() - start, 1), "results": results, "text": text,
                     "error": error}


def brief(record: dict) -> str:
    """One line on how a measurement went."""
    if record["error"]:
        return f"FAILED after {record['seconds']:.0f} s: {record['error'][:200]}"
    took = f"{record['seconds']:.0f} s"
    if not record["results"] or "pairs_per_s" not in record["results"][-1]:
        return f"done, {took}"
    last = record["results"][-1]
    return f"{last['pairs_per_s']:.2f} pairs/s, {last.get('peak_rss_gb', float('nan')):.1f} GB, {took}"


def parse() -> argparse.Namespace:
    """The arguments; what follows `--` is the command to measure."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    kinds = parser.add_subparsers(dest="kind", required=True)
    run = kinds.add_parser("run")
    run.add_argument("--command", required=True)
    run.add_argument("--pairs", required=True)
    run.add_argument("--model", required=True)
    run.add_argument("--core", required=True, type=int)
    run.add_argument("--quick", action="store_true")
    measured = kinds.add_parser("measure")
    measured.add_argument("--set", required=True)
    measured.add_argument("--name", required=True)
    measured.add_argument("--round", type=int, default=1)
    measured.add_argument("--progress", default="")
    arguments = parser.parse_args(words[:cut])
    arguments.words = words[cut + 1:]
    if arguments.kind == "measure" and not arguments.words:
        parser.error("no command to measure: give it after --")
    return arguments


def main() -> int:
    """Makes the record and appends it."""
    arguments = parse()
    if arguments.kind == "run":
        record = run_record(arguments)
    else:
        print(f"{arguments.progress}{arguments.set}, round {arguments.round}, {arguments.name}: ", end="", flush=True)
        try:
            record = measure(arguments)
        except KeyboardInterrupt:
            print("interrupted")
            return 130
        print(brief(record), flush=True)
    with arguments.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
