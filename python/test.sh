#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh virtual environment, and runs the tests and the type
# checks there. PYTHON names the interpreter; SMQ_PROGRAMS a directory with smq-convert and
# smq-inspect, which are built where it is not set; SITE_PACKAGES a directory with torch and
# transformers for this interpreter, which are installed where it is not set.
set -euo pipefail
cd "$(dirname "$0")"

if [ -z "${SMQ_PROGRAMS:-}" ]; then
    cargo build --release --locked --manifest-path ../Cargo.toml --package smq-convert --bins
    SMQ_PROGRAMS=$PWD/../target/release
fi
export SMQ_PROGRAMS

cargo fmt --check
cargo clippy --release --locked -- -D warnings
# As .ci/run does it for the product, which also gets cargo-deny.
deny=$(command -v cargo-deny || echo ../target/cargo-deny/bin/cargo-deny)
if [ -x "$deny" ]; then
    cargo fetch --quiet --locked
    "$deny" --offline --locked --config ../deny.toml check --hide-inclusion-graph \
        licenses bans sources
else
    echo "WARNING: no cargo-deny (.ci/run installs it): LICENCES ARE NOT CHECKED" >&2
fi

venv=$PWD/target/venv
"${PYTHON:-python3}" -m venv --clear "$venv"
if [ -n "${SITE_PACKAGES:-}" ]; then
    here=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$SITE_PACKAGES" > "$here/site_packages.pth"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check 'maturin>=1.9.4,<2'
rm -rf target/wheels
"$venv/bin/maturin" build --release --locked --out target/wheels
wheel=$(echo "$PWD"/target/wheels/smq_format-*-cp39-abi3-*.whl)
"$venv/bin/pip" install --quiet --disable-pip-version-check "$wheel[test]"

# From another directory, so that what is imported is the wheel and not smq_format/ beside this.
mkdir -p target/elsewhere
cd target/elsewhere
"$venv/bin/python" - <<'END'
import smq_format
assert "site-packages" in smq_format.__file__, smq_format.__file__
print("testing", smq_format.__file__, smq_format.__version__)
END
"$venv/bin/pytest" --config-file ../../pyproject.toml --rootdir ../.. "$@" ../../tests
"$venv/bin/mypy" --config-file ../../pyproject.toml --package smq_format
"$venv/bin/mypy" --config-file ../../pyproject.toml ../../tests/typed_use.py
"$venv/bin/stubtest" --mypy-config-file ../../pyproject.toml smq_format._native
