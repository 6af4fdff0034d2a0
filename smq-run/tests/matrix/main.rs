//! The experiment end to end on the bundled checkpoint: measured by `smq-run matrix`, told by
//! `smq-run report`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

mod online;
mod quality;
mod refusals;
mod report;
mod resume;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The contract of a small experiment.
fn contract() -> PathBuf {
    root().join("tests/fixtures/experiment-small.toml")
}

/// The checkpoint that comes with the repository.
fn model() -> PathBuf {
    root().join("tests/fixtures/phi3-tiny")
}

/// `smq-run matrix` on the CPU, into `out`.
fn matrix(out: &Path, extra: &[&str]) -> Command {
    matrix_of(&contract(), &model(), out, extra)
}

fn matrix_of(contract: &Path, model: &Path, out: &Path, extra: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smq-run"));
    command
        .args(["matrix", "--device", "cpu", "--config"])
        .arg(contract);
    command
        .arg("--model")
        .arg(model)
        .arg("--out")
        .arg(out)
        .args(extra);
    command
}

fn report(out: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smq-run"));
    command
        .arg("report")
        .arg(out)
        .arg("--config")
        .arg(contract());
    command.output().unwrap()
}

/// Runs to a good end, and returns what was said.
fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Ends with 1 and one line of error.
fn fail(mut command: Command) -> String {
    error_of(&command.output().unwrap())
}

fn error_of(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let error = stderr.lines().last().unwrap_or_default().to_owned();
    assert!(error.starts_with("error: "), "{stderr}");
    error
}

fn raw_text(out: &Path) -> String {
    std::fs::read_to_string(out.join("raw/matrix.jsonl")).unwrap()
}

/// The raw lines that a run wrote.
fn raw(out: &Path) -> Vec<Value> {
    let text = raw_text(out);
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

fn ids(lines: &[Value], record: &str) -> Vec<String> {
    let of = lines.iter().filter(|l| l["record"] == record);
    let mut ids: Vec<_> = of.map(|l| l["id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

/// A copy of the checkpoint that a test may change.
fn copy_of_model(to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
