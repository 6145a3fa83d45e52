"""Several mirrors as one cache: an object store and Redis that all of them use.

Both are hints.  What they hold may be lost, late or wrong, and costs at most a second download or a
broken connection: only the digest decides.
"""

from mirror.user_error import UserError


def check_installed() -> None:
    """Check that the libraries of the extra ``cluster`` are installed.

    Raises:
        UserError: they are not.
    """
    try:
        import obstore  # noqa: F401, PLC0415  # an extra that few install
        import redis  # noqa: F401, PLC0415
    except ImportError as error:
        raise UserError(
            f"[cluster] needs the library {error.name}: pip install 'container-mirror[cluster]'"
        ) from error
