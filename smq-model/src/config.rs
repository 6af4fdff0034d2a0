//! config.json of the supported architectures, checked once and turned into plain numbers.

mod identity;
mod keys;
mod layers;
mod numbers;
mod refused;
mod rope;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use crate::architecture::{
    Activation, Architecture, BiasRule, Biases, Multipliers, Rotations, SoftCaps, Windows,
};
use crate::error::{Error, Result};
use crate::json::parse_object;
use crate::names::{self, TensorSpec};
use crate::rope::{RopeConfig, RopeScaling};
use crate::source::Source;
pub(crate) use identity::supported;
use keys::{Keys, Read};

/// Largest dimension accepted for a tensor, in elements; the largest in use are vocabularies of
/// about 260,000.
pub const MAX_DIM_ELEMS: usize = 1 << 20;
/// Largest number of layers accepted.
pub const MAX_LAYERS: usize = 1 << 12;
/// What the names of the first layer's tensors have in common.
const FIRST_LAYER: &str = ".layers.0.";
/// Longest context or window accepted, tokens.
const MAX_POSITIONS: usize = 1 << 30;

/// What a config.json says, with Hugging Face's meaning: the numbers of a decoder that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which family the model is of, and so what its layers compute.
    pub architecture: &'static Architecture,
    /// Width of the residual stream, elements.
    pub hidden: usize,
    /// Width of the MLP's inner activation, elements.
    pub intermediate: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads of a layer; several may share a key.
    pub heads: usize,
    /// Key and value heads; `heads / kv_heads` queries share one (GQA).
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Vocabulary, rows of the embedding and of the head.
    pub vocab: usize,
    /// Which projections have biases.
    pub biases: Biases<bool>,
    /// Between the MLP's products.
    pub activation: Activation,
    /// What RMSNorm adds to the mean square, so that it divides by no zero.
    pub rms_norm_eps: f32,
    /// Tokens of the longest sequence that the model was made for.
    pub max_positions: usize,
    /// How far back a layer sees.
    pub windows: Windows,
    /// Whether embedding and head are one matrix.
    pub tables: Tables,
    /// Rotary position embedding, of the layers for which [`ModelConfig::rotations`] has no other.
    pub rope: RopeConfig,
    /// Which layers rotate, and by what.
    pub rotations: Rotations,
    /// Factors along the way.
    pub multipliers: Multipliers,
    /// The caps of scores and logits; absent ones change nothing.
    pub soft_caps: SoftCaps,
    /// What was ignored or decided, as transformers does, where config.json or the tensors say two
    /// things: a sentence each.
    pub notes: Vec<String>,
}

/// The matrices of the vocabulary that a model has, `[vocab, hidden]` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// An embedding and a head.
    Both,
    /// An embedding, which is the head too.
    Embedding,
    /// A head, which is the embedding too.
    Head,
}

impl ModelConfig {
    /// Of an open model.
    ///
    /// # Errors
    /// As [`ConfigFile::from_json`], [`ConfigFile::with_tensors`] and [`ConfigFile::runnable`];
    /// [`Error::Model`] if it holds no config.json.
    pub fn of(source: &Source) -> Result<Self> {
        let json = source.require_json("config.json")?;
        Self::of_object(source, &json).map_err(|e| e.in_config(|| source.file_label("config.json")))
    }

    fn of_object(source: &Source, json: &Map<String, Value>) -> Result<Self> {
        let file = ConfigFile::from_object(json)?;
        let file = file.with_tensors(|name| source.contains(name))?;
        if let Some(defaults) = file.defaults_in_words() {
            let tensors = file.tensors().into_iter();
            let mut stored = tensors.map(|t| source.stored(&t.name, &t.shape).map(drop));
            if let Some(error) = stored.find_map(std::result::Result::err) {
                return Err(Error::Config(format!(
                    "{defaults}, and do not fit: {error}"
                )));
            }
        }
        file.runnable()
    }

    /// Parses and checks a Hugging Face config.json, the tensors unknown.
    ///
    /// # Errors
    /// As [`ConfigFile::from_json`] and [`ConfigFile::runnable`].
    pub fn from_json(json: &[u8]) -> Result<Self> {
        ConfigFile::from_json(json)?.runnable()
    }

    /// The tensor that tokens are looked up in, `[vocab, hidden]`.
    #[must_use]
    pub fn embedding(&self) -> &'static str {
        match self.tables {
            Tables::Both | Tables::Embedding => self.architecture.embedding,
            Tables::Head => self.architecture.head,
        }
    }

    /// The head's tensor, `[vocab, hidden]`; `None` where the embedding is the head.
    #[must_use]
    pub fn own_head(&self) -> Option<&'static str> {
        match self.tables {
            Tables::Both => Some(self.architecture.head),
            Tables::Embedding | Tables::Head => None,
        }
    }

    /// Whether a sequence of `len` tokens has frequencies of its own, so that keys that were cached
    /// for a sequence of another length are not what computing it at once gives.
    #[must_use]
    pub fn grows(&self, len: usize) -> bool {
        let windowed = match &self.rotations {
            Rotations::Alike | Rotations::Listed(_) => false,
            Rotations::Windowed(rope) => rope.grows(len),
        };
        self.rope.grows(len) || windowed
    }

    /// The rotary embedding of a layer; `None` where it does not rotate.
    #[must_use]
    pub fn rope_of(&self, layer: usize) -> Option<&RopeConfig> {
        match &self.rotations {
            Rotations::Alike => Some(&self.rope),
            Rotations::Listed(rotated) => rotated.get(layer)?.then_some(&self.rope),
            Rotations::Windowed(local) => match self.windows.layer(layer) {
                Some(_) => Some(local),
                None => Some(&self.rope),
            },
        }
    }

    /// Every tensor that the model is made of, in the order of its `state_dict()`.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        names::tensors(self)
    }
}

/// A config.json as it is read: which tensors it implies, and whether the model can be run.
///
/// A model may be converted, exported or made up that smq-run refuses, for its rotary embedding
/// say: what tensors it has is known all the same.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// Placeholders stand in it for what is refused.
    config: ModelConfig,
    /// `tie_word_embeddings`, and whether it is there.
    tie: (bool, bool),
    absent: Vec<(&'static str, usize)>,
    refusals: Vec<String>,
}

impl ModelConfig {
    /// Layers that follow the last one that is read, as far as `has` tells that they have weights.
    fn layers_beyond(&self, has: impl Fn(&str) -> bool) -> usize {
        let one_layer = Self {
            layers: 1,
            ..self.clone()
        };
        let of_first: Vec<String> = one_layer
            .tensors()
            .into_iter()
            .filter(|tensor| tensor.name.contains(FIRST_LAYER))
            .map(|tensor| tensor.name)
            .collect();
        let is_there = |layer: &usize| {
            let part = format!(".layers.{layer}.");
            let mut names = of_first.iter().map(|name| name.replace(FIRST_LAYER, &part));
            names.any(|name| has(&name))
        };
        let beyond = self.layers..=MAX_LAYERS;
        beyond.take_while(is_there).count()
    }
}

impl ConfigFile {
    /// Reads a config.json.
    ///
    /// # Errors
    /// [`Error::Architecture`] for a family that is not supported; [`Error::Config`] for text that
    /// is not a JSON object, and for values that decide the tensors and that are out of range or
    /// contradict each other.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        Self::from_object(&parse_object("config.json", json)?)
    }

    /// As [`ConfigFile::from_json`], of JSON that is parsed.
    ///
    /// # Errors
    /// As [`ConfigFile::from_json`].
    pub fn from_object(json: &Map<String, Value>) -> Result<Self> {
        let keys = Keys::new(json, "");
        let architecture = identity::identify(keys)?;
        read(keys, architecture).map_err(Error::Config)
    }

    /// The same where `has` tells which tensors there are: they decide whether embedding and head
    /// are one, as in transformers. A head of its own is used, whatever `tie_word_embeddings` says.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is no head, and config.json does not let the embedding be it.
    pub fn with_tensors(mut self, has: impl Fn(&str) -> bool) -> Result<Self> {
        let Architecture {
            embedding, head, ..
        } = *self.config.architecture;
        let (tied, given) = self.tie;
        self.config.tables = match (tied, has(embedding), has(head)) {
            (true, true, true) => {
                self.config.notes.push(format!(
                    "config.json's tie_word_embeddings is true, but there is a {head} beside \
                     {embedding}: it is used as the head, as in transformers"
                ));
                Tables::Both
            }
            (true, false, true) => {
                self.config.notes.push(format!(
                    "there is no {embedding}: {head} is the embedding too, since config.json's \
                     tie_word_embeddings is true"
                ));
                Tables::Head
            }
            (true, _, false) => Tables::Embedding,
            (false, true, false) => {
                let flag = match given {
                    true => "is false".to_owned(),
                    false => format!(
                        "is absent, which is false for {}",
                        self.config.architecture.name
                    ),
                };
                return Err(Error::tensor(
                    head,
                    format!(
                        "is absent, and config.json's tie_word_embeddings {flag}, so that \
                         {embedding} is not the head too; the checkpoint is incomplete, or that \
                         key should be true"
                    ),
                ));
            }
            (false, ..) => Tables::Both,
        };
        let unread = self.config.layers_beyond(has);
        if unread > 0 {
            let layers = self.config.layers;
            self.config.notes.push(format!(
                "config.json's num_hidden_layers is {layers}, but there are weights of {unread} \
                 more: they are not used, as in transformers; if the model has {} layers, that key \
                 is wrong",
                layers + unread
            ));
        }
        Ok(self)
    }

    /// The family that config.json says the model is of.
    #[must_use]
    pub fn architecture(&self) -> &'static Architecture {
        self.config.architecture
    }

    /// The tensors that a checkpoint of this config must hold, as [`ModelConfig::tensors`] lists
    /// them.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        self.config.tensors()
    }

    /// The sizes that it leaves out, which are the family's defaults: key and value.
    #[must_use]
    pub fn absent(&self) -> &[(&'static str, usize)] {
        &self.absent
    }

    /// The sizes that it leaves out in words, for who finds that they are not the tensors'.
    #[must_use]
    pub fn defaults_in_words(&self) -> Option<String> {
        let list = self.absent.iter();
        let list: Vec<_> = list.map(|(key, n)| format!("{key} {n}")).collect();
        (!list.is_empty()).then(|| {
            format!(
                "{}'s defaults stand for keys that are left out ({})",
                self.config.architecture.name,
                list.join(", ")
            )
        })
    }

    /// What was decided where config.json leaves a choice, as [`ModelConfig::notes`] has it.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.config.notes
    }

    /// The configuration, of a model that can be run.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, if it asks for what is not implemented.
    pub fn runnable(self) -> Result<ModelConfig> {
        match self.refusals.into_iter().next() {
            None => Ok(self.config),
            Some(problem) => Err(Error::Config(problem)),
        }
    }
}

fn read(keys: Keys<'_>, architecture: &'static Architecture) -> Read<ConfigFile> {
    refused::elsewhere(keys)?;
    let defaults = &architecture.defaults;
    let mut absent = Vec::new();
    let mut size = |key: &'static str, limit, default| {
        let given = keys.size(key, limit)?;
        if given.is_none() {
            absent.push((key, default));
        }
        Read::Ok(given.unwrap_or(default))
    };
    let hidden = size("hidden_size", MAX_DIM_ELEMS, defaults.hidden_size)?;
    let intermediate = size(
        "intermediate_size",
        MAX_DIM_ELEMS,
        defaults.intermediate_size,
    )?;
    let layers = size("num_hidden_layers", MAX_LAYERS, defaults.num_hidden_layers)?;
    let heads = size(
        "num_attention_heads",
        MAX_DIM_ELEMS,
        defaults.num_attention_heads,
    )?;
    let vocab = size("vocab_size", MAX_DIM_ELEMS, defaults.vocab_size)?;
    let kv_heads = match keys.get("num_key_value_heads") {
        None => defaults.num_key_value_heads,
        Some(_) => keys.size_or_null("num_key_value_heads", MAX_DIM_ELEMS)?,
    };
    let kv_heads = kv_heads.unwrap_or(heads);
    let head_dim = match defaults.head_dim {
        // Null is no value where the class has a size of its own.
        Some(_) => keys.size("head_dim", MAX_DIM_ELEMS)?.or(defaults.head_dim),
        None => keys.size_or_null("head_dim", MAX_DIM_ELEMS)?,
    };
    let head_dim = match head_dim {
        Some(head_dim) => head_dim,
        None => {
            divisible("hidden_size", hidden, "num_attention_heads", heads)?;
            hidden / heads
        }
    };
    divisible(
        "num_attention_heads",
        heads,
        "num_key_value_heads",
        kv_heads,
    )?;
    let bias = |rule| match rule {
        BiasRule::Never => Ok(false),
        BiasRule::Always => Ok(true),
        BiasRule::Flag(key) => Ok::<_, String>(keys.flag(key)?.unwrap_or(false)),
    };
    let Biases { qkv, o, mlp } = architecture.biases;
    let biases = Biases {
        qkv: bias(qkv)?,
        o: bias(o)?,
        mlp: bias(mlp)?,
    };
    let tie = keys.flag("tie_word_embeddings")?;
    let tied = tie.unwrap_or(defaults.tie_word_embeddings);
    let mut file = ConfigFile {
        config: ModelConfig {
            architecture,
            hidden,
            intermediate,
            layers,
            heads,
            kv_heads,
            head_dim,
            vocab,
            biases,
            activation: defaults.activation,
            rms_norm_eps: defaults.rms_norm_eps as f32,
            max_positions: defaults.max_position_embeddings,
            windows: Windows::Alike(None),
            tables: if tied {
                Tables::Embedding
            } else {
                Tables::Both
            },
            rope: RopeConfig {
                theta: defaults.rope_theta as f32,
                rotary_dim: head_dim,
                scaling: RopeScaling::None,
            },
            rotations: Rotations::Alike,
            multipliers: Multipliers::of_head_dim(head_dim),
            soft_caps: SoftCaps {
                scores: None,
                logits: None,
            },
            notes: Vec::new(),
        },
        tie: (tied, tie.is_some()),
        absent,
        refusals: Vec::new(),
    };
    check_dimensions(&file.config)?;
    file.read_computation(keys);
    Ok(file)
}

impl ConfigFile {
    /// What does not decide the tensors, only what is computed with them.
    fn read_computation(&mut self, keys: Keys<'_>) {
        let c = &mut self.config;
        let mut refuse = |result: Read<()>| self.refusals.extend(result.err());
        refuse(keys.token_ids("bos_token_id", false));
        refuse(keys.token_ids("eos_token_id", true));
        refuse(keys.token_ids("pad_token_id", false));
        refuse(numbers::activation(keys, c));
        refuse(numbers::norm_and_context(keys, c));
        refuse(refused::attention(keys, c.architecture));
        let windows = layers::windows(keys, c);
        refuse(windows.map(|windows| c.windows = windows));
        let multipliers = numbers::multipliers(keys, c);
        refuse(multipliers.map(|multipliers| c.multipliers = multipliers));
        let soft_caps = numbers::soft_caps(keys, c);
        refuse(soft_caps.map(|soft_caps| c.soft_caps = soft_caps));
        refuse(rope::read(keys, c));
    }
}

fn divisible(key: &str, value: usize, divisor_key: &str, divisor: usize) -> Read<()> {
    match value.is_multiple_of(divisor) {
        true => Ok(()),
        false => Err(format!(
            "{key} {value} is not a multiple of {divisor_key} {divisor}"
        )),
    }
}

/// Sizes multiply to rows of a projection; layers are alike.
fn check_dimensions(c: &ModelConfig) -> Read<()> {
    let one_layer = ModelConfig {
        layers: 1,
        ..c.clone()
    };
    for tensor in one_layer.tensors() {
        if let Some(dim) = tensor.shape.iter().find(|dim| **dim > MAX_DIM_ELEMS) {
            return Err(format!(
                "{} {:?} has a dimension of {dim} elements, over the limit of {MAX_DIM_ELEMS} \
                 elements; check the config's sizes",
                tensor.name, tensor.shape
            ));
        }
    }
    Ok(())
}
