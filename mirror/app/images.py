"""Where the mirror of a configuration has an image that somebody named."""

from collections.abc import Iterable

from mirror.app.upstreams import directory
from mirror.config.model import Config
from mirror.oci.image_name import ImageName
from mirror.oci.reference import InvalidName
from mirror.upstream.directory import ForbiddenError, UnknownRegistryError
from mirror.warm.client import Place
from mirror.warm.errors import PullError
from mirror.warm.plan import Wanted
from mirror.warm.pull import Pulled
from mirror.web.responses import error_of


def located(config: Config, image: ImageName) -> Wanted:
    """Where the mirror has an image.

    Raises:
        PullError: its registry is not configured, or the image may not be had.
    """
    names = directory(config)
    try:
        target = names.resolve(image.repository, prefix="", namespace=image.registry, host="")
    except (UnknownRegistryError, ForbiddenError, InvalidName) as error:
        raise PullError(error_of(error, "manifest").message) from error
    return Wanted(str(image), Place(target.upstream, target.repository), image.reference)


def located_all(config: Config, images: Iterable[ImageName]) -> tuple[list[Wanted], list[Pulled]]:
    """Where the mirror has images, each once, and those that it cannot have, with the reason."""
    wanted: dict[str, Wanted] = {}
    failed: dict[str, Pulled] = {}
    for image in images:
        try:
            found = located(config, image)
            wanted.setdefault(found.full_name, found)
        except PullError as error:
            there = Wanted(
                str(image), Place(image.registry or "", image.repository), image.reference
            )
            failed[str(image)] = Pulled(there, None, 0, 0, str(error))
    return list(wanted.values()), list(failed.values())
