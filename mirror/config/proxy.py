"""``[proxy]``: the mirror as an HTTP proxy for its clients."""

import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, PositiveInt

from mirror.config.addresses import Address, parse_listen
from mirror.config.fields import OptionalListen, Table, Timeout, state_directory, time

_DIRECTORY: Final = "proxy"  # below the cache directory
_GLOB: Final = re.compile(
    r"(?:\[[0-9a-f:.*]+\]|[a-z0-9_.*?-]+)(?::(?:[0-9]{1,5}|\*))?", re.ASCII | re.IGNORECASE
)


def _checked_glob(text: str) -> str:
    if not _GLOB.fullmatch(text):
        raise ValueError('a host such as "auth.docker.io", "*.example.com" or "git.lan:8443"')
    return text


class ProxyConfig(Table):
    """The addresses of the proxy, and the other servers that clients may reach through it."""

    listen: OptionalListen = ()
    ca_directory: str = ""
    allow: tuple[Annotated[str, AfterValidator(_checked_glob)], ...] = ("*",)
    private: bool = False
    tunnels: PositiveInt = 1_000
    idle_timeout: Timeout = time("10m")

    def addresses(self) -> list[Address]:
        """Return the addresses to listen at; empty if the proxy is off."""
        return [parse_listen(text) for text in self.listen]

    def authority_directories(self, cache: Path) -> tuple[Path, Path | None]:
        """Return the directory of the CA, and that of 0.2.0 and before if it may be there.

        ``cache`` is the cache directory.
        """
        if self.ca_directory:
            return Path(self.ca_directory).expanduser().absolute(), None
        return state_directory(cache).absolute(), cache.absolute() / _DIRECTORY
