"""The report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from .costs import STAGES, Costs
from .report import Report
from .soak import Memory
from .steps import Step

_OF = {
    "decode": "decoding",
    "http": "HTTP, and all that is neither decoding nor the model",
    "transfer": "copies to the device",
    "model": "the model",
}


def render(report: Report) -> RenderableType:
    """Tables and lines that adapt to the terminal's width."""
    return Group(*_parts(report))


def _parts(report: Report) -> Iterator[RenderableType]:
    yield _facts(report)
    if report.costs is not None:
        yield _stages(report.costs)
        yield _ratios(report.costs)
    elif report.rooflines_missing:
        yield f"Rooflines: none. {report.rooflines_missing}"
    yield _steps(report)
    if report.highest is not None:
        found = report.highest
        rate = "none" if not found.rate else f"{found.rate:.1f}/s, not confirmed"
        if found.rate and found.confirmed:
            rate = f"[bold]{found.rate:.1f}/s[/]"
        yield f"Highest rate that keeps {report.target_p99_ms:g} ms in 99 of 100: {rate}. {found.reason}"
    if report.memory is not None:
        yield _memory(report.memory)
    for warning in report.warnings:
        yield f"[yellow]Note:[/] {escape(warning)}"
    for failure in report.failures:
        yield f"[bold red]Failed:[/] {escape(failure)}"


def _facts(report: Report) -> Table:
    machine, server, photos = report.machine, report.server, report.photos
    table = Table(
        title=escape(f"{server.model} ({server.model_version}), {server.backend} on {server.device}"),
        show_header=False,
        title_justify="left",
    )
    # The machine and versions of a server elsewhere are not known.
    names = ("machine", "versions") if server.was_started else ("load from", "its versions")
    table.add_row(names[0], escape(str(machine)))
    table.add_row(names[1], escape(", ".join(f"{name} {version}" for name, version in report.versions.items())))
    table.add_row("command", escape(report.command))
    if server.was_started:
        ready = f", ready in {server.ready_seconds:.1f} s" if server.ready_seconds is not None else ""
        table.add_row("server", f"started by this run{ready}")
    else:
        table.add_row("server", escape(f"{server.url}, version {server.version}"))
    smallest, median, largest = (
        f"{size / 1e3:.0f}" for size in (photos.smallest_bytes, photos.median_bytes, photos.largest_bytes)
    )
    table.add_row("photos", escape(f"{photos.source}; bodies of {smallest} to {largest} kB, median {median}"))
    return table


def _stages(costs: Costs) -> Table:
    table = Table(
        "stage", "alone", "an image costs", "share of a request", "", title="What a request costs", title_justify="left"
    )
    rates = {"decode": costs.decode_rate, "http": costs.http_rate, "model": costs.model_rate}
    seconds = {
        "decode": f"{costs.decode_cpu_seconds * 1e3:.2f} ms of CPU",
        "http": f"{costs.http_cpu_seconds * 1e3:.2f} ms of CPU",
        "transfer": f"{costs.transfer_seconds * 1e3:.3f} ms",
        "model": f"{costs.model_seconds * 1e3:.2f} ms",
    }
    for stage in STAGES:
        share = costs.shares[stage]
        mark = "[bold]" if stage == costs.bottleneck else ""
        rate = f"{rates[stage]:.1f}/s" if stage in rates else ""
        bar = "█" * round(share * 30)
        table.add_row(f"{mark}{stage}", rate, seconds[stage], f"{mark}{share:.1%}", f"[green]{bar}[/]")
    return table


def _ratios(costs: Costs) -> Group:
    formula = (
        "the slower of the bare loop and CPUs / CPU seconds an image"
        if costs.side_by_side
        else "the slower of the bare loop and CPUs / CPU seconds of all parts an image"
    )
    return Group(
        f"Bottleneck: [bold]{costs.bottleneck}[/] ({_OF[costs.bottleneck]}).",
        f"Closed loop: [bold]{costs.served_rate:.1f}/s[/], {costs.served_of_possible:.2f} of the "
        f"{costs.possible_rate:.1f}/s that are possible ({formula}), {costs.served_of_decode:.2f} of decoding alone.",
        f"One client: {_single(costs)} the {costs.single_parts_ms:.1f} ms of a decode and a call of the model.",
    )


def _single(costs: Costs) -> str:
    if costs.single_ms is None or costs.single_ratio is None:
        return "no answer;"
    return f"{costs.single_ms:.1f} ms, {costs.single_ratio:.2f} ×"


def _steps(report: Report) -> Table:
    table = Table(
        "load",
        "requests",
        "good/s",
        "in time/s",
        "p50 ms",
        "p99 ms",
        "decode",
        "queue",
        "model",
        "other",
        "batch",
        "not answered",
        title="Load: open loop counts from when each request was due; a closed loop hides stalls",
        title_justify="left",
    )
    loops = [report.closed] if report.single is None else [report.single, report.closed]
    for step in (*loops, *report.curve):
        table.add_row(*_cells(step))
    return table


def _cells(step: Step) -> list[str]:
    clients = f"{step.clients} client{'' if step.clients == 1 else 's'}, closed"
    load = clients if step.offered_rate is None else f"{step.offered_rate:.1f}/s"
    latency = [f"{step.latency_ms.p50:.1f}", f"{step.latency_ms.p99:.1f}"] if step.latency_ms else ["", ""]
    names = ("decode", "queue", "inference", "other")
    stages = [f"{step.stages_ms[name]:.1f}" if step.stages_ms else "" for name in names]
    sizes = {int(size): count for size, count in step.batch_sizes.items()}
    batch = f"{sum(size * count for size, count in sizes.items()) / sum(sizes.values()):.1f}" if sizes else ""
    refused = {name: count for name, count in step.codes.items()} | step.connection_errors
    if step.unanswered:
        refused["given up"] = step.unanswered
    if step.wrong:
        refused["wrong"] = step.wrong
    mark = "[green]" if step.loop == "open" and step.keeps_target else ""
    told = ", ".join(f"{count:,} {name}" for name, count in refused.items())
    return [
        f"{mark}{load}",
        f"{step.requests:,}",
        f"{step.throughput:.1f}",
        f"{step.goodput:.1f}",
        *latency,
        *stages,
        batch,
        escape(told),
    ]


def _memory(memory: Memory) -> str:
    before, peak = memory.before_bytes / 1e6, memory.peak_bytes / 1e6
    told = (
        f"Server's memory (RSS): {before:.0f} MB before the first request, {peak:.0f} MB at the most; "
        f"{memory.files_before} open files, {memory.files_peak} at the most."
    )
    if memory.grew is None:
        return told
    grown, files = (memory.late_bytes - memory.early_bytes) / 1e6, memory.files_late - memory.files_early
    return (
        f"{told} From the second fifth of the run to the last: {grown:+.1f} MB, {files:+g} files. "
        f"It {'grew' if memory.grew else 'did not grow'}."
    )
