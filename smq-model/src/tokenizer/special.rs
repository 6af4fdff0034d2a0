//! Special and added tokens, of all the files that may declare some.
//!
//! What wins where they differ is what `PreTrainedTokenizerBase._from_pretrained` and
//! `TokenizersBackend.__init__` of transformers 5.24 make of them: tokenizer_config.json's
//! `added_tokens_decoder` where it is there; else special_tokens_map.json over
//! tokenizer_config.json, and added_tokens.json under tokenizer.json.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::class::Class;
use super::ordered::Keys;
use super::token::{Flags, Token, many, one, wrong};
use crate::error::{Error, Result};

/// The special tokens that every tokenizer may name, in transformers' order.
const NAMED: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];
const EXTRA: &str = "extra_special_tokens";
/// What it was called until transformers 4.
const ADDITIONAL: &str = "additional_special_tokens";
const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";

/// The files that declare tokens.
pub(super) struct Files<'f> {
    /// What tokenizer_config.json says.
    pub(super) config: &'f Map<String, Value>,
    pub(super) config_keys: &'f Keys,
    /// What special_tokens_map.json says: texts by role.
    pub(super) map: &'f Map<String, Value>,
    pub(super) map_keys: &'f Keys,
    /// added_tokens.json: ids by text.
    pub(super) added: &'f Map<String, Value>,
    pub(super) added_keys: &'f Keys,
    /// What tokenizer.json lists as `added_tokens`.
    pub(super) listed: &'f [Value],
    /// The padding token that tokenizer.json's `padding` names.
    pub(super) padding: Option<&'f str>,
}

/// What the files declare together.
#[derive(Debug, Default)]
pub(super) struct Special {
    /// Tokens by name: `bos_token` and the like, and names of the model's own.
    named: Vec<(String, Option<Token>)>,
    /// Special tokens without a name.
    extra: Vec<Token>,
    /// Tokens by the ids that the files give them, which decide no more than the order.
    added: BTreeMap<i64, Flags>,
}

/// Named and unnamed tokens before the files are done with.
#[derive(Default)]
struct Given {
    named: HashMap<String, Option<Token>>,
    /// Names of the model's own whose values are texts in tokenizer_config.json: these win.
    own: Vec<(String, Token)>,
    /// Any other names of the model's own.
    also_own: Vec<(String, Token)>,
    /// `extra_special_tokens`, where the key is there and holds no names.
    extra: Option<Vec<Token>>,
    /// `additional_special_tokens`, which stand in where that is not so.
    additional: Option<Vec<Token>>,
    /// Texts that make a token of added_tokens.json a special one, and the keys that gave them.
    /// transformers overlooks those that tokenizer_config.json gives with flags.
    declared: Vec<(String, String)>,
}

impl Special {
    /// # Errors
    /// [`Error::Tokenizer`] if a token is neither a text nor an object with one.
    pub(super) fn of(files: &Files<'_>, class: Class) -> Result<Self> {
        let mut given = Given::of_config(files)?;
        let mut added = BTreeMap::new();
        let mut flags: HashMap<String, Flags> = HashMap::new();
        let mut add = |id: i64, token: Flags| {
            flags.insert(token.content().to_owned(), token.clone());
            added.insert(id, token);
        };
        match files.config.get("added_tokens_decoder") {
            Some(Value::Object(map)) => {
                for (id, value) in map {
                    let wrong = || wrong(CONFIG, "added_tokens_decoder", &format!("{id}: {value}"));
                    let number = id.trim().parse().map_err(|_| wrong())?;
                    let token = value.as_object().and_then(|map| Flags::of(map, false));
                    add(number, token.ok_or_else(wrong)?);
                }
            }
            Some(other) => return Err(wrong(CONFIG, "added_tokens_decoder", &other.to_string())),
            None => {
                given.add_map(files)?;
                for (text, id) in files.added_keys.items(files.added) {
                    let wrong = || wrong("added_tokens.json", text, &id.to_string());
                    let token = Flags::plain(text, given.is_declared(text));
                    add(id.as_i64().ok_or_else(wrong)?, token);
                }
                for value in files.listed {
                    let wrong = || wrong("tokenizer.json", "added_tokens", &value.to_string());
                    let token = value.as_object().and_then(|map| Flags::of(map, false));
                    let id = value["id"].as_i64().ok_or_else(wrong)?;
                    add(id, token.ok_or_else(wrong)?);
                }
            }
        }
        let mut named: Vec<(String, Option<Token>)> = Vec::new();
        for name in NAMED {
            let token = match (given.named.remove(name), default_token(class, name)) {
                (Some(Some(token)), _) => Some(match flags.get(token.content()) {
                    Some(flags) => Token::Flags(flags.clone()),
                    None => token,
                }),
                // Set to null, which no default replaces.
                (Some(None), _) => None,
                (None, Some(default)) => Some(Token::Text(default.into())),
                (None, None) if name == "pad_token" && !names_padding(class) => {
                    files.padding.map(|text| Token::Text(text.into()))
                }
                (None, None) => None,
            };
            named.push((name.to_owned(), token));
        }
        for (name, token) in given.also_own.into_iter().chain(given.own) {
            set(&mut named, name, Some(token));
        }
        Ok(Self {
            named,
            extra: given.extra.or(given.additional).unwrap_or_default(),
            added,
        })
    }

    /// The tokens that have names, which templates may use.
    pub(super) fn named(&self) -> impl Iterator<Item = (&str, &Token)> {
        let named = self.named.iter();
        named.filter_map(|(name, token)| Some((name.as_str(), token.as_ref()?)))
    }

    /// The text of a token by its name.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let mut named = self.named();
        let found = named.find(|(n, _)| *n == name);
        found.map(|(_, token)| token.content())
    }

    /// Adds the tokens to a tokenizer: those that have ids in the order of these, with the flags
    /// declared for them, then special ones that it does not know yet. A token that is in the
    /// vocabulary keeps its id there; any other gets the next one that is free.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot hold them.
    pub(super) fn add_to(&self, tokenizer: &mut tokenizers::Tokenizer, class: Class) -> Result<()> {
        let known = tokenizer.get_added_tokens_decoder();
        let mut known: Vec<&str> = known.values().map(|token| token.content.as_str()).collect();
        known.extend(self.added.values().map(Flags::content));
        let all = || self.named().map(|(_, token)| token).chain(&self.extra);
        let mut new: Vec<&Token> = Vec::new();
        for token in all() {
            if !known.contains(&token.content()) && !new.contains(&token) {
                new.push(token);
            }
        }
        let names: Vec<&str> = self.named().map(|(_, token)| token.content()).collect();
        let added = |flags: &Flags| flags.added(names.contains(&flags.content()));
        let mut adding: Vec<AddedToken> = self.added.values().map(added).collect();
        adding.extend(new.into_iter().map(|token| match token {
            Token::Text(text) => AddedToken::from(text.clone(), true),
            Token::Flags(flags) => added(flags),
        }));
        let mut add = |tokens: Vec<AddedToken>| {
            let added = tokenizer.add_tokens(tokens);
            added.map_err(|e| Error::Tokenizer(format!("a declared token cannot be added: {e}")))
        };
        add(adding)?;
        if class == Class::Qwen2 {
            // This class gives every special token plain flags again, whatever the files say.
            add(all()
                .map(|token| AddedToken::from(token.content(), true))
                .collect())?;
        }
        Ok(())
    }
}

impl Given {
    fn of_config(files: &Files<'_>) -> Result<Self> {
        let mut given = Self::default();
        for (key, value) in files.config_keys.items(files.config) {
            if NAMED.contains(&key) {
                given
                    .named
                    .insert(key.to_owned(), one(CONFIG, key, value, false)?);
            } else if key.ends_with("_token") {
                let own = match value {
                    Value::String(_) => &mut given.own,
                    Value::Object(_) => &mut given.also_own,
                    _ => continue,
                };
                own.extend(Token::of(value, false).map(|token| (key.to_owned(), token)));
            }
        }
        let extra = files.config.get(EXTRA);
        let additional = files
            .config
            .get(ADDITIONAL)
            .filter(|_| !extra.is_some_and(truthy));
        match additional.or(extra) {
            Some(Value::Object(map)) => {
                let key = if additional.is_some() {
                    ADDITIONAL
                } else {
                    EXTRA
                };
                let keys = files.config_keys.within(key);
                own_tokens(CONFIG, map, keys, &mut given.own)?;
                if let (Some(unmoved), None) = (files.config.get(ADDITIONAL), additional) {
                    given.additional = Some(many(CONFIG, ADDITIONAL, unmoved, false)?);
                }
            }
            Some(value) => given.extra = Some(many(CONFIG, EXTRA, value, false)?),
            None => {}
        }
        let named = given.named.iter();
        let named = named.filter_map(|(name, token)| Some((name.as_str(), token.as_ref()?)));
        let extra = given.extra.iter().flatten().map(|token| (EXTRA, token));
        let texts = named
            .chain(extra)
            .filter(|(_, token)| matches!(token, Token::Text(_)));
        let declared = |(key, token): (&str, &Token)| (key.to_owned(), token.content().to_owned());
        given.declared = texts.map(declared).collect();
        Ok(given)
    }

    fn is_declared(&self, text: &str) -> bool {
        self.declared.iter().any(|(_, declared)| declared == text)
    }

    /// Lays special_tokens_map.json over what there is.
    fn add_map(&mut self, files: &Files<'_>) -> Result<()> {
        for (key, value) in files.map_keys.items(files.map) {
            match (key, value) {
                (EXTRA, Value::Object(map)) => {
                    self.extra = None;
                    let keys = files.map_keys.within(EXTRA);
                    own_tokens(MAP, map, keys, &mut self.own)?;
                }
                (EXTRA, value) => {
                    let all = self.extra.get_or_insert_default();
                    for token in many(MAP, EXTRA, value, true)? {
                        self.declared
                            .push((key.to_owned(), token.content().to_owned()));
                        if !all.contains(&token) {
                            all.push(token);
                        }
                    }
                }
                (ADDITIONAL, value) => self.additional = Some(many(MAP, key, value, true)?),
                (key, value) if NAMED.contains(&key) => {
                    let token = one(MAP, key, value, true)?;
                    self.declared.retain(|(known, _)| known != key);
                    let text = token.as_ref().map(|token| token.content().to_owned());
                    self.declared
                        .extend(text.map(|text| (key.to_owned(), text)));
                    self.named.insert(key.to_owned(), token);
                }
                (key, value) if key.ends_with("_token") => match one(MAP, key, value, true)? {
                    Some(token) => set(&mut self.also_own, key.to_owned(), token),
                    None => self.also_own.retain(|(name, _)| name != key),
                },
                _ => {}
            }
        }
        Ok(())
    }
}

/// A class's own tokens, where the files do not set them.
fn default_token(class: Class, name: &str) -> Option<&'static str> {
    match (class, name) {
        (Class::Llama | Class::Gemma, "unk_token") => Some("<unk>"),
        (Class::Llama, "bos_token") => Some("<s>"),
        (Class::Llama, "eos_token") => Some("</s>"),
        (Class::Gemma, "bos_token") => Some("<bos>"),
        (Class::Gemma, "eos_token") => Some("<eos>"),
        (Class::Gemma, "pad_token") => Some("<pad>"),
        (Class::Gemma, "mask_token") => Some("<mask>"),
        (Class::Qwen2 | Class::Qwen3_5, "unk_token" | "eos_token" | "pad_token")
        | (Class::Gpt2 | Class::GptNeoX, "unk_token" | "bos_token" | "eos_token") => {
            Some("<|endoftext|>")
        }
        (Class::GptNeoX, "pad_token") => Some("<|padding|>"),
        _ => None,
    }
}

/// Whether a class has a padding token of its own, or none, whatever tokenizer.json pads with.
fn names_padding(class: Class) -> bool {
    match class {
        Class::File | Class::Llama => false,
        Class::Gemma | Class::Qwen2 | Class::Qwen3_5 | Class::Gpt2 | Class::GptNeoX => true,
    }
}

/// Python's truth of a JSON value.
pub(super) fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Tokens with names of the model's own: `image_token` and the like.
fn own_tokens(
    file: &str,
    map: &Map<String, Value>,
    keys: Option<&Keys>,
    own: &mut Vec<(String, Token)>,
) -> Result<()> {
    for (name, value) in keys.unwrap_or(&Keys::default()).items(map) {
        let wrong = || wrong(file, EXTRA, &format!("{name}: {value}"));
        let token = Token::of(value, false).ok_or_else(wrong)?;
        set(own, name.to_owned(), token);
    }
    Ok(())
}

/// Sets what a name stands for; one that is there keeps its place, as in a Python dict.
fn set<T>(named: &mut Vec<(String, T)>, name: String, value: T) {
    match named.iter_mut().find(|(known, _)| *known == name) {
        Some(entry) => entry.1 = value,
        None => named.push((name, value)),
    }
}
