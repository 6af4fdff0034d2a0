//! The sequences of one request while they are made: tokens come from the scheduler's thread, and
//! text, log-probabilities and ends go to whoever writes the response.

use std::collections::VecDeque;
use std::time::Instant;

use smq_engine::generate::Stop;
use smq_engine::serve::{LogProbs, Request};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::error::{ApiError, ApiResult};
use super::limits::Place;
use super::state::App;
use super::text::SequenceText;
use super::worker::{Ticket, Update};

/// A sequence to be made.
pub(super) struct Asked {
    pub(super) request: Request,
    /// Strings that end its text.
    pub(super) stop: Vec<String>,
    /// Special tokens that its text shows.
    pub(super) shown: &'static [(u32, &'static str)],
}

/// A step of one sequence.
#[derive(Debug)]
pub(super) struct Part {
    /// Which of the request's sequences it is of.
    pub(super) index: usize,
    /// Text that is complete.
    pub(super) text: String,
    /// The token that came, with its log-probabilities where they are wanted.
    pub(super) token: Option<(u32, Option<LogProbs>)>,
    /// Of the prompt's tokens from the second one on, before the first token.
    pub(super) prompt: Vec<LogProbs>,
    /// Why the text ends here, as OpenAI says it.
    pub(super) finish: Option<&'static str>,
}

struct Sequence {
    text: SequenceText,
    prompt: Vec<LogProbs>,
    is_open: bool,
}

/// All sequences of a request; what is not complete when it is dropped is cancelled.
pub(super) struct Answer {
    app: &'static App,
    ticket: Ticket,
    updates: UnboundedReceiver<(usize, Update)>,
    sequences: Vec<Sequence>,
    open: usize,
    /// Parts that came before they were asked for.
    ahead: VecDeque<Part>,
    begun: bool,
    deadline: Instant,
    /// Tokens of all texts.
    pub(super) generated_tokens: usize,
    /// Tokens of prompts that the cache had; one text of several that share a prompt counts.
    pub(super) cached_tokens: usize,
    _place: Place,
}

impl Answer {
    /// Submits sequences, and waits for the first thing that comes of them, so that what cannot be
    /// taken is refused before a response has begun.
    pub(super) async fn begin(
        app: &'static App,
        asked: Vec<Asked>,
        arrived: Instant,
        place: Place,
    ) -> ApiResult<Self> {
        let (sender, updates) = unbounded_channel();
        let mut sequences = Vec::with_capacity(asked.len());
        let mut requests = Vec::with_capacity(asked.len());
        for one in asked {
            sequences.push(Sequence {
                text: SequenceText::new(&app.tokenizer, &one.stop, one.shown),
                prompt: Vec::new(),
                is_open: true,
            });
            requests.push(one.request);
        }
        let mut answer = Self {
            app,
            ticket: app.worker.submit(requests, arrived, sender),
            updates,
            open: sequences.len(),
            sequences,
            ahead: VecDeque::new(),
            begun: false,
            deadline: arrived + app.limits.request_timeout,
            generated_tokens: 0,
            cached_tokens: 0,
            _place: place,
        };
        let first = answer.next().await?;
        answer.ahead.extend(first);
        Ok(answer)
    }

    /// The next part of any sequence; `None` when all are complete.
    pub(super) async fn next(&mut self) -> ApiResult<Option<Part>> {
        if let Some(part) = self.ahead.pop_front() {
            return Ok(Some(part));
        }
        while self.open > 0 {
            let deadline = self.deadline.into();
            let update = match tokio::time::timeout_at(deadline, self.updates.recv()).await {
                Ok(Some(update)) => update,
                Ok(None) => return Err(ApiError::unavailable("the engine has stopped")),
                Err(_) => return Err(self.late()),
            };
            let (index, update) = update;
            if let Some(part) = self.take(index, update)? {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }

    fn late(&self) -> ApiError {
        let seconds = self.app.limits.request_timeout.as_secs();
        match self.begun {
            true => ApiError::too_long(seconds),
            false => ApiError::unavailable(format!(
                "the request has waited for {seconds} seconds (--request-timeout); try again later"
            )),
        }
    }

    fn take(&mut self, index: usize, update: Update) -> ApiResult<Option<Part>> {
        self.begun = true;
        let Some(sequence) = self.sequences.get_mut(index).filter(|s| s.is_open) else {
            // It ended at a stop string while its next token was made.
            return Ok(None);
        };
        let mut part = Part {
            index,
            text: String::new(),
            token: None,
            prompt: Vec::new(),
            finish: None,
        };
        match update {
            Update::Prompt(log_probs) => {
                sequence.prompt.extend(log_probs);
                return Ok(None);
            }
            Update::Token(token, log_probs) => {
                self.generated_tokens += 1;
                let (text, ended) = sequence.text.push(token)?;
                part.text = text;
                part.token = Some((token, log_probs));
                if ended {
                    part.finish = Some("stop");
                    self.app.worker.cancel_one(self.ticket, index);
                }
            }
            Update::Finished {
                stop,
                cached_tokens,
            } => {
                let (text, ended) = sequence.text.finish()?;
                part.text = text;
                self.cached_tokens += cached_tokens;
                part.finish = Some(match stop {
                    Stop::EndOfSequence | Stop::StopString => "stop",
                    Stop::MaxNewTokens | Stop::ContextFull if ended => "stop",
                    Stop::MaxNewTokens | Stop::ContextFull => "length",
                });
            }
            Update::Refused(message) => return Err(ApiError::request(message)),
            Update::Failed(message) => return Err(ApiError::internal(message)),
        }
        part.prompt = std::mem::take(&mut sequence.prompt);
        if part.finish.is_some() {
            sequence.is_open = false;
            self.open -= 1;
        }
        Ok(Some(part))
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.open > 0 {
            self.app.worker.cancel(self.ticket);
        }
    }
}
