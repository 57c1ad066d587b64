# SPDX-License-Identifier: GPL-2.0-only
"""Puts man pages and completion scripts into the wheel; hatchling runs this when it builds one."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SharedFiles(BuildHookInterface[Any]):
    """Makes the files from the command line of the checkout."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to the data of a wheel, below its prefix."""
        self._directory = tempfile.TemporaryDirectory(prefix="kdamon-build-")
        sys.path[:0] = [str(Path(self.root, part)) for part in ("", "fs", "tools")]
        from kdamon_tools.man_pages import man_pages  # noqa: PLC0415 (its path was not there before)
        from kdamon_tools.shells import SHELLS, completion  # noqa: PLC0415 (likewise)

        files = {f"share/man/man1/{name}": text for name, text in man_pages(self.metadata.version).items()}
        files |= {place: completion(shell) for shell, place in SHELLS.items()}
        for number, (place, text) in enumerate(files.items()):
            path = Path(self._directory.name, str(number))
            path.write_text(text, encoding="utf-8")
            build_data["shared_data"][str(path)] = place

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was made."""
        self._directory.cleanup()
