import pytest

from mirror.api.parts import client_type


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        (
            (
                "docker/20.10.24+dfsg1 go/go1.19.8 git-commit/5d6db84 kernel/6.1.0 os/linux "
                "arch/amd64 UpstreamClient(Docker-Client/20.10.24+dfsg1 \\(linux\\))"
            ),
            "Docker",
        ),
        ("containerd/v2.0.2", "containerd"),
        ("libpod/4.3.1", "Podman"),
        ("skopeo/1.9.3", "Skopeo"),
        ("Buildah/1.28.2", "Buildah"),
        ("buildkit/v0.20", "BuildKit"),
        ("cri-o/1.31.0 go/go1.22.0 os/linux arch/amd64", "CRI-O"),
        ("containers/5.24.1 (github.com/containers/image)", "Podman"),
        ("crane/v0.20.2 go-containerregistry/v0.20.2", "crane"),
        ("curl/7.88.1", "curl"),
        ("", "unknown"),
        ("<script>alert(1)</script>", "unknown"),
        ("x" * 500, "x" * 24),
        ("\x1b[31m", "unknown"),
    ],
)
def test_a_program_is_called_what_people_call_it(agent, name):
    assert client_type(agent) == name
