"""Files that the tests read: the bundled checkpoint, converted and exported by the command line."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PHI3_TINY = REPOSITORY / "tests" / "fixtures" / "phi3-tiny"
SAMPLE_TEXT = REPOSITORY / "tests" / "fixtures" / "sample.txt"
PROGRAMS = Path(os.environ.get("SMQ_PROGRAMS", REPOSITORY / "target" / "release"))

# Every scheme and scale format, groups that divide the 256 and 768 columns and groups that do not.
VARIANTS: Dict[str, List[str]] = {
    "int4-e5m5": ["--mbits", "5", "--target", "all"],
    "int4-e5m0-mlp": ["--mbits", "0", "--target", "mlp"],
    "int4-e5m3-signed-32": [
        *("--mbits", "3", "--group-size", "32", "--scale-rule", "signed", "--target", "all"),
    ],
    "int4-f32-7": ["--mbits", "-1", "--group-size", "7", "--target", "all"],
    "int4-f16-100": ["--scales", "f16", "--group-size", "100", "--target", "all"],
    "int4-e4m3-64": ["--scales", "e4m3", "--group-size", "64", "--target", "all"],
    "int4-e8m0": ["--scales", "e8m0", "--target", "all"],
    "lut4-e5m5": ["--scheme", "lut4", "--mbits", "5", "--target", "all"],
    "lut4-f32-48": [
        *("--scheme", "lut4", "--mbits", "-1", "--group-size", "48", "--target", "all"),
    ],
    "nf4": ["--scheme", "nf4", "--target", "all"],
    "fp8": ["--scheme", "fp8", "--target", "all"],
}


def run(program: str, *arguments: object) -> str:
    """Standard output of one of the project's programs."""
    command = [str(PROGRAMS / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def inspect(path: Path) -> Any:
    """What `smq-inspect --json` says."""
    return json.loads(run("smq-inspect", "--json", path))


def write_at(path: Path, offset: int, contents: bytes) -> None:
    """Damages a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(contents)


class Converted(NamedTuple):
    """A .smq file, and what `smq-convert --to safetensors` makes of it."""

    path: Path
    exports: Dict[str, Path]


@pytest.fixture(scope="session")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Converts a checkpoint and exports the file in each element type."""
    done: Dict[Any, Converted] = {}

    def converted(checkpoint: Path, *arguments: str) -> Converted:
        key = (checkpoint, arguments)
        if key not in done:
            directory = tmp_path_factory.mktemp("converted")
            path = directory / "model.smq"
            run("smq-convert", *arguments, checkpoint, path)
            exports = {}
            for dtype in ("f32", "bf16"):
                exports[dtype] = directory / dtype
                run("smq-convert", path, exports[dtype], "--to", "safetensors", "--dtype", dtype)
            done[key] = Converted(path, exports)
        return done[key]

    return converted


@pytest.fixture(scope="session", params=VARIANTS)
def variant(request: pytest.FixtureRequest, convert: Any) -> Converted:
    """The bundled checkpoint in one scheme after another."""
    return convert(PHI3_TINY, *VARIANTS[request.param])


@pytest.fixture(scope="session")
def int4(convert: Any) -> Converted:
    """The bundled checkpoint as int4 with E5M5 scales, all linears."""
    return convert(PHI3_TINY, *VARIANTS["int4-e5m5"])
