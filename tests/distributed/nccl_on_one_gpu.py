"""Transport nccl with several ranks on one GPU, which NCCL takes for ranks of several machines: each has its own host id.

    python3 tests/distributed/nccl_on_one_gpu.py [--build build] [--parts exchanges,kills,ddp] [--kills 20] [--standin]

Needs what `make build` and `make build/tests/distributed/step_until_error` made, an mpirun (GTOPK_MPIRUN names one) and NCCL;
for `ddp` also PyTorch with CUDA. Parts:

    exchanges   2 and 4 ranks, all algorithms, by allreduce_bench: nothing wrong
    kills       kill -9 of one rank of 2 and of 4: the others return an error within the deadline + 1 s, their residual is as
                it was, a later call fails at once
    ddp         2 ranks, DistributedDataParallel with backend nccl and our hook: the ranks' weights stay the same

Prints one line of JSON a part, and ends with 1 when one failed. --standin: on what stands in for driver and NCCL, with small
sizes; a rehearsal, without `ddp`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
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


def mpi_command(ranks, program, *mpi_options):
    from jobs import mpirun_command

    command, extra = mpirun_command(ranks, *mpi_options)
    own_host = 'NCCL_HOSTID=host$OMPI_COMM_WORLD_RANK exec "$@"'
    return [*command, "sh", "-c", own_host, "rank", *program], extra


def exchanges(options):
    """Nothing wrong, for 2 and 4 ranks."""
    report = {}
    for ranks in (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "table.json"
            program = [str(Path(options.build).resolve() / "benchmarks/allreduce_bench"), "--device", "cuda"]
            program += ["--transport", "nccl", "--json", str(table)]
            program += ["--sizes", "3000" if options.standin else "100000,10000000"]
            program += ["--iterations", "1" if options.standin else "10", "--warmup", "0" if options.standin else "2"]
            command, extra = mpi_command(ranks, program)
            done = subprocess.run(
                command, env={**os.environ, **extra}, capture_output=True, text=True, timeout=150, check=False
            )
            if not table.is_file():
                raise AssertionError(f"{ranks} ranks: {done.stdout[-2000:]}{done.stderr[-3000:]}")
            rows = json.loads(table.read_text())["rows"]
        assert len(rows) >= 4, rows
        assert all(row["wrong"] == 0 for row in rows), rows
        assert done.returncode == 0, done.stderr[-3000:]
        report[f"{ranks} ranks"] = [[row["algorithm"], row["n"], row["median_ms"], row["wrong"]] for row in rows]
    return report


def strike(ranks, deadline, dice, standin):
    """Kills one rank; returns how many seconds the slowest of the others took to return."""
    from jobs import Job, build_folder, kill

    program = [
        str(build_folder() / "tests/distributed/step_until_error"),
        str(deadline),
        "nccl",
        *(["400"] if standin else []),
    ]
    command, extra = mpi_command(ranks, program, "--enable-recovery")
    job = Job([(command, extra)])
    try:
        pids = job.wait_for(lambda text: len(job.pids) == ranks and job.pids, 60, f"the start of {ranks} ranks")
        step = 3 if standin else 50
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
        return max(float(line[2]) for line in lines) - struck
    finally:
        job.end()


def kills(options):
    """Survivors return in time, however often one is killed."""
    dice = random.Random(1)
    deadline = 6.0 if options.standin else 2.0
    took = [
        strike(2 if i % 2 else 4 - 2 * options.standin, deadline, dice, options.standin) for i in range(options.kills)
    ]
    late = [seconds for seconds in took if seconds > deadline + 1.0]
    assert not late, f"{len(late)} of {len(took)} took longer than {deadline} + 1 s: {late}"
    return {"kills": len(took), "deadline_s": deadline, "slowest_s": round(max(took), 3)}


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
    return {"said": outputs[0].strip().splitlines()[-1]}


PARTS = {"exchanges": exchanges, "kills": kills, "ddp": ddp}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--standin", action="store_true")
    options = parser.parse_args()
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
