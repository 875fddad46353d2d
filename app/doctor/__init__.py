"""`resnet-serve doctor`: a report of machine, settings and model as this process sees them, with each problem.

Nothing is changed, and no other machine is contacted. Secrets are left out: passwords in addresses, and every variable
that is not a setting of this service, except the names of those for proxies and certificates.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import SettingError
from ..settings import Settings
from .machine import see_machine, see_software
from .model import see_model
from .outside import see_address, see_cache, see_network
from .report import Report
from .setting_facts import see_settings

__all__ = ["Report", "diagnose"]

_ROOMS: tuple[Callable[[Settings, Report], None], ...] = (see_address, see_cache, see_model)


def diagnose(settings: Settings | None, error: SettingError | None) -> Report:
    """The report for `settings`; if those are invalid they are None, and `error` has the reason.

    Blocks for seconds: it reads the checkpoint that would be served.
    """
    report = Report()
    see_machine(report)
    see_software(report)
    see_network(report)
    see_settings(settings, error, report)
    if settings is not None:
        for see in _ROOMS:
            see(settings, report)
    return report
