"""Selects the proxy for each upstream: from the configuration, else from the environment."""

import os

from mirror.config.model import Config
from mirror.upstream.proxies import (
    InvalidProxyError,
    Proxies,
    configured_proxies,
    environment_proxies,
)
from mirror.user_error import UserError


def upstream_proxies(config: Config, name: str) -> Proxies:
    """The proxies for an upstream, its token service and its redirects.

    Raises:
        UserError: a proxy named in the environment cannot be used.
    """
    if own := config.upstreams[name].proxy:
        return configured_proxies(own, f'[upstreams."{name}"] proxy')
    return general_proxies(config)


def general_proxies(config: Config) -> Proxies:
    """The proxies for upstreams without their own.

    Raises:
        UserError: a proxy named in the environment cannot be used.
    """
    if config.fetch.proxy:
        return configured_proxies(config.fetch.proxy, "[fetch] proxy")
    return from_environment()


def from_environment() -> Proxies:
    """The proxies named in the environment of this process.

    Raises:
        UserError: one of them cannot be used.
    """
    try:
        return environment_proxies(os.environ)
    except InvalidProxyError as error:
        raise UserError(str(error)) from error


def named_proxies(config: Config) -> list[str]:
    """Every proxy to an upstream, each once, as text for people.

    Raises:
        UserError: a proxy named in the environment cannot be used.
    """
    tables = [upstream_proxies(config, name) for name in config.enabled()]
    named = (str(proxy) for table in tables for proxy in table.by_scheme.values())
    return list(dict.fromkeys(named))
