"""``[[warm]]``: images that the mirror pulls in advance."""

import re
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, PositiveInt, model_validator

from mirror.config.fields import Duration, DurationField, Table, where
from mirror.oci.image_name import parse_image
from mirror.oci.platform import Platform

ALL_PLATFORMS: Final = "all"
_TIME: Final = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", re.ASCII)


def _checked_image(text: str) -> str:
    try:
        parse_image(text)
    except ValueError as error:
        raise ValueError(f"the name of an image, such as alpine:3.20 ({error})") from error
    return text


def _checked_platform(text: str) -> str:
    try:
        return text if text == ALL_PLATFORMS else str(Platform.parse(text))
    except ValueError as error:
        raise ValueError("os/arch[/variant] such as linux/arm64, or all") from error


class WarmConfig(Table):
    """A list of images and the schedule to pull them."""

    images: Annotated[
        tuple[Annotated[str, AfterValidator(_checked_image)], ...],
        where(bool, "at least one image, such as alpine:3.20"),
    ]
    platforms: tuple[Annotated[str, AfterValidator(_checked_platform)], ...] = ()
    every: DurationField = Duration.parse("6h")
    at: Annotated[
        str,
        where(
            lambda text: not text or _TIME.fullmatch(text),
            "a time of day such as 03:00, on the mirror's own clock",
        ),
    ] = ""
    parallel: PositiveInt = 2

    @model_validator(mode="before")
    @classmethod
    def _without_every(cls, keys: Any) -> Any:
        at = isinstance(keys, dict) and keys.get("at")
        return {"every": "0s", **keys} if at else keys

    @model_validator(mode="after")
    def _check_when(self) -> Self:
        if bool(self.at) == bool(self.every.seconds):
            raise ValueError("either every, a time above zero, or at")
        return self

    def time_of_day(self) -> tuple[int, int] | None:
        """Return hour and minute of ``at``, None if ``every`` is set instead."""
        matched = _TIME.fullmatch(self.at)
        return None if matched is None else (int(matched[1]), int(matched[2]))
