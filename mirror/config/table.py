"""The base of all tables of the configuration: unknown keys are refused, values do not change."""

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """A table of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)
