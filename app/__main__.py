"""`python -m app` is the same as the command `resnet-serve`."""

import signal

if __name__ == "__main__":
    # As `resnet_serve` does: a signal that comes before its handler waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    from .cli import main

    main()
