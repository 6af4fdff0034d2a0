//! The two command lines as a user runs them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

fn convert(args: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_smq-convert"), args)
}

fn inspect(args: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_smq-inspect"), args)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn convert_then_inspect_in_every_form() {
    let dir = TempDir::new().unwrap();
    let (source, file) = (fixture(), dir.path().join("out.smq"));
    let (source, file) = (source.to_str().unwrap(), file.to_str().unwrap());
    let planned = convert(&["--dry-run", source]);
    assert!(planned.status.success(), "{}", stderr(&planned));
    let done = convert(&[source, file]);
    assert!(done.status.success(), "{}", stderr(&done));
    let bytes = std::fs::metadata(file).unwrap().len();
    assert!(stdout(&planned).contains(&format!("{bytes} bytes would be written")));
    assert!(stdout(&done).contains("worst tensors"));

    let text = stdout(&inspect(&[file]));
    assert!(
        text.contains("e5m5") && text.contains("bits per weight  4.086"),
        "{text}"
    );
    assert!(stdout(&inspect(&[file, "--verify"])).starts_with("ok: "));
    assert!(stdout(&inspect(&[file, "--recheck", source])).starts_with("ok: "));
    let json: serde_json::Value =
        serde_json::from_slice(&inspect(&[file, "--json"]).stdout).unwrap();
    assert_eq!(json["sizes"]["file_bytes"], bytes);
    assert_eq!(stdout(&inspect(&[file, "--csv"])).lines().count(), 1 + 27);
    let page = dir.path().join("page.html");
    assert!(
        inspect(&[file, "--html", page.to_str().unwrap()])
            .status
            .success()
    );
    assert!(
        std::fs::read_to_string(&page)
            .unwrap()
            .starts_with("<!DOCTYPE html>")
    );

    assert!(inspect(&[file, "--strip-statistics"]).status.success());
    assert!(stdout(&inspect(&[file, "--verify"])).starts_with("ok: "));
    assert!(std::fs::metadata(file).unwrap().len() < bytes);
}

#[test]
fn failures_exit_with_1_and_usage_with_2() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.smq");
    let (source, out) = (fixture(), out.to_str().unwrap());
    let source = source.to_str().unwrap();
    let cases: [(&[&str], i32, &str); 7] = [
        (
            &["no-such-dir", out],
            1,
            "no-such-dir: no such file or directory",
        ),
        (&[source], 1, "no output file given"),
        (&["--mbits", "11", source, out], 2, "11 is not in -1..=10"),
        (
            &["--scales", "e9m1", source, out],
            2,
            "expected f32, f16, or eXmY",
        ),
        (
            &["--group-size", "0", source, out],
            1,
            "--group-size 0: must be 1 to 1048576",
        ),
        (&["--target", "(", source, out], 2, "unclosed group"),
        (
            &["--mbits", "3", "--scales", "f16", source, out],
            2,
            "cannot be used with",
        ),
    ];
    for (args, code, message) in cases {
        let output = convert(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert!(
            stderr(&output).contains(message),
            "{args:?}: {}",
            stderr(&output)
        );
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let damaged = dir.path().join("bad.smq");
    std::fs::write(&damaged, b"not an smq file at all").unwrap();
    let output = inspect(&[damaged.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("bad.smq: file is 22 bytes, shorter than"));
}

#[test]
fn a_leftover_of_a_killed_run_is_reported() {
    let dir = TempDir::new().unwrap();
    let leftover = dir.path().join(".out.smq.x7Gh2a.smq-partial");
    std::fs::write(&leftover, b"").unwrap();
    let out = dir.path().join("out.smq");
    let output = convert(&[fixture().to_str().unwrap(), out.to_str().unwrap()]);
    assert!(output.status.success());
    assert!(
        stderr(&output).contains(".out.smq.x7Gh2a.smq-partial was left by a run that was killed")
    );
}

#[test]
fn synth_writes_a_checkpoint_that_converts() {
    let dir = TempDir::new().unwrap();
    let made = dir.path().join("synthetic");
    let config = fixture().join("config.json");
    let output = convert(&[
        "synth",
        "--like",
        config.to_str().unwrap(),
        made.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let out = dir.path().join("out.smq");
    let output = convert(&[
        "--target",
        "all",
        made.to_str().unwrap(),
        out.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
}
