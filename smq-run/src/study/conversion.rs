//! From a config of the contract to the converter's options: the one place that knows both.

use smq_convert::{ConvertOptions, Method, QuantizeOptions, Target};
use smq_format::{Family, LevelChoice, ScaleChoice};

use super::contract::{Config, Quantization, Stored};

/// What a config runs from.
#[derive(Debug, Clone)]
pub(crate) enum Conversion {
    /// The checkpoint as it is.
    Checkpoint,
    /// A file made with these options.
    File(Box<ConvertOptions>),
    /// This build cannot make it, for this reason.
    Unsupported(String),
}

/// How to make the weights of `config`.
#[must_use]
pub(super) fn conversion(config: &Config, quantization: &Quantization) -> Conversion {
    let options = QuantizeOptions {
        group: quantization.group,
        scales: config.scales.unwrap_or(ScaleChoice::F32),
        rule: quantization.rule,
    };
    let quantize = match config.scheme {
        Stored::Bf16 => return Conversion::Checkpoint,
        Stored::Quantized(Family::Nf4) => Method::Nf4,
        Stored::Quantized(Family::Fp8) => Method::Fp8,
        Stored::Quantized(Family::Int4) => Method::Int4(options),
        Stored::Quantized(Family::Lut4) => Method::Lut4 {
            options,
            levels: LevelChoice::Learned,
        },
    };
    let Some(target) = config.target.as_deref().and_then(target) else {
        let target = &config.target;
        return Conversion::Unsupported(format!(
            "target {target:?} is not supported by this build"
        ));
    };
    Conversion::File(Box::new(ConvertOptions {
        target,
        quantize,
        overwrite: false,
        jobs: 0,
    }))
}

/// A target by name.
#[must_use]
pub(crate) fn target(name: &str) -> Option<Target> {
    name.parse().ok()
}
