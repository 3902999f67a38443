"""What the links of an emulated cluster really give, over plain TCP between its first two hosts.

    python3 probe.py CLUSTER RATE       rate: 100mbit, 1gbit or 10gbit; prints one JSON object

Ends with 1 when a message after a pause passes faster than the rate allows (the median of some): then the shaper lets
bursts through, and what is measured over this link says nothing about a network. Latency is half of the time that one byte
takes to go and come back. Standard library alone, since it runs before anything is installed.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time

BITS = {"100mbit": 1e8, "1gbit": 1e9, "10gbit": 1e10}
PORT = 29400
MESSAGE = 88_000  # bytes: 25,000 entries of 3.5 bytes
PAUSE = 0.020  # seconds of silence, in which the bucket fills
LEAST = 0.994  # of the time that a message takes at the rate, headers not counted: 0.70 ms at 1 Gb/s
PATIENCE = 60


def receive(connection: socket.socket, count: int) -> None:
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise ConnectionError("the other host closed the connection")
        count -= len(part)


def serve() -> None:
    """Answers each message, whose length comes first, with one byte."""
    with socket.create_server(("", PORT)) as server:
        server.settimeout(PATIENCE)
        print("ready", flush=True)
        connection = server.accept()[0]
        connection.settimeout(PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            head = connection.recv(8, socket.MSG_WAITALL)
            if len(head) < 8:
                return
            receive(connection, struct.unpack("<q", head)[0])
            connection.sendall(b"1")


def send(connection: socket.socket, data: bytes, pause: float) -> float:
    """Seconds until the answer came."""
    time.sleep(pause)
    start = time.perf_counter()
    connection.sendall(struct.pack("<q", len(data)) + data)
    receive(connection, 1)
    return time.perf_counter() - start


def measure(address: str, bits: float) -> dict[str, float]:
    message = bytes(max(MESSAGE, round(MESSAGE * bits / 1e9)))
    stream = bytes(round(bits / 8 * 0.5))
    with socket.create_connection((address, PORT), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(20):  # the window opens
            send(connection, message, 0.0)
        turns = sorted(send(connection, b"", 0.001) for _ in range(200))
        bursts = sorted(send(connection, message, PAUSE) for _ in range(20))
        streams = sorted(send(connection, stream, 0.0) for _ in range(3))
    return {
        "latency_us": 1e6 * turns[len(turns) // 2] / 2,
        "bandwidth_mbit": len(stream) * 8e-6 / streams[0],
        "message_bytes": len(message),
        "message_ms": 1e3 * bursts[len(bursts) // 2],
        "message_at_rate_ms": 8e3 * len(message) / bits,
    }


def main() -> int:
    if sys.argv[1] == "--serve":
        serve()
        return 0
    if sys.argv[1] == "--measure":
        print(json.dumps(measure(sys.argv[2], float(sys.argv[3]))))
        return 0
    cluster, rate = sys.argv[1:]
    here = [sys.executable, sys.argv[0]]
    server = subprocess.Popen(
        ["ip", "netns", "exec", f"{cluster}-h1", *here, "--serve"], stdout=subprocess.PIPE, text=True
    )
    try:
        if server.stdout is None or server.stdout.readline() != "ready\n":
            return 1
        command = ["ip", "netns", "exec", f"{cluster}-h0", *here, "--measure", "10.77.0.2", str(BITS[rate])]
        result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=PATIENCE).stdout
    finally:
        server.kill()
        server.wait()
    measured = json.loads(result)
    print(json.dumps({"rate": rate, **{name: round(value, 3) for name, value in measured.items()}}))
    if measured["message_ms"] < LEAST * measured["message_at_rate_ms"]:
        print(
            f"probe: {measured['message_bytes']:.0f} bytes after {PAUSE * 1e3:.0f} ms of silence took "
            f"{measured['message_ms']:.3f} ms, which is less than {LEAST * measured['message_at_rate_ms']:.3f}: "
            "the shaper lets bursts through",
            file=sys.stderr,
        )
        return 1
    if measured["bandwidth_mbit"] < 0.8 * BITS[rate] * 1e-6:
        given = f"{measured['bandwidth_mbit']:.0f} Mb/s only"
        print(f"probe: warning: the link gives {given}: the processor is busy, or too slow for it", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
