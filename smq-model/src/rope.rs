//! Rotary position embedding, with LongRoPE, YaRN and dynamic scaling as Hugging Face computes
//! them.
//!
//! Sources: RoFormer (arXiv 2104.09864), LongRoPE (arXiv 2402.13753), YaRN (arXiv 2309.00071) and
//! transformers' `modeling_rope_utils.py`, whose f32 arithmetic is followed step by step.

use std::f32::consts::PI;

/// What config.json says about rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// The base of the frequencies.
    pub theta: f32,
    /// Leading elements of each head that are rotated; the rest pass unchanged.
    pub rotary_dim: usize,
    /// How frequencies are changed for long contexts.
    pub scaling: RopeScaling,
}

/// The supported context extensions.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None: the frequencies stay as the base gives them.
    None,
    /// Every frequency divided by a factor.
    Linear {
        /// What every frequency is divided by.
        factor: f32,
    },
    /// Llama 3.1: long wavelengths divided, short ones kept, a smooth ramp between.
    Llama3 {
        /// The divisor of the longest wavelengths.
        factor: f32,
        /// Wavelengths over `original / low_freq` are divided fully.
        low_freq: f64,
        /// Wavelengths under `original / high_freq` are kept.
        high_freq: f64,
        /// Context of the first training, tokens.
        original_positions: usize,
    },
    /// The base grows with the sequence beyond the context of the training. Keys that are cached
    /// keep the frequencies of the length at which they were computed.
    Dynamic {
        /// How far the context is stretched.
        factor: f32,
        /// Context of the training, tokens: up to it the embedding is plain.
        original_positions: usize,
    },
    /// YaRN: a ramp over the frequencies, by index, from those that are kept to those that are
    /// divided.
    Yarn {
        /// The divisor of the lowest frequencies.
        factor: f32,
        /// Index at which the ramp begins.
        ramp_start: f32,
        /// How many indices it takes.
        ramp_span: f32,
        /// Context of the first training, tokens.
        original_positions: usize,
        /// Multiplies cos and sin.
        attention_factor: f32,
    },
    /// Phi-3: one divisor a frequency; which list, the length of the whole sequence decides.
    LongRope {
        /// Divisors up to and including the original context, `[rotary_dim / 2]`.
        short: Vec<f32>,
        /// Divisors beyond it, `[rotary_dim / 2]`.
        long: Vec<f32>,
        /// Context of the first training, tokens.
        original_positions: usize,
        /// Multiplies cos and sin: `sqrt(1 + ln(max / original) / ln(original))`.
        attention_factor: f32,
    },
}

impl RopeConfig {
    /// Whether a sequence of `len` tokens uses the long factors.
    #[must_use]
    pub fn is_long(&self, len: usize) -> bool {
        match self.scaling {
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Dynamic { .. }
            | RopeScaling::Yarn { .. } => false,
            RopeScaling::LongRope {
                original_positions, ..
            } => len > original_positions,
        }
    }

    /// Whether the frequencies of a sequence of `len` tokens are its own, other than those of a
    /// sequence of any other length.
    #[must_use]
    pub fn grows(&self, len: usize) -> bool {
        self.fixed_up_to().is_some_and(|most| len > most)
    }

    /// Tokens of the longest sequence whose frequencies are those of any shorter one, where a longer
    /// one has its own; `None` where none has.
    #[must_use]
    pub fn fixed_up_to(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Yarn { .. }
            | RopeScaling::LongRope { .. } => None,
            RopeScaling::Dynamic {
                original_positions, ..
            } => Some(original_positions),
        }
    }

    /// Inverse frequencies of a sequence of `len` tokens for which [`RopeConfig::grows`] is true,
    /// those of [`RopeConfig::inv_freq`] for any other.
    #[must_use]
    pub fn grown_inv_freq(&self, len: usize) -> Vec<f32> {
        match self.scaling {
            RopeScaling::Dynamic {
                factor,
                original_positions,
            } if len > original_positions => {
                // All of it in f32, the type of what transformers divides the length by.
                let dim = self.rotary_dim as f32;
                let stretch = factor * len as f32 / original_positions as f32 - (factor - 1.0);
                let exponent = self.rotary_dim as f64 / (self.rotary_dim as f64 - 2.0);
                let base = self.theta * stretch.powf(exponent as f32);
                let power = |i: usize| base.powf((2 * i) as f32 / dim);
                (0..self.rotary_dim / 2).map(|i| 1.0 / power(i)).collect()
            }
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Dynamic { .. }
            | RopeScaling::Yarn { .. }
            | RopeScaling::LongRope { .. } => self.inv_freq(self.is_long(len)),
        }
    }

    /// Inverse frequencies, `[rotary_dim / 2]`, in radians a position.
    #[must_use]
    pub fn inv_freq(&self, long: bool) -> Vec<f32> {
        let dim = self.rotary_dim as f32;
        let power = |i: usize| self.theta.powf((2 * i) as f32 / dim);
        let half = 0..self.rotary_dim / 2;
        match &self.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => {
                half.map(|i| 1.0 / power(i)).collect()
            }
            RopeScaling::Linear { factor } => half.map(|i| 1.0 / power(i) / factor).collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq,
                high_freq,
                original_positions,
            } => {
                // Numbers are f64 and tensors f32, as in Python.
                let original = *original_positions as f64;
                let (longest, shortest) =
                    ((original / low_freq) as f32, (original / high_freq) as f32);
                let (low, span) = (*low_freq as f32, (high_freq - low_freq) as f32);
                half.map(|i| {
                    let freq = 1.0 / power(i);
                    let wavelength = 2.0 * PI / freq;
                    if wavelength < shortest {
                        freq
                    } else if wavelength > longest {
                        freq / factor
                    } else {
                        let smooth = (original as f32 / wavelength - low) / span;
                        (1.0 - smooth) * freq / factor + smooth * freq
                    }
                })
                .collect()
            }
            RopeScaling::Yarn {
                factor,
                ramp_start,
                ramp_span,
                ..
            } => half
                .map(|i| {
                    let ramp = ((i as f32 - ramp_start) / ramp_span).clamp(0.0, 1.0);
                    let kept = 1.0 - ramp;
                    let divided = 1.0 / (factor * power(i));
                    divided * (1.0 - kept) + 1.0 / power(i) * kept
                })
                .collect(),
            RopeScaling::LongRope {
                short,
                long: long_factors,
                ..
            } => {
                let factors = if long { long_factors } else { short };
                half.map(|i| 1.0 / (factors[i] * power(i))).collect()
            }
        }
    }

    /// What cos and sin are multiplied with.
    #[must_use]
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Dynamic { .. } => 1.0,
            RopeScaling::Yarn {
                attention_factor, ..
            }
            | RopeScaling::LongRope {
                attention_factor, ..
            } => attention_factor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long_rope() -> RopeConfig {
        RopeConfig {
            theta: 10_000.0,
            rotary_dim: 4,
            scaling: RopeScaling::LongRope {
                short: vec![1.0, 2.0],
                long: vec![4.0, 8.0],
                original_positions: 16,
                attention_factor: 1.5,
            },
        }
    }

    #[test]
    fn long_rope_divides_and_switches_after_the_original_context() {
        let rope = long_rope();
        assert!(!rope.is_long(16) && rope.is_long(17));
        assert_eq!(rope.inv_freq(false), [1.0, 1.0 / 200.0]);
        assert_eq!(rope.inv_freq(true), [0.25, 1.0 / 800.0]);
    }

    #[test]
    fn dynamic_is_plain_up_to_the_context_of_the_training() {
        let plain = RopeConfig {
            theta: 10_000.0,
            rotary_dim: 8,
            scaling: RopeScaling::None,
        };
        let rope = RopeConfig {
            scaling: RopeScaling::Dynamic {
                factor: 2.0,
                original_positions: 16,
            },
            ..plain.clone()
        };
        assert!(!rope.grows(16) && rope.grows(17));
        assert_eq!(rope.grown_inv_freq(16), plain.inv_freq(false));
        let (near, far) = (rope.grown_inv_freq(17), rope.grown_inv_freq(32));
        assert_eq!(near[0], 1.0);
        // 2 * 32 / 16 - 1 = 3, and the base is 10000 * 3^(8 / 6).
        let base = 10_000.0 * 3f64.powf(8.0 / 6.0);
        let expected = 1.0 / base.powf(0.75);
        assert!((f64::from(far[3]) / expected - 1.0).abs() < 1e-6);
        assert!(near.iter().zip(&far).skip(1).all(|(a, b)| a > b));
    }

    #[test]
    fn llama3_keeps_short_waves_and_divides_long_ones() {
        let plain = RopeConfig {
            theta: 500_000.0,
            rotary_dim: 64,
            scaling: RopeScaling::None,
        };
        let scaled = RopeConfig {
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq: 1.0,
                high_freq: 4.0,
                original_positions: 8192,
            },
            ..plain.clone()
        };
        let (a, b) = (plain.inv_freq(false), scaled.inv_freq(false));
        assert_eq!(a[0], b[0]);
        assert_eq!(a[31] / 8.0, b[31]);
        assert!(
            a.iter().zip(&b).any(|(a, b)| b < a && *b > a / 8.0),
            "no frequency on the ramp"
        );
    }
}
