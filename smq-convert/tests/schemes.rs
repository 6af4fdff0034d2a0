//! `--scheme lut4`, `--scheme nf4` and `--scheme fp8` as a user runs them, through every command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::SafeTensors;
use smq_format::SmqFile;
use tempfile::TempDir;

const SCHEMES: [(&str, &str, &str); 3] = [
    ("lut4", "lut4-e5mx", "4.086"),
    ("nf4", "nf4-dq", "4.127"),
    ("fp8", "fp8-e4m3", "8.106"),
];

fn fixture() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny");
    path.to_str().unwrap().to_owned()
}

fn convert(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_smq-convert");
    Command::new(program).args(args).output().unwrap()
}

fn inspect(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_smq-inspect");
    Command::new(program).args(args).output().unwrap()
}

/// Standard output of a run that must succeed.
fn ok(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The message of a run that must fail.
fn refused(output: Output) -> String {
    assert!(!output.status.success() && output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

struct Converted {
    dir: TempDir,
    scheme: &'static str,
    name: &'static str,
    bits: &'static str,
}

impl Converted {
    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn file(&self) -> String {
        self.path("model.smq")
    }
}

/// The fixture in each scheme, every projection quantized.
fn converted() -> impl Iterator<Item = Converted> {
    SCHEMES.into_iter().map(|(scheme, name, bits)| {
        let made = Converted {
            dir: TempDir::new().unwrap(),
            scheme,
            name,
            bits,
        };
        let args = ["--scheme", scheme, "--target", "all", &fixture()];
        ok(convert(&[&args[..], &[&made.file()]].concat()));
        made
    })
}

#[test]
fn sizes_are_planned_and_threads_change_nothing() {
    for made in converted() {
        let source = fixture();
        let args = ["--scheme", made.scheme, "--target", "all", &source];
        let planned = ok(convert(&[&["--dry-run"], &args[..]].concat()));
        let bytes = std::fs::read(made.file()).unwrap();
        assert!(
            planned.contains(&format!(
                "({} bytes) would be written",
                indicatif::HumanCount(bytes.len() as u64)
            )),
            "{planned}"
        );
        for jobs in ["1", "3"] {
            let other = made.path("again.smq");
            let jobs = ["--force", "--threads", jobs];
            ok(convert(&[&args[..], &[&other], &jobs].concat()));
            assert!(std::fs::read(&other).unwrap() == bytes, "{}", made.scheme);
        }
    }
}

#[test]
fn every_report_knows_them() {
    for made in converted() {
        let file = made.file();
        assert!(ok(inspect(&[&file, "--verify"])).starts_with("ok: "));
        let checked = ok(inspect(&[&file, "--recheck", &fixture()]));
        assert_eq!(checked, "ok: the statistics of 16 tensors hold\n");
        let text = ok(inspect(&[&file]));
        let density = format!("bits per weight  {}", made.bits);
        assert!(
            text.contains(made.name) && text.contains(&density),
            "{text}"
        );
        let json: serde_json::Value =
            serde_json::from_str(&ok(inspect(&[&file, "--json"]))).unwrap();
        let (codes, scales) = (
            &json["sizes"]["nibble_bytes"],
            &json["sizes"]["scale_bytes"],
        );
        let tensors = json["tensors"].as_array().unwrap();
        let quantized = tensors.iter().filter(|t| t["scheme"] == made.name);
        let stored = quantized.map(|t| t["stored_bytes"].as_u64().unwrap());
        assert_eq!(
            codes.as_u64().unwrap() + scales.as_u64().unwrap(),
            stored.sum::<u64>()
        );
        let sqnr = json["totals"]["sqnr_db"].as_f64().unwrap();
        // 4 bits of a normal distribution are worth about 20 dB, 3 bits of mantissa about 31.
        let range = if made.scheme == "fp8" {
            30.0..33.0
        } else {
            19.0..22.0
        };
        assert!(range.contains(&sqnr), "{sqnr}");
        let page = made.path("page.html");
        ok(inspect(&[&file, "--html", &page]));
        assert!(std::fs::read_to_string(&page).unwrap().contains(made.name));
        ok(inspect(&[&file, "--csv"]));
    }
}

#[test]
fn files_of_other_schemes_differ_by_their_weights() {
    let made: Vec<_> = converted().collect();
    let same = inspect(&["diff", &made[0].file(), &made[0].file()]);
    assert_eq!(same.status.code(), Some(0));
    for (a, b) in [(0, 1), (1, 2)] {
        let differ = inspect(&["diff", &made[a].file(), &made[b].file()]);
        assert_eq!(differ.status.code(), Some(1));
        let text = String::from_utf8(differ.stdout).unwrap();
        assert!(
            [a, b].iter().all(|i| text.contains(made[*i].scheme)),
            "{text}"
        );
    }
}

#[test]
fn they_export_as_dequantized_weights_alone() {
    for made in converted() {
        let (file, out) = (made.file(), made.path("plain"));
        ok(convert(&[&file, &out, "--to", "safetensors"]));
        let bytes = std::fs::read(Path::new(&out).join("model.safetensors")).unwrap();
        let exported = SafeTensors::deserialize(&bytes).unwrap();
        for view in SmqFile::open(Path::new(&file)).unwrap().tensors() {
            if !view.scheme().is_quantized() {
                continue;
            }
            let weights = view.dequantize().unwrap();
            let weights: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
            assert!(exported.tensor(view.name()).unwrap().data() == weights);
        }
        let packed = made.path("packed");
        // FP8 has a form of its own there (tests/export).
        if made.scheme == "fp8" {
            ok(convert(&[&file, &packed, "--to", "compressed-tensors"]));
            continue;
        }
        let error = refused(convert(&[&file, &packed, "--to", "compressed-tensors"]));
        let why = match made.scheme {
            "lut4" => "compressed-tensors has no code book",
            _ => "only int4 can be exported as compressed-tensors",
        };
        let expected = format!(
            "is {}, and {why}; use --to safetensors, which dequantizes",
            made.name
        );
        assert!(error.contains(&expected), "{error}");
        assert!(!Path::new(&packed).exists());
    }
}

#[test]
fn options_of_int4_are_refused() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.smq");
    let out = out.to_str().unwrap();
    for (scheme, ..) in &SCHEMES[1..] {
        for (option, value) in [
            ("--mbits", "5"),
            ("--scales", "f16"),
            ("--group-size", "64"),
            ("--scale-rule", "reference"),
        ] {
            let source = fixture();
            let args = [&source, out, "--scheme", scheme, option, value];
            assert_eq!(
                refused(convert(&args)),
                format!(
                    "error: {option} is for --scheme int4; --scheme {scheme} has one form: leave {option} out\n"
                )
            );
        }
    }
    let source = fixture();
    let run = |args: &[&str]| refused(convert(&[&[&source, out], args].concat()));
    for (args, message) in [
        (
            &["--scheme", "nf4", "--levels", "nf4"][..],
            "--levels is for --scheme lut4; --scheme nf4 has one form: leave --levels out",
        ),
        (
            &["--levels", "learned"],
            "--levels is for --scheme lut4; int4's levels are -8 to 7",
        ),
        (
            &["--levels", "learned", "--mbits", "auto", "--budget", "4.5"],
            "--levels is for --scheme lut4; int4's levels are -8 to 7",
        ),
        (
            &["--scheme", "lut4", "--mbits", "auto"],
            "--mbits auto is for --scheme int4; give --scheme lut4 a number, or leave --mbits out",
        ),
        (
            &["--scheme", "lut4", "--budget", "4.5"],
            "--budget is for --mbits auto",
        ),
    ] {
        let error = run(args);
        assert!(error.starts_with(&format!("error: {message}")), "{error}");
    }
    assert!(!Path::new(out).exists());
}

/// The options that a code book has are those of int4, and where its levels come from is in the
/// file.
#[test]
fn a_code_book_has_int4s_options() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let source = fixture();
    let mut books = Vec::new();
    for (name, args) in [
        ("learned", &["--mbits", "3"][..]),
        ("nf4", &["--levels", "nf4", "--scales", "f16"]),
        ("signed", &["--scale-rule", "signed", "--group-size", "64"]),
        ("search", &["--levels", "nf4", "--scale-rule", "search"]),
    ] {
        let out = path(name);
        ok(convert(
            &[
                &[&source, &out, "--scheme", "lut4", "--target", "mlp"],
                args,
            ]
            .concat(),
        ));
        assert!(ok(inspect(&[&out, "--verify"])).starts_with("ok: "));
        assert!(ok(inspect(&[&out, "--recheck", &source])).starts_with("ok: "));
        let json: serde_json::Value =
            serde_json::from_str(&ok(inspect(&[&out, "--json"]))).unwrap();
        let levels = if name == "nf4" || name == "search" {
            "nf4"
        } else {
            "learned"
        };
        let parameters = &json["provenance"]["parameters"];
        assert_eq!(parameters["levels"], levels);
        assert_eq!(parameters["scheme"], "lut4");
        let tensors = json["tensors"].as_array().unwrap().iter();
        books.push(tensors.map(|t| t["levels"].clone()).collect::<Vec<_>>());
    }
    let [learned, nf4, signed, search] = &books[..] else {
        unreachable!()
    };
    assert!(nf4 == search && learned != nf4 && learned != signed);
    let of = |book: &[serde_json::Value]| -> Vec<Vec<i64>> {
        let quantized = book.iter().filter_map(|levels| levels.as_array());
        quantized
            .map(|l| l.iter().map(|v| v.as_i64().unwrap()).collect())
            .collect()
    };
    assert!(of(nf4).windows(2).all(|two| two[0] == two[1]) && of(nf4).len() == 8);
    assert!(of(learned).windows(2).any(|two| two[0] != two[1]));
    assert!(of(learned).iter().all(|l| (l[0], l[15]) == (-126, 126)));
    assert!(of(signed).iter().all(|l| l[0] == -126 && l[15] < 126));
    let detail = ok(inspect(&[
        &path("nf4"),
        "--tensor",
        "model.layers.0.mlp.down_proj.weight",
    ]));
    assert!(
        detail.contains("-127 -88 -67 -50 -36 -23 -12 0 10 20 31 43 56 71 92 127"),
        "{detail}"
    );
    let differ = inspect(&["diff", &path("learned"), &path("nf4")]);
    let text = String::from_utf8(differ.stdout).unwrap();
    assert!(text.contains("levels"), "{text}");
}

/// An int4 checkpoint keeps its integers unless it is told otherwise; then its dequantized weights
/// are quantized.
#[test]
fn an_int4_checkpoint_needs_requantize() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (int4, packed, out) = (path("int4.smq"), path("packed"), path("out.smq"));
    ok(convert(&["--mbits", "5", &fixture(), &int4]));
    ok(convert(&[&int4, &packed, "--to", "compressed-tensors"]));
    for (scheme, ..) in SCHEMES {
        let args = [&packed, &out, "--force", "--scheme", scheme];
        let error = refused(convert(&args));
        assert!(
            error.contains(&format!("--scheme {scheme}: the checkpoint is int4"))
                && error.contains("pass --requantize"),
            "{error}"
        );
        ok(convert(&[&args[..], &["--requantize"]].concat()));
        ok(inspect(&[&out, "--verify"]));
        assert!(ok(inspect(&[&out, "--recheck", &packed])).starts_with("ok: "));
    }
}
