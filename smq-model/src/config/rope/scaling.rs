//! The numbers of each kind of scaling.

use std::f64::consts::PI;

use serde_json::Value;

use super::{ORIGINAL, Reader};
use crate::config::MAX_POSITIONS;
use crate::config::keys::Read;
use crate::rope::{RopeConfig, RopeScaling};

/// The longest context that a scaling is made for, at least `max_positions`: YaRN's and the dynamic
/// one's factor is told beside the context of the training, which transformers takes for no limit.
pub(super) fn longest_context(rope: &RopeConfig, max_positions: usize) -> usize {
    let stretched = match rope.scaling {
        RopeScaling::None
        | RopeScaling::Linear { .. }
        | RopeScaling::Llama3 { .. }
        | RopeScaling::LongRope { .. } => 0.0,
        RopeScaling::Dynamic {
            factor,
            original_positions,
        }
        | RopeScaling::Yarn {
            factor,
            original_positions,
            ..
        } => f64::from(factor) * original_positions as f64,
    };
    max_positions.max((stretched as usize).min(MAX_POSITIONS))
}

impl Reader<'_, '_> {
    pub(super) fn factor(&self) -> Read<f64> {
        let name = self.inside().name("factor");
        match self.inside().number("factor")? {
            Some(f) if f > 0.0 && f.is_finite() => Ok(f),
            Some(f) => Err(format!("{name} is {f}, expected a positive number")),
            None => Err(format!("{name} is missing, expected a positive number")),
        }
    }

    pub(super) fn llama3(&self, original_positions: usize) -> Read<RopeScaling> {
        let factor = self.factor()? as f32;
        let number = |key| {
            let value = self.inside().number(key)?;
            value
                .ok_or_else(|| format!("{} is missing, expected a number", self.inside().name(key)))
        };
        let (low_freq, high_freq) = (number("low_freq_factor")?, number("high_freq_factor")?);
        if !(low_freq > 0.0 && high_freq > low_freq && high_freq.is_finite()) {
            return Err(format!(
                "{} is {low_freq} and high_freq_factor {high_freq}, expected positive numbers, the \
                 second the larger",
                self.inside().name("low_freq_factor")
            ));
        }
        Ok(RopeScaling::Llama3 {
            factor,
            low_freq,
            high_freq,
            original_positions,
        })
    }

    /// `half`: frequencies of a head.
    pub(super) fn long_rope(&self, original_positions: usize, half: usize) -> Read<RopeScaling> {
        if original_positions < 2 {
            return Err(format!(
                "{ORIGINAL} is {original_positions}, expected at least 2"
            ));
        }
        let original = original_positions as f64;
        let factor = self.inside().number_or_null("factor")?;
        let ratio = factor.unwrap_or(self.max_positions as f64 / original);
        let given = self.inside().number_or_null("attention_factor")?;
        let attention_factor = given.unwrap_or(if ratio <= 1.0 {
            1.0
        } else {
            (1.0 + ratio.ln() / original.ln()).sqrt()
        });
        Ok(RopeScaling::LongRope {
            short: self.factors("short_factor", half)?,
            long: self.factors("long_factor", half)?,
            original_positions,
            attention_factor: attention_factor as f32,
        })
    }

    fn factors(&self, key: &str, half: usize) -> Read<Vec<f32>> {
        let name = self.inside().name(key);
        let expected = format!("expected {half} positive numbers, half the rotary part of a head");
        let list = match self.inside().get(key) {
            None => return Err(format!("{name} is missing, {expected}")),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(format!("{name} is {other}, {expected}")),
        };
        if list.len() != half {
            return Err(format!("{name} has {} values, {expected}", list.len()));
        }
        let positive = |value: &Value| value.as_f64().filter(|f| *f > 0.0 && f.is_finite());
        match list.iter().find(|value| positive(value).is_none()) {
            Some(value) => Err(format!("{name} holds {value}, {expected}")),
            None => Ok(list.iter().filter_map(positive).map(|f| f as f32).collect()),
        }
    }

    pub(super) fn dynamic(&self, rotary_dim: usize) -> Read<RopeScaling> {
        let factor = self.factor()? as f32;
        if rotary_dim <= 2 {
            return Err(format!(
                "the rotary part of a head has {rotary_dim} elements, and dynamic scaling divides \
                 by two less; expected at least 4"
            ));
        }
        Ok(RopeScaling::Dynamic {
            factor,
            original_positions: self.max_positions,
        })
    }

    /// Reads YaRN's factors, for frequencies of base `theta`.
    pub(super) fn yarn(
        &self,
        original_positions: usize,
        theta: f64,
        rotary_dim: usize,
    ) -> Read<RopeScaling> {
        let inside = self.inside();
        let factor = match inside.get("factor") {
            Some(Value::Null) => self.max_positions as f64 / original_positions as f64,
            _ => self.factor()?,
        };
        // 0 is as absent: Python takes it for false.
        let number = |key| {
            let number = inside.number_or_null(key)?;
            Read::Ok(number.filter(|n| *n != 0.0))
        };
        let (fast, slow) = (number("beta_fast")?, number("beta_slow")?);
        let (mscale, mscale_all_dim) = (number("mscale")?, number("mscale_all_dim")?);
        let attention_factor = match (
            inside.number_or_null("attention_factor")?,
            mscale,
            mscale_all_dim,
        ) {
            (Some(given), ..) => given,
            (None, Some(mscale), Some(all_dim)) => {
                sharpening(factor, mscale) / sharpening(factor, all_dim)
            }
            (None, ..) => sharpening(factor, 1.0),
        };
        // transformers looks for it where the dictionaries of the kinds of layers are, not inside.
        let truncate = match self.place.by_window {
            true => true,
            false => inside.flag("truncate")?.unwrap_or(true),
        };
        let dim = rotary_dim as f64;
        let index_of = |rotations: f64| {
            let wavelength = original_positions as f64 / (rotations * 2.0 * PI);
            dim * wavelength.ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (
            index_of(fast.unwrap_or(32.0)),
            index_of(slow.unwrap_or(1.0)),
        );
        if !(low.is_finite() && high.is_finite()) {
            return Err(format!(
                "{} is yarn, whose ramp has no ends with a base of {theta} and an original context \
                 of {original_positions}; check rope_theta, beta_fast and beta_slow",
                inside.name("rope_type")
            ));
        }
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        Ok(RopeScaling::Yarn {
            factor: factor as f32,
            ramp_start: low as f32,
            ramp_span: (high - low) as f32,
            original_positions,
            attention_factor: attention_factor as f32,
        })
    }
}

/// What YaRN multiplies cos and sin with, that attention stays as sharp over a longer context.
fn sharpening(factor: f64, mscale: f64) -> f64 {
    match factor <= 1.0 {
        true => 1.0,
        false => 0.1 * mscale * factor.ln() + 1.0,
    }
}
