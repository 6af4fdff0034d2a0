//! The suite on the fixture: what fewer mantissa bits cost, resuming, and what it refuses.
//!
//! # Pins
//! Files and texts are fixed and the arithmetic is f32, so figures move by rounding alone, about
//! 1e-4 relative (tests/golden.rs). They are pinned to 5 %, which is also less than what separates
//! the widths that the test orders.

use smq_convert::{AutoOptions, ChooseBy, Goal, Sensitivity, Target, convert_auto};

use super::*;
use crate::eval::task::Metric;

struct Silent {
    cells: Vec<String>,
}

impl Progress for Silent {
    fn cell(&mut self, name: &str, index: usize, cells: usize, _steps: usize) {
        assert!(index <= cells, "{name} is {index} of {cells}");
        self.cells.push(name.to_owned());
    }
    fn step(&mut self, _done: usize) {}
}

fn options(out: &Path, only: &[&str]) -> SuiteOptions {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    SuiteOptions {
        checkpoint: fixtures.join("phi3-tiny"),
        data: fixtures.join("eval"),
        out: out.to_owned(),
        tasks: Vec::new(),
        only: only.iter().map(|s| (*s).to_owned()).collect(),
        limits: BTreeMap::new(),
        plan: None,
        grids: Vec::new(),
        sensitivity: None,
        prompts: Prompts {
            chat: true,
            max_new_tokens: 8,
        },
        text_file: Some(fixtures.join("sample.txt")),
        text: PplOptions::default(),
        device: Device::Cpu,
        max_tokens: None,
    }
}

fn suite(options: &SuiteOptions) -> anyhow::Result<Summary> {
    run(options, &mut Silent { cells: Vec::new() })
}

fn variant<'s>(summary: &'s Summary, name: &str) -> &'s VariantSummary {
    let found = summary.variants.iter().find(|v| v.variant.name == name);
    found.unwrap_or_else(|| panic!("no {name}"))
}

/// E5M0 is worse than E5M3, and E5M3 no better than E5M5, over all linears.
#[test]
fn fewer_mantissa_bits_cost_fidelity() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(
        dir.path(),
        &["all-e5m5", "all-e5m3", "all-e5m0", "mlp-e5m5"],
    );
    options.tasks = vec![Task::Lambada];
    let summary = suite(&options).unwrap();
    let kl = |name: &str| variant(&summary, name).kl.as_ref().unwrap().mean_kl.value;
    let (m5, m3, m0) = (kl("all-e5m5"), kl("all-e5m3"), kl("all-e5m0"));
    assert!(m0 > 1.5 * m3 && m3 >= m5, "{m0} {m3} {m5}");
    assert!(kl("mlp-e5m5") < 0.7 * m5, "attention costs nothing");
    for (name, mean_kl, p99, top1, ratio) in [
        ("all-e5m5", 0.2090, 1.154, 0.7070, 1.1936),
        ("all-e5m3", 0.2116, 1.173, 0.7104, 1.1913),
        ("all-e5m0", 0.4063, 2.562, 0.6152, 1.3050),
        ("mlp-e5m5", 0.1112, 0.681, 0.7757, 1.0766),
    ] {
        let kl = variant(&summary, name).kl.as_ref().unwrap();
        for (got, want) in [
            (kl.mean_kl.value, mean_kl),
            (kl.p99_kl, p99),
            (kl.top1_agreement.value, top1),
            (kl.perplexity_ratio.value, ratio),
            (kl.base_perplexity, 25.0749),
        ] {
            assert!((got / want - 1.0).abs() < 0.05, "{name}: {got}, not {want}");
        }
        assert_eq!(kl.tokens_scored, 11 * 511);
    }
}

#[test]
fn an_interrupted_suite_goes_on_and_its_summary_adds_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), &["mlp-e5m0"]);
    options.text.max_tokens = Some(512);
    let first = suite(&options).unwrap();
    assert_eq!(first.variants.len(), 2);
    let c0 = &first.variants[0];
    assert!(c0.kl.is_none() && c0.mean_relative_drop.is_none());
    let quantized = variant(&first, "mlp-e5m0");
    assert_eq!(quantized.tasks.len(), 4);
    let acc = |v: &VariantSummary| v.tasks[&Task::Lambada][&Metric::Acc].clone();
    let (base, this) = (acc(c0), acc(quantized));
    let (delta, test) = (this.delta.unwrap(), this.mcnemar.unwrap());
    assert!((this.score.value - base.score.value - delta.mean).abs() < 1e-12);
    let net = test.only_this as f64 - test.only_base as f64;
    assert!((net / this.items as f64 - delta.mean).abs() < 1e-12);
    // Each task's first metric, of tasks in which C0 has something right.
    let drops: Vec<f64> = first
        .parameters
        .tasks
        .keys()
        .filter_map(|task| {
            let metric = task.metrics()[0];
            let (b, t) = (
                c0.tasks[task][&metric].score.value,
                quantized.tasks[task][&metric].score.value,
            );
            (b > 0.0).then(|| (b - t) / b)
        })
        .collect();
    let drop = drops.iter().sum::<f64>() / drops.len() as f64;
    assert!((quantized.mean_relative_drop.unwrap() - drop).abs() < 1e-12);

    // What is there is not measured again; what is missing is, with the same result.
    let cell = dir.path().join("cells/mlp-e5m0.arc.jsonl");
    let kept = dir.path().join("cells/mlp-e5m0.lambada.jsonl");
    let arc = std::fs::read(&cell).unwrap();
    std::fs::remove_file(&cell).unwrap();
    let touched = std::fs::metadata(&kept).unwrap().modified().unwrap();
    assert_eq!(suite(&options).unwrap(), first);
    assert_eq!(std::fs::read(&cell).unwrap(), arc);
    assert_eq!(
        std::fs::metadata(&kept).unwrap().modified().unwrap(),
        touched
    );
    let json = std::fs::read(dir.path().join("suite.json")).unwrap();
    let written = [serde_json::to_vec_pretty(&first).unwrap(), b"\n".to_vec()].concat();
    assert_eq!(json, written);
    let page = std::fs::read_to_string(dir.path().join("suite.md")).unwrap();
    assert!(
        page.contains("| mlp-e5m0") && page.contains("| C5"),
        "{page}"
    );
    // No converted file is left.
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 4, "{left:?}");

    // Other parameters: refused, nothing overwritten.
    let mut other = options.clone();
    other.limits = Task::ALL.map(|task| (task, 2)).into();
    let error = suite(&other).unwrap_err().to_string();
    assert!(error.contains("results of another model"), "{error}");
    assert_eq!(std::fs::read(dir.path().join("suite.json")).unwrap(), json);
    std::fs::write(&cell, "{}\n").unwrap();
    let error = suite(&options).unwrap_err().to_string();
    assert!(error.contains("mlp-e5m0.arc.jsonl is damaged"), "{error}");
}

#[test]
fn unknown_variants_and_absent_data_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = suite(&options(dir.path(), &["mlp-e5m9"]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("there is no variant mlp-e5m9; there are C0, mlp-fp8, mlp-nf4, mlp-f32"),
        "{error}"
    );
    let mut empty = options(dir.path(), &[]);
    empty.data = dir.path().join("none");
    empty.tasks = vec![Task::Arc];
    let error = suite(&empty).unwrap_err().to_string();
    assert!(
        error.contains("holds no data for arc; it is looked for as arc.jsonl"),
        "{error}"
    );
    assert!(!dir.path().join("parameters.json").exists());
}

/// The recall task needs no data, is measured where it is asked for, and is none of the study's.
#[test]
fn recall_needs_no_data_and_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), &["all-e5m0"]);
    options.tasks = vec![Task::Lambada, Task::Recall];
    options.limits = [(Task::Recall, 6)].into();
    options.text.max_tokens = Some(512);
    let summary = suite(&options).unwrap();
    let recall = &summary.parameters.tasks[&Task::Recall];
    assert_eq!(recall.name, "seed 1, distances 32, 128, 512");
    assert_eq!(recall.items, Some(6));
    let (base, this) = (&summary.variants[0], variant(&summary, "all-e5m0"));
    let figure = |v: &VariantSummary, task| v.tasks[&task][&Metric::Acc].score.value;
    let lost = figure(base, Task::Lambada) - figure(this, Task::Lambada);
    let drop = lost / figure(base, Task::Lambada);
    assert!((this.mean_relative_drop.unwrap() - drop).abs() < 1e-12);
    let loss = this.tasks[&Task::Recall][&Metric::Perplexity].clone();
    assert!(loss.delta.unwrap().mean.abs() > 1e-3, "{loss:?}");
    // Other passages are another task's.
    options.limits = [(Task::Recall, 5)].into();
    let error = suite(&options).unwrap_err().to_string();
    assert!(error.contains("other data"), "{error}");
    // An answer may not be cut off with what tells it.
    options.max_tokens = Some(256);
    options.out = dir.path().join("short");
    let error = suite(&options).unwrap_err().to_string();
    assert!(
        error.contains("recall at distance 512 needs") && error.contains("is 256"),
        "{error}"
    );
}

fn planned(out: &Path, grids: &[&str]) -> SuiteOptions {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let mut options = options(out, &[]);
    options.follow(RegisteredPlan::load(&fixtures.join("calibration-small.toml")).unwrap());
    options.grids = grids.iter().map(|s| (*s).to_owned()).collect();
    options
}

/// A plan's variants are made as it says, measured part by part, and neighbours are compared.
#[test]
fn a_registered_plan_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let rounded = suite(&planned(dir.path(), &["rounded", "nf4"])).unwrap();
    let names = |s: &Summary| -> Vec<String> {
        s.variants.iter().map(|v| v.variant.name.clone()).collect()
    };
    assert_eq!(names(&rounded), ["C0", "all-e5m0", "all-e5m3", "all-nf4"]);
    assert_eq!(rounded.parameters.text_tokens, Some(1024));
    assert_eq!(rounded.neighbours.len(), 1);
    // What is measured stays in the tables when another part is.
    let whole = suite(&planned(dir.path(), &["calibrated", "books"])).unwrap();
    assert_eq!(whole.variants.len(), 1 + 2 + 2 * 2 + 1 + 1);
    assert_eq!(whole.neighbours.len(), 1 + 2);
    let kl = |name: &str| variant(&whole, name).kl.as_ref().unwrap().mean_kl.value;
    let cal = |scales: &str, start: u8| format!("all-{scales}-weighted-cal-sample-{start}-512");
    // Calibrated on a thousandth of what is usual, and on the text itself.
    assert!(
        kl(&cal("e5m0", 0)) < 0.9 * kl("all-e5m0"),
        "{}",
        kl(&cal("e5m0", 0))
    );
    assert_ne!(kl(&cal("e5m3", 0)), kl(&cal("e5m3", 50)));
    let mix = variant(&whole, "all-lut4-e5m3-weighted-cal-mix-50-1024");
    let calibration = mix.variant.calibration.as_ref().unwrap();
    assert_eq!((&*calibration.text, calibration.start_percent), ("mix", 50));
    assert_eq!(mix.variant.levels.as_deref(), Some("learned"));
    // Neighbours differ by what their means do.
    let pair = &whole.neighbours[1];
    assert_eq!(
        (&pair.first, &pair.second),
        (&cal("e5m0", 0), &cal("e5m3", 0))
    );
    let difference = kl(&pair.first) - kl(&pair.second);
    assert!((pair.kl.unwrap().mean - difference).abs() < 1e-9);
    let acc = |name: &str| {
        variant(&whole, name).tasks[&Task::Lambada][&Metric::Acc]
            .score
            .value
    };
    let found = &pair.tasks[&Task::Lambada][&Metric::Acc];
    assert!((found.delta.mean - (acc(&pair.first) - acc(&pair.second))).abs() < 1e-12);
    assert!(found.mcnemar.is_some());
    let page = std::fs::read_to_string(dir.path().join("suite.md")).unwrap();
    assert!(page.contains("Neighbouring widths"), "{page}");
    // The built-in variants are another study's, and so is another plan.
    let mut built_in = options(dir.path(), &["all-e5m5"]);
    built_in.text.max_tokens = Some(1024);
    let error = suite(&built_in).unwrap_err().to_string();
    assert!(error.contains("holds results of another"), "{error}");
    let mut unknown = planned(dir.path(), &["rounded"]);
    unknown.only = vec!["all-nf4".to_owned()];
    let error = suite(&unknown).unwrap_err().to_string();
    assert!(
        error.contains("no variant all-nf4 in the grids chosen; a name is such as all-e5m3"),
        "{error}"
    );
    let error = suite(&planned(dir.path(), &["x"])).unwrap_err().to_string();
    assert!(
        error.contains("has no grid \"x\"; it has rounded, calibrated"),
        "{error}"
    );
}

/// Chosen storage is a variant by name; at the size of E5M5 it is no worse, and with room it is
/// better.
#[test]
fn chosen_storage_is_a_variant() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["all-e5m5", "all-auto-4.087", "all-auto-8-weighed"];
    let mut options = options(dir.path(), &names);
    options.tasks = vec![Task::Lambada];
    options.limits = [(Task::Lambada, 1)].into();
    options.text.max_tokens = Some(2048);
    let error = suite(&options).unwrap_err().to_string();
    assert!(error.contains("pass --sensitivity FILE"), "{error}");
    options.sensitivity = Some(measured_sensitivity());
    let summary = suite(&options).unwrap();
    let of = |name: &str| {
        let found = variant(&summary, name);
        let kl = found.kl.as_ref().unwrap().mean_kl.value;
        (found.file.bits_per_weight.unwrap(), kl)
    };
    let (uniform, small, large) = (of(names[0]), of(names[1]), of(names[2]));
    assert!(small.0 <= 4.087 && large.0 <= 8.0 && large.0 > 7.5);
    // 0.209, 0.169 and 0.07 on the whole text, with standard errors of 0.003 there
    // (results/quality/README.md).
    assert!(small.1 < 0.95 * uniform.1, "{small:?} {uniform:?}");
    assert!(large.1 < 0.6 * small.1, "{large:?} {small:?}");
    let named = variant(&summary, names[2]).variant.clone();
    assert_eq!((named.scales.as_deref(), named.rule), (Some("auto"), None));
}

fn measured_sensitivity() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../results/quality/sensitivity-phi3-tiny.json")
}

/// A file of many widths, rules and bf16 runs, and its distance from C0 is about what was
/// predicted. That is by adding up what tensors cost alone, on the same text: measured on whole
/// texts, 0.83 to 0.94 of the prediction.
#[test]
fn predicted_divergence_is_about_what_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let checkpoint = fixtures.join("phi3-tiny");
    let path = dir.path().join("auto.smq");
    let auto = AutoOptions {
        target: Target::All,
        group: 128,
        rule: None,
        goal: Goal::MaxKl(0.1),
        choose_by: ChooseBy::Weights,
        sensitivity: Some(Sensitivity::read(&measured_sensitivity()).unwrap()),
        mixed_widths: true,
        overwrite: false,
        jobs: 0,
    };
    let opened = Checkpoint::open(&checkpoint).unwrap();
    let (auto, _) = convert_auto(&opened, &path, &auto, &|_| true).unwrap();
    let text = std::fs::read_to_string(fixtures.join("sample.txt")).unwrap();
    let windows = PplOptions {
        window: 512,
        max_tokens: Some(4096),
    };
    let source = Source::open(&checkpoint).unwrap();
    let mut base = smq_engine::load(&source, Device::Cpu, None).unwrap();
    let tokenizer = Tokenizer::load(&source).unwrap();
    let ids = windows.tokens(&tokenizer, &text, 4096).unwrap();
    let file = Source::open(&path).unwrap();
    let mut model = smq_engine::load(&file, Device::Cpu, None).unwrap();
    let mut base = Base::new(&mut *base, ids, windows);
    let measured = base.compare(&mut *model, |_| ()).unwrap().mean_kl.value;
    let predicted = auto.predicted_kl.unwrap();
    assert!(predicted <= 0.1 && predicted > 0.09, "{predicted}");
    let ratio = measured / predicted;
    assert!(
        (0.6..1.2).contains(&ratio),
        "{measured}, predicted {predicted}"
    );
}

/// A cell whose lines were swapped, one of another variant, and a model whose side files were
/// edited: none of them is taken for what was measured.
#[test]
fn a_cell_is_of_what_decided_it() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("model"), dir.path().join("out"));
    std::fs::create_dir(&model).unwrap();
    let mut options = options(&out, &["mlp-e5m0", "mlp-e5m5"]);
    for entry in std::fs::read_dir(&options.checkpoint).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    options.checkpoint = model.clone();
    options.tasks = vec![Task::Lambada];
    options.limits = [(Task::Lambada, 4)].into();
    options.text.max_tokens = Some(512);
    let first = suite(&options).unwrap();
    let cells = out.join("cells");
    let refused_with = |name: &str, bytes: &[u8]| {
        let path = cells.join(name);
        let good = std::fs::read(&path).unwrap();
        assert_ne!(good, bytes);
        std::fs::write(&path, bytes).unwrap();
        let error = suite(&options).unwrap_err().to_string();
        assert!(
            error.contains(&format!("{name} is damaged, of another variant")),
            "{error}"
        );
        std::fs::write(&path, good).unwrap();
    };
    let items = std::fs::read_to_string(cells.join("mlp-e5m0.lambada.jsonl")).unwrap();
    let swapped: String = items
        .lines()
        .rev()
        .map(|line| format!("{line}\n"))
        .collect();
    refused_with("mlp-e5m0.lambada.jsonl", swapped.as_bytes());
    for what in ["kl.json", "file.json"] {
        let others = std::fs::read(cells.join(format!("mlp-e5m5.{what}"))).unwrap();
        refused_with(&format!("mlp-e5m0.{what}"), &others);
    }
    assert_eq!(suite(&options).unwrap(), first);
    for name in ["tokenizer_config.json", "generation_config.json"] {
        let path = model.join(name);
        let good = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{good} ")).unwrap();
        let error = suite(&options).unwrap_err().to_string();
        assert!(
            error.contains("results of another model"),
            "{name}: {error}"
        );
        std::fs::write(&path, good).unwrap();
    }
}
