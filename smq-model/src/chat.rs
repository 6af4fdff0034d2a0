//! Chat templates, rendered as Hugging Face does: Jinja with `trim_blocks` and `lstrip_blocks`,
//! Python's string methods, `raise_exception` and `strftime_now`.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};

const NAME: &str = "chat_template";
/// Special tokens a template may name.
const TOKENS: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// One turn of a conversation.
#[derive(Debug, Clone, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// What is said.
    pub content: String,
}

/// A compiled template and the special tokens it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    tokens: BTreeMap<&'static str, String>,
}

impl ChatTemplate {
    /// From tokenizer_config.json, or from chat_template.jinja, which newer checkpoints have
    /// instead; `None` where neither holds one.
    ///
    /// # Errors
    /// [`Error::Template`] if it does not compile.
    pub fn new(tokenizer_config: &Value, file: Option<&[u8]>) -> Result<Option<Self>> {
        let file = file.map(std::str::from_utf8).transpose();
        let file =
            file.map_err(|e| Error::Template(format!("chat_template.jinja is not UTF-8: {e}")))?;
        let inline = match &tokenizer_config["chat_template"] {
            Value::String(text) => Some(text.as_str()),
            // Several named templates: the one called default is for chat.
            Value::Array(list) => list
                .iter()
                .find(|t| t["name"] == "default")
                .and_then(|t| t["template"].as_str()),
            _ => None,
        };
        let Some(text) = file.or(inline) else {
            return Ok(None);
        };
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(failure)?;
        env.set_syntax(syntax);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<String, _> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        env.add_function("strftime_now", strftime_now);
        env.add_template_owned(NAME, text.to_owned())
            .map_err(failure)?;
        // A token is a string or an object with its content.
        let token = |name| {
            let value = &tokenizer_config[name];
            let text = value.as_str().or_else(|| value["content"].as_str())?;
            Some((name, text.to_owned()))
        };
        Ok(Some(Self {
            env,
            tokens: TOKENS.into_iter().filter_map(token).collect(),
        }))
    }

    /// The text of a conversation; `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// [`Error::Template`] with the template's own message if it refuses the conversation.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let tokens = minijinja::Value::from(minijinja::value::Serde(&self.tokens));
        let template = self.env.get_template(NAME).map_err(failure)?;
        let messages = minijinja::Value::from(minijinja::value::Serde(messages));
        template
            .render(context! { messages, add_generation_prompt, ..tokens })
            .map_err(failure)
    }
}

fn failure(error: minijinja::Error) -> Error {
    Error::Template(error.to_string())
}

/// Now, in UTC, as Python's `strftime` would write it.
fn strftime_now(format: &str) -> std::result::Result<String, minijinja::Error> {
    let refused =
        |e: jiff::Error| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string());
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now).map_err(refused)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chat(template: &str) -> ChatTemplate {
        let config = json!({"chat_template": template, "bos_token": "<s>", "eos_token": {"content": "</s>"}});
        ChatTemplate::new(&config, None).unwrap().unwrap()
    }

    fn turn(role: &'static str, content: &str) -> Message {
        Message {
            role,
            content: content.into(),
        }
    }

    #[test]
    fn blocks_are_trimmed_and_tokens_known() {
        let template = chat(
            "{{ bos_token }}\n  {% for m in messages %}\n[{{ m['content'].strip() }}]\n  {% endfor %}\n{{ eos_token }}",
        );
        let text = template
            .render(&[turn("user", " a "), turn("assistant", "b")], false)
            .unwrap();
        assert_eq!(text, "<s>\n[a]\n[b]\n</s>");
    }

    #[test]
    fn a_refusal_carries_the_templates_words() {
        let template = chat("{{ raise_exception('roles must alternate') }}");
        let error = template.render(&[], true).unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
    }

    #[test]
    fn the_default_of_several_templates_and_none_of_none() {
        let config = json!({"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]});
        assert_eq!(
            ChatTemplate::new(&config, None)
                .unwrap()
                .unwrap()
                .render(&[], true)
                .unwrap(),
            "d"
        );
        assert!(ChatTemplate::new(&json!({}), None).unwrap().is_none());
        let from_file = ChatTemplate::new(&json!({}), Some(b"f")).unwrap().unwrap();
        assert_eq!(from_file.render(&[], true).unwrap(), "f");
    }

    #[test]
    fn a_template_may_ask_for_the_date() {
        let year = chat("{{ strftime_now('%Y') }}").render(&[], true).unwrap();
        assert!(year.len() == 4 && year.parse::<u32>().is_ok(), "{year}");
        assert!(chat("{{ strftime_now('%!') }}").render(&[], true).is_err());
    }
}
