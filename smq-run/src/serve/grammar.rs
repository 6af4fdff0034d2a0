//! Answers that keep to a JSON schema: which tokens may come next, by the `llguidance` crate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use smq_engine::serve::Constraint;
use smq_engine::{Error, Result};

use super::error::{ApiError, ApiResult};
use super::fields::Fields;
use super::state::App;
use super::vocabulary::Vocabulary;

/// Largest schema, as JSON.
const MAX_SCHEMA_BYTES: usize = 128 << 10;

/// Makes grammars for one model's tokens.
pub(super) struct Grammars(ParserFactory);

impl Grammars {
    fn of(vocabulary: &Vocabulary, eos: &[u32]) -> std::result::Result<Self, String> {
        let Some(first) = eos.first() else {
            return Err(
                "the model has no end-of-sequence token, so that no answer could end".to_owned(),
            );
        };
        // A special token is not the text that its name looks like.
        let special = [TokTrie::SPECIAL_TOKEN_MARKER];
        let word = |id: u32| match vocabulary.is_special(id) {
            true => [&special, vocabulary.bytes(id)].concat(),
            false => vocabulary.bytes(id).to_vec(),
        };
        let words: Vec<Vec<u8>> = (0..vocabulary.len() as u32).map(word).collect();
        let info = TokRxInfo::new(vocabulary.len() as u32, *first);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(eos);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| e.to_string())?;
        factory.quiet();
        Ok(Self(factory))
    }

    fn schema(&self, mut schema: Value) -> std::result::Result<Matcher, String> {
        if let Value::Object(object) = &mut schema {
            // White space as Python's `json.dumps` writes it: where any is allowed, small models go
            // on with it until their tokens are used up.
            let style = json!({
                "whitespace_flexible": false,
                "item_separator": ", ",
                "key_separator": ": ",
            });
            object.entry("x-guidance").or_insert(style);
        }
        let grammar = TopLevelGrammar::from_json_schema(schema);
        let made = catch_unwind(AssertUnwindSafe(|| self.0.create_parser(grammar)));
        match made {
            Ok(Ok(parser)) => Ok(Matcher::new(Ok(parser))),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => Err("it makes the grammar's library panic".to_owned()),
        }
    }
}

/// A schema that was asked for and can be kept to.
pub(super) struct Schema(Value);

impl Schema {
    /// Takes `response_format`; `None` for plain text.
    pub(super) fn take(fields: &mut Fields) -> ApiResult<Option<Self>> {
        const NAME: &str = "response_format";
        let Some(mut format) = fields.object(NAME)? else {
            return Ok(None);
        };
        let schema = match format.text("type")?.as_deref() {
            Some("text") => None,
            Some("json_object") => Some(json!({"type": "object"})),
            Some("json_schema") => {
                let Some(mut inner) = format.object("json_schema")? else {
                    let message = "response_format has no json_schema";
                    return Err(ApiError::field("response_format.json_schema", message));
                };
                // Names for people; and the schema is kept to whether strict or not.
                inner.ignore(&["name", "description"]);
                inner.flag("strict")?;
                let schema = inner.take("schema").unwrap_or_else(|| json!({}));
                inner.finish()?;
                Some(schema)
            }
            other => {
                let other = other.unwrap_or("nothing");
                let message = format!(
                    "response_format.type is {other}, expected text, json_object or json_schema"
                );
                return Err(ApiError::field("response_format.type", message));
            }
        };
        format.finish()?;
        let bytes = schema.as_ref().map_or(0, |schema| schema.to_string().len());
        if bytes > MAX_SCHEMA_BYTES {
            let message =
                format!("the schema has {bytes} bytes, expected at most {MAX_SCHEMA_BYTES}");
            return Err(ApiError::field(NAME, message));
        }
        Ok(schema.map(Self))
    }

    /// A constraint for each of `count` texts. It takes time.
    pub(super) fn constraints(
        self,
        app: &App,
        count: usize,
    ) -> ApiResult<Vec<Box<dyn Constraint>>> {
        let unable = |reason: &str| {
            let message = format!("response_format cannot be served: {reason}");
            ApiError::unsupported("response_format", message)
        };
        let grammars = app
            .grammars
            .get_or_init(|| Grammars::of(&app.vocabulary, &app.settings.eos_ids));
        let grammars = grammars.as_ref().map_err(|reason| unable(reason))?;
        let matcher = grammars.schema(self.0).map_err(|reason| unable(&reason))?;
        let constraint = |_| -> Box<dyn Constraint> { Box::new(Kept(matcher.deep_clone())) };
        Ok((0..count).map(constraint).collect())
    }
}

/// A text that keeps to its grammar.
struct Kept(Matcher);

impl Constraint for Kept {
    fn allowed(&mut self, mask: &mut [u32]) -> Result<()> {
        let set = self.0.compute_mask_or_eos().map_err(failed)?;
        for (word, bits) in mask.iter_mut().zip(set.as_slice()) {
            *word |= bits;
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        match self.0.is_stopped() {
            // Only an end follows.
            true => Ok(()),
            false => self.0.consume_token(token).map_err(failed),
        }
    }

    fn fork(&self) -> Option<Box<dyn Constraint>> {
        Some(Box::new(Self(self.0.deep_clone())))
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Input(format!("response_format: {error:#}"))
}
