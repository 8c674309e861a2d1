"""The import holds a bounded amount of a table in memory, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_an_import_holds_few_of_the_images_at_a_time(repository: Path) -> None:
    """12,000 rows with 120 MB of images in one row group: held together they would add at least as much."""
    program = [sys.executable, "benchmarks/data_at_scale.py", "import", "--rows", "12000", "--image-bytes", "5000"]
    out = subprocess.run(program, cwd=repository, check=True, capture_output=True, text=True, timeout=300).stdout
    found = json.loads(out)
    assert found["pairs"] == 12_000
    assert found["peak_mb"] - found["peak_before_mb"] < 100
