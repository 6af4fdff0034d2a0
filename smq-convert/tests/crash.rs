//! Killed, starved and raced conversions: the target is absent, the old file, or complete.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use smq_format::SmqFile;
use tempfile::TempDir;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

fn spawn(mbits: &str, out: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_smq-convert"))
        .args(["--force", "--target", "all", "--mbits", mbits])
        .arg(fixture())
        .arg(out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn converted(mbits: &str, dir: &TempDir) -> Vec<u8> {
    let out = dir.path().join(format!("whole-{mbits}.smq"));
    assert!(spawn(mbits, &out).wait().unwrap().success());
    std::fs::read(out).unwrap()
}

/// Kills at points spread over twice a conversion's time, with and without an old file in place.
#[test]
fn kill_9_at_many_points() {
    const POINTS: u32 = 60;
    let dir = TempDir::new().unwrap();
    let started = Instant::now();
    let old = converted("3", &dir);
    let span = 2 * started.elapsed();
    let new = converted("5", &dir);
    let (mut killed_early, mut finished) = (0, 0);
    for old_in_place in [false, true] {
        for point in 0..POINTS {
            let out = dir.path().join("target.smq");
            let _ = std::fs::remove_file(&out);
            if old_in_place {
                std::fs::write(&out, &old).unwrap();
            }
            let mut child = spawn("5", &out);
            std::thread::sleep(span * point / POINTS);
            let _ = child.kill();
            child.wait().unwrap();
            match std::fs::read(&out) {
                Ok(bytes) if bytes == new => finished += 1,
                Ok(bytes) => {
                    assert!(old_in_place && bytes == old, "a torn file at point {point}");
                    killed_early += 1;
                }
                Err(e) => {
                    assert_eq!(e.kind(), std::io::ErrorKind::NotFound);
                    assert!(!old_in_place, "the old file is gone at point {point}");
                    killed_early += 1;
                }
            }
        }
    }
    // Else the points did not cover a conversion.
    assert!(
        killed_early > 0 && finished > 0,
        "{killed_early} {finished}"
    );
    // Each run removes what the one before it left, and no other file appeared.
    let target = dir.path().join("target.smq");
    let leftovers = smq_format::leftovers(&target).len();
    assert!(leftovers <= 1, "{leftovers}");
    assert!(spawn("5", &target).wait().unwrap().success());
    let files = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files, 3, "whole-3, whole-5 and the target");
}

/// A write that fails part of the way, as on a full disk: a clear error and no file.
#[test]
fn a_write_that_fails() {
    let dir = TempDir::new().unwrap();
    for limit_kib in [1, 300, 3000] {
        let out = dir.path().join("out.smq");
        // The limit's signal would end the program, which has it be the error EFBIG.
        let script = format!("ulimit -f {limit_kib}; exec \"$@\"");
        let output = Command::new("bash")
            .args(["-c", &script, "bash", env!("CARGO_BIN_EXE_smq-convert")])
            .args([&fixture(), &out])
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains("out.smq: cannot write it: File too large"),
            "{stderr}"
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn two_conversions_to_one_target() {
    let dir = TempDir::new().unwrap();
    let whole = [converted("0", &dir), converted("5", &dir)];
    let out = dir.path().join("target.smq");
    for _ in 0..8 {
        let mut children = [spawn("0", &out), spawn("5", &out)];
        for child in &mut children {
            assert!(child.wait().unwrap().success());
        }
        assert!(whole.contains(&std::fs::read(&out).unwrap()), "a mixture");
        assert_eq!(SmqFile::open(&out).unwrap().verify(|_| ()), []);
    }
    assert!(smq_format::leftovers(&out).is_empty());
}

#[test]
fn ctrl_c_removes_the_unfinished_file() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.smq");
    for delay_ms in 0..12 {
        let mut child = spawn("5", &out);
        std::thread::sleep(Duration::from_millis(4 * delay_ms));
        let pid = child.id().to_string();
        let _ = Command::new("kill").args(["-INT", &pid]).status();
        let status = child.wait().unwrap();
        // Before the handler is set the signal kills at once, which is before the file is begun.
        assert!(smq_format::leftovers(&out).is_empty(), "{status:?}");
        if status.code() == Some(130) {
            assert!(!out.exists());
        }
        let _ = std::fs::remove_file(&out);
    }
}
