//! How a model asks to be continued: generation_config.json, with Hugging Face's meaning.
//!
//! The file stands alone: where it is there, config.json says nothing about generation, not even
//! what ends a text. Only a checkpoint without one is asked through config.json, where older
//! releases kept the same keys. A key that is absent or null has the default of `GenerationConfig`;
//! that of the family's own class, such as `LlamaConfig`'s `eos_token_id` of 2, does not count:
//! `from_pretrained` makes the settings of the file and not of the class.

mod check;
mod given;
mod keys;
mod refused;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::source::Source;
use given::{Given, given};
use keys::Keys;

const FILE: &str = "generation_config.json";
const MODEL_FILE: &str = "config.json";

/// What a model's files say about generation. The default is plain greedy decoding without an end.
///
/// A field has the name, the unit and the meaning of the key of generation_config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationSettings {
    /// The file that they were read from; `None` for settings that are from none.
    pub file: Option<&'static str>,
    /// What it sets, for [`GenerationSettings::in_force`].
    given: Vec<Given>,
    /// `eos_token_id`: any of these ends the text, and none does where it is empty.
    pub eos_ids: Vec<u32>,
    /// Any of these strings ends the text, of which it stays a part.
    pub stop_strings: Vec<String>,
    /// Most new tokens of an answer, where the model or the user limits them.
    pub max_new_tokens: Option<usize>,
    /// Most tokens, the prompt's included; `max_new_tokens` goes before it.
    pub max_length: Option<usize>,
    /// The text cannot end before this many new tokens; goes before `min_length`.
    pub min_new_tokens: Option<usize>,
    /// The text cannot end before this many tokens, the prompt's included.
    pub min_length: usize,
    /// Added to the logit of a sequence's last token where the tokens before it have just come.
    pub sequence_bias: Vec<(Vec<u32>, f32)>,
    /// More than 1 favours the prompt's tokens, less than 1 disfavours them.
    pub encoder_repetition_penalty: f64,
    /// More than 1 disfavours tokens of the prompt and of the text so far.
    pub repetition_penalty: f64,
    /// A sequence of this many tokens comes only once; 0 allows all.
    pub no_repeat_ngram_size: usize,
    /// A sequence of this many tokens of the prompt does not come again; 0 allows all.
    pub encoder_no_repeat_ngram_size: usize,
    /// Sequences that never come.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// The token after a prompt of one token.
    pub forced_bos_token_id: Option<u32>,
    /// What the last token that the length allows is one of; empty for any.
    pub forced_eos_token_id: Vec<u32>,
    /// Whether logits that are not finite are replaced and not refused.
    pub remove_invalid_values: bool,
    /// After how many new tokens the end becomes more likely, and by which factor a token.
    pub exponential_decay_length_penalty: Option<(usize, f64)>,
    /// Tokens that never come.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that do not come first.
    pub begin_suppress_tokens: Vec<u32>,
    /// Whether tokens are drawn by their probability; without, the most likely one is taken.
    pub do_sample: bool,
    /// What they are drawn from; without `do_sample` it means nothing and is not checked.
    pub sampling: SamplingSettings,
    /// Whether the logits are normalized to log probabilities at the end.
    pub renormalize_logits: bool,
}

/// Which tokens may be drawn, and how likely they are. Each is applied to what the ones before it
/// left over.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingSettings {
    /// What the logits are divided by; above 1 it makes unlikely tokens likelier.
    pub temperature: f64,
    /// Keeps the most likely tokens that together have this share of the entropy.
    pub top_h: Option<f64>,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: i64,
    /// Keeps the fewest of the most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f64,
    /// Keeps the tokens that are at least this many times as likely as the most likely one.
    pub min_p: Option<f64>,
    /// Keeps the tokens closest to the expected information that together have this probability;
    /// 1 keeps all.
    pub typical_p: f64,
    /// Keeps the tokens that are at least this likely, if between 0 and 1.
    pub epsilon_cutoff: f64,
    /// Keeps the tokens that are at least this likely, less where the entropy is high, if between
    /// 0 and 1.
    pub eta_cutoff: f64,
}

impl Default for GenerationSettings {
    fn default() -> Self {
        Self {
            file: None,
            given: Vec::new(),
            eos_ids: Vec::new(),
            stop_strings: Vec::new(),
            max_new_tokens: None,
            max_length: None,
            min_new_tokens: None,
            min_length: 0,
            sequence_bias: Vec::new(),
            encoder_repetition_penalty: 1.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            encoder_no_repeat_ngram_size: 0,
            bad_words_ids: Vec::new(),
            forced_bos_token_id: None,
            forced_eos_token_id: Vec::new(),
            remove_invalid_values: false,
            exponential_decay_length_penalty: None,
            suppress_tokens: Vec::new(),
            begin_suppress_tokens: Vec::new(),
            do_sample: false,
            sampling: SamplingSettings::default(),
            renormalize_logits: false,
        }
    }
}

/// Those of transformers, of which `top_k` alone is not neutral.
impl Default for SamplingSettings {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_h: None,
            top_k: 50,
            top_p: 1.0,
            min_p: None,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
        }
    }
}

impl GenerationSettings {
    /// Those of an open model.
    ///
    /// # Errors
    /// [`Error::Generation`] for a file that is not a JSON object, for a value of another type than
    /// the key's, and for a key that asks for what is not implemented.
    pub fn of(source: &Source) -> Result<Self> {
        let Some(keys) = Keys::of(source)? else {
            return Ok(Self::default());
        };
        Self::read(&keys)
    }

    /// Those of a generation_config.json's text.
    ///
    /// # Errors
    /// As [`GenerationSettings::of`].
    pub fn from_json(json: &[u8]) -> Result<Self> {
        Self::read(&Keys::parse(FILE, json)?)
    }

    /// Plain greedy decoding, of which the model decides only what ends a text.
    ///
    /// # Errors
    /// [`Error::Generation`] for a file that is not a JSON object, or ids that are none.
    pub fn plain(source: &Source) -> Result<Self> {
        let eos_ids = match Keys::of(source)? {
            Some(keys) => keys.one_or_more_ids("eos_token_id")?,
            None => None,
        };
        Ok(Self {
            eos_ids: eos_ids.unwrap_or_default(),
            ..Self::default()
        })
    }

    fn read(keys: &Keys) -> Result<Self> {
        refused::check(keys)?;
        let neutral = SamplingSettings::default();
        let sampling = SamplingSettings {
            temperature: keys.number("temperature")?.unwrap_or(neutral.temperature),
            top_h: keys.number("top_h")?,
            top_k: keys.integer("top_k")?.unwrap_or(neutral.top_k),
            top_p: keys.number("top_p")?.unwrap_or(neutral.top_p),
            min_p: keys.number("min_p")?,
            typical_p: keys.number("typical_p")?.unwrap_or(neutral.typical_p),
            epsilon_cutoff: keys.number("epsilon_cutoff")?.unwrap_or(0.0),
            eta_cutoff: keys.number("eta_cutoff")?.unwrap_or(0.0),
        };
        let mut forced_bos_token_id = keys.id("forced_bos_token_id")?;
        // A key of BART's first configurations, which transformers still reads there.
        if keys.file() == MODEL_FILE && keys.flag("force_bos_token_to_be_generated")? == Some(true)
        {
            forced_bos_token_id = keys.id("bos_token_id")?;
        }
        Ok(Self {
            file: Some(keys.file()),
            given: given(keys),
            eos_ids: keys.one_or_more_ids("eos_token_id")?.unwrap_or_default(),
            stop_strings: keys.strings("stop_strings")?.unwrap_or_default(),
            max_new_tokens: keys.count("max_new_tokens", 1)?,
            max_length: keys.count("max_length", 1)?,
            min_new_tokens: keys.count("min_new_tokens", 0)?,
            min_length: keys.count("min_length", 0)?.unwrap_or(0),
            sequence_bias: keys.biases("sequence_bias")?.unwrap_or_default(),
            encoder_repetition_penalty: keys.number("encoder_repetition_penalty")?.unwrap_or(1.0),
            repetition_penalty: keys.number("repetition_penalty")?.unwrap_or(1.0),
            no_repeat_ngram_size: keys.count("no_repeat_ngram_size", 0)?.unwrap_or(0),
            encoder_no_repeat_ngram_size: keys
                .count("encoder_no_repeat_ngram_size", 0)?
                .unwrap_or(0),
            bad_words_ids: keys.sequences("bad_words_ids")?.unwrap_or_default(),
            forced_bos_token_id,
            forced_eos_token_id: keys
                .one_or_more_ids("forced_eos_token_id")?
                .unwrap_or_default(),
            remove_invalid_values: keys.flag("remove_invalid_values")?.unwrap_or(false),
            exponential_decay_length_penalty: keys.decay("exponential_decay_length_penalty")?,
            suppress_tokens: keys.ids("suppress_tokens")?.unwrap_or_default(),
            begin_suppress_tokens: keys.ids("begin_suppress_tokens")?.unwrap_or_default(),
            do_sample: keys.flag("do_sample")?.unwrap_or(false),
            sampling,
            renormalize_logits: keys.flag("renormalize_logits")?.unwrap_or(false),
        })
    }

    /// The most new tokens that the settings allow after a prompt of `prompt` tokens; `None` where
    /// they set no limit.
    ///
    /// # Errors
    /// [`Error::Generation`] if the prompt alone reaches `max_length`.
    pub fn new_tokens(&self, prompt: usize) -> Result<Option<usize>> {
        match (self.max_new_tokens, self.max_length) {
            (Some(new), _) => Ok(Some(new)),
            (None, None) => Ok(None),
            (None, Some(length)) if length > prompt => Ok(Some(length - prompt)),
            (None, Some(length)) => Err(self.bad(format!(
                "max_length is {length}, which the prompt's {prompt} tokens reach; \
                 give --max-new-tokens"
            ))),
        }
    }

    /// Key and value of what the file sets to something that changes what is generated. The
    /// end-of-sequence ids are left out, and so is what sampling would obey while `do_sample` is
    /// false.
    pub fn in_force(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let applies = |given: &&Given| self.do_sample || !given.is_for_sampling;
        let given = self.given.iter().filter(applies);
        given.map(|given| (given.key, given.value.as_str()))
    }

    fn bad(&self, message: String) -> Error {
        let file = self.file.unwrap_or("generation settings");
        Error::Generation { file, message }
    }
}
