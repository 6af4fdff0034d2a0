//! config.json of the supported architectures, checked once and turned into plain numbers.

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::json::parse_object;
use crate::rope::{RopeConfig, RopeScaling};
use crate::source::Source;

/// The decoder families this runner implements. They differ in how projections are fused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Phi-3, Phi-3.5-mini, Phi-4-mini: `qkv_proj` and `gate_up_proj` are fused.
    Phi3,
    /// Llama and its relatives (SmolLM2): separate projections.
    Llama,
}

/// Upper limits that keep a crafted config.json from asking for absurd allocations.
const MAX_DIM: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 12;

/// A decoder's shape, as config.json gives it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which family.
    pub architecture: Architecture,
    /// Width of the residual stream, elements.
    pub hidden: usize,
    /// Width of the MLP's inner activation, elements.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads / kv_heads` queries share one (GQA).
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Vocabulary, rows of the embedding and of the head.
    pub vocab: usize,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f32,
    /// Longest sequence, tokens.
    pub max_positions: usize,
    /// A query sees this many latest positions, itself included; `None` sees all.
    pub sliding_window: Option<usize>,
    /// The head is the embedding matrix.
    pub tied_head: bool,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// End-of-sequence ids of config.json; generation_config.json may add more.
    pub eos_ids: Vec<u32>,
}

/// One id or a list of ids: Hugging Face writes both.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    architectures: Vec<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    original_max_position_embeddings: Option<usize>,
    hidden_act: Option<String>,
    sliding_window: Option<usize>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    eos_token_id: Option<Ids>,
}

/// `rope_scaling` (until transformers 4) or `rope_parameters` (from 5 on).
#[derive(Deserialize, Default, Clone)]
struct RawRope {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    attention_factor: Option<f64>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

impl ModelConfig {
    /// Of an open model.
    ///
    /// # Errors
    /// As [`ModelConfig::from_json`]; [`Error::Model`] if it holds no config.json.
    pub fn of(source: &Source) -> Result<Self> {
        let json = source.require_json("config.json")?;
        Self::from_object(json).map_err(|e| e.in_config(|| source.file_label("config.json")))
    }

    /// Parses and checks a Hugging Face config.json.
    ///
    /// # Errors
    /// [`Error::Config`] for an architecture or an option that is not implemented, and for
    /// values that contradict each other.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        Self::from_object(parse_object("config.json", json)?)
    }

    fn from_object(json: serde_json::Map<String, serde_json::Value>) -> Result<Self> {
        let value = serde_json::Value::Object(json);
        // The architecture first: an unknown one lacks our fields, and that message would mislead.
        let names = value
            .get("architectures")
            .and_then(|v| v.as_array())
            .cloned();
        let name = names
            .unwrap_or_default()
            .first()
            .and_then(|v| v.as_str().map(str::to_owned));
        let architecture = match name.as_deref() {
            Some("Phi3ForCausalLM") => Architecture::Phi3,
            Some("LlamaForCausalLM") => Architecture::Llama,
            other => {
                return Err(Error::Config(format!(
                    "architecture {} is not supported; supported are Phi3ForCausalLM (Phi-3, Phi-3.5-mini, \
                     Phi-4-mini) and LlamaForCausalLM (Llama, SmolLM2)",
                    other.unwrap_or("(none given)")
                )));
            }
        };
        let raw: Raw = serde_json::from_value(value).map_err(|e| Error::Config(e.to_string()))?;
        raw.check(architecture)
    }
}

impl Raw {
    fn check(self, architecture: Architecture) -> Result<ModelConfig> {
        let bad = |message: String| Err(Error::Config(message));
        debug_assert_eq!(self.architectures.len(), 1);
        for (name, value, limit) in [
            ("hidden_size", self.hidden_size, MAX_DIM),
            ("intermediate_size", self.intermediate_size, MAX_DIM),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_DIM),
            ("vocab_size", self.vocab_size, MAX_DIM),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                1 << 30,
            ),
            ("head_dim", self.head_dim.unwrap_or(1), 1 << 16),
            (
                "num_key_value_heads",
                self.num_key_value_heads.unwrap_or(1),
                MAX_DIM,
            ),
            ("sliding_window", self.sliding_window.unwrap_or(1), 1 << 30),
        ] {
            if value == 0 || value > limit {
                return bad(format!("{name} is {value}, expected 1 to {limit}"));
            }
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return bad(format!(
                "rms_norm_eps is {}, expected a small positive number",
                self.rms_norm_eps
            ));
        }
        if self.attention_bias || self.mlp_bias {
            return bad(
                "attention_bias or mlp_bias is true; projections with a bias are not supported"
                    .into(),
            );
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|&act| act != "silu") {
            return bad(format!("hidden_act is {act}; only silu is supported"));
        }
        let heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return bad(format!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            ));
        }
        let head_dim = match self.head_dim {
            Some(d) => d,
            None if self.hidden_size.is_multiple_of(heads) => self.hidden_size / heads,
            None => {
                return bad(format!(
                    "hidden_size {} is not a multiple of num_attention_heads {heads}",
                    self.hidden_size
                ));
            }
        };
        let rope = self.rope(head_dim)?;
        Ok(ModelConfig {
            architecture,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads,
            head_dim,
            vocab: self.vocab_size,
            rms_norm_eps: self.rms_norm_eps as f32,
            max_positions: self.max_position_embeddings,
            // Hugging Face's Llama has no sliding window, whatever its config says.
            sliding_window: self
                .sliding_window
                .filter(|_| architecture == Architecture::Phi3),
            tied_head: self.tie_word_embeddings,
            rope,
            eos_ids: ids(self.eos_token_id),
        })
    }

    fn rope(&self, head_dim: usize) -> Result<RopeConfig> {
        let raw = self
            .rope_parameters
            .clone()
            .or_else(|| self.rope_scaling.clone())
            .unwrap_or_default();
        let bad = |message: String| Err(Error::Config(message));
        let theta = raw.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        let partial = raw
            .partial_rotary_factor
            .or(self.partial_rotary_factor)
            .unwrap_or(1.0);
        if !(theta > 0.0 && theta.is_finite() && partial > 0.0 && partial <= 1.0) {
            return bad(format!(
                "rope_theta {theta} or partial_rotary_factor {partial} is out of range"
            ));
        }
        let rotary_dim = (head_dim as f64 * partial) as usize;
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            return bad(format!(
                "the rotary part of a head has {rotary_dim} elements, expected an even number"
            ));
        }
        let factor = || match raw.factor {
            Some(f) if f > 0.0 && f.is_finite() => Ok(f),
            other => Err(Error::Config(format!(
                "rope scaling's factor is {other:?}, expected a positive number"
            ))),
        };
        // Phi-3 keeps the original context beside rope_scaling, transformers 5 inside it.
        let original = raw
            .original_max_position_embeddings
            .or(self.original_max_position_embeddings);
        let original = original.unwrap_or(self.max_position_embeddings);
        let kind = raw
            .rope_type
            .as_deref()
            .or(raw.old_type.as_deref())
            .unwrap_or("default");
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear {
                factor: factor()? as f32,
            },
            "llama3" => {
                let (Some(low), Some(high)) = (raw.low_freq_factor, raw.high_freq_factor) else {
                    return bad(
                        "llama3 rope scaling needs low_freq_factor and high_freq_factor".into(),
                    );
                };
                if !(low > 0.0 && high > low) {
                    return bad(format!(
                        "llama3 rope scaling has low_freq_factor {low}, high_freq_factor {high}"
                    ));
                }
                RopeScaling::Llama3 {
                    factor: factor()? as f32,
                    low_freq: low as f32,
                    high_freq: high as f32,
                    original_positions: original,
                }
            }
            // "su" is LongRoPE's name in the first Phi-3 releases.
            "longrope" | "su" => {
                let (Some(short), Some(long)) = (raw.short_factor.clone(), raw.long_factor.clone())
                else {
                    return bad("longrope needs short_factor and long_factor".into());
                };
                for (name, list) in [("short_factor", &short), ("long_factor", &long)] {
                    if list.len() != rotary_dim / 2
                        || !list.iter().all(|f| f.is_finite() && *f > 0.0)
                    {
                        return bad(format!(
                            "{name} has {} values, expected {} positive ones (half the rotary dimension)",
                            list.len(),
                            rotary_dim / 2
                        ));
                    }
                }
                if original < 2 {
                    return bad(format!(
                        "original_max_position_embeddings is {original}, expected at least 2"
                    ));
                }
                let ratio = raw
                    .factor
                    .unwrap_or(self.max_position_embeddings as f64 / original as f64);
                let attention_factor = raw.attention_factor.unwrap_or(if ratio <= 1.0 {
                    1.0
                } else {
                    (1.0 + ratio.ln() / (original as f64).ln()).sqrt()
                });
                RopeScaling::LongRope {
                    short,
                    long,
                    original_positions: original,
                    attention_factor: attention_factor as f32,
                }
            }
            other => {
                return bad(format!(
                    "rope scaling {other} is not supported; supported are default, linear, llama3 and longrope"
                ));
            }
        };
        Ok(RopeConfig {
            theta: theta as f32,
            rotary_dim,
            scaling,
        })
    }
}

/// The end-of-sequence ids of generation_config.json or config.json; none where it has none or is
/// absent.
///
/// # Errors
/// [`Error::File`] when it is not JSON or the ids are not numbers.
pub(crate) fn eos_ids(source: &Source, name: &str) -> Result<Vec<u32>> {
    let key = "eos_token_id";
    let Some(value) = source.json(name)?.and_then(|mut json| json.remove(key)) else {
        return Ok(Vec::new());
    };
    let found = value.to_string();
    let parsed: Option<Ids> = serde_json::from_value(value).map_err(|_| {
        let problem = format!("{key} is {found}, expected a token id, a list of them or null");
        Error::file(source.file_label(name), problem)
    })?;
    Ok(ids(parsed))
}

fn ids(ids: Option<Ids>) -> Vec<u32> {
    match ids {
        None => Vec::new(),
        Some(Ids::One(id)) => vec![id],
        Some(Ids::Many(ids)) => ids,
    }
}
