"""What the programs that stand in for tunnels share with the test that installed them: a folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The environment variable that names the folder.
VARIABLE = "TESTS_TUNNELS"


@dataclass(frozen=True)
class Folder:
    """
    The folder: ``settings.json`` says what to do; ``log.jsonl`` gets a line of each program that runs, and of each
    address that it opens.
    """

    path: Path

    @classmethod
    def found(cls) -> Folder:
        return cls(Path(os.environ[VARIABLE]))

    @property
    def certificate(self) -> Path:
        """The certificate and key of all public names."""
        return self.path / "certificate.pem"

    def settings(self) -> dict[str, Any]:
        """What to do, as it is now; see ``PublicNetwork.tell``."""
        content: dict[str, Any] = json.loads((self.path / "settings.json").read_text())
        return content

    def log(self) -> list[dict[str, Any]]:
        """What the programs noted, with their pids."""
        path = self.path / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def addresses(self) -> list[dict[str, Any]]:
        """The addresses that were opened, in their order, each with its ``url`` and ``port``."""
        return [each for each in self.log() if "url" in each]

    def opened(self) -> int:
        """How many addresses were opened."""
        return len(self.addresses())

    def note(self, **fields: Any) -> None:
        """Add a line to the log."""
        with (self.path / "log.jsonl").open("a") as file:
            file.write(json.dumps({"pid": os.getpid(), **fields}) + "\n")
