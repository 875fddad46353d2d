"""`python -m app.settings` prints docs/configuration.md."""

import sys

from .tables import document

sys.stdout.write(document())
