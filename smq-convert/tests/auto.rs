//! `--mbits auto` on the bundled checkpoint: what is chosen, that files of mixed storage pass every
//! check, what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use smq_convert::{
    Auto, AutoOptions, Checkpoint, ChooseBy, ChosenTensor, Goal, ScaleRule, Sensitivity, choose,
    convert_auto, dry_run_auto,
};
use smq_format::SmqFile;
use tempfile::TempDir;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn fixture() -> String {
    let path = repository().join("tests/fixtures/phi3-tiny");
    path.to_str().unwrap().to_owned()
}

/// Measured by projection on this checkpoint.
fn measured() -> PathBuf {
    repository().join("results/quality/sensitivity-phi3-tiny.json")
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open(Path::new(&fixture())).unwrap()
}

fn options(goal: Goal) -> AutoOptions {
    AutoOptions {
        target: "all".parse().unwrap(),
        group: 128,
        rule: None,
        goal,
        choose_by: ChooseBy::Weights,
        sensitivity: None,
        mixed_widths: false,
        overwrite: false,
        jobs: 0,
    }
}

fn weighed(goal: Goal) -> AutoOptions {
    AutoOptions {
        sensitivity: Some(Sensitivity::read(&measured()).unwrap()),
        ..options(goal)
    }
}

fn mixed(goal: Goal) -> AutoOptions {
    AutoOptions {
        mixed_widths: true,
        ..options(goal)
    }
}

fn chosen(options: &AutoOptions) -> Auto {
    choose(&checkpoint(), options, &|_| true).unwrap()
}

fn squared_error(auto: &Auto) -> f64 {
    auto.tensors.iter().map(|t| t.squared_error).sum()
}

fn run(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_smq-convert");
    Command::new(program).args(args).output().unwrap()
}

fn inspect(args: &[&str]) -> String {
    let program = env!("CARGO_BIN_EXE_smq-inspect");
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The message of a run that must fail.
fn refused(args: &[&str]) -> String {
    let output = run(args);
    assert!(!output.status.success() && output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

/// What is printed at two budgets: one spent on scales alone, and one that leaves tensors as they
/// are. With `SMQ_BLESS` set, writes the files anew.
#[test]
fn golden_choices() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let cases: [(&str, &[&str]); 2] = [
        (
            "auto_4.07_mixed.txt",
            &["--budget", "4.07", "--mixed-widths"],
        ),
        ("auto_5.txt", &["--budget", "5"]),
    ];
    for (name, own) in cases {
        let source = fixture();
        let args = [
            &["--mbits", "auto", "--target", "all", "--dry-run", "-v"],
            own,
            &[&source],
        ];
        let output = run(&args.concat());
        let text = String::from_utf8(output.stdout).unwrap();
        let path = golden.join(name);
        if std::env::var_os("SMQ_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{name}");
    }
}

#[test]
fn budgets_are_kept_and_larger_ones_cost_no_more() {
    for of in [options, mixed, weighed] {
        let mut last = f64::INFINITY;
        for budget in [4.048, 4.06, 4.07, 4.09, 4.3, 4.6, 5.5, 9.0, 15.9] {
            let auto = chosen(&of(Goal::Budget(budget)));
            assert!(auto.bits_per_weight <= budget, "{}", auto.bits_per_weight);
            let cost = auto.predicted_kl.unwrap_or(squared_error(&auto));
            // The greedy choice may end short of the optimum by a step, never by as much as a whole
            // tensor here.
            assert!(cost <= last, "{budget}: {cost} after {last}");
            last = cost;
        }
    }
    // More choice is no worse.
    let goal = Goal::Budget(4.07);
    assert!(squared_error(&chosen(&mixed(goal))) < squared_error(&chosen(&options(goal))));
}

#[test]
fn predicted_divergence_is_kept_by_the_smallest_file() {
    let mut last = 0.0;
    for nats in [0.2, 0.1, 0.05, 0.01] {
        let auto = chosen(&weighed(Goal::MaxKl(nats)));
        let predicted = auto.predicted_kl.unwrap();
        assert!(predicted <= nats && predicted > 0.8 * nats, "{predicted}");
        assert!(auto.bits_per_weight > last);
        last = auto.bits_per_weight;
        // A budget of what it took buys no more than the bound.
        let again = chosen(&weighed(Goal::Budget(auto.bits_per_weight)));
        assert!(again.predicted_kl.unwrap() <= nats * 1.02);
    }
}

/// The figures that decided are those which the file records; it passes every check; threads change
/// nothing.
#[test]
fn files_of_mixed_storage_hold() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut last = Vec::new();
    for (name, jobs) in [("one.smq", 1), ("three.smq", 3)] {
        let options = AutoOptions {
            jobs,
            ..mixed(Goal::Budget(4.5))
        };
        let (auto, summary) =
            convert_auto(&checkpoint(), &path(name), &options, &|_| true).unwrap();
        let (again, plan) = dry_run_auto(&checkpoint(), &options, &|_| true).unwrap();
        assert_eq!(plan.file_bytes, summary.written.file_bytes);
        assert_eq!(again.tensors, auto.tensors);
        let file = SmqFile::open(&path(name)).unwrap();
        assert_eq!(file.verify(|_| ()), []);
        let statistics = file.statistics().unwrap().unwrap();
        for tensor in &auto.tensors {
            let ChosenTensor {
                name,
                options,
                bytes,
                squared_error,
                squared_whole,
                ..
            } = tensor;
            let view = file.tensor(name).unwrap();
            assert_eq!(view.scheme().is_quantized(), options.is_some());
            assert_eq!(view.entry().stored_bytes(), *bytes);
            if options.is_some() {
                let stored = statistics.tensor(name).unwrap().stored;
                assert_eq!(
                    (stored.squared_error, stored.squared_weight),
                    (*squared_error, *squared_whole)
                );
            }
        }
        assert!(auto.tensors.iter().any(|t| t.options.is_none()));
        let bytes = std::fs::read(path(name)).unwrap();
        assert!(last.is_empty() || last == bytes);
        last = bytes;
    }
    let (file, source) = (path("one.smq"), fixture());
    let file = file.to_str().unwrap();
    assert!(inspect(&[file, "--verify"]).starts_with("ok: "));
    assert!(inspect(&[file, "--recheck", &source]).starts_with("ok: "));
    let text = inspect(&[file]);
    for part in [
        "auto_budget_bits=4.5",
        "auto_widths=mixed",
        "e5m3 signed",
        "raw bf16",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Rules that differ within a file are recorded, and `--recheck` uses them.
#[test]
fn a_rule_is_recorded_for_each_tensor() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("out.smq");
    let options = mixed(Goal::Budget(4.05));
    let (auto, _) = convert_auto(&checkpoint(), &path, &options, &|_| true).unwrap();
    let count = |rule| {
        let int4 = auto.tensors.iter().filter_map(|t| t.options);
        int4.filter(|o| o.rule == rule).count()
    };
    let (nearest, signed) = (count(ScaleRule::Nearest), count(ScaleRule::Signed));
    assert!(nearest > 0 && signed > 0, "{nearest} {signed}");
    let file = path.to_str().unwrap();
    assert!(inspect(&[file, "--recheck", &fixture()]).starts_with("ok: "));
    let json: serde_json::Value = serde_json::from_str(&inspect(&[file, "--json"])).unwrap();
    let tensors = json["tensors"].as_array().unwrap();
    let named = |rule: &str| tensors.iter().filter(|t| t["scale_rule"] == rule).count();
    assert_eq!((named("nearest"), named("signed")), (nearest, signed));
}

#[test]
fn one_rule_where_it_is_asked_for() {
    let options = AutoOptions {
        rule: Some(ScaleRule::Reference),
        ..options(Goal::Budget(4.08))
    };
    let auto = chosen(&options);
    let mut int4 = auto.tensors.iter().filter_map(|t| t.options);
    assert!(int4.all(|o| o.rule == ScaleRule::Reference));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.smq");
    let (source, out) = (fixture(), out.to_str().unwrap());
    let auto: &[&str] = &["--mbits", "auto", "--target", "all", &source, out];
    let cases: [(&[&str], &str); 10] = [
        (
            &[],
            "error: --mbits auto needs a bound: pass --budget BITS_PER_WEIGHT, or --max-kl NATS with --sensitivity FILE\n",
        ),
        (&["--budget", "5", "--max-kl", "0.1"], "cannot be used with"),
        (
            &["--budget", "4"],
            "error: --budget 4: the selected tensors take 4.0472 bits a weight at least (e5m0 scales, groups of 128); raise it\n",
        ),
        (
            &["--budget", "16"],
            "error: --budget 16: leaves every selected tensor as it is, at 16.0000 bits a weight, which is the checkpoint \
             itself; the bound must leave something to quantize\n",
        ),
        (
            &["--budget", "nan"],
            "error: --budget NaN: must be a positive number of bits a weight\n",
        ),
        (&["--max-kl", "0.1"], "smq-run eval sensitivity"),
        (
            &["--budget", "5", "--scheme", "nf4"],
            "error: --mbits is for --scheme int4; --scheme nf4 has one form: leave --mbits out\n",
        ),
        (&["--budget", "5", "--scales", "f16"], "cannot be used with"),
        (
            &["--budget", "5", "--group-size", "0"],
            "error: --group-size 0: must be 1 to 1048576\n",
        ),
        (
            &["--budget", "5", "--sensitivity", "no-such.json"],
            "no-such.json: cannot read it",
        ),
    ];
    for (own, message) in cases {
        let error = refused(&[auto, own].concat());
        assert!(error.contains(message), "{own:?}: {error}");
    }
    for option in [&["--budget", "5"][..], &["--mixed-widths"]] {
        let error = refused(&[option, &["--mbits", "5", &source, out]].concat());
        let expected = format!(
            "error: {0} is for --mbits auto: add that, or leave {0} out\n",
            option[0]
        );
        assert_eq!(error, expected);
    }
    let error = refused(&[
        "--mbits",
        "auto",
        "--budget",
        "5",
        "--target",
        "none_such",
        &source,
        out,
    ]);
    assert!(error.contains("matches no 2-dimensional tensor"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    let negative = choose(&checkpoint(), &weighed(Goal::MaxKl(-1.0)), &|_| true).unwrap_err();
    assert_eq!(
        negative.to_string(),
        "--max-kl -1: must be a number of nats, at least 0"
    );
    let stopped = choose(&checkpoint(), &options(Goal::Budget(5.0)), &|_| false).unwrap_err();
    assert!(stopped.to_string().contains("interrupted"));
    // An existing file is kept, and nothing is measured for it.
    std::fs::write(out, "precious").unwrap();
    let error = refused(&[auto, &["--budget", "5"]].concat());
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(std::fs::read(out).unwrap(), b"precious");
}

#[test]
fn an_int4_checkpoint_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (int4, packed, out) = (path("int4.smq"), path("packed"), path("out.smq"));
    assert!(run(&["--mbits", "5", &fixture(), &int4]).status.success());
    assert!(
        run(&[&int4, &packed, "--to", "compressed-tensors"])
            .status
            .success()
    );
    for extra in [&[][..], &["--requantize"]] {
        let args = [&["--mbits", "auto", "--budget", "5", &packed, &out], extra].concat();
        assert_eq!(
            refused(&args),
            "error: --mbits auto: compares with unquantized weights, and the checkpoint is int4 already; give the mantissa \
             bits\n"
        );
    }
}

#[test]
fn sensitivities_of_another_model_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s.json");
    let text = std::fs::read_to_string(measured()).unwrap();
    let of = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let sensitivity = Sensitivity::read(&path)?;
        let options = AutoOptions {
            sensitivity: Some(sensitivity),
            ..options(Goal::Budget(5.0))
        };
        choose(&checkpoint(), &options, &|_| true)
    };
    let changed = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        of(&text.replacen(from, to, 1)).unwrap_err().to_string()
    };
    of(&text).unwrap();
    for (from, to, parts) in [
        (
            "layers.0.mlp.down",
            "layers.9.mlp.down",
            &[
                "s.json: measures model.layers.9.mlp.down_proj.weight, which",
                "phi3-tiny does not have",
            ][..],
        ),
        (
            "\"weights\": 196608",
            "\"weights\": 196609",
            &["of 196609 weights, which has 196608 in"],
        ),
        (
            "\"weights\": ",
            "\"weight\": ",
            &["not the JSON of smq-run eval sensitivity", "`weights`"],
        ),
        (
            "\"squared_error\": ",
            "\"squared_error\": -",
            &["neither can be negative"],
        ),
        (
            "\"target\": \"all\"",
            "\"target\": \"(\"",
            &["s.json: target \"(\""],
        ),
        (
            "\"target\": \"all\"",
            "\"target\": \"mlp\"",
            &["self_attn.o_proj.weight, which"],
        ),
    ] {
        let error = changed(from, to);
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
    }
    // A tensor that was not measured.
    let mut parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    parsed["points"].as_array_mut().unwrap().pop();
    let error = of(&parsed.to_string()).unwrap_err().to_string();
    let expected = "has no point for tensor \"model.layers.3.self_attn.qkv_proj.weight\"; measure it with the same --target";
    assert!(error.contains(expected), "{error}");
}

/// Points of whole layers weigh all of a layer's tensors alike.
#[test]
fn layers_weigh_their_tensors() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("layers.json");
    let elems: u64 = 3 * 65536 + 65536 + 393_216 + 196_608;
    let points: Vec<_> = (0..4)
        .map(|layer| {
            serde_json::json!({
                "name": format!("model.layers.{layer}"),
                "weights": elems,
                "squared_error": 100.0,
                "mean_kl": {"value": if layer == 2 { 1.0 } else { 0.01 }},
            })
        })
        .collect();
    let text = serde_json::json!({"target": "all", "points": points}).to_string();
    std::fs::write(&path, text).unwrap();
    let options = AutoOptions {
        sensitivity: Some(Sensitivity::read(&path).unwrap()),
        ..options(Goal::Budget(7.1))
    };
    let auto = chosen(&options);
    for tensor in &auto.tensors {
        let sensitive = tensor.name.contains("layers.2.");
        assert_eq!(tensor.options.is_none(), sensitive, "{}", tensor.name);
    }
}
