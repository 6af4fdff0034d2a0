//! Which tensors are quantized.

mod coverage;
mod kinds;
mod role;

use regex::Regex;

pub(crate) use coverage::Coverage;
pub(crate) use kinds::Kinds;
pub(crate) use role::{Role, is_embedding};

use crate::error::ConvertError;
use crate::source::Checkpoint;
use crate::tensor::SourceTensor;
use crate::unread::Reader;

/// Which tensors are quantized. Only matrices ever are.
#[derive(Debug, Clone)]
pub enum Target {
    /// What an int4 checkpoint has in int4 already, and nothing else.
    Imported,
    /// The MLP's projections, as the study fixes it.
    Mlp,
    /// Every projection of attention and MLP; embeddings and lm_head stay as they are.
    All,
    /// Every matrix whose name matches.
    Pattern(Regex),
}

/// Why a text is no target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It would match every name.
    #[error("it is empty, which would match every tensor; give mlp, all, or a regex over names")]
    Empty,
    /// It is no regex.
    #[error(transparent)]
    Regex(#[from] regex::Error),
}

impl Target {
    /// The target as the command line spells it.
    pub fn name(&self) -> &str {
        match self {
            Target::Imported => "imported",
            Target::Mlp => "mlp",
            Target::All => "all",
            Target::Pattern(regex) => regex.as_str(),
        }
    }

    /// Whether the tensor `name` of `dims` dimensions is selected.
    pub fn selects(&self, name: &str, dims: usize) -> bool {
        let projection = |block: &str| {
            name.contains(block) && name.ends_with("_proj.weight") && !role::in_tower(name)
        };
        dims == 2
            && match self {
                Target::Imported => false,
                Target::Mlp => projection(".mlp."),
                Target::All => projection(".mlp.") || projection("attn."),
                Target::Pattern(regex) => regex.is_match(name),
            }
    }

    /// Whether a tensor is selected, has elements, and is not one that nobody reads.
    pub fn takes(&self, tensor: &SourceTensor) -> bool {
        let selected = self.selects(&tensor.name, tensor.shape.len());
        selected && tensor.elems() > 0 && tensor.reader != Reader::Nobody
    }

    /// Refuses a pattern that takes what is hardly ever meant: an embedding, a head that shares the
    /// embedding's weights, a norm or a router, none of them named in full.
    ///
    /// # Errors
    /// The first such tensor.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<(), ConvertError> {
        let Target::Pattern(regex) = self else {
            return Ok(());
        };
        let tied = ties_head(checkpoint);
        for tensor in checkpoint.tensors() {
            let what = match Role::of(&tensor.name, &tensor.shape) {
                Role::Embedding => "an embedding",
                Role::Head if tied => "a head that shares the embedding's weights",
                Role::Norm => "a norm",
                Role::Router => "a router of experts",
                Role::Head | Role::Linear | Role::Stacked | Role::Tower | Role::Other => continue,
            };
            if !self.takes(tensor) || names_in_full(regex.as_str(), &tensor.name) {
                continue;
            }
            return Err(ConvertError::Option {
                option: "--target",
                value: format!("{:?}", regex.as_str()),
                rule: format!(
                    "takes tensor {:?} of {}, which is {what}; narrow the pattern, or name that \
                     tensor in full ('^{}$')",
                    tensor.name,
                    checkpoint.file_of(tensor).display(),
                    regex::escape(&tensor.name)
                ),
            });
        }
        Ok(())
    }

    /// The error where it takes none.
    pub(crate) fn selects_nothing(&self, checkpoint: &Checkpoint) -> ConvertError {
        let matrices = checkpoint.tensors().iter().filter(|t| t.shape.len() == 2);
        let examples: Vec<_> = matrices.take(4).map(|t| t.name.as_str()).collect();
        ConvertError::NothingToQuantize {
            target: self.name().to_owned(),
            path: checkpoint.path().to_path_buf(),
            examples: match examples.as_slice() {
                [] => "none".to_owned(),
                names => format!("{}, ...", names.join(", ")),
            },
        }
    }
}

impl std::str::FromStr for Target {
    type Err = TargetError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(match s {
            "mlp" => Target::Mlp,
            "all" => Target::All,
            empty if empty.trim().is_empty() => return Err(TargetError::Empty),
            pattern => Target::Pattern(Regex::new(pattern)?),
        })
    }
}

/// Whether config.json says that the head is the embedding.
fn ties_head(checkpoint: &Checkpoint) -> bool {
    let text = checkpoint.files().file("config.json").unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
    config["tie_word_embeddings"] == true
}

/// Whether one alternative of a pattern is a name, its dots escaped or not, anchored or not.
fn names_in_full(pattern: &str, name: &str) -> bool {
    pattern.split('|').any(|alternative| {
        let start = alternative.trim_start_matches(['^', '(']);
        let start = start.strip_prefix("?:").unwrap_or(start);
        let literal = start.trim_end_matches(['$', ')']).replace('\\', "");
        literal == name
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let names = [
            "model.layers.0.mlp.gate_up_proj.weight",
            "model.layers.0.self_attn.qkv_proj.weight",
            "model.embed_tokens.weight",
            "lm_head.weight",
            "model.layers.0.mlp.gate_up_proj.bias",
            "visual.blocks.0.mlp.gate_proj.weight",
            "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight",
            "thinker.audio_tower.layers.0.self_attn.out_proj.weight",
        ];
        let selected = |target: &str| {
            let target: Target = target.parse().unwrap();
            let selects = |n: &&str| target.selects(n, if n.ends_with("bias") { 1 } else { 2 });
            let at = names.iter().enumerate().filter(|(_, n)| selects(n));
            at.map(|(at, _)| at).collect::<Vec<_>>()
        };
        assert_eq!(selected("mlp"), [0]);
        assert_eq!(selected("all"), [0, 1]);
        assert_eq!(selected("^lm_head"), [3]);
        assert_eq!(selected(r"visual.*_proj"), [5]);
        assert!("(".parse::<Target>().is_err());
    }

    #[test]
    fn an_empty_target_is_refused() {
        for empty in ["", " ", "\t"] {
            let error = empty.parse::<Target>().unwrap_err().to_string();
            assert!(error.starts_with("it is empty"), "{error}");
        }
    }

    #[test]
    fn a_name_in_full() {
        let name = "model.embed_tokens.weight";
        for pattern in [
            "model.embed_tokens.weight",
            r"^model\.embed_tokens\.weight$",
            r"^(model\.layers\.0\.a\.weight|model\.embed_tokens\.weight)$",
            r"(?:model\.embed_tokens\.weight|.*_proj\.weight)",
        ] {
            assert!(names_in_full(pattern, name), "{pattern}");
        }
        for pattern in [".", "", "embed", r"embed_tokens\.weight", "model.embed.*"] {
            assert!(!names_in_full(pattern, name), "{pattern}");
        }
    }
}
