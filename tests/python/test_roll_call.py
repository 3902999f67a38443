"""Who is left? Ranks that are gone, late, silent, or gone in the middle of the call; each rank a thread."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from gtopk._roll_call import RollCall, reaches

LIMIT = 100.0
LONG = 60.0  # what those who are late are waited for where nobody is to be waited for so long
SOON = 30.0  # on a loaded machine


class World:
    """Sockets of so many ranks."""

    def __init__(self, size, wait=LONG):
        self.wait = wait
        self.rolls = [RollCall() for _ in range(size)]
        for roll in self.rolls:
            roll.job = 7
        self.addresses = {rank: ("localhost", roll.port) for rank, roll in enumerate(self.rolls)}
        self.found = {}
        self.threads = []

    def call(self, rank, after=0.0, when=None, offer=lambda ranks: f"of {ranks[0]}"):
        def run():
            time.sleep(after)
            if when is not None:
                when.wait(LIMIT)
            try:
                self.found[rank] = self.rolls[rank].call(rank, self.addresses, self.wait, offer)
            except Exception as error:
                self.found[rank] = error

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def end(self):
        """What each found, and how long it took."""
        start = time.monotonic()
        for thread in self.threads:
            thread.join(LIMIT)
            assert not thread.is_alive(), self.found
        for roll in self.rolls:
            roll.close()
        return self.found, time.monotonic() - start


@pytest.mark.parametrize("lost", [(), (0,), (1,), (3,), (0, 1), (0, 1, 2)])
def test_those_who_are_left_find_each_other_at_once(lost):
    world = World(4)
    for rank in lost:
        world.rolls[rank].close()
    left = [rank for rank in range(4) if rank not in lost]
    for rank in left:
        world.call(rank, after=0.05 * rank)
    found, seconds = world.end()
    assert found == dict.fromkeys(left, (left, f"of {left[0]}"))
    assert seconds < SOON


@pytest.mark.parametrize("late", [0, 2])
def test_a_rank_that_is_alive_is_waited_for(late):
    world, comes = World(3), threading.Event()
    for rank in range(3):
        world.call(rank, when=comes if rank == late else None)
    time.sleep(0.4)
    assert not world.found
    comes.set()
    found, seconds = world.end()
    assert {tuple(roll.ranks) for roll in found.values()} == {(0, 1, 2)}
    assert seconds < SOON


@pytest.mark.parametrize("silent", [0, 2])
def test_a_rank_that_stays_silent_is_left_out(silent):
    """As one whose process is stopped: its machine takes connections."""
    world, all_are_there = World(3, wait=1.0), threading.Barrier(2)
    left = [rank for rank in range(3) if rank != silent]
    for rank in left:
        world.call(rank, when=all_are_there)
    found, _ = world.end()
    assert found == dict.fromkeys(left, (left, f"of {left[0]}"))


def test_a_rank_that_dies_while_it_is_waited_for():
    world = World(4)
    for rank in (0, 1, 2):
        world.call(rank)
    time.sleep(0.3)
    world.rolls[3].close()
    found, seconds = world.end()
    assert {tuple(roll.ranks) for roll in found.values()} == {(0, 1, 2)}
    assert seconds < SOON


def test_a_rank_that_has_come_and_dies_is_not_counted():
    world = World(3)
    with socket.create_connection(world.addresses[0]) as link:  # rank 1, in its last second
        link.sendall(b'{"job": 7, "rank": 1}\n')
        world.call(0)
        time.sleep(0.3)
        world.rolls[1].close()
    world.call(2)
    found, _ = world.end()
    assert found == {0: ([0, 2], "of 0"), 2: ([0, 2], "of 0")}


def test_when_the_rank_that_counts_dies_the_next_one_does():
    def die(ranks):
        world.rolls[0].close()
        raise RuntimeError(f"as it was about to tell {ranks}")

    world = World(3)
    world.call(0, offer=die)
    world.call(1)
    world.call(2)
    found, seconds = world.end()
    assert str(found.pop(0)) == "as it was about to tell [0, 1, 2]"
    assert found == {1: ([1, 2], "of 1"), 2: ([1, 2], "of 1")}
    assert seconds < SOON


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"job": 8, "rank": 1}\n',
        b'{"job": 7, "rank": 9}\n',
        b"[]\n",
        b"\xff\n",
        b"x" * 70000,
    ],
)
def test_strangers_are_left_alone(said):
    world = World(2)
    with socket.create_connection(world.addresses[0]) as stranger:
        stranger.sendall(said)
        world.call(0)
        world.call(1, after=0.05)
        found, _ = world.end()
    assert found == {0: ([0, 1], "of 0"), 1: ([0, 1], "of 0")}


def test_a_rank_that_comes_when_the_others_are_gone_on_is_alone():
    """Nobody answers it any more."""
    world, both_are_there = World(3, wait=1.0), threading.Barrier(2)
    world.call(0, when=both_are_there)
    world.call(1, when=both_are_there)
    for thread in world.threads:
        thread.join(LIMIT)
    world.wait = 0.1
    world.call(2)
    found, _ = world.end()
    assert found[0].ranks == found[1].ranks == [0, 1]
    assert found[2].ranks == [2]


def test_the_socket_of_a_process_that_is_there_is_reached():
    world = World(1)
    assert reaches(world.addresses[0])
    world.end()
    assert not reaches(world.addresses[0])
