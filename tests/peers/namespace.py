"""A network namespace with two links to this machine, one of which can be cut."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_NETWORKS = itertools.count()


class Namespace:
    """Needs root.  A program in it is at :attr:`steady` and at :attr:`cuttable`.

    This machine is at :attr:`steady_here` and at :attr:`cuttable_here` for the program.
    """

    def __init__(self) -> None:
        self.name = f"mt{os.getpid()}"
        self._links = f"{self.name}a", f"{self.name}b"
        # The addresses for tests of networks (RFC 2544), other ones for each process.
        third = (os.getpid() + next(_NETWORKS)) % 256
        self.steady_here, self.steady = f"198.18.{third}.1", f"198.18.{third}.2"
        self.cuttable_here, self.cuttable = f"198.18.{third}.5", f"198.18.{third}.6"

    @property
    def within(self) -> list[str]:
        """What to put before a command that is to run in it."""
        return ["ip", "netns", "exec", self.name]

    @contextmanager
    def existing(self) -> Iterator[None]:
        """Skip the test, also in CI, where the kernel permits no namespace."""
        try:
            self._make()
            yield
        finally:
            for link in self._links:
                subprocess.run(["ip", "link", "del", link], check=False)
            subprocess.run(["ip", "netns", "del", self.name], check=False)

    def _make(self) -> None:
        try:
            _run("ip", "netns", "add", self.name)
            ends = (self.steady_here, self.steady), (self.cuttable_here, self.cuttable)
            for link, (here, there) in zip(self._links, ends, strict=True):
                far = ("type", "veth", "peer", "name", "far", "netns", self.name)
                _run("ip", "link", "add", link, *far)
                _run(*self.within, "ip", "link", "set", "far", "name", link)
                for place, address in ((), here), (self.within, there):
                    _run(*place, "ip", "address", "add", f"{address}/30", "dev", link)
                    _run(*place, "ip", "link", "set", link, "up")
            _run(*self.within, "ip", "link", "set", "lo", "up")
            self.cut()
            self.heal()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine permits no network namespace: {error}")

    def cut(self) -> None:
        """Drop all packets of the link, silently."""
        for place in [], self.within:
            _run(*place, "tc", "qdisc", "add", "dev", self._links[1], "root", "blackhole")

    def heal(self) -> None:
        for place in [], self.within:
            _run(*place, "tc", "qdisc", "del", "dev", self._links[1], "root")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
