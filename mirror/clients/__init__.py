"""Configuration files for clients that pull through the mirror.  Pure functions of text."""

from mirror.clients.buildkit import buildkit
from mirror.clients.containerd import containerd, k3s
from mirror.clients.docker import docker, docker_hosts, docker_proxy, docker_proxy_unit
from mirror.clients.podman import podman
from mirror.clients.snippet import (
    ClientUrl,
    File,
    Mirror,
    Snippet,
    is_loopback,
    reachable_url,
    trusting,
)

__all__ = [
    "ClientUrl",
    "File",
    "Mirror",
    "Snippet",
    "buildkit",
    "containerd",
    "docker",
    "docker_hosts",
    "docker_proxy",
    "docker_proxy_unit",
    "is_loopback",
    "k3s",
    "podman",
    "reachable_url",
    "trusting",
]
