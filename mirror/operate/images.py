"""Which images a command means: what was typed, and lists of it, as this mirror has them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from mirror.app.upstreams import directory
from mirror.config.model import Config
from mirror.oci.image_name import ImageName, parse_image, parse_list
from mirror.oci.reference import InvalidName
from mirror.operate.errors import OperateError
from mirror.upstream.directory import ForbiddenError, UnknownRegistryError
from mirror.warm.client import Place
from mirror.warm.plan import Wanted
from mirror.warm.pull import Pulled
from mirror.web.responses import error_of


class NamesError(Exception):
    """Names that are none: ``problems`` has one line for each, which says where it stands."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def typed_images(texts: Iterable[str]) -> list[ImageName]:
    """What stands on the command line.

    Raises:
        NamesError: some of it names no image.
    """
    images, problems = [], []
    for text in texts:
        try:
            images.append(parse_image(text))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise NamesError(problems)
    return images


def listed_images(name: str, lines: TextIO | None = None) -> list[ImageName]:
    """What stands in a list, one image per line; ``lines`` where it is open already.

    Raises:
        NamesError: some of it names no image.
        OperateError: the list cannot be read.
    """
    try:
        text = Path(name).read_text(encoding="utf-8") if lines is None else lines.read()
    except OSError as error:
        raise OperateError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OperateError(f"{name}: is no list of images: no UTF-8") from error
    found = list(parse_list(text.splitlines()))
    problems = [f"{name}:{line.number}: {line.mistake}" for line in found if line.image is None]
    if problems:
        raise NamesError(problems)
    return [line.image for line in found if line.image is not None]


def located(config: Config, image: ImageName) -> Wanted:
    """Where the mirror has an image.

    Raises:
        OperateError: its registry is not configured, or the image may not be had.
    """
    names = directory(config)
    try:
        target = names.resolve(image.repository, prefix="", namespace=image.registry, host="")
    except (UnknownRegistryError, ForbiddenError, InvalidName) as error:
        raise OperateError(error_of(error, "manifest").message) from error
    return Wanted(str(image), Place(target.upstream, target.repository), image.reference)


def located_all(config: Config, images: Iterable[ImageName]) -> tuple[list[Wanted], list[Pulled]]:
    """Where the mirror has images, each once, and those that it cannot have, with the reason."""
    wanted: dict[str, Wanted] = {}
    failed: dict[str, Pulled] = {}
    for image in images:
        try:
            found = located(config, image)
            wanted.setdefault(found.full_name, found)
        except OperateError as error:
            there = Wanted(
                str(image), Place(image.registry or "", image.repository), image.reference
            )
            failed[str(image)] = Pulled(there, None, 0, 0, str(error))
    return list(wanted.values()), list(failed.values())
