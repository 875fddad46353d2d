"""`python -m app` is the same as the command `resnet-serve`."""

from .cli import main

if __name__ == "__main__":
    main()
