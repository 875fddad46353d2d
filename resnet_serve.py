"""The command `resnet-serve`: `python -m resnet_serve` is the same.

The package of the service is called `app`, as many are. This module is installed beside it and finds it by its place,
so that no other `app`, in the current directory or on PYTHONPATH, is run instead.
"""

from __future__ import annotations

import signal


def main() -> None:
    # Before anything takes time. To the first process of a container a signal without a handler is lost; one that is
    # held waits for its handler. `app.cli` takes both again, or lets the server do it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    import importlib.util
    from pathlib import Path

    start = Path(__file__).resolve().parent / "app" / "processes" / "start.py"
    spec = importlib.util.spec_from_file_location("resnet_serve_start", start)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.use_this_package()
    from app.cli import main as run

    run()


if __name__ == "__main__":
    main()
