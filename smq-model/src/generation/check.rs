//! Ranges of the values that are in force. A value that is not, such as the temperature of a model
//! that is not sampled from, may be anything: transformers does not look at it either.

use super::GenerationSettings;
use crate::error::Result;

impl GenerationSettings {
    /// Checks the values that are in force for a model with a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// [`Error::Generation`](crate::Error::Generation) naming the key, its value and what was
    /// expected.
    pub fn check(&self, vocab: usize) -> Result<()> {
        for (key, penalty) in [
            (
                "encoder_repetition_penalty",
                self.encoder_repetition_penalty,
            ),
            ("repetition_penalty", self.repetition_penalty),
        ] {
            if !(penalty > 0.0 && penalty.is_finite()) {
                return Err(self.bad(format!("{key} is {penalty}, expected more than 0")));
            }
        }
        let forced_bos: Vec<u32> = self.forced_bos_token_id.into_iter().collect();
        let biased = self.sequence_bias.iter().map(|(ids, _)| ids);
        for (key, lists) in [
            ("sequence_bias", biased.collect::<Vec<_>>()),
            ("bad_words_ids", self.bad_words_ids.iter().collect()),
            ("forced_bos_token_id", vec![&forced_bos]),
            ("forced_eos_token_id", vec![&self.forced_eos_token_id]),
        ] {
            let mut ids = lists.into_iter().flatten();
            if let Some(id) = ids.find(|id| **id as usize >= vocab) {
                return Err(self.bad(format!(
                    "{key} holds {id}, expected ids below the vocabulary's {vocab}"
                )));
            }
        }
        if self.exponential_decay_length_penalty.is_some() {
            let known = |id: &u32| (*id as usize) < vocab;
            if self.eos_ids.is_empty() || !self.eos_ids.iter().all(known) {
                return Err(self.bad(format!(
                    "exponential_decay_length_penalty is given and eos_token_id is {:?}, expected \
                     one or more ids below the vocabulary's {vocab}",
                    self.eos_ids
                )));
            }
        }
        if self.do_sample {
            self.check_sampling()?;
        }
        Ok(())
    }

    fn check_sampling(&self) -> Result<()> {
        let s = &self.sampling;
        let bad = |key: &str, value: f64, expected: &str| {
            Err(self.bad(format!("{key} is {value}, expected {expected}")))
        };
        if !(s.temperature > 0.0 && s.temperature.is_finite()) {
            return bad(
                "temperature",
                s.temperature,
                "more than 0 where do_sample is true; --temperature 0 takes the most likely token",
            );
        }
        if let Some(top_h) = s.top_h.filter(|h| !(*h > 0.0 && *h <= 1.0)) {
            return bad("top_h", top_h, "more than 0 and at most 1");
        }
        if s.top_k < 0 {
            return bad("top_k", s.top_k as f64, "1 or more, or 0 for all tokens");
        }
        if s.top_p < 0.0 {
            return bad("top_p", s.top_p, "0 to 1");
        }
        if let Some(min_p) = s.min_p.filter(|p| !(0.0..=1.0).contains(p)) {
            return bad("min_p", min_p, "0 to 1");
        }
        if s.typical_p <= 0.0 {
            return bad("typical_p", s.typical_p, "more than 0 and at most 1");
        }
        Ok(())
    }
}
