"""What Copy copies on the page for clients: commands, and no sentence around them."""

import pytest

from mirror import clients
from mirror.clients import Mirror
from mirror.ui.pages import Step, steps

MIRROR = Mirror("http://m.lan:5000", ("docker.io", "ghcr.io"))


def test_commands_stand_apart_from_sentences_and_remarks():
    assert steps(
        [
            "Put this there,",
            "then: systemctl restart docker",
            "Others by a path:",
            "  docker pull m.lan/ghcr.io/IMAGE   (ghcr.io, quay.io)",
            "  docker info    # shows it",
            "Done for:",
            "  docker.io, ghcr.io",
        ]
    ) == [
        Step("Put this there, then:", "systemctl restart docker"),
        Step(
            "Others by a path:",
            "docker pull m.lan/ghcr.io/IMAGE\ndocker info",
            "ghcr.io, quay.io; shows it",
        ),
        Step("Done for: docker.io, ghcr.io", ""),
    ]


@pytest.mark.parametrize(
    "snippet",
    [
        clients.docker,
        clients.docker_hosts,
        clients.docker_proxy,
        clients.containerd,
        clients.k3s,
        clients.podman,
        clients.buildkit,
    ],
)
def test_no_command_of_any_client_contains_a_sentence(snippet):
    found = [line for step in steps(snippet(MIRROR).advice) for line in step.commands.splitlines()]
    assert found
    for line in found:
        assert not line.endswith((",", "."))
        assert "(" not in line
        assert "then" not in line.split()
