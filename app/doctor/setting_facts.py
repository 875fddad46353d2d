"""The settings that are set by flag or environment, and their consequences."""

from __future__ import annotations

import os

from ..decoding import describe_fitted_limits, fit_image_limits, plan_decoding
from ..errors import SettingError
from ..outbound import redacted
from ..settings import ENV_PREFIX, Settings, unknown_variables
from ..workers.division import count_workers, divide
from .report import Report


def see_settings(settings: Settings | None, error: SettingError | None, report: Report) -> None:
    for line in unknown_variables():
        report.note(line)
    if error is not None:
        for line in str(error).splitlines():
            report.problem(line)
    if settings is None:
        report.add("settings", "read", "no: see below")
        return
    for name in type(settings).model_fields:
        if name in settings.model_fields_set:
            value = getattr(settings, name)
            shown = redacted(value) if name == "download_mirror" and value else value
            report.add("settings", f"{ENV_PREFIX}{name.upper()}", shown)
    if not settings.model_fields_set:
        report.add("settings", "made", "none: the defaults hold")
    port = os.environ.get("PORT", "")
    if port.isdecimal() and "port" not in settings.model_fields_set:
        report.note(
            f"PORT is {port}, as cloud platforms say where they expect a service, and RESNET_PORT is not set: start "
            f"with RESNET_PORT=$PORT and RESNET_HOST=0.0.0.0 there."
        )
    fitted = fit_image_limits(settings)
    if fitted is not settings:
        report.problem(describe_fitted_limits(fitted))
    settings = fitted
    try:
        workers = count_workers(settings)
        if workers > 1:
            divide(settings, workers)
        plan = plan_decoding(settings)
    except SettingError as wrong:
        report.problem(str(wrong))
        return
    report.add("settings", "processes", "1" if workers == 1 else f"{workers} front-ends, and one for the model")
    report.add("settings", "images decoded at once", f"{plan.slots}, of up to {plan.slot_bytes / 1e6:,.0f} MB each")
