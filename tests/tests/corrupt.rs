//! The corrupt-file corpus: every file is answered as `tests/corpus/expected.tsv` has it, to the
//! letter.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use smq_format::{Defect, Error, SmqFile};
use smq_tests::corrupt::{Case, Sample, cases};
use tempfile::TempDir;

/// Names every variant that reading a file can give; a variant in neither list does not compile.
macro_rules! variants {
    (reading: $($read:ident)*; writing: $($write:ident)*) => {
        const READING: &[&str] = &[$(stringify!($read)),*];
        fn variant(defect: &Defect) -> &'static str {
            match defect {
                $(Defect::$read { .. } => stringify!($read),)*
                $(Defect::$write { .. } => stringify!($write),)*
            }
        }
    };
}

variants! {
    reading: ShorterThanHeader Magic TextMode HeaderChecksum Version Reserved IncompatibleFeature FileLength
        SectionBounds SectionTooLarge SectionOffset AbsentSection TrailingBytes SectionHash IndexJson
        IndexNotCanonical Name Duplicate Dimensions ElementOverflow UnknownScheme NotMatrix Parameter ParameterSet
        Levels BlobRoles BlobLength BlobOffset BlobBounds Padding BlobHash ScaleCode ScaleNotFinite ScalePadding
        NibblePadding Nf4Padding NestedAbsmaxNotFinite Fp8Nan Statistics StatisticsMismatch
        StatisticsFigure;
    writing: FileAfterTensor
}

/// How far reading gets, and what it then says.
struct Outcome {
    stage: &'static str,
    defects: Vec<Defect>,
}

impl Outcome {
    fn text(&self) -> String {
        let texts: Vec<_> = self.defects.iter().map(Defect::to_string).collect();
        format!("{}\t{}", self.stage, texts.join(" | "))
    }
}

/// Reads a file as its users do: opens it, dequantizes every tensor, decodes the statistics,
/// verifies.
///
/// Stages: `open` refuses it; `decode`, a tensor is refused when dequantized, and by verify;
/// `verify`, only that sees the defect; `statistics`, the weights are whole (those of the valid
/// file, where the index gives the same tensors), the statistics are refused.
fn outcome(path: &Path, sample: &Sample, weights: &[Option<Vec<u8>>]) -> Outcome {
    let file = match SmqFile::open(path) {
        Ok(file) => file,
        Err(Error::Format {
            path: named,
            defect,
        }) => {
            assert_eq!(named, path);
            return Outcome {
                stage: "open",
                defects: vec![defect],
            };
        }
        Err(other) => panic!("{other}"),
    };
    let verified = file.verify(|_| ());
    let decoded: Vec<_> = file
        .tensors()
        .filter_map(|t| t.dequantize().err())
        .collect();
    let of_statistics = verified.iter().filter(|d| d.spares_the_weights());
    let refused = file.statistics().err();
    assert!(of_statistics.eq(refused.iter().map(|e| e.defect().unwrap())));
    assert!(decoded.iter().all(|d| verified.contains(d)));
    let stage = if verified.is_empty() {
        "accepted"
    } else if !decoded.is_empty() {
        "decode"
    } else if !verified.iter().all(Defect::spares_the_weights) {
        "verify"
    } else {
        if file.index().tensors == sample.index.tensors {
            assert!(weights_of(&file) == weights, "weights differ");
        }
        "statistics"
    };
    Outcome {
        stage,
        defects: verified,
    }
}

fn weights_of(file: &SmqFile) -> Vec<Option<Vec<u8>>> {
    let bytes = |w: Vec<f32>| w.iter().flat_map(|w| w.to_le_bytes()).collect();
    file.tensors()
        .map(|t| t.dequantize().ok().map(bytes))
        .collect()
}

fn corpus() -> (TempDir, Sample, Vec<Case>) {
    let dir = TempDir::new().unwrap();
    let sample = Sample::write(dir.path()).unwrap();
    let cases = cases(&sample).unwrap();
    (dir, sample, cases)
}

fn expected() -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/expected.tsv");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut expected = BTreeMap::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (name, outcome) = line.split_once('\t').unwrap();
        let again = expected.insert(name.to_owned(), outcome.to_owned());
        assert_eq!(again, None, "{name} is listed twice");
    }
    expected
}

#[test]
fn every_file_is_answered_as_listed() {
    let (dir, sample, cases) = corpus();
    let weights = weights_of(&SmqFile::open(&dir.path().join("sample.smq")).unwrap());
    let path = dir.path().join("case.smq");
    let mut expected = expected();
    let mut met = Vec::new();
    let mut wrong = Vec::new();
    let total = cases.len();
    for case in cases {
        std::fs::write(&path, &case.bytes).unwrap();
        let outcome = outcome(&path, &sample, &weights);
        met.extend(outcome.defects.iter().map(variant));
        let text = outcome.text();
        // A name that is generated twice is found as unlisted the second time.
        if expected.remove(&case.name).as_ref() != Some(&text) {
            wrong.push(format!("{}\t{text}", case.name));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {total} cases are unlisted, or answered otherwise than listed:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let left: Vec<_> = expected.keys().collect();
    assert!(left.is_empty(), "listed, but not generated: {left:?}");
    let unmet: Vec<_> = READING.iter().filter(|v| !met.contains(v)).collect();
    assert!(unmet.is_empty(), "defects without a case: {unmet:?}");
    let surprising: Vec<_> = met.iter().filter(|v| !READING.contains(v)).collect();
    assert!(
        surprising.is_empty(),
        "only writing should give {surprising:?}"
    );
    println!("{total} files, {} defects", READING.len());
}

/// The second reader accepts what we accept and refuses what we refuse, at open or later.
#[test]
fn the_second_reader_agrees_on_every_file() {
    let (dir, _, cases) = corpus();
    let expected = expected();
    let paths: Vec<PathBuf> = (0..cases.len())
        .map(|i| dir.path().join(format!("{i}.smq")))
        .collect();
    for (path, case) in paths.iter().zip(&cases) {
        std::fs::write(path, &case.bytes).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("second_reader/smq_reader.py");
    let output = Command::new("python3")
        .arg(&script)
        .arg("--check")
        .args(&paths)
        .output()
        .unwrap_or_else(|e| panic!("cannot run python3, which this test needs: {e}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.is_empty(), "{complaint}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), cases.len());
    let mut wrong = Vec::new();
    for (line, (path, case)) in text.lines().zip(paths.iter().zip(&cases)) {
        let theirs = line.strip_prefix(&format!("{}: ", path.display())).unwrap();
        let ours = &expected[&case.name];
        if (theirs == "ok") != ours.starts_with("accepted") {
            wrong.push(format!("{}: ours {ours:?}, theirs {theirs:?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_not_a_regular_file_is_named() {
    let (dir, _, _) = corpus();
    let refused = |path: &Path| SmqFile::open(path).unwrap_err().to_string();
    let path = |name: &str| dir.path().join(name);
    assert_eq!(
        refused(dir.path()),
        format!(
            "{} is a directory, not a regular file",
            dir.path().display()
        )
    );
    let missing = path("missing.smq");
    assert_eq!(
        refused(&missing),
        format!(
            "{}: cannot open it: No such file or directory (os error 2)",
            missing.display()
        )
    );
    #[cfg(unix)]
    {
        // Opening a FIFO that nobody writes would wait for ever.
        let fifo = path("fifo");
        assert!(
            Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(
            refused(&fifo),
            format!("{} is a FIFO, not a regular file", fifo.display())
        );
        assert_eq!(
            refused(Path::new("/dev/null")),
            "/dev/null is a device, not a regular file"
        );
        let socket = path("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(
            refused(&socket),
            format!("{} is a socket, not a regular file", socket.display())
        );
        let link = |from: &str, to: &Path| {
            std::os::unix::fs::symlink(to, path(from)).unwrap();
            path(from)
        };
        let good = link("link", &path("sample.smq"));
        assert!(SmqFile::open(&good).unwrap().verify(|_| ()).is_empty());
        let to_dir = link("link-to-dir", dir.path());
        assert!(refused(&to_dir).ends_with("is a directory, not a regular file"));
        let dangling = link("dangling", &missing);
        assert!(refused(&dangling).contains("cannot follow this symbolic link: No such file"));
        let circle = link("circle", &path("circle"));
        assert!(refused(&circle).contains("cannot follow this symbolic link: Too many levels"));
    }
}
