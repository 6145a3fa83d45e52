"""Finds the upstream and repository of an image that a user named."""

from collections.abc import Iterable

from mirror.config.model import Config
from mirror.http.responses import error_of
from mirror.oci.image_name import ImageName
from mirror.oci.reference import InvalidName
from mirror.registry_client.client import Place
from mirror.registry_client.errors import PullError
from mirror.registry_client.plan import Wanted
from mirror.registry_client.pull import Pulled
from mirror.server.upstreams import directory
from mirror.upstream.routing import ForbiddenError, UnknownRegistryError


def located(config: Config, image: ImageName) -> Wanted:
    """The upstream and repository of an image.

    Raises:
        PullError: its registry is not configured, or the configuration forbids the image.
    """
    names = directory(config)
    try:
        target = names.resolve(image.repository, prefix="", namespace=image.registry, host="")
    except (UnknownRegistryError, ForbiddenError, InvalidName) as error:
        raise PullError(error_of(error, "manifest").message) from error
    return Wanted(str(image), Place(target.upstream, target.repository), image.reference)


def located_all(config: Config, images: Iterable[ImageName]) -> tuple[list[Wanted], list[Pulled]]:
    """Locate images, each once; return also those that cannot be pulled, with the reason."""
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
