"""The torch backend on a GPU: images a second, the latency of one image, and the time of each stage.

    python -m benchmarks.gpu [--device cuda] [--precision auto] [--max-batch 128] [--seconds 3] [--json FILE]

ResNet-50 with random weights (speed does not depend on them) and decoded pixels, without HTTP. Figures are medians of
rounds that the sides take in turns. With --device cpu it runs the same code on the CPU, to try the program.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.models

from app.backends.torch import DevicePlan, TorchBackend, plan_device
from app.backends.torch.buckets import buckets_up_to
from app.backends.torch.cuda import CudaDevice
from app.backends.torch.devices import CpuDevice, Device
from app.backends.torch.precision import place_network
from app.bench.machine import this_machine
from app.bench.pace import in_turns, repeat
from app.checkpoints import published_resnet50_preprocessing
from app.errors import SettingError
from app.types import Pixels, Want
from benchmarks.report import heading, options_of, say, table

ROUNDS = 5
PREPROCESSING = published_resnet50_preprocessing()
CROP = PREPROCESSING.crop


@dataclass
class Report:
    """Times in milliseconds, rates in images a second unless a name says otherwise."""

    machine: dict[str, str]
    start_seconds: dict[str, float] = field(default_factory=dict)
    memory_mb: dict[str, float] = field(default_factory=dict)
    by_batch: dict[int, dict[str, float]] = field(default_factory=dict)
    stages_ms: dict[int, dict[str, float]] = field(default_factory=dict)
    one_image_ms: dict[str, float] = field(default_factory=dict)
    transfer_gb_a_second: dict[str, float] = field(default_factory=dict)
    plans: dict[int, str] = field(default_factory=dict)


def machine(plan: DevicePlan) -> dict[str, str]:
    found = {
        "machine": str(this_machine()),
        "device": str(plan.device),
        "format": str(plan.dtype).removeprefix("torch."),
    }
    if plan.is_cuda:
        properties = torch.cuda.get_device_properties(plan.device)
        found["device"] = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
        found["compute capability"] = f"{properties.major}.{properties.minor}"
        found["CUDA"] = str(torch.version.cuda)
        found["cuDNN"] = str(torch.backends.cudnn.version())
        driver = Path("/proc/driver/nvidia/version")
        found["driver"] = driver.read_text().splitlines()[0] if driver.exists() else "unknown"
    return found


def network() -> torch.nn.Module:
    """Random weights whose activations are as small as a trained network's, so that no format overflows."""
    torch.manual_seed(0)
    made = torchvision.models.resnet50(weights=None)
    for name, parameter in made.named_parameters():
        if name.endswith("bn3.weight"):
            parameter.data.fill_(0.2)
    return made


def pixels(count: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, *CROP, 3), dtype=np.uint8)


def start(report: Report, plan: DevicePlan, name: str, largest: int) -> TorchBackend:
    # The earlier backends keep their memory: the difference is this one's.
    before = (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) if plan.is_cuda else (0, 0)
    began = time.perf_counter()
    backend = TorchBackend(network(), PREPROCESSING, plan)
    report.start_seconds[f"{name}, built"] = time.perf_counter() - began
    began = time.perf_counter()
    backend.warm_up(largest)
    report.start_seconds[f"{name}, warm up to {largest}"] = time.perf_counter() - began
    if plan.is_cuda:
        report.memory_mb[f"{name}, allocated"] = (torch.cuda.memory_allocated() - before[0]) / 1e6
        report.memory_mb[f"{name}, reserved"] = (torch.cuda.memory_reserved() - before[1]) / 1e6
    return backend


def rates(report: Report, backends: Mapping[str, TorchBackend], sizes: list[int], seconds: float) -> None:
    """`infer` from one thread, and from two with two batches in flight."""
    for size in sizes:
        batch = pixels(size)
        sides = {name: partial(backend.infer, batch, Want.SCORES) for name, backend in backends.items()}
        row = {name: size / statistics.median(times) for name, times in in_turns(sides, ROUNDS, seconds).items()}
        row |= {f"{name}, two in flight": in_flight(backend, batch, seconds / 2) for name, backend in backends.items()}
        report.by_batch[size] = row


def in_flight(backend: TorchBackend, batch: Pixels, seconds: float) -> float:
    """Images a second from as many threads as there are slots."""
    with ThreadPoolExecutor(backend.concurrency) as pool:
        pace = repeat(lambda _: backend.infer(batch, Want.SCORES), len(batch), seconds, pool, backend.concurrency)
    return pace.rate


def stages(report: Report, device: Device, plan: DevicePlan, sizes: list[int], seconds: float) -> None:
    """The time of each step alone, repeated without a pause: an upper bound for any order of the steps."""
    forward = place_network(network(), PREPROCESSING, plan)
    device.drain()
    stream, pool = device.stream(), device.pool()
    with torch.inference_mode(), device.on(stream):
        for size in sizes:
            batch, shape = pixels(size), (size, *CROP, 3)
            host, here = device.host_buffer(shape, torch.uint8), device.buffer(shape, torch.uint8)
            scores = device.buffer((size, 1000), torch.float32)
            answers = device.host_buffer((size, 1000), torch.float32)
            host.copy_(torch.from_numpy(batch))
            device.copy(here, host)

            def compute(scores: torch.Tensor = scores, here: torch.Tensor = here) -> None:
                scores.copy_(forward(here))

            for _ in range(device.warm_runs):
                compute()
            device.wait(stream)
            steps: dict[str, Callable[[], Any]] = {
                "into the pinned buffer": lambda host=host, batch=batch: np.copyto(host.numpy(), batch),
                "to the device": lambda here=here, host=host: device.copy(here, host),
                "network, as it is": compute,
                "network, as a graph": device.capture(compute, stream, pool),
                "back": lambda answers=answers, scores=scores: device.copy(answers, scores),
            }
            report.stages_ms[size] = {name: 1e3 * _each(step, device, stream, seconds) for name, step in steps.items()}
            gigabytes = batch.nbytes / 1e9
            report.transfer_gb_a_second[f"to the device, {size} images"] = gigabytes / (
                report.stages_ms[size]["to the device"] / 1e3
            )


def _each(step: Callable[[], Any], device: Device, stream: Any, seconds: float) -> float:
    """Seconds of one step: the median of rounds, each of as many steps without a wait as fill a fifth of a round."""
    began = time.perf_counter()
    step()
    device.wait(stream)
    times = max(1, min(1000, int(seconds / ROUNDS / 5 / max(time.perf_counter() - began, 1e-6))))
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(times):
            step()
        device.wait(stream)
        found.append((time.perf_counter() - began) / times)
    return statistics.median(found)


def measure(options: argparse.Namespace) -> Report:
    plan = replace(plan_device(options.device, options.precision), slots=2, staged=True)
    report = Report(machine(plan))
    sizes = buckets_up_to(options.max_batch)
    say("building and warming up …")
    plans = {"graphs": replace(plan, graphs=True), "eager": replace(plan, graphs=False)}
    if options.compare_folding:
        plans["graphs, not folded"] = replace(plan, folded=False)
    backends = {name: start(report, each, name, options.max_batch) for name, each in plans.items()}
    report.machine["serving"] = backends["graphs"].device
    say("one image …")
    one = pixels(1)
    sides = {name: partial(backend.infer, one, Want.SCORES) for name, backend in backends.items()}
    for name, times in in_turns(sides, ROUNDS, options.seconds).items():
        report.one_image_ms[f"{name}, median"] = 1e3 * statistics.median(times)
        report.one_image_ms[f"{name}, 99th of 100"] = 1e3 * float(np.quantile(times, 0.99))
    say("batches …")
    rates(report, backends, sizes, options.seconds)
    slot: Any = backends["graphs"]._runners[0]
    for count in range(1, options.max_batch + 1):
        report.plans[count] = " + ".join(f"{run.images} in {run.bucket}" for run in slot._plans[count])
    for backend in backends.values():
        backend.close()
    say("stages …")
    device: Device = CudaDevice(plan.device) if plan.is_cuda else CpuDevice()
    stages(report, device, plan, sizes, options.seconds)
    return report


def by_size(rows: Mapping[int, Mapping[str, float]], digits: str) -> str:
    names = list(next(iter(rows.values())))
    return table(
        ("batch", *names), [(size, *(format(row[name], digits) for name in names)) for size, row in rows.items()]
    )


def text_of(report: Report) -> str:
    parts = [heading("; ".join(f"{name} {value}" for name, value in report.machine.items()))]
    for title, figures in {
        "Start, seconds": report.start_seconds,
        "The GPU's memory, MB": report.memory_mb,
        "One image, ms": report.one_image_ms,
    }.items():
        parts.append(f"{title}: " + "; ".join(f"{name} {value:.2f}" for name, value in figures.items()))
    parts += ["Images a second through `infer`", by_size(report.by_batch, ",.0f")]
    parts += ["Stages alone, ms a batch", by_size(report.stages_ms, ".3f")]
    largest = max(report.stages_ms)
    transfer, network = (report.stages_ms[largest][name] / 1e3 for name in ("to the device", "network, as a graph"))
    bound = max(transfer, network)
    reached = report.by_batch[largest]["graphs, two in flight"]
    parts.append(
        f"Roofline at {largest}: {largest / bound:,.0f} images a second, bound by "
        f"{'the transfer' if transfer > network else 'the network'}; reached with two in flight: "
        f"{reached / (largest / bound):.0%}."
    )
    odd = {count: plan for count, plan in report.plans.items() if plan != f"{count} in {count}"}
    parts.append("Batches between the buckets: " + "; ".join(f"{count}: {plan}" for count, plan in odd.items()))
    return "\n\n".join(parts)


def main() -> None:
    parser = options_of(__doc__, seconds=3.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "float16", "bfloat16"))
    parser.add_argument("--max-batch", type=int, default=128)
    parser.add_argument("--compare-folding", action="store_true", help="run the network as it is, too")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    try:
        report = measure(options)
    except SettingError as error:
        sys.exit(str(error))
    print(text_of(report))
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=2) + "\n")


if __name__ == "__main__":
    main()
