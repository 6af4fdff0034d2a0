//! Chat templates, rendered as Hugging Face renders them.

mod choice;
mod clock;

use std::sync::OnceLock;

use serde::Deserialize;

use crate::catch::caught;
use crate::error::{Error, Result};
use crate::jinja::{Dict, Template, Value};

pub(crate) use choice::Choice;

/// Stack of the thread that renders. The interpreter goes 400 levels deep and the parser 120, with
/// some kilobytes each; unused pages cost nothing.
const STACK_BYTES: usize = 32 << 20;

/// One turn of a conversation.
#[derive(Debug, Clone, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
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
        on_a_stack(|| self.render_here(messages, add_generation_prompt))
    }

    fn render_here(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
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
        if messages.is_empty() {
            let message = "cannot apply a chat template to an empty conversation";
            return Err(Error::Template(message.into()));
        }
        let mut turns = Vec::with_capacity(messages.len());
        for message in messages {
            let mut turn = Dict::default();
            for (key, text) in [("role", &message.role), ("content", &message.content)] {
                let set = turn.set(Value::str(key), Value::str(text));
                set.map_err(|fault| failure(fault.to_string()))?;
            }
            turns.push(Value::Dict(turn.into()));
        }
        let tokens = self.tokens.iter();
        let tokens = tokens.map(|(name, token)| (name.clone(), Value::str(token)));
        let variables = [
            ("messages", Value::list(turns)),
            ("tools", Value::None),
            ("documents", Value::None),
            ("add_generation_prompt", Value::Bool(add_generation_prompt)),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value));
        template
            .render(tokens.chain(variables), clock::now)
            .map_err(|fault| failure(fault.to_string()))
    }
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
