//! The bytes of every scheme, pinned: work on the speed of a conversion must not change them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use smq_format::SmqFile;
use tempfile::TempDir;

const OPTIONS: &[&str] = &[
    "--mbits 5",
    "--mbits 0 --target mlp",
    "--mbits -1",
    "--scales f16 --group-size 32",
    "--scales e4m3 --scale-rule nearest",
    "--mbits 3 --scale-rule signed --group-size 64",
    "--mbits 3 --scale-rule search --group-size 96",
    "--mbits 3 --group-size 100 --scale-rule search",
    "--scheme nf4",
    "--scheme fp8",
    "--scheme lut4",
    "--scheme lut4 --levels nf4 --group-size 50",
    "--mbits auto --budget 5",
];

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// BLAKE3 of the hashes of all blobs and of the statistics, for each choice of options. The index
/// has them all, but the program's version too.
#[test]
fn the_bytes_are_what_they_were() {
    let dir = TempDir::new().unwrap();
    let mut found = String::new();
    for options in OPTIONS {
        let mut digests = Vec::new();
        for threads in ["1", "2", "5"] {
            let out = dir.path().join("out.smq");
            let done = Command::new(env!("CARGO_BIN_EXE_smq-convert"))
                .args(options.split(' '))
                .args(["--force", "--threads", threads])
                .args([&at("../tests/fixtures/phi3-tiny"), &out])
                .output()
                .unwrap();
            let stderr = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{options}: {stderr}");
            let file = SmqFile::open(&out).unwrap();
            assert_eq!(file.verify(|_| ()), [], "{options}");
            let mut hasher = blake3::Hasher::new();
            let tensors = file.index().tensors.iter();
            for blob in tensors.flat_map(|tensor| &tensor.blobs) {
                hasher.update(&blob.blake3);
            }
            for source in &file.index().provenance.sources {
                hasher.update(&source.blake3);
            }
            hasher.update(&file.header().statistics.hash);
            digests.push(hasher.finalize().to_hex());
        }
        assert!(
            digests.windows(2).all(|d| d[0] == d[1]),
            "{options}: threads"
        );
        writeln!(found, "{options}\t{}", digests[0]).unwrap();
    }
    let pinned = std::fs::read_to_string(at("tests/golden/bytes.txt")).unwrap();
    assert!(found == pinned, "now they are\n{found}");
}
