"""The configuration: one typed tree, read from TOML, environment and flags."""

from mirror.config.model import Config, UpstreamConfig
from mirror.config.sources import load

__all__ = ["Config", "UpstreamConfig", "load"]
