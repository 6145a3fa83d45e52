"""The command that allows changes by HTTP."""

from typing import Annotated

import typer

from mirror.cli.options import CacheOption, ConfigOption, command_group, settings
from mirror.http.token import create_token
from mirror.store.local.layout import Layout
from mirror.user_error import UserError

app = command_group()


@app.command(rich_help_panel="Mirror")
def token(
    revoke: Annotated[
        bool, typer.Option("--revoke", help="Allow no changes by HTTP any more.")
    ] = False,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Print a new token that allows changes on the status page and by its API.

    A former token is not valid any more, nor is a session that began with it.
    """
    directory = settings(config, cache_dir).cache.directory.absolute()
    from mirror.admin.client import check_owner  # noqa: PLC0415  # late: loads half of the server

    check_owner(directory)
    file = Layout(directory).token
    try:
        if revoke:
            file.unlink(missing_ok=True)
        else:
            print(create_token(file))
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error
