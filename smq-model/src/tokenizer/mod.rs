//! Text to token ids and back, as Hugging Face's transformers does it with the model's files.

mod bounds;
mod class;
mod decode;
mod mistral;
mod ordered;
mod rebuild;
mod special;
mod token;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::ModelWrapper;

use crate::catch::caught;
use crate::chat::{ChatTemplate, Choice, Conversation, Message};
use crate::error::{Error, Result};
use crate::json::{parse_object, utf8};
use crate::source::Source;
use class::Class;
use decode::Decoding;
use ordered::Keys;
use special::{Special, truthy};

/// The file that the library reads.
const FILE: &str = "tokenizer.json";

/// Runs what calls the library, which panics on some files instead of refusing them.
fn guarded<T>(label: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(work).unwrap_or_else(|panic| {
        let problem = format!("the tokenizers library fails on it: {panic}");
        Err(Error::file(label, problem))
    })
}

/// A model's tokenizer and chat template.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    decoding: Decoding,
    chat: Option<ChatTemplate>,
    bos: Option<String>,
    eos: Option<String>,
    /// config.json's `vocab_size`: rows of the model's embedding.
    rows: Option<u64>,
    /// What an error of tokenizer.json blames.
    label: String,
}

/// What tokenizer.json holds beside what the library reads of it.
#[derive(Deserialize)]
struct Beside {
    #[serde(default)]
    added_tokens: Vec<Value>,
    padding: Option<Value>,
}

impl Tokenizer {
    /// Reads tokenizer.json and the files that say more about it: tokenizer_config.json,
    /// special_tokens_map.json, added_tokens.json, the chat templates, and config.json for the
    /// model's type and vocabulary.
    ///
    /// What a tokenizer.json has saved about padding and cutting texts is not obeyed: transformers
    /// clears it where nobody asks for it.
    ///
    /// # Errors
    /// [`Error::Model`] if tokenizer.json is absent, [`Error::Tokenizer`] or [`Error::Config`] if a
    /// file cannot be used. A chat template is looked at when it is rendered.
    pub fn load(source: &Source) -> Result<Self> {
        source.require_text("tokenizer.json")?;
        let files: Vec<(&str, &[u8])> = source.files().collect();
        let files = Files {
            files: &files,
            label: &|name| source.file_label(name),
        };
        Self::read(&files)
    }

    fn read(files: &Files<'_>) -> Result<Self> {
        guarded(&(files.label)(FILE), || Self::made_of(files))
    }

    fn made_of(files: &Files<'_>) -> Result<Self> {
        let json = utf8(&(files.label)(FILE), files.get(FILE).unwrap_or_default())?;
        let unreadable = |e: serde_json::Error| {
            Error::file(
                (files.label)(FILE),
                format!("cannot be read as a tokenizer: {e}"),
            )
        };
        let beside: Beside = serde_json::from_str(json).map_err(unreadable)?;
        let pipeline: bounds::Pipeline = serde_json::from_str(json).map_err(unreadable)?;
        pipeline
            .check()
            .map_err(|problem| Error::file((files.label)(FILE), problem))?;
        let config = files.object("tokenizer_config.json")?;
        let model = files.object("config.json")?;
        refuse_other_file(&config)?;
        let class = Class::of(&model, &config, json.contains("\"ByteLevel\""))?;
        let special = Special::of(
            &special::Files {
                config: &config,
                config_keys: &files.keys("tokenizer_config.json"),
                map: &files.object("special_tokens_map.json")?,
                map_keys: &files.keys("special_tokens_map.json"),
                added: &files.object("added_tokens.json")?,
                added_keys: &files.keys("added_tokens.json"),
                listed: &beside.added_tokens,
                padding: beside
                    .padding
                    .as_ref()
                    .and_then(|p| p["pad_token"].as_str()),
            },
            class,
        )?;
        let mut inner: tokenizers::Tokenizer = match class {
            Class::File => serde_json::from_str(json),
            _ => {
                let file = serde_json::from_str(json).map_err(unreadable)?;
                let unknown = special.text("unk_token");
                serde_json::from_value(rebuild::rebuilt(class, file, &config, unknown)?)
            }
        }
        .map_err(unreadable)?;
        special.add_to(&mut inner, class)?;
        mistral::mend(&mut inner, &model, &config)?;
        inner
            .with_truncation(None)
            .map_err(|e| Error::Tokenizer(e.to_string()))?
            .with_padding(None);
        let option = |key: &str| config.get(key).is_some_and(truthy);
        inner.set_encode_special_tokens(option("split_special_tokens"));
        let bpe = matches!(inner.get_model(), ModelWrapper::BPE(_));
        // Made for WordPiece: in a BPE's text such spaces belong there, which transformers heeds.
        let clean = option("clean_up_tokenization_spaces")
            && (!bpe
                || option(
                    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
                ));
        let tokens = special.named();
        let tokens = tokens.map(|(name, token)| (name.to_owned(), token.content().to_owned()));
        let choice = Choice::of(files.files.iter().copied(), config.get("chat_template"));
        let chat = choice.map(|choice| ChatTemplate::new(choice, tokens.collect()));
        Ok(Self {
            decoding: Decoding::of(&inner, clean),
            inner,
            chat,
            bos: special.text("bos_token").map(str::to_owned),
            eos: special.text("eos_token").map(str::to_owned),
            rows: model.get("vocab_size").and_then(Value::as_u64),
            label: (files.label)(FILE),
        })
    }

    /// The library's tokenizer, which this one wraps.
    pub(crate) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// The id of a token written exactly like this.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The BOS token, or the EOS token where there is none: what stands before a text that has
    /// nothing before it.
    #[must_use]
    pub fn prefix_token(&self) -> Option<&str> {
        self.bos.as_deref().or(self.eos.as_deref())
    }

    /// The text of the token that ends a sequence, where the model has one.
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
    /// [`Error::Tokenizer`] if the library refuses the text, or if a token has an id that the
    /// model has no embedding for.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(&self.label, || {
            let encoded = self.inner.encode(text, special);
            encoded.map_err(|e| Error::Tokenizer(e.to_string()))
        })?;
        let ids = encoding.get_ids().to_vec();
        if let Some(rows) = self.rows
            && let Some(id) = ids.iter().find(|id| u64::from(**id) >= rows)
        {
            let token = self.inner.id_to_token(*id).unwrap_or_default();
            return Err(Error::Tokenizer(format!(
                "token {token:?} has id {id}, but config.json's vocab_size is {rows}; the \
                 tokenizer's files and config.json are not of the same model"
            )));
        }
        Ok(ids)
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
        let chat = self.chat.as_ref().ok_or_else(absent)?;
        // The template writes its own special tokens.
        self.encode(&chat.render(messages, true)?, false)
    }

    /// As [`encode_chat`](Self::encode_chat), of turns with more than a role and a text.
    ///
    /// # Errors
    /// As [`encode_chat`](Self::encode_chat).
    pub fn encode_conversation(&self, conversation: &Conversation<'_>) -> Result<Vec<u32>> {
        let absent = || Error::Template("the model has none".into());
        let chat = self.chat.as_ref().ok_or_else(absent)?;
        self.encode(&chat.render_conversation(conversation)?, false)
    }

    /// Text of ids, special tokens left out.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut stream = self.stream();
        for id in ids {
            stream.push(*id)?;
        }
        stream.finish().map(|(_, whole)| whole)
    }

    /// A decoder of ids that arrive one at a time.
    #[must_use]
    pub fn stream(&self) -> TextStream<'_> {
        TextStream {
            tokenizer: self,
            decoding: self.decoding.clone(),
            shown: String::new(),
        }
    }
}

/// Text that grows with each id. What a later id may still change is held back: the beginning of
/// a character, bytes that may turn out to be none.
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    decoding: Decoding,
    shown: String,
}

impl TextStream<'_> {
    /// The text that `id` completes, often empty.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        let Self {
            tokenizer,
            decoding,
            ..
        } = self;
        let text = guarded(&tokenizer.label, || decoding.push(&tokenizer.inner, id))?;
        self.shown.push_str(&text);
        Ok(text)
    }

    /// What was held back, and the whole text: all that was shown and then this.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn finish(self) -> Result<(String, String)> {
        let rest = guarded(&self.tokenizer.label, || self.decoding.finish())?;
        let whole = self.shown + &rest;
        Ok((rest, whole))
    }
}

/// The model's files, by name.
struct Files<'f> {
    files: &'f [(&'f str, &'f [u8])],
    /// What an error of a file blames.
    label: &'f dyn Fn(&str) -> String,
}

impl Files<'_> {
    fn get(&self, name: &str) -> Option<&[u8]> {
        let found = self.files.iter().find(|(known, _)| *known == name);
        found.map(|(_, contents)| *contents)
    }

    /// A file's JSON object; empty if the file is absent.
    fn object(&self, name: &str) -> Result<Map<String, Value>> {
        let json = self
            .get(name)
            .map(|json| parse_object(&(self.label)(name), json));
        json.transpose().map(Option::unwrap_or_default)
    }

    /// The order of its keys.
    fn keys(&self, name: &str) -> Keys {
        self.get(name).map(Keys::of).unwrap_or_default()
    }
}

/// transformers may be told to read another file than tokenizer.json, one for each of its versions.
fn refuse_other_file(config: &Map<String, Value>) -> Result<()> {
    let files = config.get("fast_tokenizer_files").and_then(Value::as_array);
    let other = files.into_iter().flatten().filter_map(Value::as_str);
    match other.into_iter().find(|name| *name != "tokenizer.json") {
        Some(name) => Err(Error::Tokenizer(format!(
            "tokenizer_config.json's fast_tokenizer_files names {name}, which is not read; name it \
             tokenizer.json and remove the key"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
