//! From a config of the contract to the converter's options: the one place that knows both.

use smq_convert::{ConvertOptions, Method, QuantizeOptions, ScaleChoice, ScaleRule, Target};

use super::contract::{Config, Quantization};

/// What a config runs from.
#[derive(Debug, Clone)]
pub enum Conversion {
    /// The checkpoint as it is.
    Checkpoint,
    /// A file made with these options.
    File(Box<ConvertOptions>),
    /// This build cannot make it, for this reason.
    Unsupported(String),
}

/// How to make the weights of `config`.
#[must_use]
pub fn conversion(config: &Config, quantization: &Quantization) -> Conversion {
    let unsupported =
        |what: String| Conversion::Unsupported(format!("{what} is not supported by this build"));
    let scales = match config.mantissa_bits() {
        Some(mantissa_bits) => e5(mantissa_bits),
        None => ScaleChoice::F32,
    };
    let quantize = match (config.scheme.as_str(), rule(&quantization.rule)) {
        ("bf16", _) => return Conversion::Checkpoint,
        ("nf4-dq", _) => Method::Nf4,
        ("fp8-e4m3", _) => Method::Fp8,
        ("int4", Some(rule)) => Method::Int4(QuantizeOptions {
            group: quantization.group,
            scales,
            rule,
        }),
        ("int4", None) => return unsupported(format!("scale rule {}", quantization.rule)),
        (other, _) => return unsupported(format!("scheme {other}")),
    };
    let Some(target) = config.target.as_deref().and_then(target) else {
        return unsupported(format!("target {:?}", config.target));
    };
    Conversion::File(Box::new(ConvertOptions {
        target,
        quantize,
        overwrite: false,
        jobs: 0,
    }))
}

/// E5Mx.
#[must_use]
pub fn e5(mantissa_bits: u32) -> ScaleChoice {
    ScaleChoice::Mini {
        exponent_bits: 5,
        mantissa_bits,
    }
}

/// A scale rule by name.
#[must_use]
pub fn rule(name: &str) -> Option<ScaleRule> {
    clap::ValueEnum::from_str(name, false).ok()
}

/// A target by name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    name.parse().ok()
}
