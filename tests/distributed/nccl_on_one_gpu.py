"""Transport nccl with several ranks on one GPU, which NCCL takes for ranks of several machines: each has its own host id.

    python3 tests/distributed/nccl_on_one_gpu.py [--build build] [--parts exchanges,nodes,...] [--kills 20] [--standin]

Needs what `make build` and `make build/tests/distributed/step_until_error build/tests/distributed/trace_step` made, an mpirun
(GTOPK_MPIRUN names one) and NCCL; for `trace` also libcuda_count.so (--counter), for `ddp` PyTorch with CUDA. Parts:

    exchanges   2 and 4 ranks, all algorithms, by allreduce_bench: nothing wrong
    nodes       4 ranks on 2 nodes and on one, by their names, with hierarchy "node": nothing wrong
    trace       what the host does in a step, by trace_step: 2 ranks, and 4 on 2 nodes; it waits for the GPU at verdicts alone
    kills       kill -9 of one rank of 2 and of 4: the others return an error within the deadline + 1 s, their residual is as
                it was, a later call fails at once
    ddp         2 ranks, DistributedDataParallel with backend nccl and our hook: the ranks' weights stay the same

Prints one line of JSON a part, and ends with 1 when one failed. --trace FILE keeps the traces. --standin: on what stands in
for driver and NCCL, with small sizes; a rehearsal, without `ddp`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def settings(options):
    """For every rank: NCCL by sockets on this machine alone."""
    found = {"NCCL_NET": "Socket", "NCCL_SOCKET_IFNAME": "lo", "GTOPK_BUILD": options.build}
    if options.standin:
        build = Path(options.build).resolve()
        found["GTOPK_CUDA_DRIVER"] = str(build / "libcuda_standin.so")
        found["GTOPK_NCCL_LIBRARY"] = str(build / "libnccl_standin.so")
    return found


def mpi_command(ranks, program, *mpi_options, each_node=0):
    """each_node: so many ranks share a node, by its name; 0: the machine's own."""
    from jobs import mpirun_command

    command, extra = mpirun_command(ranks, *mpi_options)
    start = "NCCL_HOSTID=host$OMPI_COMM_WORLD_RANK "
    if each_node:
        start += f"GTOPK_NODE=node$((OMPI_COMM_WORLD_RANK / {each_node})) "
    return [*command, "sh", "-c", start + 'exec "$@"', "rank", *program], extra


def run_ranks(ranks, program, each_node=0, **environment):
    """Their output, when all ended well."""
    command, extra = mpi_command(ranks, program, each_node=each_node)
    done = subprocess.run(
        command, env={**os.environ, **extra, **environment}, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, f"{ranks} ranks: {done.stdout[-2000:]}{done.stderr[-3000:]}"


def bench(options, ranks, *more, each_node=0):
    """Rows of allreduce_bench, none of which is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.json"
        program = [str(Path(options.build).resolve() / "benchmarks/allreduce_bench"), "--device", "cuda"]
        program += ["--transport", "nccl", "--json", str(table), *more]
        program += ["--sizes", "3000" if options.standin else "100000,10000000"]
        program += ["--iterations", "1" if options.standin else "10", "--warmup", "0" if options.standin else "2"]
        run_ranks(ranks, program, each_node)
        rows = json.loads(table.read_text())["rows"]
    assert len(rows) >= 4, rows
    assert all(row["wrong"] == 0 for row in rows), rows
    return [[row["algorithm"], row["n"], row["median_ms"], row["wrong"]] for row in rows]


def exchanges(options):
    """Nothing wrong, for 2 and 4 ranks."""
    return {f"{ranks} ranks": bench(options, ranks) for ranks in (2, 4)}


def nodes(options):
    """Nothing wrong where ranks of a node act as one."""
    sparse = ["--hierarchy", "node", "--algorithms", "gtopk,gtopk-split,gtopk-tree,topk"]
    return {f"4 ranks, {each} a node": bench(options, 4, *sparse, each_node=each) for each in (2, 4)}


def trace(options):
    """Steps with a counting driver in between."""
    if not Path(options.counter).is_file():
        return {"skipped": f"there is no {options.counter}"}
    program = str(Path(options.build).resolve() / "tests/distributed/trace_step")
    found = []
    for ranks, each, hierarchy in ((2, 0, "off"), (4, 2, "node")):
        size = ["3000", "2"] if options.standin else ["2500000" if each else "25000000", "10"]
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "trace.json"
            counted = os.environ.get("GTOPK_CUDA_DRIVER", "libcuda.so.1")
            between = {"GTOPK_CUDA_DRIVER": str(Path(options.counter).resolve()), "GTOPK_COUNTED_DRIVER": counted}
            run_ranks(ranks, [program, str(table), *size, hierarchy], each, **between)
            found.append(json.loads(table.read_text()))
    if options.trace:
        Path(options.trace).write_text(json.dumps(found) + "\n")
    kept = ("algorithm", "rounds", "launches", "verdicts", "waits", "waits_before_verdict", "host_us", "step_us")
    rows = [row for one in found for row in one["rows"]]
    assert all(row["waits"] == row["verdicts"] and row["waits_before_verdict"] == 0 for row in rows), rows
    assert len(rows) == 9 and all(row["launches"] >= 8 for row in rows), rows
    return {
        f"{one['ranks']} ranks, {one['hierarchy']}": [{name: row[name] for name in kept} for row in one["rows"]]
        for one in found
    }


def strike(ranks, deadline, dice, standin):
    """Kills one rank; returns how many seconds it took until the ranks were there, until they had taken steps, until the
    slowest of the others returned, and until all were gone."""
    from jobs import Job, build_folder, kill

    program = [
        str(build_folder() / "tests/distributed/step_until_error"),
        str(deadline),
        "nccl",
        *(["400"] if standin else []),
    ]
    command, extra = mpi_command(ranks, program, "--enable-recovery")
    begin = time.time()
    job = Job([(command, extra)])
    try:
        pids = job.wait_for(lambda text: len(job.pids) == ranks and job.pids, 60, f"the start of {ranks} ranks")
        there = time.time()
        step = 3 if standin else 10
        job.wait_for(lambda text: f"step {step}\n" in text, 100, f"step {step}")
        time.sleep(dice.uniform(0.0, 0.3))
        victim = dice.randrange(ranks)
        struck = time.time()
        kill(pids[victim], signal.SIGKILL)

        def all_failed(text):
            lines = re.findall(r"rank (\d+) failed (\S+) at ([\d.]+) kept (\d) later (\d)", text)
            return [line for line in lines if int(line[0]) != victim] if len(lines) >= ranks - 1 else None

        lines = job.wait_for(all_failed, deadline + 10.0, "the error on each survivor")
        for rank, name, _, kept, later in lines:
            assert kept == "1", f"rank {rank} ({name}): the residual changed in the failed step"
            assert later == "1", f"rank {rank} ({name}): a later call did not fail at once with the same error"
        returned = max(float(line[2]) for line in lines) - struck
    finally:
        ending = time.time()
        job.end()
    return {"start": there - begin, "steps": struck - there, "return": returned, "end": time.time() - ending}


def kills(options):
    """Survivors return in time, however often one is killed. One job after another: ranks that share a GPU take turns on it,
    and those that wait take whole turns, so that four jobs at a time took longer than one by one."""
    dice = random.Random(1)
    deadline = 6.0 if options.standin else 2.0
    until = time.monotonic() + options.seconds
    took = []
    while len(took) < options.kills and time.monotonic() < until:
        took.append(strike(2 if len(took) % 3 or options.standin else 4, deadline, dice, options.standin))
        print(json.dumps({what: round(seconds, 3) for what, seconds in took[-1].items()}), flush=True)
    late = [one["return"] for one in took if one["return"] > deadline + 1.0]
    assert not late, f"{len(late)} of {len(took)} took longer than {deadline} + 1 s: {late}"
    times = {
        f"{name}_{what}_s": round(choose(one[what] for one in took), 3)
        for what in took[0]
        for name, choose in (("median", statistics.median), ("slowest", max))
    }
    return {"kills": len(took), "of": options.kills, "deadline_s": deadline, **times}


def ddp(options):
    """Two ranks by hand, each this script."""
    from jobs import by_hand, free_port

    if options.standin:
        return {"skipped": "PyTorch needs a GPU"}
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "nccl_ddp_rank.py")],
            env={**os.environ, **by_hand(rank, 2, port), "LOCAL_RANK": "0", "NCCL_HOSTID": f"host{rank}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=150)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(output[-3000:] for output in outputs)
    said = [line for line in outputs[0].splitlines() if "the same weights" in line]
    assert len(said) == 2, outputs[0][-3000:]
    return {"said": said}


PARTS = {"exchanges": exchanges, "nodes": nodes, "trace": trace, "ddp": ddp, "kills": kills}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which no more ranks are killed")
    parser.add_argument("--counter", default="", help="libcuda_count.so (BUILD/gpu/bin, else BUILD/bin)")
    parser.add_argument("--trace", default="", help="a file for the traces")
    parser.add_argument("--standin", action="store_true")
    options = parser.parse_args()
    places = [Path(options.build) / folder / "libcuda_count.so" for folder in ("gpu/bin", "bin")]
    options.counter = options.counter or str(next((place for place in places if place.is_file()), places[0]))
    sys.path.insert(0, str(HERE))
    os.environ.update(settings(options))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # jobs are ended
    failed = 0
    for name in options.parts.split(","):
        start = time.monotonic()
        try:
            report = {"ok": True, **PARTS[name](options)}
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            report = {"ok": False, "why": str(error)}
            failed = 1
        print(json.dumps({"part": name, "seconds": round(time.monotonic() - start, 1), **report}), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
