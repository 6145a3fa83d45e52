"""Rows with a real Docker daemon."""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.peers.dockerd import Dockerd
from tests.peers.process import Process, accepts, free_port
from tools.bench.comparison import (
    DIRECT,
    MIRROR,
    P3,
    NotAvailableError,
    Result,
    at_most,
    interleaved,
)
from tools.bench.corpus import MIB, REPOSITORY
from tools.bench.load import Sample
from tools.bench.servers import FULL_SPEED, Answering, Mirror, Program
from tools.bench.stage import FAR_LINE, GIGABIT_LINE, Stage, need, running, warm

_LAYERS = 20
_LAYER_BYTES = 8 * MIB
_WARM, _COLD = f"{MIRROR}, warm", f"{MIRROR}, cold"


def docker_pull(stage: Stage) -> Result:
    """``docker pull`` of a large image, including unpacking.

    In the cold runs upstream has a 1 Gbit/s line: dockerd alone keeps two cores busy at 150 MB/s,
    so a faster line would measure the other programs on these cores.
    """
    _need_docker()
    image = stage.corpus.image()
    daemon = Dockerd(stage.new_directory(), f"http://127.0.0.1:{stage.static.port}")
    with stage.fresh(Mirror, FULL_SPEED) as filled, running(daemon):
        warm(filled, image)
        contestants: dict[str, Callable[[], Sample]] = {
            P3: partial(_pull, daemon, stage.static),
            _WARM: partial(_pull, daemon, filled),
            DIRECT: partial(_pull, daemon, stage.origin.door(GIGABIT_LINE)),
            _COLD: partial(_pull_cold, daemon, stage),
        }
        measured = interleaved(stage.scale.few_rounds, contestants, fewer={DIRECT: 1, _COLD: 2})
    return Result(
        {"s": measured.shown("seconds")},
        [
            at_most("warm, of P3", 1.02, measured.ratio("seconds", _WARM, P3)),
            at_most("cold, of direct", 1.0, measured.ratio("seconds", _COLD, DIRECT)),
        ],
    )


def docker_pull_from_afar(stage: Stage) -> Result:
    """``docker pull`` of an image with many layers; upstream is far, and limits each connection.

    dockerd asks for three layers at a time; the mirror fetches the others meanwhile.
    """
    _need_docker()
    image = stage.corpus.image("layers", _LAYERS, _LAYER_BYTES)
    daemon = Dockerd(stage.new_directory())
    far = DelayedLine(stage.new_directory(), stage.origin.door(FAR_LINE).port)
    with running(far) as line, running(daemon):

        def through_mirror() -> Sample:
            before = sum(map(stage.origin.sent, image))
            with stage.fresh(lambda directory, _: Mirror(directory, line.port), FAR_LINE) as mirror:
                sample = _pull(daemon, mirror, "layers")
            sent = sum(map(stage.origin.sent, image)) - before
            return sample | {"fetched": sent / (_LAYERS * _LAYER_BYTES)}

        measured = interleaved(
            stage.scale.few_rounds,
            {DIRECT: partial(_pull, daemon, line, "layers"), _COLD: through_mirror},
        )
    return Result(
        {
            "s": measured.shown("seconds"),
            "times from upstream": measured.shown("fetched", "{:.3f}"),
        },
        [at_most("cold, of direct", 0.6, measured.ratio("seconds", _COLD, DIRECT))],
    )


class DelayedLine(Program):
    """A TCP proxy that holds back the bytes of both directions, for a long round trip.

    ``tc netem`` would do it in the kernel, but not every kernel has it.
    """

    def __init__(self, log: Path, target: int) -> None:
        self.port = free_port()
        self.certificate = None
        self._log = log
        self._command = [sys.executable, "-m", "tools.bench.delay", str(self.port), str(target)]

    def start(self) -> None:
        self._process = Process(self._command, self._log)
        self._process.wait_until(lambda: accepts(self.port))


def _need_docker() -> None:
    need("dockerd", "docker", "containerd", "runc")
    if os.geteuid() != 0:
        raise NotAvailableError("needs root")


def _pull_cold(daemon: Dockerd, stage: Stage) -> Sample:
    with stage.fresh(Mirror, GIGABIT_LINE) as mirror:
        return _pull(daemon, mirror)


def _pull(daemon: Dockerd, server: Answering, tag: str = "image") -> Sample:
    # dockerd uses plain HTTP for registries on the loopback, without configuration.
    image = f"127.0.0.1:{server.port}/{REPOSITORY}:{tag}"
    began = time.monotonic()
    daemon.docker("pull", "--quiet", image)
    seconds = time.monotonic() - began
    daemon.docker("rmi", image)
    return {"seconds": seconds}
