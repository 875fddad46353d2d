"""Measurements behind the defaults, to be repeated on another machine: `python -m benchmarks.NAME`."""
