//! Tensors that no model reads: left out or carried along, and never in the way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

mod small;

use safetensors::Dtype as StDtype;
use serde_json::{Value, json};
use small::{Tensor, config, options, with_tensors};
use smq_convert::inspect::recheck;
use smq_convert::{Checkpoint, ConvertOptions, Summary, convert};
use smq_format::SmqFile;
use smq_model::Source;
use tempfile::TempDir;

fn tensor(name: &str, dtype: StDtype, shape: &[usize], byte: u8) -> Tensor {
    let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
    (name.to_owned(), dtype, shape.to_vec(), vec![byte; bytes])
}

fn floats(name: &str, values: &[f32]) -> Tensor {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    (name.to_owned(), StDtype::F32, vec![values.len()], bytes)
}

/// An architecture that smq-run does not know.
fn unknown() -> Value {
    let mut config = config();
    config["architectures"] = json!(["SomebodysForCausalLM"]);
    config
}

struct Converted {
    names: Vec<String>,
    notes: String,
    summary: Summary,
}

/// Converts, verifies and rechecks a checkpoint with `more` tensors.
fn converted(
    config: &Value,
    more: &[Tensor],
    options: &ConvertOptions,
) -> Result<Converted, String> {
    let dir = TempDir::new().unwrap();
    let source = with_tensors(dir.path(), "a", config, more);
    let out = dir.path().join("a.smq");
    let opened = Checkpoint::open(&source).map_err(|e| e.to_string())?;
    let summary = convert(&opened, &out, options, &|_| true).map_err(|e| e.to_string())?;
    let file = SmqFile::open(&out).unwrap();
    assert_eq!(file.verify(|_| ()), []);
    assert_eq!(recheck(&file, &source, &|_| ()).unwrap().differences, []);
    // The directory itself can be opened to be run, whatever else it holds.
    assert!(Source::open(&source).is_ok());
    Ok(Converted {
        names: file.tensors().map(|t| t.name().to_owned()).collect(),
        notes: opened
            .notes()
            .join("\n")
            .replace(source.to_str().unwrap(), "DIR"),
        summary,
    })
}

fn old_buffers() -> Vec<Tensor> {
    vec![
        tensor(
            "model.layers.0.self_attn.bias",
            StDtype::BOOL,
            &[1, 1, 8, 8],
            1,
        ),
        tensor(
            "model.layers.0.self_attn.mask",
            StDtype::U8,
            &[1, 1, 8, 8],
            1,
        ),
        tensor("model.position_ids", StDtype::I64, &[1, 8], 0),
        tensor("model.scale", StDtype::F64, &[], 0),
    ]
}

#[test]
fn types_that_no_smq_holds_are_left_out_with_one_note() {
    let base = converted(&config(), &[], &options()).unwrap();
    assert_eq!(base.notes, "");
    let found = converted(&config(), &old_buffers(), &options()).unwrap();
    assert_eq!(found.names, base.names);
    assert_eq!(
        found.notes,
        "DIR: left out, since no part of the model reads them and no .smq can hold them: \
         model.layers.0.self_attn.bias, model.layers.0.self_attn.mask, model.position_ids and 1 more \
         (4 tensors, bool and f64 and i64 and u8, 200 B)"
    );
    let found = converted(&unknown(), &old_buffers(), &options()).unwrap();
    assert_eq!(found.names, base.names);
    assert!(
        found
            .notes
            .starts_with("DIR: left out, since they look like buffers and"),
        "{}",
        found.notes
    );
    let one = [tensor("x.num_batches_tracked", StDtype::I64, &[], 0)];
    for config in [config(), unknown()] {
        let found = converted(&config, &one, &options()).unwrap();
        assert!(
            found
                .notes
                .ends_with("no .smq can hold them: x.num_batches_tracked (1 tensor, i64, 8 B)"),
            "{}",
            found.notes
        );
    }
}

/// Names and shapes that the format refuses, in a tensor that nobody reads.
#[test]
fn what_a_smq_cannot_name_is_left_out_too() {
    let name = "x".repeat(513);
    let more = [
        tensor(&name, StDtype::BF16, &[2], 0),
        tensor("a\nb", StDtype::BF16, &[2], 0),
        tensor("deep", StDtype::BF16, &[1; 9], 0),
    ];
    let base = converted(&config(), &[], &options()).unwrap();
    let found = converted(&config(), &more, &options()).unwrap();
    assert_eq!(found.names, base.names);
    assert!(
        found.notes.ends_with("(3 tensors, bf16, 10 B)"),
        "{}",
        found.notes
    );
}

#[test]
fn floats_that_nobody_reads_are_carried_along_finite_or_not() {
    let more = [
        floats("model.layers.0.self_attn.rotary_emb.inv_freq", &[1.0, 0.1]),
        floats("model.layers.0.self_attn.masked_bias", &[f32::NEG_INFINITY]),
        floats("x", &[f32::NAN]),
    ];
    let base = converted(&config(), &[], &options()).unwrap();
    for config in [config(), unknown()] {
        let found = converted(&config, &more, &options()).unwrap();
        assert_eq!(found.names.len(), base.names.len() + 3);
        assert_eq!(found.notes, "");
        let expected = ["model.layers.0.self_attn.masked_bias", "x"];
        assert_eq!(found.summary.not_finite, expected);
    }
}

/// A layer behind the last, as models for speculation and cut checkpoints have it: never read, so
/// never quantized.
#[test]
fn a_matrix_that_nobody_reads_is_not_quantized() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let extra = [tensor(name, StDtype::BF16, &[64, 32], 0xff)]; // NaN throughout
    let found = converted(&config(), &extra, &options()).unwrap();
    assert_eq!(found.summary.not_finite, [name]);
    assert_eq!(found.summary.statistics.len(), 3);
    // Where the architecture is not known, it may be read.
    let error = converted(&unknown(), &extra, &options()).err().unwrap();
    assert!(error.contains("has NaN at row 0, column 0"), "{error}");
}

#[test]
fn a_weight_that_is_read_is_still_checked() {
    for (more, expected) in [
        (
            floats("model.norm.weight", &[f32::NAN; 32]),
            "has NaN at row 0, column 0",
        ),
        (
            tensor("model.norm.weight", StDtype::F64, &[32], 0),
            "has dtype f64; smq-convert reads",
        ),
        (
            tensor(
                "model.layers.0.mlp.up_proj.weight",
                StDtype::I8,
                &[64, 32],
                0,
            ),
            "has dtype i8; smq-convert reads",
        ),
    ] {
        for config in [config(), unknown()] {
            let error = converted(&config, std::slice::from_ref(&more), &options())
                .err()
                .unwrap();
            assert!(
                error.contains(&more.0) && error.contains(expected),
                "{error}"
            );
        }
    }
}

/// What a quantizer may have packed is not passed over where it cannot be known that nobody reads
/// it.
#[test]
fn integers_that_may_be_a_matrix_are_refused_of_an_unknown_architecture() {
    for (name, dtype, shape) in [
        ("model.layers.0.mlp.experts.W_q", StDtype::U8, &[64, 16][..]),
        ("model.layers.0.mlp.experts", StDtype::F8_E4M3, &[4, 64, 32]),
        ("model.layers.0.mlp.gate.weight", StDtype::U8, &[1024, 1]),
        ("model.layers.0.mlp.qweight", StDtype::I32, &[4, 64]),
    ] {
        let error = converted(&unknown(), &[tensor(name, dtype, shape, 0)], &options()).err();
        assert!(
            error.as_ref().is_some_and(|e| e.contains(name)),
            "{name}: {error:?}"
        );
    }
}
