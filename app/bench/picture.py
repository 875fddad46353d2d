"""The report as a picture: latency and goodput over load, and the stages' shares; for a soak, memory over time."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..files import write_whole
from .costs import STAGES
from .report import Report

_COLOURS = {"decode": "#3b76af", "http": "#8b9dc3", "transfer": "#c9a24d", "model": "#c1543e"}
_SERVED_COLOURS = {"decode": "#3b76af", "queue": "#b9b9b9", "inference": "#c1543e", "other": "#8b9dc3"}


def check_matplotlib() -> None:
    """Checked before minutes of measuring. Raises `SettingError`."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingError(
            "The picture needs matplotlib, which is not installed: pip install 'resnet-serve[pictures]', or leave the "
            "picture out with --no-picture."
        )


def draw_report(report: Report, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes: Any
    figure = Figure(figsize=(12, 9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(report), fontsize=10)
    if report.kind == "soak":
        memory, files = figure.subplots(2, 1, sharex=True)
        _draw_memory(report, memory, files)
    else:
        axes = figure.subplot_mosaic(
            [["latency", "goodput"], ["stages", "stages"], ["served", "served"]], height_ratios=[3, 1, 1.6]
        )
        _draw_latency(report, axes["latency"])
        _draw_goodput(report, axes["goodput"])
        _draw_shares(report, axes["stages"])
        _draw_served(report, axes["served"])
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=110)
    write_whole(path, target.getvalue())


def _title(report: Report) -> str:
    server, machine = report.server, report.machine
    on = f", {machine.gpu}" if machine.gpu else ""
    load = "" if server.was_started else "load from "
    return (
        f"{server.model} ({server.model_version}), {server.backend} on {server.device}; {load}{machine.cpu}, "
        f"{machine.usable_cpus} CPUs{on}\n{report.photos.source}; {report.began_at}; resnet-serve {server.version}"
    )


def _draw_latency(report: Report, axes: Any) -> None:
    steps = [step for step in report.curve if step.latency_ms is not None]
    rates = [step.offered_rate for step in steps]
    for name, colour in (("p50", "#3b76af"), ("p99", "#c1543e")):
        axes.plot(
            rates, [getattr(step.latency_ms, name) for step in steps], "o-", color=colour, label=name, markersize=4
        )
    axes.axhline(
        report.target_p99_ms, color="#666666", linestyle="--", linewidth=1, label=f"target {report.target_p99_ms:g} ms"
    )
    if report.highest is not None and report.highest.rate:
        name, style = ("highest kept", "-") if report.highest.confirmed else ("not confirmed:", ":")
        axes.axvline(
            report.highest.rate,
            color="#5a9e5a",
            linewidth=1,
            linestyle=style,
            label=f"{name} {report.highest.rate:.1f}/s",
        )
    if steps:
        axes.set_yscale("log")
    axes.set(title="Latency over load (open loop, from when due)", xlabel="requests due a second", ylabel="ms")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)


def _draw_goodput(report: Report, axes: Any) -> None:
    rates = [step.offered_rate or 0.0 for step in report.curve]
    axes.plot(
        rates, [step.goodput for step in report.curve], "o-", color="#5a9e5a", markersize=4, label="right and in time"
    )
    axes.plot(rates, [step.throughput for step in report.curve], "o:", color="#3b76af", markersize=4, label="right")
    most = max(rates, default=1.0)
    axes.plot([0, most], [0, most], color="#b9b9b9", linewidth=1, label="due")
    if report.costs is not None:
        axes.axhline(report.costs.possible_rate, color="#666666", linestyle="--", linewidth=1, label="possible")
    axes.set(
        title="Answers over load", xlabel="requests due a second", ylabel="answers a second", xlim=(0, most * 1.05)
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_shares(report: Report, axes: Any) -> None:
    if report.costs is None:
        axes.text(0.5, 0.5, "No rooflines were measured", ha="center", va="center")
        axes.set_axis_off()
        return
    left = 0.0
    for stage in STAGES:
        share = report.costs.shares[stage]
        axes.barh([0], [share], left=left, color=_COLOURS[stage], label=f"{stage} {share:.1%}")
        left += share
    axes.set(title=f"What a request costs; bottleneck: {report.costs.bottleneck}", xlim=(0, 1), yticks=[])
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.15))


def _draw_served(report: Report, axes: Any) -> None:
    steps = [("1 client", report.single), (f"{report.clients} clients", report.closed)]
    steps += [(f"{step.offered_rate:.3g}/s", step) for step in report.curve]
    shown = [(name, step) for name, step in steps if step is not None and step.stages_ms]
    names = [name for name, _ in shown]
    bottom = [0.0] * len(shown)
    for stage, colour in _SERVED_COLOURS.items():
        values = [max(0.0, step.stages_ms[stage]) for _, step in shown]
        axes.bar(range(len(shown)), values, bottom=bottom, color=colour, label=stage)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    axes.set_xticks(range(len(shown)), names, fontsize=8)
    axes.set(title="Where an answer's time goes, mean, as the service tells it (Server-Timing)", ylabel="ms")
    if shown:
        axes.legend(fontsize=8, ncols=4)


def _draw_memory(report: Report, memory: Any, files: Any) -> None:
    samples = report.memory.samples if report.memory is not None else ()
    moments = [each.seconds for each in samples]
    memory.plot(moments, [each.rss_bytes / 1e6 for each in samples], color="#3b76af")
    memory.set(title=f"The server over {report.closed.requests:,} requests", ylabel="RSS, MB", ylim=(0, None))
    files.plot(moments, [each.open_files for each in samples], color="#c1543e")
    files.set(xlabel="seconds", ylabel="open files", ylim=(0, None))
    for axes in (memory, files):
        axes.grid(alpha=0.3)
