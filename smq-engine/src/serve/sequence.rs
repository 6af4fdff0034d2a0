//! One request on its way: its tokens, its pages, and how far it has got.

use std::collections::HashSet;

use blake3::Hash;
use smq_model::{ModelConfig, RopeConfig};

use super::batch::{Choice, Chunk, Scores};
use super::pages::{Pages, page_hash};
use super::request::{Constraint, Request, RequestId};
use super::speculate::Pace;
use crate::error::{Error, Result};
use crate::generate::Stop;
use crate::sample::Sampler;

/// A request and what there is of it.
pub(super) struct Sequence {
    pub(super) id: RequestId,
    /// The prompt and what came after it.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_tokens: usize,
    /// Most new tokens, and why it ends with them.
    pub(super) most: usize,
    pub(super) stop_at_most: Stop,
    pub(super) end_ids: Vec<u32>,
    log_probs: Option<usize>,
    prompt_log_probs: Option<usize>,
    sampler: Sampler,
    pub(super) constraint: Option<Box<dyn Constraint>>,
    /// What the constraint allows in this step, and behind each token of a draft.
    mask: Vec<u32>,
    /// Words of what it allows in one place.
    mask_words: usize,
    /// The last token and what is guessed behind it, in a step that has a draft.
    drafted: Vec<u32>,
    /// How far it is guessed ahead.
    pub(super) pace: Pace,
    /// Whether LongRoPE's long factors are used.
    long: bool,
    /// Pages for `computed` tokens, and in a step for the planned ones too.
    pub(super) pages: Vec<u32>,
    /// Tokens whose keys and values are in the pages.
    pub(super) computed: usize,
    /// Tokens that this step computes.
    pub(super) planned: usize,
    /// Of its first pages, as far as somebody needed them.
    hashes: Vec<Hash>,
    /// Scores of the prompt that were told.
    pub(super) scored: usize,
    /// Most tokens that ever were in its pages: what is beyond them is new to it.
    pub(super) reached: usize,
    /// It has run before.
    pub(super) admitted: bool,
    /// Tokens of the prompt that were found in the cache.
    pub(super) cached: usize,
    /// Its last event is out.
    pub(super) done: bool,
}

impl Sequence {
    /// Checks a request against the model and the arena.
    pub(super) fn new(
        id: RequestId,
        request: Request,
        config: &ModelConfig,
        pages: &Pages,
    ) -> Result<Self> {
        let Request {
            prompt,
            max_new_tokens,
            settings,
            adjustments,
            seed,
            stop_ids,
            ignore_eos,
            log_probs,
            prompt_log_probs,
            constraint,
        } = request;
        let (limit, vocab) = (config.max_positions, config.vocab);
        if prompt.is_empty() {
            return Err(Error::Input("the prompt is empty".into()));
        }
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Input(format!(
                "the prompt holds token id {id}, which is outside the model's vocabulary of {vocab}"
            )));
        }
        let count = prompt.len();
        if count >= limit + usize::from(max_new_tokens == 0) {
            return Err(Error::Input(format!(
                "the prompt has {count} tokens, the model's longest context is {limit}"
            )));
        }
        let (arena_pages, page_tokens) = (pages.count(), pages.page_tokens());
        let arena_tokens = arena_pages * page_tokens;
        if count > arena_tokens {
            return Err(Error::Input(format!(
                "the prompt has {count} tokens, the cache has room for {arena_tokens} \
                 ({arena_pages} pages of {page_tokens}); give the cache more memory"
            )));
        }
        // The last token needs no place of its own: nothing is computed from it.
        let most = max_new_tokens.min(limit.min(arena_tokens) - count + 1);
        let sampler = Sampler::new(&settings, &prompt, max_new_tokens, vocab, seed)?
            .adjusted(&adjustments, vocab)?;
        let mut end_ids = stop_ids;
        if !ignore_eos {
            end_ids.extend_from_slice(&settings.eos_ids);
        }
        Ok(Self {
            id,
            tokens: prompt,
            prompt_tokens: count,
            most,
            stop_at_most: if most < max_new_tokens {
                Stop::ContextFull
            } else {
                Stop::MaxNewTokens
            },
            end_ids,
            log_probs,
            prompt_log_probs,
            sampler,
            constraint,
            mask: Vec::new(),
            mask_words: vocab.div_ceil(32),
            drafted: Vec::new(),
            pace: Pace::new(),
            long: config.rope.is_long(count),
            pages: Vec::new(),
            computed: 0,
            planned: 0,
            hashes: Vec::new(),
            scored: 0,
            reached: 0,
            admitted: false,
            cached: 0,
            done: false,
        })
    }

    /// New tokens.
    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Tokens that have to be in the pages for what is wanted next: all there are, where another
    /// one follows them.
    pub(super) fn wanted(&self) -> usize {
        match (self.most, self.prompt_log_probs) {
            (0, None) => 0,
            (0, Some(_)) => self.tokens.len() - 1,
            (1.., _) => self.tokens.len(),
        }
    }

    /// Tokens that are yet to be computed.
    pub(super) fn pending(&self) -> usize {
        self.wanted() - self.computed
    }

    /// Whether scores of the prompt are still to come.
    fn is_scoring(&self) -> bool {
        self.prompt_log_probs.is_some() && self.scored + 1 < self.prompt_tokens
    }

    /// Picks LongRoPE's factors by the number of tokens. Where they change, what was computed with
    /// the others is of no use.
    pub(super) fn choose_factors(&mut self, rope: &RopeConfig, pages: &mut Pages) {
        let long = rope.is_long(self.tokens.len());
        if long != self.long {
            self.long = long;
            self.hashes.clear();
            self.let_go(pages);
        }
    }

    /// Gives its pages back; everything is to be computed anew.
    pub(super) fn let_go(&mut self, pages: &mut Pages) {
        pages.release(&mut self.pages);
        self.computed = 0;
        self.planned = 0;
        self.drafted.clear();
    }

    /// The hash of a page, all of whose tokens are known.
    fn hash(&mut self, page: usize, page_tokens: usize) -> Hash {
        while self.hashes.len() <= page {
            let tokens = &self.tokens[self.hashes.len() * page_tokens..][..page_tokens];
            let hash = page_hash(self.hashes.last(), tokens, self.long);
            self.hashes.push(hash);
        }
        self.hashes[page]
    }

    /// The hash of the next page, if others may have computed it: it begins where this sequence
    /// stands, and neither the last token, whose logits are wanted, nor one whose logits are to be
    /// scored is in it.
    fn next_shared(&mut self, page_tokens: usize) -> Option<Hash> {
        let mut limit = self.wanted().saturating_sub(1);
        if self.is_scoring() {
            limit = limit.min(self.scored);
        }
        let whole = self.computed.is_multiple_of(page_tokens);
        let fits = self.computed + page_tokens <= limit;
        (whole && fits).then(|| self.hash(self.computed / page_tokens, page_tokens))
    }

    /// Takes over the pages from here on that the cache has; returns the number of their tokens.
    pub(super) fn find_cached(&mut self, pages: &mut Pages) -> usize {
        let page_tokens = pages.page_tokens();
        let before = self.computed;
        while let Some(hash) = self.next_shared(page_tokens)
            && let Some(page) = pages.find(&hash)
        {
            self.pages.push(page);
            self.computed += page_tokens;
        }
        self.computed - before
    }

    /// Whether the next page is among those that another sequence completes in this step.
    pub(super) fn waits_for(&mut self, writing: &HashSet<Hash>, page_tokens: usize) -> bool {
        !writing.is_empty()
            && self
                .next_shared(page_tokens)
                .is_some_and(|hash| writing.contains(&hash))
    }

    /// Plans up to `count` tokens, as many as pages can be had for.
    pub(super) fn plan(&mut self, count: usize, pages: &mut Pages) -> usize {
        let page_tokens = pages.page_tokens();
        while self.pages.len() * page_tokens < self.computed + count {
            match pages.take() {
                Some(page) => self.pages.push(page),
                None => break,
            }
        }
        self.planned = count.min(self.pages.len() * page_tokens - self.computed);
        self.planned
    }

    /// Hashes of the pages that the next `count` tokens complete, with the pages' places in the
    /// table.
    pub(super) fn completed(
        &mut self,
        count: usize,
        page_tokens: usize,
    ) -> impl Iterator<Item = (usize, Hash)> + '_ {
        let end = (self.computed + count) / page_tokens;
        (self.computed / page_tokens..end).map(move |page| (page, self.hash(page, page_tokens)))
    }

    /// How many tokens may be guessed in this step: none but where the last token is computed, and
    /// not beyond the end of the text or LongRoPE's switch.
    pub(super) fn most_drafts(&self, rope: &RopeConfig) -> usize {
        if self.planned != 1 || !self.chooses() || self.is_scoring() {
            return 0;
        }
        let len = self.tokens.len();
        let left = self.most - self.generated() - 1;
        // Where the factors differ, so would what is chosen.
        match rope.is_long(len + left) == self.long {
            true => left,
            false => (1..left).take_while(|n| !rope.is_long(len + n)).count(),
        }
    }

    /// Takes a draft, as far as it can come true and pages can be had for it.
    pub(super) fn take_draft(&mut self, draft: &[u32], vocab: usize, pages: &mut Pages) {
        let ends = |id: &u32| self.end_ids.contains(id) || *id as usize >= vocab;
        let count = draft.iter().position(ends).unwrap_or(draft.len());
        let mut count = self.mask_draft(&draft[..count]);
        let page_tokens = pages.page_tokens();
        let known = self.computed + self.planned;
        while self.pages.len() * page_tokens < known + count {
            match pages.take() {
                Some(page) => self.pages.push(page),
                None => count = self.pages.len() * page_tokens - known,
            }
        }
        if count > 0 {
            self.drafted.extend(self.tokens.last());
            self.drafted.extend_from_slice(&draft[..count]);
        }
    }

    /// Asks the constraint, where there is one, what may come behind each token of a draft; returns
    /// how many of them may come.
    fn mask_draft(&mut self, draft: &[u32]) -> usize {
        let Some(constraint) = &self.constraint else {
            return draft.len();
        };
        let words = self.mask_words;
        let Some(mut ahead) = constraint.fork().filter(|_| !draft.is_empty()) else {
            return 0;
        };
        for (count, id) in draft.iter().enumerate() {
            let mask = &self.mask[count * words..];
            let allowed = mask[*id as usize / 32] >> (id % 32) & 1 == 1;
            let from = self.mask.len();
            self.mask.resize(from + words, 0);
            // An error is the text's own once it gets there.
            let goes_on = allowed
                && ahead.accept(*id).is_ok()
                && ahead.allowed(&mut self.mask[from..]).is_ok();
            if !goes_on {
                self.mask.truncate(from);
                return count;
            }
        }
        draft.len()
    }

    /// Tokens that are guessed in this step.
    pub(super) fn drafts(&self) -> usize {
        self.drafted.len().saturating_sub(1)
    }

    /// Forgets the draft, and gives pages back that the tokens so far do not need.
    pub(super) fn end_draft(&mut self, pages: &mut Pages) {
        self.drafted.clear();
        let mut left = self.pages.split_off(pages.needed(self.computed));
        pages.release(&mut left);
    }

    /// Whether the planned tokens are the last ones and another one is to be chosen.
    fn chooses(&self) -> bool {
        self.most > 0 && self.planned == self.pending()
    }

    /// Asks the constraint, where there is one, what may come.
    pub(super) fn ask_constraint(&mut self) -> Result<()> {
        if self.planned == 0 || !self.chooses() {
            return Ok(());
        }
        match &mut self.constraint {
            Some(constraint) => {
                self.mask.clear();
                self.mask.resize(self.mask_words, 0);
                constraint.allowed(&mut self.mask)
            }
            None => Ok(()),
        }
    }

    /// The planned tokens, for the device.
    pub(super) fn chunk(&mut self) -> Chunk<'_> {
        let (chooses, drafts) = (self.chooses(), self.drafts());
        let end = self.computed + self.planned;
        let scores = self.prompt_log_probs.filter(|_| self.is_scoring());
        let scores = scores.map(|top| Scores {
            targets: &self.tokens[self.computed + 1..(end + 1).min(self.prompt_tokens)],
            top,
        });
        Chunk {
            pages: &self.pages,
            past: self.computed,
            tokens: match drafts {
                0 => &self.tokens[self.computed..end],
                1.. => &self.drafted,
            },
            drafts,
            long: self.long,
            scores,
            choice: chooses.then_some(Choice {
                sampler: &mut self.sampler,
                allowed: self.constraint.is_some().then_some(&self.mask[..]),
                top: self.log_probs,
            }),
        }
    }
}
