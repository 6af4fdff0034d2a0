//! What a sampler will do for the next token, as plain parameters for a device that samples.

use std::collections::BTreeMap;

use super::Sampler;
use super::processors::Processor;

/// How the next token follows from its logits. The steps are in the order in which they are done,
/// each in f32; a mask of allowed tokens, where there is one, comes before all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan<'a> {
    /// Added to tokens' logits; minus infinity excludes a token, and an id past the vocabulary is
    /// no token.
    pub bias: BTreeMap<u32, f32>,
    /// Then what came already is disfavoured.
    pub penalties: Option<Penalties<'a>>,
    /// Then one token is taken.
    pub selection: Selection,
}

/// What disfavours tokens that came already.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties<'a> {
    /// Divides positive logits of the tokens that came, and multiplies others; 1 changes nothing.
    pub repetition: f32,
    /// Subtracted from the logit of every token that was chosen.
    pub presence: f32,
    /// Subtracted once for each time that a token was chosen.
    pub frequency: f32,
    /// The tokens that came, each once, in order of ids.
    pub came: &'a [Came],
}

/// A token of the text so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Came {
    /// The token.
    pub id: u32,
    /// How often it was chosen; 0 of one that only the prompt has.
    pub chosen: u32,
}

/// The tokens that came, kept up to date: a text of thousands of tokens is not to be counted at
/// every step.
#[derive(Debug, Clone, Default)]
pub(super) struct Text(Vec<Came>);

impl Text {
    /// Of a text whose prompt has so many tokens.
    pub(super) fn of(ids: &[u32], prompt_tokens: usize) -> Self {
        let mut sorted: Vec<(u32, u32)> = ids
            .iter()
            .enumerate()
            .map(|(place, id)| (*id, u32::from(place >= prompt_tokens)))
            .collect();
        sorted.sort_unstable();
        let mut all: Vec<Came> = Vec::with_capacity(sorted.len());
        for (id, chosen) in sorted {
            match all.last_mut().filter(|last| last.id == id) {
                Some(last) => last.chosen += chosen,
                None => all.push(Came { id, chosen }),
            }
        }
        Self(all)
    }

    /// A token was chosen.
    pub(super) fn push(&mut self, id: u32) {
        match self.0.binary_search_by_key(&id, |came| came.id) {
            Ok(at) => self.0[at].chosen += 1,
            Err(at) => self.0.insert(at, Came { id, chosen: 1 }),
        }
    }
}

/// How a token is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Selection {
    /// The first of the most likely ones.
    Greedy,
    /// The one that `at` falls on, in order of ids, after each step has left out some.
    Draw {
        /// Divides the logits.
        temperature: f32,
        /// Keeps this many of the most likely tokens, and those as likely as the last of them; 0
        /// keeps all.
        top_k: usize,
        /// Excludes the least likely tokens that together have at most the probability
        /// `1 - top_p`, rounded to f32; 1 keeps all.
        top_p: f64,
        /// Keeps the tokens that are at least this many times as likely as the most likely one; 0
        /// keeps all.
        min_p: f32,
        /// A number of 0 to 1, drawn already.
        at: f64,
    },
}

impl Sampler {
    /// What it will do for the next token, until one is [accepted](Sampler::accept); `None` where
    /// only [`Sampler::sample`] can do it, from logits on the host.
    pub fn plan(&mut self) -> Option<Plan<'_>> {
        if self.allows_invalid {
            return None;
        }
        let at = self.number();
        if self.text.is_none() && self.processors.iter().any(Processor::counts_tokens) {
            self.text = Some(Text::of(&self.ids, self.prompt_tokens));
        }
        let mut plan = Plan {
            bias: BTreeMap::new(),
            penalties: None,
            selection: Selection::Greedy,
        };
        if let Some(at) = at {
            plan.selection = Selection::Draw {
                temperature: 1.0,
                top_k: 0,
                top_p: 1.0,
                min_p: 0.0,
                at,
            };
        }
        let mut state = (Place::Bias, plan);
        let text = self.text.as_ref().map_or(&[][..], |text| &text.0);
        let ids = (self.ids.len(), text);
        for processor in &self.processors {
            state = add(processor, ids, state)?;
        }
        Some(state.1)
    }
}

/// How far a plan has got: its steps have one order.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Place {
    Bias,
    Repetition,
    Counts,
    Temperature,
    TopK,
    TopP,
    MinP,
}

/// The plan with one more processor; `None` if there is no place for it.
fn add<'a>(
    processor: &Processor,
    (len, came): (usize, &'a [Came]),
    (place, mut plan): (Place, Plan<'a>),
) -> Option<(Place, Plan<'a>)> {
    let neutral = Penalties {
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
        came,
    };
    let next = match processor {
        Processor::SequenceBias(biases) => {
            let only_exclude = biases.values().all(|bias| *bias == f32::NEG_INFINITY);
            let single = biases.keys().all(|sequence| sequence.len() == 1);
            if !single || !(place == Place::Bias || only_exclude && place < Place::Temperature) {
                return None;
            }
            for (sequence, bias) in biases {
                *plan.bias.entry(sequence[0]).or_insert(0.0) += bias;
            }
            place
        }
        Processor::Before {
            until,
            ids: excluded,
        } => {
            if len < *until {
                exclude(&mut plan.bias, excluded);
            }
            place
        }
        Processor::Suppress { at, ids: excluded } => {
            if at.is_none_or(|at| at == len) {
                exclude(&mut plan.bias, excluded);
            }
            place
        }
        Processor::RepetitionPenalty(penalty) => {
            plan.penalties.get_or_insert(neutral).repetition = *penalty as f32;
            Place::Repetition
        }
        Processor::CountPenalty {
            prompt: _,
            presence,
            frequency,
        } => {
            let penalties = plan.penalties.get_or_insert(neutral);
            (penalties.presence, penalties.frequency) = (*presence, *frequency);
            Place::Counts
        }
        Processor::Temperature(value) => {
            if let Selection::Draw { temperature, .. } = &mut plan.selection {
                *temperature = *value as f32;
            }
            Place::Temperature
        }
        Processor::TopK(count) => {
            if let Selection::Draw { top_k, .. } = &mut plan.selection {
                *top_k = *count;
            }
            Place::TopK
        }
        Processor::TopP(total) => {
            if let Selection::Draw { top_p, .. } = &mut plan.selection {
                *top_p = *total;
            }
            Place::TopP
        }
        Processor::MinP(share) => {
            if let Selection::Draw { min_p, .. } = &mut plan.selection {
                *min_p = *share as f32;
            }
            Place::MinP
        }
        // What few ask for.
        Processor::PromptPenalty { .. }
        | Processor::NoRepeat(_)
        | Processor::NoPromptRepeat { .. }
        | Processor::Force { .. }
        | Processor::RemoveInvalid
        | Processor::Favour { .. }
        | Processor::TopH(_)
        | Processor::TypicalP(_)
        | Processor::Epsilon(_)
        | Processor::Eta(_)
        | Processor::Normalize => return None,
    };
    (next >= place).then_some((next, plan))
}

/// Excludes tokens, which is the same before the penalties and behind them.
fn exclude(bias: &mut BTreeMap<u32, f32>, ids: &[u32]) {
    for id in ids {
        bias.insert(*id, f32::NEG_INFINITY);
    }
}
