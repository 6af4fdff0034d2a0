//! The folder that `.ci/package` makes for users, of the programs beside this test's own
//! executable, which `cargo test --workspace` builds first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use smq_tests::program;
use tempfile::TempDir;

fn package(out: &Path) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let programs = program("smq-run").unwrap();
    Command::new(root.join(".ci/package"))
        .arg(out)
        .env("SMQ_PROGRAMS", programs.parent().unwrap())
        .output()
        .unwrap()
}

#[test]
fn one_folder_has_programs_man_pages_and_completions() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("smq");
    let made = package(&out);
    assert!(made.status.success(), "{made:?}");
    for file in [
        "bin/smq-convert",
        "bin/smq-inspect",
        "bin/smq-run",
        "man/man1/smq-convert.1",
        "man/man1/smq-inspect.1",
        "man/man1/smq-run-generate.1",
        "bash/smq-run.bash",
        "zsh/_smq-convert",
        "fish/smq-inspect.fish",
        "LICENSE-MIT",
        "LICENSE-APACHE",
    ] {
        assert!(out.join(file).is_file(), "{file}");
    }
    // The programs run from there, and from an empty directory.
    let empty = TempDir::new().unwrap();
    for name in ["smq-convert", "smq-inspect", "smq-run"] {
        let mut run = Command::new(out.join("bin").join(name));
        let said = run.arg("--version").current_dir(&empty).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        assert!(said.starts_with(&format!("{name} ")), "{said}");
    }
    // What is there is not replaced, and nothing half made is left.
    let again = package(&out);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    let left: Vec<PathBuf> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(left, [out]);
}
