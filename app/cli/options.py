"""Command-line flags, one for each setting, generated from the settings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer
from pydantic.fields import FieldInfo

from ..errors import SettingError
from ..settings import ENV_PREFIX, GROUPS, Group, load_settings, show_default


def with_settings(command: Callable[..., None], *groups: type[Group], takes_wrong: bool = False) -> Callable[..., None]:
    """`command(settings, …)` as a command with a flag for each setting; flags take precedence over the environment.

    With `groups` only the settings of those groups have flags. With `takes_wrong` the signature is
    `command(settings, wrong, …)`: for invalid settings, `settings` is None and `wrong` is the `SettingError`.
    """
    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name not in ("settings", "wrong")
    ]
    flags = [
        _flag(name, field, each.title)
        for each in GROUPS
        if not groups or any(issubclass(group, each) for group in groups)
        for name, field in each.model_fields.items()
    ]
    names = {flag.name for flag in flags}

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in names}
        if not takes_wrong:
            command(settings=load_settings(**given), **arguments)
            return
        try:
            settings, wrong = load_settings(**given), None
        except SettingError as error:
            settings, wrong = None, error
        command(settings=settings, wrong=wrong, **arguments)

    # typer reads the signature: the command's own arguments, then the settings.
    run.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *flags)}
    return run


def _flag(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    # A string for every type of setting: pydantic parses flags like the environment, with the same errors.
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=f"{field.description} \\[{ENV_PREFIX}{name.upper()}; default {show_default(field)}]",
        show_default=False,
        rich_help_panel=panel,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )
