//! Guesses of a smaller model.

use std::collections::HashMap;

use super::{Asked, Drafter};
use crate::error::{Error, Result};
use crate::serve::{BatchEngine, Event, Request, RequestId, Scheduler};

/// Guesses the most likely tokens of another model, one with the same vocabulary.
///
/// What it guesses are answers of a scheduler of its own, in which each guess is a request with the
/// text so far as its prompt. The text's pages are still there from the guess before, so that only
/// what is new is computed, with at most a page's worth again. Nothing is to be taken back where a
/// guess was wrong: the text then has another page there.
pub struct ModelDrafter<E> {
    scheduler: Scheduler<E>,
    cost: f64,
}

impl<E: BatchEngine> ModelDrafter<E> {
    /// By `engine`, which takes for a token `cost` steps of the engine that it guesses for; that one
    /// knows `vocab` tokens.
    ///
    /// # Errors
    /// [`Error::Input`] for an engine of another vocabulary, or one without room for a token.
    pub fn new(engine: E, vocab: usize, cost: f64) -> Result<Self> {
        let own = engine.config().vocab;
        if own != vocab {
            return Err(Error::Input(format!(
                "the draft model has {own} tokens and the model {vocab}; a draft model needs the \
                 same vocabulary, as a smaller one of the same family has it"
            )));
        }
        Ok(Self {
            scheduler: Scheduler::new(engine)?,
            cost,
        })
    }
}

impl<E: BatchEngine> Drafter for ModelDrafter<E> {
    fn draft(&mut self, asked: &[Asked<'_>]) -> Vec<Result<Vec<u32>>> {
        let mut ids = HashMap::new();
        let mut drafts: Vec<_> = asked.iter().map(|_| Ok(Vec::new())).collect();
        let engine = self.scheduler.engine();
        let room = engine.pages() * engine.page_tokens();
        let limit = room.min(engine.config().max_positions);
        for (index, asked) in asked.iter().enumerate() {
            // A text that is too long for this model goes on without it.
            if asked.tokens.len() >= limit {
                continue;
            }
            let request = Request::new(asked.tokens.to_vec(), asked.most);
            match self.scheduler.submit(request) {
                Ok(id) => _ = ids.insert(id, index),
                Err(error) => drafts[index] = Err(error),
            }
        }
        while !self.scheduler.is_idle() {
            for event in self.scheduler.step() {
                let draft = ids.get(&event.id()).map(|index| &mut drafts[*index]);
                match (event, draft) {
                    (Event::Token { token, .. }, Some(Ok(draft))) => draft.push(token),
                    (Event::Failed { error, .. }, Some(draft)) => *draft = Err(error),
                    (Event::Token { .. } | Event::Failed { .. }, _)
                    | (Event::Prompt { .. } | Event::Finished { .. }, _) => {}
                }
            }
        }
        drafts
    }

    fn forget(&mut self, _: RequestId) {}

    fn cost(&self) -> f64 {
        self.cost
    }
}
