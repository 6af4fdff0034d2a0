#!/usr/bin/env bash
# What .ci/run does of test.sh: builds the wheel, installs it into a fresh virtual environment with
# numpy alone, and runs the tests that need neither torch nor transformers. SMQ_PROGRAMS names the
# directory of smq-convert and smq-inspect, which is the workspace's where it is not set.
set -euo pipefail
cd "$(dirname "$0")"

export SMQ_PROGRAMS=${SMQ_PROGRAMS:-$PWD/../target/release}
venv=$PWD/target/quick
"${PYTHON:-python3}" -m venv --clear "$venv"
pip=("$venv/bin/pip" install --quiet --disable-pip-version-check)
if ! "${pip[@]}" 'maturin>=1.9.4,<2' pytest numpy; then
    echo "WARNING: maturin or pytest could not be installed: THE PYTHON PACKAGE IS NOT TESTED" >&2
    exit 0
fi
rm -rf target/wheels
"$venv/bin/maturin" build --quiet --release --locked --out target/wheels
"${pip[@]}" "$PWD"/target/wheels/smq_format-*-cp39-abi3-*.whl

# From another directory, so that what is imported is the wheel and not smq_format/ beside this.
mkdir -p target/elsewhere
cd target/elsewhere
"$venv/bin/python" -m pytest --quiet --config-file ../../pyproject.toml --rootdir ../.. \
    ../../tests/test_file.py
