"""Parses image names, from the command line and from lists."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from mirror.admin.errors import OperateError
from mirror.oci.image_name import ImageName, parse_image, parse_list


class NamesError(Exception):
    """Invalid image names: ``problems`` has one line for each, with its place."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def typed_images(texts: Iterable[str]) -> list[ImageName]:
    """Parse names from the command line.

    Raises:
        NamesError: some are not image names.
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
    """Parse a list, one image per line; ``lines`` is the list if it is open already.

    Raises:
        NamesError: some lines are not image names.
        OperateError: the list cannot be read.
    """
    try:
        text = Path(name).read_text(encoding="utf-8") if lines is None else lines.read()
    except OSError as error:
        raise OperateError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OperateError(f"{name}: not a list of images: not UTF-8") from error
    found = list(parse_list(text.splitlines()))
    problems = [f"{name}:{line.number}: {line.mistake}" for line in found if line.image is None]
    if problems:
        raise NamesError(problems)
    return [line.image for line in found if line.image is not None]
