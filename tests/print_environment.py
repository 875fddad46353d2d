"""A program for the tests: writes its environment to standard output, a variable a line."""

import os
import sys

sys.stdout.write("\n".join(f"{name}={value}" for name, value in os.environ.items()))
