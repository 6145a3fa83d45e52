"""What every table of the configuration has in common: no key it does not know, nothing changed."""

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """A table of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)
