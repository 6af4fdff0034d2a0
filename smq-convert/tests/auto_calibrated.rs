//! `--mbits auto` with `--calibrate` on the bundled checkpoint: outputs decide what is stored, and
//! what is stored is calibrated.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use smq_convert::{
    Auto, AutoOptions, CalibrateOptions, CalibrationProgress, Checkpoint, ChooseBy, ConvertError,
    Goal, QuantizeOptions, ScaleChoice, ScaleRule, Sensitivity, Summary, convert_auto_calibrated,
    dry_run_auto_calibrated,
};
use smq_format::SmqFile;
use story::{Workplace, divergence, fixture, stops_after};

mod story;

fn options(goal: Goal, choose_by: ChooseBy) -> AutoOptions {
    AutoOptions {
        target: "all".parse().unwrap(),
        group: 128,
        rule: None,
        goal,
        choose_by,
        sensitivity: None,
        mixed_widths: false,
        overwrite: true,
        jobs: 0,
    }
}

fn by_outputs(budget: f64) -> AutoOptions {
    options(Goal::Budget(budget), ChooseBy::Outputs)
}

fn by_weights(budget: f64) -> AutoOptions {
    options(Goal::Budget(budget), ChooseBy::Weights)
}

/// Measured by projection on this checkpoint.
fn measured() -> Sensitivity {
    let path = "../results/quality/sensitivity-phi3-tiny.json";
    Sensitivity::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// How tensors are stored, in order.
fn storage(auto: &Auto) -> Vec<Option<QuantizeOptions>> {
    auto.tensors.iter().map(|t| t.options).collect()
}

impl Workplace {
    fn texts(&self) -> CalibrateOptions {
        self.texts_of(1024)
    }

    fn choose(&self, model: &Path, options: &AutoOptions) -> Result<Auto, ConvertError> {
        let checkpoint = Checkpoint::open(model).unwrap();
        let go_on = |_: usize, _: usize| true;
        dry_run_auto_calibrated(&checkpoint, options, &self.texts(), &go_on, &|_| true)
            .map(|(auto, _)| auto)
    }

    fn convert(
        &self,
        model: &Path,
        name: &str,
        options: &AutoOptions,
        texts: &CalibrateOptions,
        progress: CalibrationProgress,
    ) -> Result<(Auto, Summary), ConvertError> {
        let (checkpoint, target) = (Checkpoint::open(model).unwrap(), self.path(name));
        convert_auto_calibrated(&checkpoint, &target, options, texts, progress, &|_| true)
    }

    /// The bundled model with the queries', keys' and values' weights 8 times as large, and what
    /// they read an eighth as large: the same function, to the bit.
    fn rescaled(&self) -> PathBuf {
        let copy = self.path("rescaled");
        fs::create_dir(&copy).unwrap();
        for entry in fs::read_dir(fixture()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
        }
        let mut found = 0;
        for shard in 1..=3 {
            let path = copy.join(format!("model-{shard:05}-of-00003.safetensors"));
            let mut bytes = fs::read(&path).unwrap();
            let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
            let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
            for (name, tensor) in json.as_object().unwrap() {
                let factor = match name.rsplit_once('.').unwrap_or_default().0 {
                    of if of.ends_with("qkv_proj") => 8.0,
                    of if of.ends_with("input_layernorm") => 0.125,
                    _ => continue,
                };
                let range = &tensor["data_offsets"];
                let [first, end] = [0, 1].map(|i| 8 + header + range[i].as_u64().unwrap() as usize);
                for word in bytes[first..end].chunks_exact_mut(2) {
                    let bits = u32::from(u16::from_le_bytes([word[0], word[1]])) << 16;
                    let scaled = (f32::from_bits(bits) * factor).to_bits() >> 16;
                    word.copy_from_slice(&(scaled as u16).to_le_bytes());
                }
                found += 1;
            }
            fs::write(&path, bytes).unwrap();
        }
        assert_eq!(found, 8);
        copy
    }
}

/// Sizes of weights say nothing of what the model makes of them. Where they mislead, the file that
/// outputs decide is the nearer one, in as many bits.
#[test]
fn outputs_decide_whatever_the_weights_are_scaled_by() {
    let work = Workplace::new();
    let (plain, rescaled) = (fixture(), work.rescaled());
    let budget = 6.5;
    let (outputs, weights) = (by_outputs(budget), by_weights(budget));
    let of = |model: &Path, options: &AutoOptions| work.choose(model, options).unwrap();
    assert_eq!(
        storage(&of(&plain, &outputs)),
        storage(&of(&rescaled, &outputs))
    );
    assert_ne!(
        storage(&of(&plain, &weights)),
        storage(&of(&rescaled, &weights))
    );

    let distance = |name: &str, options: &AutoOptions| {
        let converted = work.convert(&rescaled, name, options, &work.texts(), &|_, _| true);
        let (auto, summary) = converted.unwrap();
        assert!(auto.bits_per_weight <= budget);
        assert!(summary.calibrated.unwrap().stored < summary.calibrated.unwrap().rounded);
        divergence(&rescaled, &work.path(name))
    };
    let (near, far) = (
        distance("outputs.smq", &outputs),
        distance("weights.smq", &weights),
    );
    println!("{near} by outputs, {far} by weights");
    assert!(near < far, "{near} by outputs, {far} by weights");
}

/// On a model whose weights do not mislead, outputs choose no worse either. Which of two weights
/// next to a midpoint is taken is chance, and moves such a figure by some percent.
#[test]
fn the_file_is_as_near_as_by_weights() {
    let work = Workplace::new();
    for (budget, mixed_widths) in [(4.5, false), (6.5, true)] {
        let distance = |name: &str, options: AutoOptions| {
            let options = AutoOptions {
                mixed_widths,
                ..options
            };
            let converted = work.convert(&fixture(), name, &options, &work.texts(), &|_, _| true);
            let bits = converted.unwrap().0.bits_per_weight;
            assert!(bits <= budget, "{bits}");
            divergence(&fixture(), &work.path(name))
        };
        let outputs = distance("outputs.smq", by_outputs(budget));
        let weights = distance("weights.smq", by_weights(budget));
        println!("{budget}: {outputs} by outputs, {weights} by weights");
        // Measured: 0.103 and 0.107, of mixed widths 0.077 and 0.092.
        assert!(outputs < 1.05 * weights, "{outputs} {weights}");
    }
}

/// Whatever is said before is what is in the file; neither threads nor memory nor a run that was
/// killed change a byte.
#[test]
fn files_are_what_was_chosen_and_always_the_same() {
    let work = Workplace::new();
    let model = fixture();
    let options = |jobs| AutoOptions {
        jobs,
        mixed_widths: true,
        ..by_outputs(4.8)
    };
    let texts = work.texts();
    let calls = std::sync::Mutex::new(Vec::new());
    let counted = |done: usize, all: usize| {
        calls.lock().unwrap().push((done, all));
        true
    };
    let one = work.convert(&model, "one.smq", &options(1), &texts, &counted);
    let (auto, summary) = one.unwrap();
    let calls = calls.into_inner().unwrap();
    assert!(calls.is_sorted() && calls.contains(&(8, 8)), "{calls:?}");
    work.convert(&model, "three.smq", &options(3), &texts, &|_, _| true)
        .unwrap();
    let expected = fs::read(work.path("one.smq")).unwrap();
    assert!(fs::read(work.path("three.smq")).unwrap() == expected);

    // The sums of one thread take 98 MB, the hidden states 8 MB, which go to disk in both passes.
    let short = CalibrateOptions {
        memory_bytes: Some(100_000_000),
        ..texts.clone()
    };
    work.convert(&model, "disk.smq", &options(1), &short, &|_, _| true)
        .unwrap();
    assert!(fs::read(work.path("disk.smq")).unwrap() == expected);

    let checkpoint = Checkpoint::open(&model).unwrap();
    let (again, plan) =
        dry_run_auto_calibrated(&checkpoint, &options(2), &texts, &|_, _| true, &|_| true).unwrap();
    assert_eq!(again.tensors, auto.tensors);
    assert_eq!(plan.file_bytes, summary.written.file_bytes);

    let file = SmqFile::open(&work.path("one.smq")).unwrap();
    assert_eq!(file.verify(|_| ()), []);
    let parameters = &file.index().provenance.parameters;
    for (key, value) in [
        ("auto_budget_bits", "4.8"),
        ("auto_choose_by", "outputs"),
        ("auto_widths", "mixed"),
        ("calibration_method", "asymmetric"),
        ("calibration_tokens", "1024"),
        ("scale_rule", "weighted"),
    ] {
        assert_eq!(parameters[key], value, "{key}");
    }
    let statistics = file.statistics().unwrap().unwrap();
    for tensor in &auto.tensors {
        let view = file.tensor(&tensor.name).unwrap();
        assert_eq!(view.scheme().is_quantized(), tensor.options.is_some());
        assert_eq!(view.entry().stored_bytes(), tensor.bytes);
        let output = statistics.tensor(&tensor.name).map(|t| t.output.unwrap());
        assert_eq!(output.is_some(), tensor.options.is_some());
    }
    let kept = auto.tensors.iter().filter(|t| t.options.is_none()).count();
    assert!(kept > 0 && kept < auto.tensors.len(), "{kept}");
    let recheck = Command::new(env!("CARGO_BIN_EXE_smq-inspect"))
        .args(["--recheck".as_ref(), model.as_os_str()])
        .arg(work.path("one.smq"))
        .output()
        .unwrap();
    assert!(recheck.stdout.starts_with(b"ok: "), "{recheck:?}");

    let (left, copy) = (work.path("killed.smq.calibration"), work.path("copy"));
    let stop = stops_after(6, &left, &copy);
    let killed = work.convert(&model, "killed.smq", &options(2), &texts, &stop);
    assert!(matches!(killed.unwrap_err(), ConvertError::Interrupted));
    fs::rename(&copy, &left).unwrap();
    let resumed = CalibrateOptions {
        resume: true,
        ..texts.clone()
    };
    let other = AutoOptions {
        jobs: 2,
        ..by_outputs(4.3)
    };
    let error = work.convert(&model, "killed.smq", &other, &resumed, &|_, _| true);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("other options"), "{error}");
    work.convert(&model, "killed.smq", &options(2), &resumed, &|_, _| true)
        .unwrap();
    assert!(fs::read(work.path("killed.smq")).unwrap() == expected);
}

/// A pass that is stopped leaves nothing.
#[test]
fn an_interrupted_choice_leaves_nothing() {
    let work = Workplace::new();
    let calls = AtomicUsize::new(0);
    let stop = |_: usize, _: usize| calls.fetch_add(1, Ordering::Relaxed) < 3;
    let options = by_outputs(5.0);
    let stopped = work.convert(&fixture(), "out.smq", &options, &work.texts(), &stop);
    assert!(matches!(stopped.unwrap_err(), ConvertError::Interrupted));
    assert_eq!(work.names(), ["text.txt"]);
}

/// In the storage that a sensitivity was measured with, outputs predict what was measured.
#[test]
fn a_sensitivity_costs_what_was_measured_where_it_was_measured() {
    let work = Workplace::new();
    let chosen = |choose_by| {
        let options = AutoOptions {
            rule: Some(ScaleRule::Reference),
            sensitivity: Some(measured()),
            ..options(Goal::Budget(4.09), choose_by)
        };
        work.choose(&fixture(), &options).unwrap()
    };
    let (outputs, weights) = (chosen(ChooseBy::Outputs), chosen(ChooseBy::Weights));
    for auto in [&outputs, &weights] {
        assert!(
            storage(auto)
                .iter()
                .all(|o| o.unwrap().scales == ScaleChoice::e5(5))
        );
    }
    let (outputs, weights) = (outputs.predicted_kl.unwrap(), weights.predicted_kl.unwrap());
    assert!(
        (outputs / weights - 1.0).abs() < 1e-9,
        "{outputs} {weights}"
    );

    // Fewer bits cost more, and a bound is kept.
    let mut last = 0.0;
    for nats in [0.2, 0.1, 0.05] {
        let options = AutoOptions {
            sensitivity: Some(measured()),
            ..options(Goal::MaxKl(nats), ChooseBy::Outputs)
        };
        let auto = work.choose(&fixture(), &options).unwrap();
        assert!(auto.predicted_kl.unwrap() <= nats);
        assert!(auto.bits_per_weight > last);
        last = auto.bits_per_weight;
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let work = Workplace::new();
    let model = fixture();
    let model = model.to_str().unwrap();
    let calibrate =
        "--calibrate text.txt --calibrate-window 128 --calibrate-tokens 256 --device cpu";
    for (args, expected) in [
        (
            "--mbits auto --budget 5 --choose-by outputs".to_owned(),
            "--choose-by outputs: outputs are measured on a calibration text: give one with \
             --calibrate, or choose by weights",
        ),
        (
            "--mbits 3 --choose-by weights".to_owned(),
            "--choose-by is for --mbits auto: add that, or leave --choose-by out",
        ),
        (
            "--mbits auto --calibrate text.txt".to_owned(),
            "--mbits auto needs a bound: pass --budget BITS_PER_WEIGHT",
        ),
        (
            "--mbits auto --budget 5 --scheme lut4 --calibrate text.txt".to_owned(),
            "--mbits auto is for --scheme int4",
        ),
        (
            format!("--mbits auto --budget nan {calibrate}"),
            "--budget NaN: must be a positive number of bits a weight",
        ),
        (
            format!("--mbits auto --budget 4 {calibrate} --target all"),
            "--budget 4: the selected tensors take 4.0472 bits a weight at least",
        ),
        (
            format!("--mbits auto --budget 5 {calibrate} --resume"),
            "out.smq.calibration: is not there, so there is nothing to resume",
        ),
        (
            format!("--mbits auto --budget 5 {calibrate} --target ^lm_head.weight$"),
            "--choose-by outputs: tensor \"lm_head.weight\" is no product of a layer",
        ),
        (
            "--mbits auto --budget 5 --calibrate text.txt".to_owned(),
            "text.txt: has 2871 tokens, and 131072 are wanted of it",
        ),
    ] {
        let mut all: Vec<&str> = args.split(' ').collect();
        all.extend(["--", model, "out.smq"]);
        let output = work.run(&all);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args}: {stderr}");
        assert!(stderr.contains(expected), "{args}: {stderr}");
        assert_eq!(work.names(), ["text.txt"], "{args}");
    }
}

/// The plan says what would be chosen and by what, and writes nothing.
#[test]
fn a_dry_run_says_what_would_be_chosen() {
    let work = Workplace::new();
    let model = fixture();
    let args = "--dry-run -v --mbits auto --budget 4.5 --target all --device cpu --calibrate text.txt \
                --calibrate-window 128 --calibrate-tokens 1024 --";
    let mut all: Vec<&str> = args.split_whitespace().collect();
    all.push(model.to_str().unwrap());
    let output = work.run(&all);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let auto = work.choose(&model, &by_outputs(4.5)).unwrap();
    for tensor in &auto.tensors {
        let line = text.lines().find(|l| l.contains(&tensor.name)).unwrap();
        let becomes = tensor
            .options
            .map(|o| format!("int4 {}  {}", o.scales, o.rule));
        let becomes = becomes.unwrap_or_else(|| "as it is".to_owned());
        assert!(line.contains(&becomes), "{line}");
    }
    for part in ["rel. output error", "relative squared error of the outputs"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(work.names(), ["text.txt"]);
}
