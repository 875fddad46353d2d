"""The step of the package's build that compiles `app/images/resample.c`, where there is a C compiler.

Without one the package is installed all the same, and Pillow resizes: the same pixels, more slowly.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileHook(BuildHookInterface[Any]):
    """Called by hatchling for each wheel, also for the one of `pip install --editable`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # By its path: the package itself cannot be imported before what it depends on is installed.
        step = runpy.run_path(str(Path(self.root) / "app" / "images" / "kernel_build.py"))
        try:
            library = step["build_library"]()
        except step["NoCompiler"] as error:
            self.app.display_warning(f"Pillow will resize images, more slowly: no C compiler could be used ({error}).")
            return
        build_data["artifacts"].append(str(library.relative_to(self.root)))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
