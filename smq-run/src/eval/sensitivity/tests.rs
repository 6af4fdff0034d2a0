//! Sensitivities of the fixture.

use smq_convert::{ConvertOptions, Method, QuantizeOptions, convert};

use super::*;
use crate::eval::task::Task;
use crate::eval::task::recall::RecallOptions;

#[test]
fn layers_are_named_by_their_number() {
    for (tensor, layer) in [
        ("model.layers.3.mlp.down_proj.weight", "model.layers.3"),
        ("model.layers.31.self_attn.o_proj.weight", "model.layers.31"),
        ("lm_head.weight", "lm_head.weight"),
        ("layers.x.mlp", "layers.x.mlp"),
    ] {
        assert_eq!(layer_of(tensor), layer);
    }
}

#[test]
fn a_target_of_names_takes_no_others() {
    let target = only(&["a.1.w_proj".into(), "b.w".into()]).unwrap();
    assert!(target.selects("a.1.w_proj", 2) && target.selects("b.w", 2));
    assert!(!target.selects("a.11w_proj", 2) && !target.selects("xb.w", 2));
}

/// Each layer's weight error is what a file with all layers records of it, and each costs some
/// fidelity.
#[test]
fn layers_are_measured_one_at_a_time() {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let (scales, rule) = (ScaleChoice::e5(0), ScaleRule::Nearest);
    let mut options = SensitivityOptions {
        checkpoint: fixtures.join("phi3-tiny"),
        text: fixtures.join("sample.txt"),
        windows: PplOptions {
            window: 256,
            max_tokens: Some(512),
        },
        target: Target::All,
        unit: Unit::Layer,
        scales,
        rule,
        words: None,
        device: Device::Cpu,
        max_tokens: None,
    };
    let result = run(&options, &mut |_, _, _| ()).unwrap();
    assert_eq!((result.points.len(), result.tokens_scored), (4, 510));
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&options.checkpoint).unwrap();
    let whole = ConvertOptions {
        target: Target::All,
        quantize: Method::Int4(QuantizeOptions {
            group: 128,
            scales,
            rule,
        }),
        overwrite: false,
        jobs: 0,
    };
    let whole = convert(&checkpoint, &dir.path().join("whole.smq"), &whole, &|_| {
        true
    })
    .unwrap();
    for (i, point) in result.points.iter().enumerate() {
        assert_eq!(point.name, format!("model.layers.{i}"));
        let prefix = format!("{}.", point.name);
        let tensors = whole
            .statistics
            .iter()
            .filter(|t| t.name.starts_with(&prefix));
        let error: f64 = tensors.map(|t| t.stored.squared_error).sum();
        assert!((point.squared_error / error - 1.0).abs() < 1e-12);
        assert!(
            point.mean_kl.value > 1e-3 && point.relative_error > 5e-3,
            "{point:?}"
        );
    }
    assert_eq!(result.rank_correlation.len(), 4);
    assert!(result.task.is_none() && result.points[0].words.is_none());
    options.target = "^nothing$".parse().unwrap();
    let error = run(&options, &mut |_, _, _| ()).unwrap_err().to_string();
    assert!(
        error.contains("--target ^nothing$ selects no matrix"),
        "{error}"
    );
}

/// What each kind of matrix does to a task's words is what a file with that kind alone in int4
/// does to them, and the file with it still says how to weigh errors.
#[test]
fn kinds_are_measured_by_the_words_of_a_task() {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let mut options = SensitivityOptions {
        checkpoint: fixtures.join("phi3-tiny"),
        text: fixtures.join("sample.txt"),
        windows: PplOptions {
            window: 128,
            max_tokens: Some(256),
        },
        target: Target::All,
        unit: Unit::Kind,
        scales: ScaleChoice::e5(0),
        rule: ScaleRule::Reference,
        words: Some(Words::Lambada {
            data: fixtures.join("eval/lambada.jsonl"),
            limit: Some(4),
        }),
        device: Device::Cpu,
        max_tokens: None,
    };
    let result = run(&options, &mut |_, _, _| ()).unwrap();
    let names: Vec<_> = result.points.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "model.layers.*.mlp.down_proj.weight",
            "model.layers.*.mlp.gate_up_proj.weight",
            "model.layers.*.self_attn.o_proj.weight",
            "model.layers.*.self_attn.qkv_proj.weight",
        ]
    );
    let task = result.task.as_ref().unwrap();
    assert_eq!((task.name, task.items), (Task::Lambada, 4));
    assert!(result.rank_correlation["mean_kl ~ word_loss"].is_some());
    let effects: Vec<_> = result
        .points
        .iter()
        .map(|p| p.words.as_ref().unwrap())
        .collect();
    assert!(effects.iter().all(|e| e.log_likelihood.mean.abs() > 1e-4));

    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&options.checkpoint).unwrap();
    let path = dir.path().join("down.smq");
    let down = Target::Pattern(regex::Regex::new("down_proj").unwrap());
    convert_to(
        &checkpoint,
        &path,
        &down,
        int4(options.scales, options.rule, GROUP),
    )
    .unwrap();
    let word = |path: &Path| {
        let source = Source::open(path).unwrap();
        let mut engine = smq_engine::load(&source, Device::Cpu, None).unwrap();
        let tokenizer = Tokenizer::load(&source).unwrap();
        BaseTask::new(options.words.as_ref().unwrap(), tokenizer, &mut *engine)
            .unwrap()
            .measured
    };
    let (base, this) = (word(&options.checkpoint), word(&path));
    assert_eq!(base, *task);
    let lost = this.log_likelihood - base.log_likelihood;
    assert!((effects[0].log_likelihood.mean - lost).abs() < 1e-9);

    let json = dir.path().join("kinds.json");
    std::fs::write(&json, serde_json::to_vec(&result).unwrap()).unwrap();
    let read = smq_convert::Sensitivity::read(&json).unwrap();
    let tensors: Vec<_> = checkpoint.tensors().iter().collect();
    let selected: Vec<_> = tensors
        .into_iter()
        .filter(|t| Target::All.takes(t))
        .collect();
    let weights = read.weights(&checkpoint, &selected).unwrap();
    let point = &result.points[0];
    let weight = point.mean_kl.value / point.squared_error;
    let of_down = selected.iter().zip(&weights);
    let of_down = of_down.filter(|(t, _)| t.name.contains("down_proj"));
    assert!(
        of_down
            .into_iter()
            .all(|(_, w)| (w / weight - 1.0).abs() < 1e-12)
    );

    // Made passages are words too.
    options.unit = Unit::ProductKind;
    options.target = Target::Mlp;
    options.words = Some(Words::Recall(RecallOptions {
        distances: vec![16],
        items: 2,
        ..RecallOptions::default()
    }));
    let result = run(&options, &mut |_, _, _| ()).unwrap();
    assert_eq!(result.points.len(), 2);
    assert_eq!(result.task.unwrap().data, "seed 1, distances 16");
}
