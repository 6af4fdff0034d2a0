//! Which of a checkpoint's chat templates is the one for chat.

use serde_json::Value;

use crate::error::{Error, Result};

/// The file that transformers 5 writes a template to.
pub(crate) const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Where it writes the templates that are not the default one.
pub(crate) const TEMPLATE_DIR: &str = "additional_chat_templates/";

/// The template for chat, or why there is none.
#[derive(Debug)]
pub(crate) enum Choice {
    /// Its text, and the file it is from.
    Template {
        origin: &'static str,
        source: String,
    },
    /// There are templates, and none of them can be taken.
    Refused {
        origin: &'static str,
        reason: String,
    },
}

impl Choice {
    /// Of the files `chat_template.jinja` and `additional_chat_templates/*.jinja`, which win, or
    /// tokenizer_config.json's `chat_template`; `None` where there is none.
    pub(crate) fn of<'f>(
        files: impl Iterator<Item = (&'f str, &'f [u8])>,
        in_config: Option<&Value>,
    ) -> Option<Self> {
        let mut named = Vec::new();
        for (name, bytes) in files {
            let additional = name.strip_prefix(TEMPLATE_DIR);
            let additional = additional.and_then(|name| name.strip_suffix(".jinja"));
            let (key, origin) = match additional {
                Some(key) => (key, TEMPLATE_DIR),
                None if name == TEMPLATE_FILE => ("default", TEMPLATE_FILE),
                None => continue,
            };
            let Ok(text) = std::str::from_utf8(bytes) else {
                return Some(Self::Refused {
                    origin,
                    reason: format!("{key} is not UTF-8"),
                });
            };
            named.push((key.to_owned(), text.to_owned()));
        }
        if !named.is_empty() {
            let origin = match named.iter().any(|(name, _)| name == "default") {
                true => TEMPLATE_FILE,
                false => TEMPLATE_DIR,
            };
            return Some(Self::default_of(named, origin));
        }
        in_config.and_then(Self::of_config)
    }

    fn of_config(given: &Value) -> Option<Self> {
        let origin = "tokenizer_config.json";
        let template = |name: &Value, text: &Value| {
            Some((name.as_str()?.to_owned(), text.as_str()?.to_owned()))
        };
        let named: Option<Vec<_>> = match given {
            Value::Null => return None,
            Value::String(source) => {
                let source = source.clone();
                return Some(Self::Template { origin, source });
            }
            Value::Array(list) => list
                .iter()
                .map(|entry| template(&entry["name"], &entry["template"]))
                .collect(),
            Value::Object(map) => map
                .iter()
                .map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned())))
                .collect(),
            Value::Bool(_) | Value::Number(_) => None,
        };
        Some(match named {
            Some(named) => Self::default_of(named, origin),
            None => Self::Refused {
                origin,
                reason: "chat_template is neither a text nor texts with names".into(),
            },
        })
    }

    fn default_of(named: Vec<(String, String)>, origin: &'static str) -> Self {
        // The last of several of one name counts, as in a Python dict.
        let found = named.iter().rev().find(|(name, _)| name == "default");
        if let Some((_, source)) = found {
            let source = source.clone();
            return Self::Template { origin, source };
        }
        let mut names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let names = names.join(", ");
        Self::Refused {
            origin,
            reason: format!(
                "none of the model's chat templates is named default (they are: {names}); use \
                 --raw to continue the prompt as plain text"
            ),
        }
    }

    pub(crate) fn origin(&self) -> &'static str {
        match self {
            Self::Template { origin, .. } | Self::Refused { origin, .. } => origin,
        }
    }

    pub(crate) fn source(&self) -> Result<&str> {
        match self {
            Self::Template { source, .. } => Ok(source),
            Self::Refused { origin, reason } => Err(Error::Template(format!("{origin}: {reason}"))),
        }
    }
}
