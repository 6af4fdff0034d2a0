//! Checkpoints that are int4 already: what is kept, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

#[path = "import/kept.rs"]
mod kept;
#[path = "import/refusals.rs"]
mod refusals;

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype as StDtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use smq_convert::inspect::recheck;
use smq_convert::{
    Checkpoint, ConvertOptions, ExportFormat, ExportOptions, Grouping, Method, QuantizeOptions,
    ScaleChoice, ScaleRule, convert, dry_run, export,
};
use smq_format::{Role, Scheme, SmqFile, TensorData, int4};
use tempfile::TempDir;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

fn e5m(mantissa_bits: u32) -> ScaleChoice {
    ScaleChoice::Mini {
        exponent_bits: 5,
        mantissa_bits,
    }
}

fn options(target: &str, scales: ScaleChoice, group: usize) -> ConvertOptions {
    ConvertOptions {
        target: target.parse().unwrap(),
        quantize: Method::Int4(QuantizeOptions {
            group,
            scales,
            rule: ScaleRule::Reference,
        }),
        overwrite: true,
        jobs: 0,
    }
}

/// Converts a checkpoint, checks the planned size and the statistics against the source.
fn run(checkpoint: &Checkpoint, out: &Path, options: &ConvertOptions) -> SmqFile {
    let planned = dry_run(checkpoint, options).unwrap().file_bytes;
    convert(checkpoint, out, options, &|_| true).unwrap();
    let file = SmqFile::open(out).unwrap();
    assert!(file.verify(|_| ()).is_empty() && file.header().file_bytes == planned);
    let rechecked = recheck(&file, checkpoint.path(), &|_| ()).unwrap();
    assert_eq!(rechecked.differences, []);
    assert_eq!(rechecked.tensors, int4_names(&file).len());
    file
}

fn int4_names(file: &SmqFile) -> Vec<&str> {
    let tensors = file.tensors();
    let int4 = tensors.filter(|t| matches!(t.data(), TensorData::Int4 { .. }));
    int4.map(|t| t.name()).collect()
}

/// Name, shape, scheme and hashes of a tensor.
type Contents<'a> = (&'a str, &'a [usize], Scheme, Vec<[u8; 32]>);

fn contents(file: &SmqFile) -> Vec<Contents<'_>> {
    let tensors = file.index().tensors.iter();
    let of = |t| {
        let t: &smq_format::TensorEntry = t;
        let hashes = t.blobs.iter().map(|b| b.blake3).collect();
        (t.name.as_str(), t.shape.as_slice(), t.scheme, hashes)
    };
    tensors.map(of).collect()
}

fn export_to(file: &SmqFile, out: &Path, format: ExportFormat) {
    let options = ExportOptions {
        format,
        shard_bytes: 2_000_000,
        force: false,
    };
    export(file, out, &options, &|_, _| true).unwrap();
}

const PACKED: ExportFormat = ExportFormat::CompressedTensors {
    allow_inexact: false,
};

#[test]
fn what_we_export_comes_back_bit_for_bit() {
    for (mantissa_bits, group, target) in [(0, 128, "mlp"), (3, 64, "all"), (5, 128, "all")] {
        let dir = TempDir::new().unwrap();
        let options = options(target, e5m(mantissa_bits), group);
        let source = Checkpoint::open(&fixture()).unwrap();
        let first = run(&source, &dir.path().join("a.smq"), &options);
        export_to(&first, &dir.path().join("packed"), PACKED);

        let packed = Checkpoint::open(&dir.path().join("packed")).unwrap();
        assert!(packed.shards().len() > 1);
        let import = packed.import().unwrap();
        assert_eq!(import.tensors, int4_names(&first).len());
        assert_eq!(import.grouping, Grouping::Runs(group));
        // The default target: what is int4 stays int4, whatever it is.
        let second = run(
            &packed,
            &dir.path().join("b.smq"),
            &ConvertOptions {
                target: "mlp".parse().unwrap(),
                ..options.clone()
            },
        );
        assert_eq!(contents(&first), contents(&second));
        for jobs in [1, 7] {
            let out = dir.path().join("c.smq");
            let options = ConvertOptions {
                target: "mlp".parse().unwrap(),
                jobs,
                ..options.clone()
            };
            let again = run(&packed, &out, &options);
            assert!(again.bytes() == second.bytes(), "{jobs} threads");
        }
        let parameters = &second.index().provenance.parameters;
        assert_eq!(parameters["import"], "pack-quantized");
        assert_eq!(parameters["import_codes"], "kept");
        for record in second.statistics().unwrap().unwrap().tensors {
            assert_eq!(record.stored.squared_error, 0.0);
            assert_eq!(record.stored, record.exact);
            assert!(record.stored.squared_weight > 0.0);
        }
    }
}

#[test]
fn scales_are_rounded_again_and_the_loss_is_measured_against_the_import() {
    let dir = TempDir::new().unwrap();
    let source = Checkpoint::open(&fixture()).unwrap();
    let first = run(
        &source,
        &dir.path().join("a.smq"),
        &options("mlp", e5m(7), 128),
    );
    export_to(&first, &dir.path().join("packed"), PACKED);
    let packed = Checkpoint::open(&dir.path().join("packed")).unwrap();
    let cases = [ScaleChoice::F32, ScaleChoice::F16, e5m(7), e5m(3), e5m(0)];
    for (scales, exact) in cases.into_iter().zip([true, true, true, false, false]) {
        let second = run(
            &packed,
            &dir.path().join("b.smq"),
            &options("mlp", scales, 128),
        );
        let statistics = second.statistics().unwrap().unwrap();
        for name in int4_names(&first) {
            let (a, b) = (first.tensor(name).unwrap(), second.tensor(name).unwrap());
            let hash = |t: &smq_format::TensorView| t.entry().blobs[0].blake3;
            assert_eq!(a.entry().blobs[0].role, Role::Nibbles);
            assert_eq!(hash(&a), hash(&b), "{name}: the integers are kept");
            let (w, v) = (a.dequantize().unwrap(), b.dequantize().unwrap());
            // Every group, naively, in f64.
            let groups = w.chunks(128).zip(v.chunks(128)).map(|(w, v)| {
                let error: f64 = w.iter().zip(v).map(|(w, v)| f64::from(w - v).powi(2)).sum();
                let weight: f64 = w.iter().map(|w| f64::from(*w).powi(2)).sum();
                error / weight
            });
            let naive = groups.sum::<f64>() / (w.len() / 128) as f64;
            let record = statistics.tensor(name).unwrap();
            assert!((record.stored.mean_rel_mse - naive).abs() <= 1e-5 * naive);
            assert_eq!(naive == 0.0, exact, "{scales:?}");
            assert_eq!(record.exact.squared_error, 0.0);
            assert_eq!(record.clipped, 0);
        }
    }
}

#[test]
fn requantize_is_what_the_dequantized_weights_would_give() {
    let dir = TempDir::new().unwrap();
    let source = Checkpoint::open(&fixture()).unwrap();
    let first = run(
        &source,
        &dir.path().join("a.smq"),
        &options("mlp", e5m(5), 128),
    );
    export_to(&first, &dir.path().join("packed"), PACKED);
    let f32 = ExportFormat::Safetensors(smq_format::Dtype::F32);
    export_to(&first, &dir.path().join("f32"), f32);
    let signed = |group| ConvertOptions {
        quantize: Method::Int4(QuantizeOptions {
            group,
            scales: e5m(3),
            rule: ScaleRule::Signed,
        }),
        ..options("mlp", e5m(3), group)
    };
    let plain = Checkpoint::open(&dir.path().join("f32")).unwrap();
    let expected = run(&plain, &dir.path().join("b.smq"), &signed(32));
    let mut packed = Checkpoint::open(&dir.path().join("packed")).unwrap();
    let refused = |group| dry_run(&packed, &signed(group)).unwrap_err().to_string();
    assert_eq!(
        refused(32),
        "--group-size 32: the checkpoint's integers have groups of 128, and are kept; pass --requantize to make new ones"
    );
    assert_eq!(
        refused(128),
        "--scale-rule signed: chooses scales and integers together, and the checkpoint's integers are kept; pass --requantize, or use reference or nearest"
    );
    packed.requantize();
    let again = run(&packed, &dir.path().join("c.smq"), &signed(32));
    assert_eq!(contents(&expected), contents(&again));
    let parameters = &again.index().provenance.parameters;
    assert_eq!(parameters["import_codes"], "requantized");
}

#[test]
fn the_rest_of_a_mixed_checkpoint_goes_through_as_usual() {
    let dir = TempDir::new().unwrap();
    let source = Checkpoint::open(&fixture()).unwrap();
    let expected = run(
        &source,
        &dir.path().join("a.smq"),
        &options("all", e5m(5), 128),
    );
    let mlp = run(
        &source,
        &dir.path().join("b.smq"),
        &options("mlp", e5m(5), 128),
    );
    export_to(&mlp, &dir.path().join("packed"), PACKED);
    let packed = Checkpoint::open(&dir.path().join("packed")).unwrap();
    let mixed = run(
        &packed,
        &dir.path().join("c.smq"),
        &options("all", e5m(5), 128),
    );
    assert_eq!(contents(&expected), contents(&mixed));
}

/// One linear layer in GPTQ's layout and one norm.
struct Gptq {
    q: Vec<Vec<i8>>,       // [out][in]
    scales: Vec<Vec<f32>>, // [out][groups]
    tensors: Vec<(String, StDtype, Vec<usize>, Vec<u8>)>,
    config: Value,
}

const MODULE: &str = "model.layers.0.mlp.down_proj";

fn le(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

impl Gptq {
    /// Packs one integer at a time, as the definition has it: bit `4 (column mod 8)` of word
    /// `[column / 8, out]`.
    fn new(out: usize, columns: usize, group: usize, stored_zero: u8) -> Self {
        let mut state = 1u32;
        let mut random = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        let groups = columns.div_ceil(group);
        let q: Vec<Vec<i8>> = (0..out)
            .map(|_| (0..columns).map(|_| random(16) as i8 - 8).collect())
            .collect();
        let mut scale = || f16::from_f32(0.001 + random(1000) as f32 * 1e-5).to_f32();
        let scales: Vec<Vec<f32>> = (0..out)
            .map(|_| (0..groups).map(|_| scale()).collect())
            .collect();
        let mut qweight = vec![0i32; columns / 8 * out];
        for (o, row) in q.iter().enumerate() {
            for (k, &q) in row.iter().enumerate() {
                qweight[k / 8 * out + o] |= (i32::from(q) + 8) << (4 * (k % 8));
            }
        }
        let mut qzeros = vec![0i32; groups * out.div_ceil(8)];
        for g in 0..groups {
            for o in 0..out {
                qzeros[g * out.div_ceil(8) + o / 8] |= i32::from(stored_zero) << (4 * (o % 8));
            }
        }
        let by_group = (0..groups).flat_map(|g| scales.iter().map(move |row| row[g]));
        let halves = by_group
            .flat_map(|s| f16::from_f32(s).to_le_bytes())
            .collect();
        let g_idx: Vec<i32> = (0..columns).map(|k| (k / group) as i32).collect();
        let tensor = |end, dtype, shape, bytes| (format!("{MODULE}.{end}"), dtype, shape, bytes);
        let norm = "model.layers.0.norm.weight".to_owned();
        let tensors = vec![
            tensor(
                "qweight",
                StDtype::I32,
                vec![columns / 8, out],
                le(&qweight),
            ),
            tensor(
                "qzeros",
                StDtype::I32,
                vec![groups, out.div_ceil(8)],
                le(&qzeros),
            ),
            tensor("scales", StDtype::F16, vec![groups, out], halves),
            tensor("g_idx", StDtype::I32, vec![columns], le(&g_idx)),
            (norm, StDtype::F16, vec![2], vec![0, 60, 0, 60]),
        ];
        let quantization = json!({
            "quant_method": "gptq", "bits": 4, "group_size": group, "sym": true, "desc_act": false,
        });
        let config = json!({"quantization_config": quantization});
        Gptq {
            q,
            scales,
            tensors,
            config,
        }
    }

    fn tensor(&mut self, end: &str) -> &mut (String, StDtype, Vec<usize>, Vec<u8>) {
        self.tensors
            .iter_mut()
            .find(|t| t.0.ends_with(end))
            .unwrap()
    }

    fn set(&mut self, key: &str, value: Value) {
        self.config["quantization_config"][key] = value;
    }

    fn write(&self, dir: &Path) -> PathBuf {
        write(dir, &self.config, &self.tensors)
    }
}

fn write(
    dir: &Path,
    config: &Value,
    tensors: &[(String, StDtype, Vec<usize>, Vec<u8>)],
) -> PathBuf {
    let to = dir.join("checkpoint");
    fs::create_dir_all(&to).unwrap();
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(to.join("model.safetensors"), bytes).unwrap();
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    to
}

#[test]
fn gptq_keeps_integers_and_scales() {
    for (out, columns, group, zero, order) in [
        (24, 256, 128, 7, true),
        (37, 136, 32, 8, false), // neither whole blocks of rows nor whole groups
        (1, 8, 8, 8, true),
    ] {
        let dir = TempDir::new().unwrap();
        let mut gptq = Gptq::new(out, columns, group, zero);
        if !order {
            gptq.tensors.retain(|t| !t.0.ends_with("g_idx"));
        }
        let checkpoint = Checkpoint::open(&gptq.write(dir.path())).unwrap();
        for scales in [ScaleChoice::F32, e5m(10), e5m(3)] {
            let file = run(
                &checkpoint,
                &dir.path().join("a.smq"),
                &options("mlp", scales, group),
            );
            let view = file.tensor(&format!("{MODULE}.weight")).unwrap();
            assert_eq!(view.shape(), [out, columns]);
            let TensorData::Int4 {
                nibbles,
                scales: stored,
                ..
            } = view.data()
            else {
                panic!("not int4");
            };
            let row_bytes = int4::row_bytes(columns);
            let expected: Vec<u8> = gptq
                .q
                .iter()
                .flat_map(|row| {
                    let mut bytes = vec![0; row_bytes];
                    int4::pack_row(row, &mut bytes);
                    bytes
                })
                .collect();
            assert_eq!(nibbles, expected);
            // E5M10 has f16's mantissa, and the scales lie within its window.
            if scales != e5m(3) {
                assert_eq!(stored.decode_all().unwrap(), gptq.scales.concat());
            }
            let parameters = &file.index().provenance.parameters;
            assert_eq!(parameters["import"], "gptq");
            assert_eq!(parameters["import_stored_zero"], zero.to_string());
            assert_eq!(file.tensors().len(), 2);
        }
    }
}

#[test]
fn zero_groups_and_scales_under_the_window() {
    let dir = TempDir::new().unwrap();
    let scales = [1.0f32, 2f32.powi(-31), 2f32.powi(-40), 0.5];
    // Three groups with integers, and one whose scale is all that it has.
    let packed: Vec<u8> = [[0x99u8; 4], [0x99; 4], [0x99; 4], [0x88; 4]].concat();
    let scale_bytes = scales.iter().flat_map(|s| bf16::from_f32(*s).to_le_bytes());
    let shape = [1i64, 32].iter().flat_map(|n| n.to_le_bytes()).collect();
    let tensors = vec![
        (
            "m.weight_packed".to_owned(),
            StDtype::I32,
            vec![1, 4],
            packed,
        ),
        (
            "m.weight_scale".to_owned(),
            StDtype::BF16,
            vec![1, 4],
            scale_bytes.collect(),
        ),
        ("m.weight_shape".to_owned(), StDtype::I64, vec![2], shape),
    ];
    let checkpoint = Checkpoint::open(&write(dir.path(), &pack_config(8), &tensors)).unwrap();
    let out = dir.path().join("a.smq");
    let file = run(&checkpoint, &out, &options("mlp", e5m(5), 8));
    let weights = file.tensor("m.weight").unwrap().dequantize().unwrap();
    // The window under 1 has 31 binades: 2^-31 is at the midpoint of its smallest code and zero.
    let expected = [1.0, 2f32.powi(-30), 0.0, 0.0];
    assert_eq!(weights, expected.map(|w| [w; 8]).concat());
    let record = file.statistics().unwrap().unwrap().tensors.remove(0);
    assert_eq!(
        (record.groups, record.zero_groups, record.under_window),
        (4, 1, 2)
    );
    let TensorData::Int4 { nibbles, .. } = file.tensor("m.weight").unwrap().data() else {
        panic!("not int4");
    };
    assert_eq!(
        nibbles[..12],
        [0x11; 12],
        "the integers are kept under a scale of 0, too"
    );
    let file = run(&checkpoint, &out, &options("mlp", ScaleChoice::F32, 8));
    let TensorData::Int4 { scales: exact, .. } = file.tensor("m.weight").unwrap().data() else {
        panic!("not int4");
    };
    assert_eq!(exact.decode_all().unwrap(), scales);
}

fn pack_config(group: usize) -> Value {
    json!({"quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "type": "int", "symmetric": true, "strategy": "group",
            "group_size": group,
        }}},
    }})
}

#[test]
fn the_command_line_says_what_it_imported() {
    let dir = TempDir::new().unwrap();
    let checkpoint = Gptq::new(16, 64, 32, 7).write(dir.path());
    let out = dir.path().join("out.smq");
    let paths = [checkpoint.to_str().unwrap(), out.to_str().unwrap()];
    let convert = |args: &[&str]| kept::convert_at(&[args, &paths].concat());
    let planned = convert(&["--dry-run", "-v"]);
    let text = String::from_utf8(planned.stdout).unwrap();
    assert!(text.contains("int4, f16 scales"), "{text}");
    assert!(!out.exists());
    let line = "imported exactly: 1 int4 tensor in groups of 32 (gptq, zero point 8 stored as 7), integers kept, all 32 scales exact in f16; errors are against its own q * s\n";
    assert!(text.contains(line), "{text}");
    let text = String::from_utf8(convert(&[]).stdout).unwrap();
    assert!(text.ends_with(line), "{text}");
    let args = ["--requantize", "--group-size", "64", "--force"];
    let text = String::from_utf8(convert(&args).stdout).unwrap();
    assert!(
        text.ends_with("integers derived anew; errors are against its own q * s\n"),
        "{text}"
    );
    let source = fixture();
    let output = kept::convert_at(&["--requantize", source.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    let expected = format!(
        "error: --requantize is for int4 checkpoints, and {} holds no int4 tensors; leave it out\n",
        fixture().display()
    );
    assert_eq!(text, expected);
}
