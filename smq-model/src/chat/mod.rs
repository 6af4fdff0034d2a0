//! Chat templates, rendered as Hugging Face renders them.

mod choice;
mod clock;

use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::catch::caught;
use crate::error::{Error, Result};
use crate::jinja::{Dict, Template, Value};

pub(crate) use choice::Choice;

/// Stack of the thread that renders. The interpreter goes 400 levels deep and the parser 120, with
/// some kilobytes each; unused pages cost nothing.
const STACK_BYTES: usize = 32 << 20;

/// A turn of a conversation: who speaks, and what.
#[derive(Debug, Clone, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said, as plain text.
    pub content: String,
}

/// A conversation with whatever else its turns have, as OpenAI's API has them.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'c> {
    /// Turns: `role`, `content` and what else the template may read, such as `tool_calls`.
    pub messages: &'c [Map<String, Json>],
    /// Definitions of the functions that the model may call.
    pub tools: Option<&'c [Json]>,
    /// Whether the assistant's turn is opened at the end.
    pub add_generation_prompt: bool,
}

/// A model's chat template and the special tokens it may name.
///
/// The template is parsed when it is first rendered, so that one that cannot be used stops only
/// what needs it.
#[derive(Debug)]
pub struct ChatTemplate {
    choice: Choice,
    parsed: OnceLock<std::result::Result<Template, String>>,
    tokens: Vec<(String, String)>,
}

impl ChatTemplate {
    /// `tokens` are the special tokens by their names: `bos_token` and the like.
    pub(crate) fn new(choice: Choice, tokens: Vec<(String, String)>) -> Self {
        Self {
            choice,
            parsed: OnceLock::new(),
            tokens,
        }
    }

    /// The text of a conversation; `add_generation_prompt` opens the assistant's turn.
    ///
    /// It is made in a thread of its own, whose stack is as large as the deepest template that the
    /// limits allow needs, whatever the caller's is.
    ///
    /// # Errors
    /// [`Error::Template`] with the template's own message if it refuses the conversation, or with
    /// the reason why there is no template that can be used.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let text = |text: &String| Json::String(text.clone());
        let turn = |message: &Message| {
            let pairs = [("role", &message.role), ("content", &message.content)];
            let turn = pairs.map(|(key, value)| (key.to_owned(), text(value)));
            turn.into_iter().collect()
        };
        let messages: Vec<Map<String, Json>> = messages.iter().map(turn).collect();
        self.render_conversation(&Conversation {
            messages: &messages,
            tools: None,
            add_generation_prompt,
        })
    }

    /// As [`render`](Self::render), of turns with more than a role and a text, and with tools.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_conversation(&self, conversation: &Conversation<'_>) -> Result<String> {
        on_a_stack(|| self.render_here(conversation))
    }

    /// Whether the template reads a variable of this name, as far as its text tells.
    #[must_use]
    pub fn names(&self, variable: &str) -> bool {
        self.choice.source().is_ok_and(|text| {
            let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            words.any(|word| word == variable)
        })
    }

    /// Whether the template has this in its text.
    #[must_use]
    pub fn contains(&self, text: &str) -> bool {
        let source = self.choice.source();
        source.is_ok_and(|source| source.contains(text))
    }

    fn render_here(&self, conversation: &Conversation<'_>) -> Result<String> {
        let source = self.choice.source()?;
        let parsed = self
            .parsed
            .get_or_init(|| Template::parse(source).map_err(|fault| fault.to_string()));
        let failure = |message: String| {
            let origin = self.choice.origin();
            Error::Template(format!("{origin}: {message}"))
        };
        let template = parsed
            .as_ref()
            .map_err(|message| failure(message.clone()))?;
        if conversation.messages.is_empty() {
            let message = "cannot apply a chat template to an empty conversation";
            return Err(Error::Template(message.into()));
        }
        let value = |json: &Json| value(json).map_err(|fault| failure(fault.to_string()));
        let mut turns = Vec::with_capacity(conversation.messages.len());
        for message in conversation.messages {
            turns.push(value(&Json::Object(message.clone()))?);
        }
        let tools = match conversation.tools {
            None => Value::None,
            Some(tools) => Value::list(tools.iter().map(value).collect::<Result<_>>()?),
        };
        let tokens = self.tokens.iter();
        let tokens = tokens.map(|(name, token)| (name.clone(), Value::str(token)));
        let variables = [
            ("messages", Value::list(turns)),
            ("tools", tools),
            ("documents", Value::None),
            (
                "add_generation_prompt",
                Value::Bool(conversation.add_generation_prompt),
            ),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value));
        template
            .render(tokens.chain(variables), clock::now)
            .map_err(|fault| failure(fault.to_string()))
    }
}

/// JSON as a template sees it: what Python's `json.loads` makes of it.
fn value(json: &Json) -> crate::jinja::Result<Value> {
    Ok(match json {
        Json::Null => Value::None,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::Int(int.into()),
            (None, Some(int)) => Value::Int(int.into()),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::str(text),
        Json::Array(items) => Value::list(
            items
                .iter()
                .map(value)
                .collect::<crate::jinja::Result<_>>()?,
        ),
        Json::Object(items) => {
            let mut dict = Dict::default();
            for (key, item) in items {
                dict.set(Value::str(key), value(item)?)?;
            }
            Value::Dict(dict.into())
        }
    })
}

/// Runs `work` on a stack of [`STACK_BYTES`].
fn on_a_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let failure = |message: String| Error::Template(message);
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("chat template".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || caught(work))
            .map_err(|e| failure(format!("no thread to render in: {e}")))?
            .join()
            .unwrap_or_else(|_| Err("its thread ended".to_owned()))
            .map_err(|panic| failure(format!("cannot be rendered: {panic}")))?
    })
}

#[cfg(test)]
mod tests;
