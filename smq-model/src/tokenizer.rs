//! Text to token ids and back, by the model's own tokenizer.json.

use std::str::FromStr;

use serde_json::Value;

use crate::chat::{ChatTemplate, Message};
use crate::error::{Error, Result};
use crate::source::Source;

/// A model's tokenizer and chat template.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    chat: Option<ChatTemplate>,
    /// BOS or, without one, EOS: what stands before a text that has nothing before it.
    prefix: Option<String>,
    eos: Option<String>,
}

impl Tokenizer {
    /// Reads tokenizer.json, and tokenizer_config.json for the template.
    ///
    /// # Errors
    /// [`Error::Model`] if tokenizer.json is absent, [`Error::Tokenizer`] or [`Error::Template`] if
    /// a file cannot be used.
    pub fn load(source: &Source) -> Result<Self> {
        let json = source.require_text("tokenizer.json")?;
        let inner = tokenizers::Tokenizer::from_str(json).map_err(|e| {
            Error::file(
                source.file_label("tokenizer.json"),
                format!("cannot be read as a tokenizer: {e}"),
            )
        })?;
        let config = source.json("tokenizer_config.json")?;
        let config = config.map_or(Value::Null, Value::Object);
        let chat = ChatTemplate::new(&config, source.file("chat_template.jinja"))?;
        let special = |name: &str| {
            let value = &config[name];
            let text = value.as_str().or_else(|| value["content"].as_str())?;
            Some(text.to_owned())
        };
        let eos = special("eos_token");
        Ok(Self {
            inner,
            chat,
            prefix: special("bos_token").or_else(|| eos.clone()),
            eos,
        })
    }

    pub(crate) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// The id of a token written exactly like this.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// tokenizer_config.json's BOS token, or its EOS token where it has none.
    #[must_use]
    pub fn prefix_token(&self) -> Option<&str> {
        self.prefix.as_deref()
    }

    /// tokenizer_config.json's EOS token.
    #[must_use]
    pub fn eos_token(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    /// The chat template, if the model has one.
    #[must_use]
    pub fn chat(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    /// Ids of a text; `special` adds what the tokenizer puts around one (a BOS token, say).
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode(text, special)
            .map_err(|e| Error::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of a conversation that the assistant is to continue.
    ///
    /// # Errors
    /// [`Error::Template`] if there is no template or it refuses the messages.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let absent = || {
            Error::Template(
                "the model has none; use --raw to continue the prompt as plain text".into(),
            )
        };
        // The template writes its own special tokens.
        self.encode(
            &self
                .chat
                .as_ref()
                .ok_or_else(absent)?
                .render(messages, true)?,
            false,
        )
    }

    /// Text of ids, special tokens left out.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, true)
            .map_err(|e| Error::Tokenizer(e.to_string()))
    }

    /// A decoder of ids that arrive one at a time.
    #[must_use]
    pub fn stream(&self) -> TextStream<'_> {
        TextStream {
            tokenizer: self,
            stream: self.inner.decode_stream(true),
            ids: Vec::new(),
            shown: String::new(),
        }
    }
}

type InnerStream<'t> = tokenizers::DecodeStream<
    't,
    tokenizers::ModelWrapper,
    tokenizers::NormalizerWrapper,
    tokenizers::PreTokenizerWrapper,
    tokenizers::PostProcessorWrapper,
    tokenizers::DecoderWrapper,
>;

/// Text that grows with each id, held back while a character is incomplete.
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    stream: InnerStream<'t>,
    ids: Vec<u32>,
    shown: String,
}

impl TextStream<'_> {
    /// The text that `id` completes, often empty.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self
            .stream
            .step(id)
            .map_err(|e| Error::Tokenizer(e.to_string()))?
            .unwrap_or_default();
        self.shown.push_str(&text);
        Ok(text)
    }

    /// What was held back, and the whole text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn finish(self) -> Result<(String, String)> {
        let whole = self.tokenizer.decode(&self.ids)?;
        let rest = whole
            .strip_prefix(&self.shown)
            .unwrap_or_default()
            .to_owned();
        Ok((rest, whole))
    }
}
