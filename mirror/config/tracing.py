"""``[tracing]``: the export of spans."""

import math
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from mirror.config.fields import Table

_PATH = "/v1/traces"  # OTLP/HTTP's


def _checked_endpoint(text: str) -> str:
    if not text:
        return text
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise ValueError("an http or https address such as http://localhost:4318")
    if "@" in parts.netloc:
        raise ValueError("an address without a password (OTEL_EXPORTER_OTLP_HEADERS takes one)")
    return text


def _checked_share(share: float) -> float:
    if not 0 <= share <= 1 or math.isnan(share):
        raise ValueError("a share between 0 and 1, such as 0.1")
    return share


class TracingConfig(Table):
    """The collector of spans, and the share of requests to trace."""

    endpoint: Annotated[str, AfterValidator(_checked_endpoint)] = ""
    sample: Annotated[float, AfterValidator(_checked_share)] = 1.0
    service: str = "mirror"

    def address(self) -> str:
        """Return the endpoint; OTLP's path is added if it has no path."""
        parts = urlsplit(self.endpoint)
        return self.endpoint if parts.path.strip("/") else parts._replace(path=_PATH).geturl()
