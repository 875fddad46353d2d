"""What the torch backend reaches on a GPU: images a second, the latency of one, and where the time goes.

    python -m benchmarks.gpu [--device cuda] [--precision auto] [--max-batch 128] [--seconds 3] [--json FILE]

ResNet-50 with made weights (speed does not depend on them), pixels that are ready; HTTP and decoding are not in it.
Each figure is the median of rounds that the things compared take in turns. With --device cpu it runs the same road on
the CPU, to try the program and not the speed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.models
from rich.console import Console

from app.backends.torch import DevicePlan, TorchBackend, plan_device
from app.backends.torch.buckets import buckets_up_to
from app.backends.torch.cuda import CudaDevice
from app.backends.torch.devices import CpuDevice, Device
from app.backends.torch.precision import place_network
from app.checkpoints import published_resnet50_preprocessing
from app.errors import SettingError
from app.types import Pixels, Want

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
    """What a figure cannot be read without."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "unknown",
    )
    found = {
        "device": str(plan.device),
        "CPU": f"{len(os.sched_getaffinity(0))} of {cpu}",
        "platform": platform.platform(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
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
    """Weights at random whose activations stay as small as a trained network's, so that every format holds them."""
    torch.manual_seed(0)
    made = torchvision.models.resnet50(weights=None)
    for name, parameter in made.named_parameters():
        if name.endswith("bn3.weight"):
            parameter.data.fill_(0.2)
    return made


def pixels(count: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, *CROP, 3), dtype=np.uint8)


def in_turns(sides: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, by side; every side gets a share of `seconds` in each round."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for call in sides.values():
        call()
    for _ in range(ROUNDS):
        for name, call in sides.items():
            until = time.perf_counter() + seconds / ROUNDS / len(sides)
            while True:
                began = time.perf_counter()
                call()
                ended = time.perf_counter()
                taken[name].append(ended - began)
                if ended > until:
                    break
    return taken


def start(report: Report, plan: DevicePlan, name: str, largest: int) -> TorchBackend:
    # The backends before it stay where they are: what this one adds is its own.
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
        row = {name: size / statistics.median(times) for name, times in in_turns(sides, seconds).items()}
        row |= {f"{name}, two in flight": in_flight(backend, batch, seconds / 2) for name, backend in backends.items()}
        report.by_batch[size] = row


def in_flight(backend: TorchBackend, batch: Pixels, seconds: float) -> float:
    """Images a second from as many threads as there are slots."""
    counts = [0] * backend.concurrency
    until = time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < until:
            backend.infer(batch, Want.SCORES)
            counts[number] += len(batch)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(counts))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def stages(report: Report, device: Device, plan: DevicePlan, sizes: list[int], seconds: float) -> None:
    """What each step takes alone, many times without a pause: the most that any order of them can reach."""
    forward = place_network(network(), PREPROCESSING, plan)
    device.drain()
    stream, pool = device.stream(), device.pool()
    with torch.inference_mode(), device.on(stream):
        for size in sizes:
            batch, shape = pixels(size), (size, *CROP, 3)
            host, here = device.host_buffer(shape, torch.uint8), device.buffer(shape, torch.uint8)
            scores, answers = (
                device.buffer((size, 1000), torch.float32),
                device.host_buffer((size, 1000), torch.float32),
            )
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
    """Seconds of one, of as many without a wait as take about a fifth of a round; the median of the rounds."""
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


def measure(options: argparse.Namespace, console: Console) -> Report:
    plan = replace(plan_device(options.device, options.precision), slots=2, staged=True)
    report = Report(machine(plan))
    sizes = buckets_up_to(options.max_batch)
    backends: dict[str, TorchBackend] = {}
    with console.status("Building and warming up") as status:
        for name, graphs in {"graphs": True, "eager": False}.items():
            backends[name] = start(report, replace(plan, graphs=graphs), name, options.max_batch)
        if options.compare_folding:
            backends["graphs, not folded"] = start(report, replace(plan, folded=False), "not folded", options.max_batch)
        report.machine["serving"] = backends["graphs"].device
        status.update("One image")
        one = pixels(1)
        sides = {name: partial(backend.infer, one, Want.SCORES) for name, backend in backends.items()}
        for name, times in in_turns(sides, options.seconds).items():
            report.one_image_ms[f"{name}, median"] = 1e3 * statistics.median(times)
            report.one_image_ms[f"{name}, 99th of 100"] = 1e3 * float(np.quantile(times, 0.99))
        status.update("Batches")
        rates(report, backends, sizes, options.seconds)
        slot: Any = backends["graphs"]._runners[0]
        for count in range(1, options.max_batch + 1):
            report.plans[count] = " + ".join(f"{run.images} in {run.bucket}" for run in slot._plans[count])
        for backend in backends.values():
            backend.close()
        status.update("Stages")
        device: Device = CudaDevice(plan.device) if plan.is_cuda else CpuDevice()
        stages(report, device, plan, sizes, options.seconds)
    return report


def write(report: Report, console: Console) -> None:
    def table(title: str, rows: Mapping[int, Mapping[str, float]], digits: str) -> None:
        names = list(next(iter(rows.values())))
        console.print(f"\n{title}\n\n| batch | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
        for size, row in rows.items():
            console.print(f"| {size} | {' | '.join(format(row[name], digits) for name in names)} |")

    console.print("; ".join(f"{name} {value}" for name, value in report.machine.items()))
    for title, figures in {
        "Start, seconds": report.start_seconds,
        "The GPU's memory, MB": report.memory_mb,
        "One image, ms": report.one_image_ms,
    }.items():
        console.print(f"\n{title}: " + "; ".join(f"{name} {value:.2f}" for name, value in figures.items()))
    table("Images a second through `infer`", report.by_batch, ",.0f")
    table("Stages alone, ms a batch", report.stages_ms, ".3f")
    largest = max(report.stages_ms)
    roof = report.stages_ms[largest]
    bound = max(roof["to the device"], roof["network, as a graph"]) / 1e3
    reached = report.by_batch[largest]["graphs, two in flight"]
    console.print(
        f"\nRoofline at {largest}: {largest / bound:,.0f} images a second, bound by "
        f"{'the transfer' if roof['to the device'] > roof['network, as a graph'] else 'the network'}; "
        f"reached with two in flight: {reached / (largest / bound):.0%}."
    )
    odd = {count: plan for count, plan in report.plans.items() if plan != f"{count} in {count}"}
    console.print("\nBatches between the buckets: " + "; ".join(f"{count}: {plan}" for count, plan in odd.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "float16", "bfloat16"))
    parser.add_argument("--max-batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--compare-folding", action="store_true", help="run the network as it is, too")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    try:
        report = measure(options, Console(stderr=True))
    except SettingError as error:
        sys.exit(str(error))
    write(report, Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False))
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=2) + "\n")


if __name__ == "__main__":
    main()
