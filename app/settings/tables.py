"""The tables of settings in the documents; all of docs/configuration.md is generated here."""

from __future__ import annotations

from pydantic.fields import FieldInfo

from .flat import GROUPS
from .group import ENV_PREFIX, Group

_INTRODUCTION = """\
# Configuration

Every setting of the service, by group. Each is an environment variable and a flag of `resnet-serve serve`
(`RESNET_MAX_QUEUE`, `--max-queue`). A flag takes precedence over a variable; an empty variable counts as unset. No
`.env` file is read, except by Docker Compose ([deployment.md](deployment.md#docker-compose)). A wrong value stops the
start: the error names each wrong setting and says what it may be. A `RESNET_` variable that is no setting is ignored,
with a warning.

The other commands have the flags of the groups that they need; `resnet-serve COMMAND --help` lists them.
`resnet-serve doctor` shows which settings are made.

This file is generated: `python -m app.settings > docs/configuration.md`.
"""
HEAD = "| variable | default | meaning |\n| --- | --- | --- |\n"


def show_default(field: FieldInfo) -> str:
    """A setting's default, as shown in tables and help."""
    if field.default_factory is not None:
        return "~/.cache/resnet-serve"
    if field.default in (None, "", ()):
        return "unset"
    return str(field.default)


def row(name: str, field: FieldInfo) -> str:
    """A setting's row in a table."""
    return f"| `{ENV_PREFIX}{name.upper()}` | `{show_default(field)}` | {field.description} |\n"


def document() -> str:
    """The text of docs/configuration.md."""
    return _INTRODUCTION + "".join(map(_section, GROUPS))


def _section(group: type[Group]) -> str:
    rows = "".join(row(name, field) for name, field in group.model_fields.items())
    return f"\n## {group.title}\n\n{group.__doc__}\n\n{HEAD}{rows}"
