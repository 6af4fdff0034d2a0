//! Which sequences get which tokens in the next step.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use blake3::Hash;

use super::batch::{BatchEngine, Chosen, Computed};
use super::pages::Pages;
use super::request::{Counters, Event, Request, RequestId};
use super::sequence::Sequence;
use super::speculate::{Asked, Drafter, Speculation, cost_beside};
use crate::error::{Error, Result};
use crate::generate::Stop;

/// Runs any number of requests on one engine.
///
/// ```no_run
/// use smq_engine::serve::{BatchOptions, CpuBatch, Event, Request, Scheduler};
/// use smq_model::{Source, Tokenizer};
///
/// # fn main() -> smq_engine::Result<()> {
/// let source = Source::open("model.smq".as_ref())?;
/// let tokenizer = Tokenizer::load(&source)?;
/// let mut scheduler = Scheduler::new(CpuBatch::load(&source, &BatchOptions::default())?)?;
/// for text in ["Once upon a time", "The king said"] {
///     scheduler.submit(Request::new(tokenizer.encode(text, true)?, 16))?;
/// }
/// while !scheduler.is_idle() {
///     for event in scheduler.step() {
///         if let Event::Token { id, token, .. } = event {
///             println!("{id}: {token}");
///         }
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Scheduler<E> {
    engine: E,
    pages: Pages,
    /// In order of arrival; all of them came after those that run.
    waiting: VecDeque<Sequence>,
    /// In order of arrival.
    running: Vec<Sequence>,
    next_id: u64,
    counters: Counters,
    speculation: Option<Speculation>,
    /// Of a guessed token in this step, as [`Pace`](super::speculate::Pace) counts it.
    draft_cost: f64,
}

impl<E: BatchEngine> Scheduler<E> {
    /// Nothing to do yet.
    ///
    /// # Errors
    /// [`Error::Input`] for an engine without room for a token.
    pub fn new(engine: E) -> Result<Self> {
        let (count, page_tokens) = (engine.pages(), engine.page_tokens());
        if count == 0 || page_tokens == 0 || engine.max_rows() == 0 {
            return Err(Error::Input(format!(
                "the cache has {count} pages of {page_tokens} tokens for {} sequences, expected \
                 at least one of each; give it more memory",
                engine.max_rows()
            )));
        }
        Ok(Self {
            pages: Pages::new(count, page_tokens),
            engine,
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_id: 0,
            counters: Counters::default(),
            speculation: None,
            draft_cost: 1.0,
        })
    }

    /// Guesses up to `most` tokens of each sequence at a time from here on, which a step computes
    /// together. Texts stay what they are.
    pub fn speculate(&mut self, drafter: impl Drafter + 'static, most: usize) {
        let drafter = Box::new(drafter);
        self.speculation = Some(Speculation { drafter, most });
    }

    /// The engine.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// Takes a request; the next steps' events say what becomes of it.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty prompt, one that the context or the cache can never hold, or
    /// token ids that are none; [`Error::Model`] for settings out of their range.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        let id = RequestId(self.next_id);
        let sequence = Sequence::new(id, request, self.engine.config(), &self.pages)?;
        self.next_id += 1;
        self.waiting.push_back(sequence);
        Ok(id)
    }

    /// Drops a request, whose pages are free at once; it has no event any more. Returns whether it
    /// was still there.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let mut sequence = match self.running.iter().position(|s| s.id == id) {
            Some(at) => self.running.remove(at),
            None => {
                let at = self.waiting.iter().position(|s| s.id == id);
                match at.and_then(|at| self.waiting.remove(at)) {
                    Some(sequence) => sequence,
                    None => return false,
                }
            }
        };
        sequence.let_go(&mut self.pages);
        if let Some(speculation) = &mut self.speculation {
            speculation.drafter.forget(id);
        }
        true
    }

    /// Whether no request is left.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// How it stands, and what it did.
    pub fn counters(&self) -> Counters {
        Counters {
            running: self.running.len(),
            waiting: self.waiting.len(),
            pages_held: self.pages.count() - self.pages.available(),
            pages: self.pages.count(),
            ..self.counters
        }
    }

    /// Checks that every page is where it belongs, for tests.
    ///
    /// # Errors
    /// As [`Pages::check`], and if a sequence has other pages than its tokens need.
    pub fn check(&self) -> std::result::Result<(), String> {
        for s in &self.running {
            if s.pages.len() != self.pages.needed(s.computed) {
                return Err(format!(
                    "request {} has {} pages for {} tokens",
                    s.id,
                    s.pages.len(),
                    s.computed
                ));
            }
        }
        if let Some(s) = self.waiting.iter().find(|s| !s.pages.is_empty()) {
            return Err(format!("request {} waits with pages", s.id));
        }
        let ids = self.running.iter().chain(&self.waiting).map(|s| s.id);
        if !ids.is_sorted() {
            return Err("a request has overtaken another".into());
        }
        self.pages.check(self.running.iter().map(|s| &s.pages[..]))
    }

    /// Computes one step and tells what came of it. Without requests it does nothing.
    pub fn step(&mut self) -> Vec<Event> {
        self.step_while(|| ())
    }

    /// As [`step`](Self::step), with something else for this thread to do while the device computes,
    /// such as telling what came of the step before. It is done once, also where there is nothing
    /// to compute.
    pub fn step_while(&mut self, meanwhile: impl FnOnce()) -> Vec<Event> {
        let mut once = Some(meanwhile);
        let mut meanwhile = move || {
            if let Some(meanwhile) = once.take() {
                meanwhile();
            }
        };
        let events = self.compute(&mut meanwhile);
        meanwhile();
        events
    }

    fn compute(&mut self, meanwhile: &mut dyn FnMut()) -> Vec<Event> {
        let mut events = Vec::new();
        self.plan(&mut events);
        for s in &mut self.running {
            if let Err(error) = s.ask_constraint() {
                s.planned = 0;
                s.done = true;
                events.push(Event::Failed { id: s.id, error });
            }
        }
        self.remove_done();
        self.draft();
        let planned = self.running.iter_mut().filter(|s| s.planned > 0);
        let mut chunks: Vec<_> = planned.map(Sequence::chunk).collect();
        if chunks.is_empty() {
            return events;
        }
        let count = chunks.len();
        self.counters.steps += 1;
        let start = Instant::now();
        let results = self.engine.step_while(&mut chunks, meanwhile);
        self.counters.engine_nanos += nanos(start);
        match results {
            Ok(results) if results.len() == count => self.take(results, &mut events),
            Ok(results) => {
                let wrong = results.len();
                let message = format!("the device answered {wrong} of {count} sequences");
                self.fail(&message, &mut events);
            }
            Err(error) => self.fail(&error.to_string(), &mut events),
        }
        self.remove_done();
        events
    }

    /// Decides how many tokens of each running sequence are computed: one of each that generates,
    /// then as much of prompts as the step is best given.
    fn plan(&mut self, events: &mut Vec<Event>) {
        let rope = &self.engine.config().rope;
        for s in &mut self.running {
            s.planned = 0;
            s.choose_factors(rope, &mut self.pages);
        }
        let mut decoding = 0;
        let mut i = 0;
        while i < self.running.len() {
            if self.running[i].pending() == 1 {
                // The youngest makes room, which may be this one.
                while i < self.running.len() && self.running[i].plan(1, &mut self.pages) == 0 {
                    self.preempt_youngest();
                }
                decoding += usize::from(i < self.running.len());
            }
            i += 1;
        }
        let page_tokens = self.pages.page_tokens();
        let budget = self.engine.step_tokens().saturating_sub(decoding);
        // However many sequences generate, prompts get on.
        let mut left = budget.max(page_tokens);
        let mut writing = HashSet::new();
        let mut i = 0;
        while left > 0 && (i < self.running.len() || self.admit(events)) {
            left -= self.plan_prompt(i, left, &mut writing);
            i += 1;
        }
    }

    /// Has the next tokens of sequences that generate guessed, as far as the step has room beside
    /// prompts.
    fn draft(&mut self) {
        let Some(Speculation { drafter, most }) = &mut self.speculation else {
            return;
        };
        let config = self.engine.config();
        let planned = self.running.iter().map(|s| s.planned);
        let mut room = self.engine.step_tokens().saturating_sub(planned.sum());
        let rows = self.running.iter().filter(|s| s.planned > 0).count();
        let cost = cost_beside(self.engine.draft_cost(), rows) + drafter.cost();
        self.draft_cost = cost;
        let (mut asked, mut places) = (Vec::new(), Vec::new());
        for (place, s) in self.running.iter().enumerate() {
            let most = s.most_drafts(&config.rope).min(*most).min(room);
            let most = most.min(self.engine.most_drafts());
            let most = most.min(s.pace.tokens(cost));
            if most > 0 {
                room -= most;
                let (id, tokens) = (s.id, &s.tokens);
                asked.push(Asked {
                    id,
                    tokens,
                    most,
                    cost,
                });
                places.push((place, most));
            }
        }
        if asked.is_empty() {
            return;
        }
        let start = Instant::now();
        let drafts = drafter.draft(&asked);
        self.counters.draft_nanos += nanos(start);
        for ((place, most), draft) in places.into_iter().zip(drafts) {
            match draft {
                Ok(draft) => {
                    let draft = &draft[..most.min(draft.len())];
                    self.running[place].take_draft(draft, config.vocab, &mut self.pages);
                }
                Err(_) => self.counters.draft_failures += 1,
            }
        }
    }

    /// Plans up to `left` tokens of sequence `i`; `writing` are the pages that are completed in
    /// this step.
    fn plan_prompt(&mut self, i: usize, left: usize, writing: &mut HashSet<Hash>) -> usize {
        let page_tokens = self.pages.page_tokens();
        loop {
            let s = &mut self.running[i];
            if s.planned > 0 {
                return 0;
            }
            s.find_cached(&mut self.pages);
            if s.computed > s.reached {
                let found = s.computed.min(s.prompt_tokens).saturating_sub(s.reached);
                s.cached += found;
                s.reached = s.computed;
                self.counters.prefix_hits += found as u64;
            }
            // What another sequence writes now need not be computed twice: the next step finds it.
            if s.waits_for(writing, page_tokens) {
                return 0;
            }
            let count = s.plan(left.min(s.pending()), &mut self.pages);
            if count > 0 {
                writing.extend(s.completed(count, page_tokens).map(|(_, hash)| hash));
                return count;
            }
            let youngest = self.running.len() - 1;
            if i == youngest || self.running[youngest].planned > 0 {
                return 0;
            }
            self.preempt_youngest();
        }
    }

    /// Lets the first one that waits run, if there is a place and there are pages for it: as many as
    /// it will need for what is known of it, beside those that running prompts are yet to take, and
    /// one for each running sequence, so that it is not preempted soon.
    fn admit(&mut self, events: &mut Vec<Event>) -> bool {
        while let Some(s) = self.waiting.front_mut()
            && self.running.len() < self.engine.max_rows()
        {
            s.choose_factors(&self.engine.config().rope, &mut self.pages);
            s.find_cached(&mut self.pages);
            let lacks = |s: &Sequence| self.pages.needed(s.wanted()) - s.pages.len();
            let reserved: usize = self.running.iter().map(|s| lacks(s) + 1).sum();
            if lacks(s) + reserved > self.pages.available() {
                s.let_go(&mut self.pages);
                return false;
            }
            let Some(mut s) = self.waiting.pop_front() else {
                return false;
            };
            if !s.admitted {
                s.admitted = true;
                self.counters.prefix_queries += s.prompt_tokens as u64;
            }
            if s.wanted() == 0 {
                self.counters.prompt_tokens += s.prompt_tokens as u64;
                events.push(finished(&s, s.stop_at_most, None));
                continue;
            }
            // What was found counts when the first tokens are planned.
            self.running.push(s);
            return true;
        }
        false
    }

    /// Takes the pages of the youngest running sequence, which will compute its tokens so far
    /// anew. It is the first to run again.
    fn preempt_youngest(&mut self) {
        if let Some(mut s) = self.running.pop() {
            s.let_go(&mut self.pages);
            self.counters.preemptions += 1;
            self.waiting.push_front(s);
        }
    }

    /// Takes what came of the planned chunks.
    fn take(&mut self, results: Vec<Result<Computed>>, events: &mut Vec<Event>) {
        let planned = self.running.iter_mut().filter(|s| s.planned > 0);
        for (s, result) in planned.zip(results) {
            let id = s.id;
            let drafts = s.drafts();
            match result.and_then(|computed| advance(s, computed, &mut self.pages, events)) {
                Ok(chosen) => {
                    let c = &mut self.counters;
                    c.generated_tokens += chosen as u64;
                    c.drafts += u64::from(drafts > 0);
                    c.draft_tokens += drafts as u64;
                    c.accepted_tokens += chosen.saturating_sub(1) as u64;
                    s.pace.stepped(chosen, drafts, self.draft_cost);
                }
                Err(error) => {
                    s.done = true;
                    events.push(Event::Failed { id, error });
                }
            }
            s.end_draft(&mut self.pages);
            self.counters.computed_tokens += (s.planned + drafts) as u64;
            if s.reached < s.prompt_tokens && s.computed >= s.prompt_tokens.min(s.wanted()) {
                self.counters.prompt_tokens += s.prompt_tokens as u64;
            }
            s.reached = s.reached.max(s.computed);
            s.planned = 0;
        }
    }

    /// The device failed: no running sequence can go on, and the arena holds nothing reliable.
    fn fail(&mut self, message: &str, events: &mut Vec<Event>) {
        for s in &mut self.running {
            s.done = true;
            let error = Error::Step(message.into());
            events.push(Event::Failed { id: s.id, error });
        }
        self.pages.forget();
    }

    fn remove_done(&mut self) {
        let (pages, speculation) = (&mut self.pages, &mut self.speculation);
        self.running.retain_mut(|s| {
            if s.done {
                s.let_go(pages);
                if let Some(speculation) = speculation {
                    speculation.drafter.forget(s.id);
                }
            }
            !s.done
        });
    }
}

/// Takes what came of a sequence's planned tokens and of its draft; returns how many tokens were
/// chosen.
fn advance(
    s: &mut Sequence,
    computed: Computed,
    pages: &mut Pages,
    events: &mut Vec<Event>,
) -> Result<usize> {
    let id = s.id;
    // After a preemption, scores that were told come again.
    let told = s.scored.saturating_sub(s.computed);
    let log_probs: Vec<_> = computed.scores.into_iter().skip(told).collect();
    if !log_probs.is_empty() {
        s.scored += log_probs.len();
        events.push(Event::Prompt { id, log_probs });
    }
    let mut chosen = 0;
    for Chosen { token, log_probs } in computed.chosen {
        chosen += 1;
        if s.end_ids.contains(&token) {
            s.done = true;
            events.push(finished(s, Stop::EndOfSequence, Some(token)));
            break;
        }
        if let Some(constraint) = &mut s.constraint {
            constraint.accept(token)?;
        }
        s.tokens.push(token);
        events.push(Event::Token {
            id,
            token,
            log_probs,
        });
        if s.generated() == s.most {
            s.done = true;
            events.push(finished(s, s.stop_at_most, None));
            break;
        }
    }
    // Of a draft, the tokens that were chosen are in the pages, but for the last one.
    let count = s.planned + usize::saturating_sub(chosen, 1);
    let completed: Vec<_> = s.completed(count, pages.page_tokens()).collect();
    for (page, hash) in completed {
        pages.publish(s.pages[page], hash);
    }
    s.computed += count;
    if chosen == 0 && s.most == 0 && s.pending() == 0 {
        s.done = true;
        events.push(finished(s, s.stop_at_most, None));
    }
    Ok(chosen)
}

/// Nanoseconds since then.
fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn finished(s: &Sequence, stop: Stop, ended_by: Option<u32>) -> Event {
    Event::Finished {
        id: s.id,
        stop,
        ended_by,
        cached_tokens: s.cached,
    }
}
