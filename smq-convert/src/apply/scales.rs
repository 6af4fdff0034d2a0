//! What storing an import's scales in another format does to them.

use rayon::prelude::*;
use smq_format::widen;

use crate::quantize::{QuantizeOptions, ScaleChoice, ScaleRule, round_scale, scale_format};
use crate::source::Checkpoint;
use crate::tensor::PackedView;

/// How many scales change, and by how much.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ScaleChange {
    /// All scales of the int4 tensors.
    pub scales: u64,
    /// Scales that the format does not hold exactly.
    pub changed: u64,
    /// Largest `|stored - scale| / |scale|`.
    pub max_relative: f64,
}

impl ScaleChange {
    fn add(self, scale: f32, stored: f32) -> Self {
        let changed = scale != stored && scale.is_finite();
        let relative = match changed {
            true => ((f64::from(stored) - f64::from(scale)) / f64::from(scale)).abs(),
            false => 0.0,
        };
        Self {
            scales: self.scales + 1,
            changed: self.changed + u64::from(changed),
            max_relative: self.max_relative.max(relative),
        }
    }

    fn merge(self, other: Self) -> Self {
        Self {
            scales: self.scales + other.scales,
            changed: self.changed + other.changed,
            max_relative: self.max_relative.max(other.max_relative),
        }
    }
}

/// What `options` do to the scales of the int4 tensors of `checkpoint`. Reads these alone: a scale
/// whose integers are all zero, which becomes 0, counts as any other.
#[must_use]
pub fn scale_change(checkpoint: &Checkpoint, options: &QuantizeOptions) -> ScaleChange {
    let of_tensor = |view: PackedView| {
        let scales = scales_of(view);
        let stored = stored(&scales, options);
        let pairs = scales.iter().zip(stored);
        pairs.fold(ScaleChange::default(), |sum, (scale, stored)| {
            sum.add(*scale, stored.unwrap_or(0.0))
        })
    };
    let tensors = checkpoint.tensors().par_iter();
    let changes = tensors.filter_map(|t| checkpoint.packed(t).map(of_tensor));
    changes.reduce(ScaleChange::default, ScaleChange::merge)
}

/// The narrowest format that holds every scale of the int4 tensors of `checkpoint` exactly: E5Mx
/// where one does, for scales over more than its 31 binades E8Mx, f16 or f32. Of two of a width f16
/// goes before E5M10, and that before E8M7.
#[must_use]
pub fn exact_scales(checkpoint: &Checkpoint) -> ScaleChoice {
    let mini = |exponent_bits, mantissa_bits| ScaleChoice::Mini {
        exponent_bits,
        mantissa_bits,
    };
    let of_width = |width: u32| {
        let of = move |exponent_bits: u32| {
            let mantissa_bits = width.checked_sub(1 + exponent_bits)?;
            (mantissa_bits <= 10).then(|| mini(exponent_bits, mantissa_bits))
        };
        let f16 = (width == 16).then_some(ScaleChoice::F16);
        [f16, of(5), of(8)].into_iter().flatten()
    };
    let holds_all = |scales: &ScaleChoice| {
        let options = QuantizeOptions {
            group: 1,
            scales: *scales,
            rule: ScaleRule::Reference,
        };
        let holds = |view: PackedView| {
            let scales = scales_of(view);
            let mut stored = stored(&scales, &options);
            scales
                .iter()
                .all(|s| stored.next() == Some(Some(*s)) || !s.is_finite())
        };
        let tensors = checkpoint.tensors().par_iter();
        tensors.all(|t| checkpoint.packed(t).is_none_or(holds))
    };
    let formats = (6..=19).flat_map(of_width);
    let mut formats = formats.filter(holds_all);
    formats.next().unwrap_or(ScaleChoice::F32)
}

fn scales_of(view: PackedView) -> Vec<f32> {
    let dtype = view.packed.scale_dtype;
    let mut scales = vec![0.0; view.scales.len() / dtype.bytes()];
    widen(dtype, view.scales, &mut scales);
    scales
}

/// The scales as one tensor's format holds them; `None` where it holds none of them.
fn stored<'a>(
    scales: &'a [f32],
    options: &'a QuantizeOptions,
) -> impl Iterator<Item = Option<f32>> + 'a {
    let rounded = |scale: &f32| round_scale(options, *scale);
    let finite = scales.iter().filter(|s| s.is_finite());
    let largest = finite.map(|s| rounded(s).abs()).fold(0.0, f32::max);
    let format = scale_format(options.scales, largest).ok();
    scales.iter().map(move |scale| {
        let format = format?;
        format.decode(format.encode(rounded(scale)).code)
    })
}
