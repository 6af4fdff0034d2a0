//! The same weights give the same bytes, however they are sharded and in whichever type they are
//! stored. (That the number of threads changes nothing is tested in `convert.rs`.)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::io::Write;
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::tensor::{Dtype as SourceDtype, TensorView as SourceView, serialize_to_file};
use smq_convert::{
    Checkpoint, ConvertOptions, Method, QuantizeOptions, ScaleChoice, ScaleRule, Target, convert,
};
use smq_format::{Dtype, Scheme, SmqFile, TensorData};
use smq_tests::phi3_tiny;
use tempfile::TempDir;

const SHARD_INDEX: &str = "model.safetensors.index.json";

fn options(scales: ScaleChoice, rule: ScaleRule) -> ConvertOptions {
    ConvertOptions {
        target: Target::All,
        quantize: Method::Int4(QuantizeOptions {
            group: 128,
            scales,
            rule,
        }),
        overwrite: false,
        jobs: 0,
    }
}

const fn e5(mantissa_bits: u32) -> ScaleChoice {
    ScaleChoice::e5(mantissa_bits)
}

fn converted(checkpoint: &Path, out: PathBuf, options: &ConvertOptions) -> SmqFile {
    let checkpoint = Checkpoint::open(checkpoint).unwrap();
    convert(&checkpoint, &out, options, &|_| true).unwrap();
    SmqFile::open(&out).unwrap()
}

/// One tensor of a checkpoint to be written.
struct Made {
    name: String,
    shape: Vec<usize>,
    dtype: SourceDtype,
    bytes: Vec<u8>,
}

/// The bundled checkpoint's tensors, in its order.
fn tensors() -> Vec<Made> {
    let checkpoint = Checkpoint::open(&phi3_tiny()).unwrap();
    let made = checkpoint.tensors().iter().map(|t| {
        assert_eq!(t.dtype, Dtype::Bf16);
        Made {
            name: t.name.clone(),
            shape: t.shape.clone(),
            dtype: SourceDtype::BF16,
            bytes: checkpoint.bytes(t).to_vec(),
        }
    });
    made.collect()
}

/// The bundled checkpoint's small files with other shards: `shard_of(i)` is the name of tensor
/// `i`'s.
fn checkpoint(dir: PathBuf, tensors: &[Made], shard_of: impl Fn(usize) -> String) -> PathBuf {
    std::fs::create_dir(&dir).unwrap();
    for entry in std::fs::read_dir(phi3_tiny()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if !name.contains("safetensors") {
            std::fs::copy(entry.path(), dir.join(name)).unwrap();
        }
    }
    let mut shards = std::collections::BTreeMap::<String, Vec<&Made>>::new();
    for (i, tensor) in tensors.iter().enumerate() {
        shards.entry(shard_of(i)).or_default().push(tensor);
    }
    let mut weight_map = serde_json::Map::new();
    for (shard, tensors) in &shards {
        let views = tensors.iter().map(|t| {
            weight_map.insert(t.name.clone(), shard.clone().into());
            let view = SourceView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap();
            (t.name.clone(), view)
        });
        serialize_to_file(views, None, &dir.join(shard)).unwrap();
    }
    if shards.len() > 1 {
        let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map });
        std::fs::write(dir.join(SHARD_INDEX), index.to_string()).unwrap();
    }
    dir
}

/// Everything is equal to the byte, embedded files, blobs, their places and the statistics; the
/// index is equal but for `provenance.sources`, which names the shards and has their hashes.
fn equal_but_for_sources(a: &SmqFile, b: &SmqFile) {
    let blobs = |f: &SmqFile| f.bytes()[256..f.header().index.offset as usize].to_vec();
    assert!(blobs(a) == blobs(b), "blobs");
    assert_eq!(a.index().files, b.index().files);
    assert_eq!(a.index().tensors, b.index().tensors);
    assert_eq!(
        a.index().provenance.parameters,
        b.index().provenance.parameters
    );
    assert_eq!(a.index().provenance.producer, b.index().provenance.producer);
    assert_ne!(a.index().provenance.sources, b.index().provenance.sources);
    let section = |f: &SmqFile| {
        let s = f.header().statistics;
        f.bytes()[s.offset as usize..(s.offset + s.length) as usize].to_vec()
    };
    assert!(section(a) == section(b), "statistics");
    let mut index = b.index().clone();
    index.provenance.sources = a.index().provenance.sources.clone();
    assert_eq!(&index, a.index());
}

#[test]
fn one_shard_or_many() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let tensors = tensors();
    let options = options(e5(5), ScaleRule::Reference);
    let three = converted(&phi3_tiny(), path("three.smq"), &options);
    let one = checkpoint(path("one"), &tensors, |_| "model.safetensors".into());
    // One for each tensor, in the reverse of the order in which they are converted; and two that
    // alternate.
    let count = tensors.len();
    let each = checkpoint(path("each"), &tensors, |i| {
        format!("{:02}.safetensors", count - i)
    });
    let turns = checkpoint(path("turns"), &tensors, |i| {
        format!("{}.safetensors", i % 2)
    });
    for (name, shards) in [(one, 1), (each, count), (turns, 2)] {
        let other = converted(&name, name.with_extension("smq"), &options);
        assert_eq!(other.index().provenance.sources.len(), shards);
        equal_but_for_sources(&three, &other);
        assert_eq!(other.verify(|_| ()), []);
    }
    // The same checkpoint elsewhere, under another name: equal to the last byte.
    let again = checkpoint(path("again"), &tensors, |_| "model.safetensors".into());
    let again = converted(&again, path("again.smq"), &options);
    assert!(again.bytes() == SmqFile::open(&path("one.smq")).unwrap().bytes());
}

/// As f32, or f16, what holds the same numbers: blobs, parameters and statistics of quantized
/// tensors are equal. Raw tensors are kept in the type that they come in, so these, `source_dtype`
/// and all offsets differ.
#[test]
fn bf16_values_stored_as_f32_or_f16() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let single = |_| "model.safetensors".to_owned();
    let mut tensors = tensors();
    let values = |t: &Made| -> Vec<f32> {
        let mut values = vec![0.0; t.bytes.len() / 2];
        smq_format::widen(Dtype::Bf16, &t.bytes, &mut values);
        values
    };
    // What f16 does not hold exactly, here values under its subnormals, becomes zero in all of
    // them.
    let (mut zeroed, mut all) = (0, 0);
    for tensor in &mut tensors {
        let values = values(tensor);
        for (bytes, v) in tensor.bytes.chunks_exact_mut(2).zip(values) {
            if f16::from_f32(v).to_f32() != v {
                bytes.fill(0);
                zeroed += 1;
            }
            all += 1;
        }
    }
    assert!(zeroed < all / 100, "{zeroed} of {all} are not exact in f16");
    let stored_as = |dtype: SourceDtype, bytes: &dyn Fn(f32) -> Vec<u8>| -> Vec<Made> {
        let made = tensors.iter().map(|t| Made {
            name: t.name.clone(),
            shape: t.shape.clone(),
            dtype,
            bytes: values(t).into_iter().flat_map(bytes).collect(),
        });
        made.collect()
    };
    let f32s = stored_as(SourceDtype::F32, &|v| v.to_le_bytes().to_vec());
    let f16s = stored_as(SourceDtype::F16, &|v| {
        f16::from_f32(v).to_le_bytes().to_vec()
    });
    let bf16 = checkpoint(path("bf16"), &tensors, single);
    let others = [
        (checkpoint(path("f32"), &f32s, single), Dtype::F32),
        (checkpoint(path("f16"), &f16s, single), Dtype::F16),
    ];
    for (i, (scales, rule)) in [
        (e5(5), ScaleRule::Reference),
        (e5(0), ScaleRule::Reference),
        (e5(3), ScaleRule::Search),
        (e5(3), ScaleRule::Signed),
        (ScaleChoice::F32, ScaleRule::Reference),
        (ScaleChoice::F16, ScaleRule::Reference),
    ]
    .into_iter()
    .enumerate()
    {
        let options = options(scales, rule);
        let expected = converted(&bf16, path(&format!("{i}-bf16.smq")), &options);
        for (checkpoint, dtype) in &others {
            let out = path(&format!("{i}-{dtype}.smq"));
            equal_where_quantized(&expected, &converted(checkpoint, out, &options), *dtype);
        }
    }
    let mut out = std::io::stdout();
    writeln!(out, "{zeroed} of {all} values were not exact in f16").unwrap();
}

fn equal_where_quantized(a: &SmqFile, b: &SmqFile, dtype: Dtype) {
    let mut quantized = 0;
    assert_eq!(a.tensors().len(), b.tensors().len());
    for (a, b) in a.tensors().zip(b.tensors()) {
        assert_eq!((a.name(), a.shape()), (b.name(), b.shape()));
        assert_eq!(b.entry().source_dtype, dtype);
        match (a.data(), b.data()) {
            (TensorData::Int4 { .. }, TensorData::Int4 { .. }) => {
                assert_eq!(a.scheme(), b.scheme(), "{}", a.name());
                let hashes = |e: &smq_format::TensorEntry| -> Vec<_> {
                    e.blobs
                        .iter()
                        .map(|b| (b.role, b.length, b.blake3))
                        .collect()
                };
                assert_eq!(hashes(a.entry()), hashes(b.entry()), "{}", a.name());
                quantized += 1;
            }
            (TensorData::Raw { .. }, TensorData::Raw { .. }) => {
                assert_eq!(b.scheme(), Scheme::Raw(dtype));
                assert!(a.dequantize() == b.dequantize(), "{}", a.name());
            }
            _ => panic!("{} is quantized in one only", a.name()),
        }
    }
    assert_eq!(quantized, 16);
    assert_eq!(a.verify(|_| ()), []);
    assert_eq!(b.verify(|_| ()), []);
    let statistics = |f: &SmqFile| f.statistics().unwrap().unwrap().encode().unwrap();
    assert!(statistics(a) == statistics(b), "statistics");
}
