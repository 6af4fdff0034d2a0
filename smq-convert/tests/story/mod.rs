//! The bundled checkpoint, and a text to calibrate and measure it on.

use std::fs;
use std::path::{Path, PathBuf};

use smq_engine::model::{Decoder, Sequence};
use smq_model::{Source, Tokenizer};

pub(crate) fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

/// A story that the model has not been trained on: one part to calibrate on, another to measure on.
pub(crate) fn story() -> (String, String) {
    let path = fixture().join("../sample.txt");
    let text = fs::read_to_string(path).unwrap();
    let half = text[..text.len() / 2].rfind('\n').unwrap();
    (text[..half].to_owned(), text[half..].to_owned())
}

/// Mean KL divergence of the file's next tokens from those of the checkpoint `base`, in nats, on the
/// story's second part.
pub(crate) fn divergence(base: &Path, file: &Path) -> f64 {
    let (base, source) = (Source::open(base).unwrap(), Source::open(file).unwrap());
    let ids = Tokenizer::load(&base)
        .unwrap()
        .encode(&story().1, false)
        .unwrap();
    let (base, decoder) = (
        Decoder::load(&base).unwrap(),
        Decoder::load(&source).unwrap(),
    );
    let log_probabilities = |decoder: &Decoder<'_>, ids: &[u32]| -> Vec<f64> {
        let mut sequence = Sequence::new(decoder.config(), ids.len(), false);
        let x = decoder.extend(&mut sequence, ids, ids.len()).unwrap();
        let logits = decoder.logits(&x).unwrap();
        let rows = logits.chunks_exact(decoder.config().vocab);
        rows.flat_map(|row| {
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
            row.iter().map(move |v| f64::from(v - max) - sum.ln())
        })
        .collect()
    };
    let windows: Vec<f64> = ids
        .chunks_exact(256)
        .map(|ids| {
            let (p, q) = (
                log_probabilities(&base, ids),
                log_probabilities(&decoder, ids),
            );
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            kl / ids.len() as f64
        })
        .collect();
    assert!(windows.len() > 4);
    windows.iter().sum::<f64>() / windows.len() as f64
}
