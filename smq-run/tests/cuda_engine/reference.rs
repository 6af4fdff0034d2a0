//! What the CPU says, and how close to it the GPU has to be.
//!
//! # Tolerance
//! A prompt's pass rounds activations to bf16 where `Precision::Bf16` does: 8 times a layer and
//! once before the head, `8 L + 1` roundings of at most `u = 2^-8` relative (tests/precision.rs).
//! Where int4 weights are widened to bf16, each of a layer's 4 products rounds its weights once
//! more. With `n` roundings in all, taken as independent, a logit is off by at most about
//! `sqrt(n) u max|logit|`. (Of models without trained weights, whose largest logit is not far from
//! the others, by half as much again as the CPU's own is.)
//!
//! That bound is loose, so the rms over all logits of a case also has to be at most 1.5 times that
//! of the CPU with bf16 activations against the CPU in f32, times `sqrt(n / (8 L + 1))`. It cannot
//! be much closer to either: a sum in another order flips roundings, and what follows differs by as
//! much as it does from f32.
//!
//! A decode step keeps activations to 2^-17 or better; only its keys and values are rounded, 2
//! roundings a layer: `n = 2 L`.
//!
//! FP8 rounds activations to E4M3 on purpose. One that lies near a tie goes the other way here or
//! there, by a 16th of itself, whatever else is exact: a decode step then is held to the prompt's
//! measure, the twin's distance from f32, for the twin meets the same ties.
//!
//! What f32 itself explains (derived in tests/golden.rs) comes on top, 1e-3.

use std::collections::HashMap;

use smq_engine::KvCacheFormat;
use smq_engine::model::{Decoder, Precision, Sequence};
use smq_model::Source;

const UNIT_ROUNDOFF: f64 = 1.0 / 256.0;
const F32_TOLERANCE: f64 = 1e-3;
const SPREAD: f64 = 1.5;

/// Logits after some lengths of one list of tokens.
pub(crate) struct Reference {
    exact: HashMap<usize, Vec<f32>>,
    rounded: HashMap<usize, Vec<f32>>,
    layers: usize,
    /// Keys and values are held in fewer bits than bf16 has.
    coded: bool,
}

impl Reference {
    /// Each length is that of a whole sequence, which decides LongRoPE's factors.
    pub(crate) fn new(
        source: &Source,
        tokens: &[u32],
        lengths: impl IntoIterator<Item = usize>,
    ) -> Self {
        Self::cached(source, tokens, lengths, KvCacheFormat::F32)
    }

    /// As [`Reference::new`], with keys and values held so.
    pub(crate) fn cached(
        source: &Source,
        tokens: &[u32],
        lengths: impl IntoIterator<Item = usize>,
        format: KvCacheFormat,
    ) -> Self {
        Self::with(source, tokens, lengths, format, |len| len)
    }

    /// All of `tokens` are one sequence, whose length decides them, with keys and values held so.
    pub(crate) fn of_pass(
        source: &Source,
        tokens: &[u32],
        lengths: impl IntoIterator<Item = usize>,
        format: KvCacheFormat,
    ) -> Self {
        Self::with(source, tokens, lengths, format, |_| tokens.len())
    }

    fn with(
        source: &Source,
        tokens: &[u32],
        lengths: impl IntoIterator<Item = usize>,
        format: KvCacheFormat,
        whole: impl Fn(usize) -> usize,
    ) -> Self {
        let lengths: Vec<usize> = lengths.into_iter().collect();
        let all = |precision| {
            let decoder = Decoder::load_with(source, precision).unwrap();
            let logits = after(&decoder, tokens, &lengths, format, &whole);
            (logits, decoder.config().layers)
        };
        let (exact, layers) = all(Precision::F32);
        let (rounded, _) = all(Precision::Bf16);
        Self {
            exact,
            rounded,
            layers,
            coded: matches!(format, KvCacheFormat::Coded(_)),
        }
    }

    pub(crate) fn exact(&self, len: usize) -> &[f32] {
        &self.exact[&len]
    }

    /// How far a logit after `len` tokens may be off.
    pub(crate) fn bound(&self, len: usize, path: Path) -> f64 {
        let largest = self.exact[&len].iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        path.roundings(self.layers).sqrt() * UNIT_ROUNDOFF * f64::from(largest) + F32_TOLERANCE
    }

    /// How much of its bound a logit may use with keys and values in fewer bits than bf16. An
    /// element near a tie goes the other way by a whole step. That is rare and large: the worst of a
    /// few positions says little of another few, so that of all counts.
    pub(crate) fn allowance(&self, path: Path) -> f64 {
        match self.coded {
            true => (SPREAD * self.twin_worst(path)).max(1.0),
            false => 1.0,
        }
    }

    /// The largest part of its bound that any logit of the twin used, after any length.
    fn twin_worst(&self, path: Path) -> f64 {
        let of_length = |(len, exact): (&usize, &Vec<f32>)| {
            let pairs = exact.iter().zip(&self.rounded[len]);
            let largest = pairs.fold(0.0_f32, |most, (e, r)| most.max((r - e).abs()));
            f64::from(largest) / self.bound(*len, path)
        };
        self.exact.iter().map(of_length).fold(0.0, f64::max)
    }
}

/// One pass for the lengths (those of `whole`) within LongRoPE's original context, one for those
/// beyond.
fn after(
    decoder: &Decoder<'_>,
    tokens: &[u32],
    lengths: &[usize],
    format: KvCacheFormat,
    whole: impl Fn(usize) -> usize,
) -> HashMap<usize, Vec<f32>> {
    let c = decoder.config();
    let mut out = HashMap::new();
    for long in [false, true] {
        let lengths: Vec<usize> = lengths
            .iter()
            .copied()
            .filter(|len| c.rope.is_long(whole(*len)) == long)
            .collect();
        let Some(&most) = lengths.iter().max() else {
            continue;
        };
        let mut sequence = Sequence::with_cache(c, format, most, long);
        let hidden = decoder
            .extend(&mut sequence, &tokens[..most], most)
            .unwrap();
        for len in lengths {
            let row = &hidden[(len - 1) * c.hidden..len * c.hidden];
            out.insert(len, decoder.logits(row));
        }
    }
    out
}

/// What rounds on the way to a logit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// Decode steps from the start.
    Decode,
    /// A prompt's pass comes first.
    Prompt,
    /// One that rounds int4 weights too.
    WidenedPrompt,
    /// Decode steps that round activations to E4M3.
    Fp8Decode,
}

impl Path {
    fn roundings(self, layers: usize) -> f64 {
        let l = layers as f64;
        match self {
            Self::Decode => 2.0 * l,
            Self::Prompt | Self::Fp8Decode => 8.0 * l + 1.0,
            Self::WidenedPrompt => 12.0 * l + 1.0,
        }
    }
}

/// A comparison of several positions.
pub(crate) struct Case<'r> {
    name: String,
    reference: &'r Reference,
    path: Path,
    gpu: f64,
    twin: f64,
    count: usize,
    /// Largest part of its bound that a logit used, and where; and that one of the twin used.
    worst: (f64, usize),
    twin_worst: f64,
}

impl<'r> Case<'r> {
    pub(crate) fn new(name: String, reference: &'r Reference, path: Path) -> Self {
        Self {
            name,
            reference,
            path,
            gpu: 0.0,
            twin: 0.0,
            count: 0,
            worst: (0.0, 0),
            twin_worst: 0.0,
        }
    }

    /// The GPU's logits after `len` tokens.
    pub(crate) fn add(&mut self, len: usize, logits: &[f32]) {
        let (exact, rounded) = (&self.reference.exact[&len], &self.reference.rounded[&len]);
        assert_eq!(logits.len(), exact.len());
        let bound = match self.path {
            // The first position's keys and values come from a prompt's pass, of one token.
            Path::Decode => self.reference.bound(len, Path::Prompt),
            path => self.reference.bound(len, path),
        };
        for ((gpu, exact), rounded) in logits.iter().zip(exact).zip(rounded) {
            let difference = f64::from(gpu - exact);
            // A NaN is as far off as can be.
            let part = if difference.is_nan() {
                f64::INFINITY
            } else {
                difference.abs() / bound
            };
            if part > self.worst.0 {
                self.worst = (part, len);
            }
            let of_twin = f64::from(rounded - exact);
            self.twin_worst = self.twin_worst.max(of_twin.abs() / bound);
            self.gpu += difference * difference;
            self.twin += of_twin * of_twin;
        }
        self.count += logits.len();
    }

    /// Prints what was found; what is wrong with it, if anything.
    pub(crate) fn failure(&self) -> Option<String> {
        let rms = |squares: f64| (squares / self.count as f64).sqrt();
        let n = |path: Path| path.roundings(self.reference.layers);
        let spread = SPREAD * (n(self.path) / n(Path::Prompt)).sqrt();
        let (gpu, twin) = (rms(self.gpu), rms(self.twin));
        let line = format!(
            "{}: rms {gpu:.5} ({:.2} of the bf16 twin's {twin:.5}, {spread:.2} allowed), largest {:.2} of its bound \
             at {} (the twin's {:.2})",
            self.name,
            gpu / twin,
            self.worst.0,
            self.worst.1,
            self.twin_worst
        );
        println!("{line}");
        let most = match self.reference.coded {
            true => self.reference.allowance(self.path),
            false => (SPREAD * self.twin_worst).max(1.0),
        };
        let fine = gpu <= spread * twin + F32_TOLERANCE && self.worst.0 <= most;
        (!fine).then_some(line)
    }
}

/// The largest logit's id, the lowest among equals.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, v) in logits.iter().enumerate() {
        if *v > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Largest minus second largest.
pub(crate) fn margin(logits: &[f32]) -> f64 {
    let best = argmax(logits) as usize;
    let others = logits.iter().enumerate().filter(|(i, _)| *i != best);
    let second = others.fold(f32::NEG_INFINITY, |m, (_, v)| m.max(*v));
    f64::from(logits[best] - second)
}
