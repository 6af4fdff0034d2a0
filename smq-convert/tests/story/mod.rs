//! The bundled checkpoint, and a text to calibrate and measure it on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use smq_convert::{CalibrateOptions, CalibrationMethod};
use smq_engine::Device;
use smq_engine::model::{Decoder, Sequence};
use smq_model::{Source, Tokenizer};
use tempfile::TempDir;

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

/// Mean KL divergence of the file's next tokens from those of the checkpoint `base`, in nats, on
/// the story's second part.
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
        let logits = decoder.logits(&x);
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

/// A directory with the story's first part, to calibrate on.
pub(crate) struct Workplace(TempDir);

impl Workplace {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("text.txt"), story().0).unwrap();
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Calibration on the CPU, on so many of its tokens.
    pub(crate) fn texts_of(&self, tokens: usize) -> CalibrateOptions {
        CalibrateOptions {
            texts: vec![self.path("text.txt")],
            tokens,
            window: 128,
            method: CalibrationMethod::Asymmetric,
            device: Device::Cpu,
            memory_bytes: None,
            resume: false,
        }
    }

    /// What is in it.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Runs smq-convert in it.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smq-convert"));
        command.current_dir(self.0.path());
        command.args(args).output().unwrap()
    }
}

/// For a calibration's progress: stops it after `layers`, and leaves at `copy` what it had at
/// `left`, as a process that is killed would.
pub(crate) fn stops_after(
    layers: usize,
    left: &Path,
    copy: &Path,
) -> impl Fn(usize, usize) -> bool + Sync {
    move |done, _| {
        if done == layers && !copy.exists() {
            fs::create_dir(copy).unwrap();
            for entry in fs::read_dir(left).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
            }
        }
        done < layers
    }
}
