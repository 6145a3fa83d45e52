"""``[[keep]]``: images that are never evicted."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator

from mirror.config.fields import Table
from mirror.oci.image_glob import ImageGlob, InvalidGlob, Naming
from mirror.policy.blocks import parse_target

if TYPE_CHECKING:
    from mirror.config.model import Config

#: Completes names to check their spelling.
ANY_NAMING: Final = Naming("registry.example")
_SHOWN: Final = 5


def _checked_glob(text: str) -> str:
    try:
        ImageGlob.parse(text, ANY_NAMING)
    except InvalidGlob as error:
        raise ValueError(str(error)) from error
    return text


def _some(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not texts:
        raise ValueError("at least one image or glob")
    return texts


Globs = Annotated[tuple[Annotated[str, AfterValidator(_checked_glob)], ...], AfterValidator(_some)]


class KeepRule(Table):
    """A group of images that are never evicted."""

    images: Globs


def naming(config: "Config") -> Naming:
    """Return the rules to complete short image names."""
    upstreams = config.enabled()
    return Naming(
        config.default_upstream(),
        {alias.lower(): name for name, each in upstreams.items() for alias in each.aliases},
        frozenset(name for name, upstream in upstreams.items() if upstream.library),
    )


def kept_images(config: "Config") -> list[ImageGlob]:
    """Return the globs of all rules."""
    names = naming(config)
    return [ImageGlob.parse(text, names) for rule in config.keep for text in rule.images]


def unknown_registries(config: "Config") -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the key and the text of each mistake: a glob that matches no configured registry."""
    upstreams, names = config.enabled(), naming(config)
    for place, text in _globs(config):
        target = parse_target(text, names)
        if isinstance(target, ImageGlob) and not any(map(target.may_mean, upstreams)):
            known = ", ".join([*upstreams][:_SHOWN])
            told = f"found {text!r}, which is of no upstream, allowed: images of {known}, ..."
            yield place, told


def _globs(config: "Config") -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the key and the value of each glob of images, or digest, of a configuration."""
    for table in ("keep", "policy"):
        for number, rule in enumerate(getattr(config, table)):
            for place, text in enumerate(rule.images):
                yield (table, str(number), "images", str(place)), text
    for number, block in enumerate(config.block):
        yield ("block", str(number), "image"), block.image
    for number, pin in enumerate(config.pin):
        yield ("pin", str(number), "image"), pin.image
