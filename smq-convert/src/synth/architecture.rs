//! From a Hugging Face `config.json` to the names and shapes of the model's tensors.
//!
//! Names, shapes and order are those of `Phi3ForCausalLM` and `LlamaForCausalLM` in the transformers library
//! (`state_dict()` order, which decides the sharding).

use std::path::Path;

use super::config::ModelConfig;
use super::error::SynthError;
use super::role::Role;

/// Largest dimension accepted for a tensor, in elements; the largest in use are vocabularies of about 260,000.
pub const MAX_DIM_ELEMS: u64 = 1 << 20;
/// A model family whose tensors can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    Phi3,
    Llama,
}

impl Architecture {
    pub(super) const ALL: [Self; 2] = [Self::Phi3, Self::Llama];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Phi3 => "Phi3ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
        }
    }
}

/// A tensor to generate, bf16, shape `[out, in]` or `[hidden]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorSpec {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) role: Role,
}

impl TensorSpec {
    /// Bytes of data; exact, because [`MAX_DIM_ELEMS`] bounds each dimension.
    pub(super) fn size_bytes(&self) -> u64 {
        self.shape.iter().fold(2, |bytes, &dim| bytes * dim as u64)
    }

    /// Rows and columns; a vector is one row.
    pub(super) fn rows_columns(&self) -> (usize, usize) {
        match *self.shape {
            [rows, columns] => (rows, columns),
            _ => (1, self.shape.iter().product()),
        }
    }
}

impl ModelConfig {
    /// All tensors in state-dict order.
    pub(super) fn tensors(&self) -> Result<Vec<TensorSpec>, SynthError> {
        let mut list = TensorList {
            path: &self.path,
            tensors: Vec::new(),
            total_bytes: 0,
        };
        let hidden = self.hidden;
        list.push(
            "model.embed_tokens.weight",
            &[self.vocab, hidden],
            Role::Embedding,
        )?;
        for layer in 0..self.layers {
            let prefix = format!("model.layers.{layer}");
            match self.architecture {
                Architecture::Phi3 => self.push_phi3_linears(&mut list, &prefix)?,
                Architecture::Llama => self.push_llama_linears(&mut list, &prefix)?,
            }
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                list.push(&format!("{prefix}.{norm}.weight"), &[hidden], Role::Norm)?;
            }
        }
        list.push("model.norm.weight", &[hidden], Role::Norm)?;
        if !self.tied_head {
            list.push("lm_head.weight", &[self.vocab, hidden], Role::Head)?;
        }
        Ok(list.tensors)
    }

    /// `Phi3DecoderLayer`: q, k and v rows stacked in `qkv_proj`, gate rows before up rows in `gate_up_proj`.
    fn push_phi3_linears(&self, list: &mut TensorList, prefix: &str) -> Result<(), SynthError> {
        let (hidden, intermediate) = (self.hidden, self.intermediate);
        let qkv_rows = self.q_rows + 2 * self.kv_rows;
        let linears = [
            (
                "self_attn.o_proj",
                [hidden, self.q_rows],
                Role::AttentionOut,
            ),
            ("self_attn.qkv_proj", [qkv_rows, hidden], Role::AttentionIn),
            ("mlp.gate_up_proj", [2 * intermediate, hidden], Role::MlpIn),
            ("mlp.down_proj", [hidden, intermediate], Role::MlpOut),
        ];
        for (name, shape, role) in linears {
            list.push(&format!("{prefix}.{name}.weight"), &shape, role)?;
        }
        Ok(())
    }

    /// `LlamaDecoderLayer`: one tensor a projection, biases where the config asks for them.
    fn push_llama_linears(&self, list: &mut TensorList, prefix: &str) -> Result<(), SynthError> {
        let (hidden, intermediate) = (self.hidden, self.intermediate);
        let (q_rows, kv_rows) = (self.q_rows, self.kv_rows);
        let (attention, mlp) = (self.attention_bias, self.mlp_bias);
        let linears = [
            (
                "self_attn.q_proj",
                [q_rows, hidden],
                Role::AttentionIn,
                attention,
            ),
            (
                "self_attn.k_proj",
                [kv_rows, hidden],
                Role::AttentionIn,
                attention,
            ),
            (
                "self_attn.v_proj",
                [kv_rows, hidden],
                Role::AttentionIn,
                attention,
            ),
            (
                "self_attn.o_proj",
                [hidden, q_rows],
                Role::AttentionOut,
                attention,
            ),
            ("mlp.gate_proj", [intermediate, hidden], Role::MlpIn, mlp),
            ("mlp.up_proj", [intermediate, hidden], Role::MlpIn, mlp),
            ("mlp.down_proj", [hidden, intermediate], Role::MlpOut, mlp),
        ];
        for (name, shape, role, bias) in linears {
            list.push(&format!("{prefix}.{name}.weight"), &shape, role)?;
            if bias {
                list.push(&format!("{prefix}.{name}.bias"), &shape[..1], Role::Bias)?;
            }
        }
        Ok(())
    }
}

/// Tensors so far, each with checked sizes.
struct TensorList<'a> {
    path: &'a Path,
    tensors: Vec<TensorSpec>,
    total_bytes: u64,
}

impl TensorList<'_> {
    fn push(&mut self, name: &str, shape: &[u64], role: Role) -> Result<(), SynthError> {
        let too_large = |actual: String, limit: String| SynthError::TooLarge {
            path: self.path.to_owned(),
            what: format!("{name} {shape:?}"),
            actual,
            limit,
        };
        let mut dims = Vec::with_capacity(shape.len());
        for &dim in shape {
            match usize::try_from(dim) {
                Ok(elems) if dim <= MAX_DIM_ELEMS => dims.push(elems),
                _ => {
                    let limit = format!("{MAX_DIM_ELEMS} elements");
                    return Err(too_large(format!("a dimension of {dim} elements"), limit));
                }
            }
        }
        let tensor = TensorSpec {
            name: name.to_owned(),
            shape: dims,
            role,
        };
        let total = self.total_bytes.checked_add(tensor.size_bytes());
        let total = total.filter(|&bytes| isize::try_from(bytes).is_ok());
        self.total_bytes = total.ok_or_else(|| {
            let limit = format!("{} bytes", isize::MAX);
            too_large("too many bytes before it".to_owned(), limit)
        })?;
        self.tensors.push(tensor);
        Ok(())
    }
}
