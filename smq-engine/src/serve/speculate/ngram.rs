//! Guesses from the text itself: what followed the longest end of the text that came before.

use std::collections::HashMap;

use super::{Asked, Drafter};
use crate::error::Result;
use crate::serve::RequestId;

/// How often the token behind an end of 1, 2, ... tokens that came before is the one that followed
/// it there, in answers of SmolLM2-135M to questions (results/speculate).
const RIGHT: [f64; 6] = [0.15, 0.41, 0.55, 0.69, 0.73, 0.88];
/// Where nothing is meant.
const NONE: u32 = u32::MAX;

/// The longest end of a growing text that it had before, found in constant time a token.
///
/// It is a suffix automaton (Blumer et al. 1985): a state stands for the parts of the text that end
/// at the same places, its link for the longest end of them that also ends elsewhere. The state of
/// the whole text links to the longest end that came before. Each state also knows one place where
/// its parts end, the latest at which they were looked for.
#[derive(Debug, Clone)]
pub struct Repeats {
    tokens: Vec<u32>,
    states: Vec<State>,
    /// The state of the whole text.
    last: u32,
}

#[derive(Debug, Clone)]
struct State {
    /// Tokens of its longest part.
    len: u32,
    link: u32,
    /// A number of tokens behind which its parts end.
    end: u32,
    /// The state behind one more token, in the order of tokens.
    next: Vec<(u32, u32)>,
}

impl State {
    fn next(&self, token: u32) -> Option<u32> {
        let at = self.next.binary_search_by_key(&token, |(token, _)| *token);
        at.ok().map(|at| self.next[at].1)
    }

    fn set(&mut self, token: u32, to: u32) {
        match self.next.binary_search_by_key(&token, |(token, _)| *token) {
            Ok(at) => self.next[at].1 = to,
            Err(at) => self.next.insert(at, (token, to)),
        }
    }
}

impl Default for Repeats {
    fn default() -> Self {
        let root = State {
            len: 0,
            link: NONE,
            end: 0,
            next: Vec::new(),
        };
        Self {
            tokens: Vec::new(),
            states: vec![root],
            last: 0,
        }
    }
}

impl Repeats {
    /// The text so far.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Appends a token.
    pub fn push(&mut self, token: u32) {
        // The end that came before has its latest place here.
        let before = self.states[self.last as usize].link;
        if before != NONE {
            self.states[before as usize].end = self.tokens.len() as u32;
        }
        self.tokens.push(token);
        let len = self.tokens.len() as u32;
        let new = self.add(State {
            len,
            link: 0,
            end: len,
            next: Vec::new(),
        });
        let mut at = self.last;
        let found = loop {
            if at == NONE {
                break None;
            }
            match self.states[at as usize].next(token) {
                Some(to) => break Some(to),
                None => {
                    self.states[at as usize].set(token, new);
                    at = self.states[at as usize].link;
                }
            }
        };
        if let Some(to) = found {
            let link = self.split(at, token, to);
            self.states[new as usize].link = link;
        }
        self.last = new;
    }

    fn add(&mut self, state: State) -> u32 {
        self.states.push(state);
        (self.states.len() - 1) as u32
    }

    /// The state of the parts of `to` that continue the longest one of `at`: `to` itself where there
    /// are no longer ones, and otherwise a new one, which they leave it for.
    fn split(&mut self, at: u32, token: u32, to: u32) -> u32 {
        let len = self.states[at as usize].len + 1;
        if self.states[to as usize].len == len {
            return to;
        }
        let part = self.add(State {
            len,
            ..self.states[to as usize].clone()
        });
        self.states[to as usize].link = part;
        let mut at = at;
        while at != NONE && self.states[at as usize].next(token) == Some(to) {
            self.states[at as usize].set(token, part);
            at = self.states[at as usize].link;
        }
        part
    }

    /// The length of the longest end of the text that came before, and a place behind it: the
    /// number of tokens up to the end of its earlier occurrence.
    #[must_use]
    pub fn longest(&self) -> (usize, usize) {
        match self.states[self.last as usize].link {
            NONE => (0, 0),
            link => {
                let state = &self.states[link as usize];
                (state.len as usize, state.end as usize)
            }
        }
    }

    /// The next `most` tokens, if the text went on as it did behind the longest end that came
    /// before; none if that is shorter than `least`. Where this reaches the text's own end it goes
    /// on with what it guessed.
    #[must_use]
    pub fn guess(&self, least: usize, most: usize) -> Vec<u32> {
        let (len, end) = self.longest();
        if len < least.max(1) {
            return Vec::new();
        }
        let mut guess: Vec<u32> = Vec::with_capacity(most);
        for at in end..end + most {
            let token = match self.tokens.get(at) {
                Some(token) => *token,
                None => guess[at - self.tokens.len()],
            };
            guess.push(token);
        }
        guess
    }
}

/// Guesses that texts repeat themselves (prompt lookup): what answers quote, code that resembles
/// code, names, loops. The more a guess costs, the longer an end has to have come before.
#[derive(Debug, Default)]
pub struct NgramDrafter {
    texts: HashMap<RequestId, Repeats>,
}

impl Drafter for NgramDrafter {
    fn draft(&mut self, asked: &[Asked<'_>]) -> Vec<Result<Vec<u32>>> {
        let guess = |asked: &Asked<'_>| {
            let text = self.texts.entry(asked.id).or_default();
            for token in &asked.tokens[text.tokens().len().min(asked.tokens.len())..] {
                text.push(*token);
            }
            // What costs more than the longest ends are worth is not guessed.
            let least = RIGHT.iter().position(|right| *right > asked.cost);
            Ok(least.map_or(Vec::new(), |at| text.guess(at + 1, asked.most)))
        };
        asked.iter().map(guess).collect()
    }

    fn forget(&mut self, id: RequestId) {
        self.texts.remove(&id);
    }

    fn cost(&self) -> f64 {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition.
    fn longest(tokens: &[u32]) -> usize {
        let n = tokens.len();
        let came_before = |len: usize| {
            let end = &tokens[n - len..];
            (len..n).any(|at| tokens[at - len..at] == *end)
        };
        (0..n).rev().find(|len| came_before(*len)).unwrap_or(0)
    }

    fn texts() -> impl Iterator<Item = Vec<u32>> {
        let mut state = 1_u64;
        let mut random = move |n: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((state >> 33) % n) as u32
        };
        (0..300).map(move |i| {
            let alphabet = [1, 2, 3, 10, 1000][i % 5];
            let mut text: Vec<u32> = Vec::new();
            while text.len() < 120 {
                // Parts come again as they are.
                match random(4) {
                    0 if !text.is_empty() => {
                        let from = random(text.len() as u64) as usize;
                        let len = random(20) as usize;
                        text.extend_from_within(from..(from + len).min(text.len()));
                    }
                    _ => text.push(random(alphabet)),
                }
            }
            text
        })
    }

    #[test]
    fn the_longest_end_that_came_before_is_that_of_the_definition() {
        for text in texts() {
            let mut repeats = Repeats::default();
            for (n, token) in text.iter().enumerate() {
                repeats.push(*token);
                let n = n + 1;
                let (len, end) = repeats.longest();
                assert_eq!(len, longest(&text[..n]), "{:?}", &text[..n]);
                assert!(len <= end && end < n.max(1), "{len} before {end} of {n}");
                assert_eq!(text[end - len..end], text[n - len..n]);
            }
            assert!(repeats.states.len() <= 2 * text.len());
        }
    }

    #[test]
    fn a_guess_goes_on_as_the_text_did() {
        let mut repeats = Repeats::default();
        let mut guess = |tokens: &[u32], least, most| {
            tokens.iter().for_each(|token| repeats.push(*token));
            repeats.guess(least, most)
        };
        assert!(guess(&[], 1, 4).is_empty());
        assert!(guess(&[1, 2, 3, 4, 9], 1, 4).is_empty());
        assert_eq!(guess(&[2, 3], 2, 2), [4, 9]);
        assert!(guess(&[], 3, 2).is_empty());
        // Past the end of the text it repeats what it guessed.
        assert_eq!(guess(&[], 2, 7), [4, 9, 2, 3, 4, 9, 2]);
        // Of two places the later one.
        assert_eq!(guess(&[7, 2, 3], 2, 2), [7, 2]);
    }

    #[test]
    fn a_text_is_read_on_where_it_was_left() {
        let mut drafter = NgramDrafter::default();
        let id = RequestId(3);
        let mut draft = |tokens: &[u32], cost| {
            let asked = Asked {
                id,
                tokens,
                most: 2,
                cost,
            };
            drafter.draft(&[asked]).remove(0).unwrap()
        };
        assert!(draft(&[5, 6, 7, 8], 0.05).is_empty());
        assert_eq!(draft(&[5, 6, 7, 8, 5], 0.05), [6, 7]);
        assert!(draft(&[5, 6, 7, 8, 5], 0.2).is_empty());
        assert_eq!(draft(&[5, 6, 7, 8, 5, 6], 0.2), [7, 8]);
        assert!(draft(&[5, 6, 7, 8, 5, 6], 0.9).is_empty());
        assert_eq!(drafter.texts[&id].tokens().len(), 6);
        drafter.forget(id);
        assert!(drafter.texts.is_empty());
    }
}
