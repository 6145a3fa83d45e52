"""Rows with a real Docker daemon."""

import os
import time
from collections.abc import Callable
from functools import partial

from tests.peers.dockerd import Dockerd
from tools.bench.comparison import (
    DIRECT,
    MIRROR,
    P3,
    NotAvailableError,
    Result,
    at_most,
    interleaved,
)
from tools.bench.corpus import REPOSITORY
from tools.bench.load import Sample
from tools.bench.servers import FULL_SPEED, Answering, Mirror
from tools.bench.stage import GIGABIT_LINE, Stage, need, running, warm

_WARM, _COLD = f"{MIRROR}, warm", f"{MIRROR}, cold"


def docker_pull(stage: Stage) -> Result:
    """``docker pull`` of a large image, including unpacking.

    In the cold runs upstream has a 1 Gbit/s line: dockerd alone keeps two cores busy at 150 MB/s,
    so a faster line would measure the other programs on these cores.
    """
    need("dockerd", "docker", "containerd", "runc")
    if os.geteuid() != 0:
        raise NotAvailableError("needs root")
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


def _pull_cold(daemon: Dockerd, stage: Stage) -> Sample:
    with stage.fresh(Mirror, GIGABIT_LINE) as mirror:
        return _pull(daemon, mirror)


def _pull(daemon: Dockerd, server: Answering) -> Sample:
    # dockerd uses plain HTTP for registries on the loopback, without configuration.
    image = f"127.0.0.1:{server.port}/{REPOSITORY}:image"
    began = time.monotonic()
    daemon.docker("pull", "--quiet", image)
    seconds = time.monotonic() - began
    daemon.docker("rmi", image)
    return {"seconds": seconds}
