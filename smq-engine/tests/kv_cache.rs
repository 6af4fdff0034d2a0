//! Caches of fewer bits under the CPU engine, on the fixture: that they are used, what they change,
//! and that it does not matter how a sequence came to be in one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::PathBuf;

use smq_engine::{CpuEngine, Device, Engine, KvCacheFormat, KvCode, LoadOptions, load_with, serve};
use smq_model::Source;

fn fixture() -> Source {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny");
    Source::open(&path).unwrap()
}

fn tokens(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| 7 + (i * i * 31) % 4089).collect()
}

/// The logits behind the last token, of a sequence that is given in parts.
fn last(engine: &mut CpuEngine<'_>, tokens: &[u32], part: usize) -> Vec<f32> {
    engine.start(0).unwrap();
    let mut logits = Vec::new();
    for tokens in tokens.chunks(part) {
        logits = engine.extend(tokens).unwrap().logits.to_vec();
    }
    logits
}

/// A prompt at once, token by token, and in a cache that grows on the way.
#[test]
fn logits_do_not_depend_on_how_a_sequence_was_cut() {
    let source = fixture();
    for format in KvCacheFormat::ALL {
        let mut engine = CpuEngine::load(&source).unwrap().with_cache(format);
        let tokens = tokens(150);
        let whole = last(&mut engine, &tokens, 150);
        for part in [1, 7, 64] {
            assert_eq!(last(&mut engine, &tokens, part), whole, "{format}, {part}");
        }
    }
}

/// Each format is coarser than the one before it, but for int8, which is finer than fp8; and none
/// is so coarse that the text is another one.
#[test]
fn formats_differ_by_their_precision() {
    let source = fixture();
    let tokens = tokens(200);
    let mut exact = CpuEngine::load(&source).unwrap();
    let exact = last(&mut exact, &tokens, 200);
    let distance = |format| {
        let mut engine = CpuEngine::load(&source).unwrap().with_cache(format);
        let logits = last(&mut engine, &tokens, 200);
        let squares = logits.iter().zip(&exact).map(|(a, b)| (a - b).powi(2));
        (squares.sum::<f32>() / logits.len() as f32).sqrt()
    };
    assert_eq!(distance(KvCacheFormat::F32), 0.0);
    let of = |code| distance(KvCacheFormat::Coded(code));
    let [bf16, int8, fp8, int4] = [KvCode::Bf16, KvCode::Int8, KvCode::Fp8, KvCode::Int4].map(of);
    assert!(0.0 < bf16 && bf16 < int8 && int8 < fp8 && fp8 < int4);
    // Logits of the fixture have a standard deviation of some 3.
    assert!(int4 < 1.0, "{bf16}, {int8}, {fp8}, {int4}");
}

#[test]
fn a_cache_tells_its_size() {
    let source = fixture();
    let sizes = KvCacheFormat::ALL.map(|format| {
        let options = LoadOptions {
            kv_cache: Some(format),
            ..LoadOptions::default()
        };
        let mut engine = load_with(&source, Device::Cpu, &options).unwrap();
        engine.start(100).unwrap();
        let report = engine.kv_cache();
        assert_eq!((report.format, report.tokens), (format, 100));
        assert_eq!(report.bytes, 100 * report.bytes_per_token);
        let options = serve::BatchOptions {
            kv_tokens: Some(320),
            kv_cache: Some(format),
            ..serve::BatchOptions::default()
        };
        let batch = serve::load_batch(&source, Device::Cpu, &options).unwrap();
        let paged = batch.kv_cache();
        assert_eq!((paged.format, paged.tokens), (format, 320));
        assert_eq!(paged.bytes_per_token, report.bytes_per_token);
        report.bytes_per_token
    });
    let c = smq_model::ModelConfig::of(&source).unwrap();
    let rows = 2 * c.layers * c.kv_heads;
    let d = c.head_dim;
    assert_eq!(d % 32, 0);
    assert_eq!(
        sizes,
        [4 * d, 2 * d, d + 1, d + 1, d / 2 + d / 32].map(|row| rows * row)
    );
}
