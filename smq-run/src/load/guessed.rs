//! What a server says in `/metrics` of tokens that it guessed, by vLLM's names.

use super::client::Client;

const NAME: &str = "vllm:spec_decode_num_";

/// Guesses of a server, since it began or of a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guessed {
    /// How often tokens were guessed.
    pub(crate) drafts: u64,
    /// How many tokens were guessed in all.
    pub(crate) tokens: u64,
    /// How many of them were right.
    pub(crate) accepted: u64,
}

impl Guessed {
    /// Of the text of `/metrics`; `None` if it does not say.
    fn of(metrics: &str) -> Option<Self> {
        let sum = |what: &str| {
            let name = format!("{NAME}{what}_total");
            let lines = metrics.lines().filter_map(|line| line.strip_prefix(&name));
            let values = lines.filter(|rest| rest.starts_with([' ', '{']));
            let values = values.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok());
            // Counters are whole numbers.
            values.map(|value| value as u64).reduce(|a, b| a + b)
        };
        Some(Self {
            drafts: sum("drafts")?,
            tokens: sum("draft_tokens")?,
            accepted: sum("accepted_tokens")?,
        })
    }

    /// What came since then; `None` if nothing was guessed.
    pub(super) fn since(&self, before: Self) -> Option<Self> {
        let since = Self {
            drafts: self.drafts.saturating_sub(before.drafts),
            tokens: self.tokens.saturating_sub(before.tokens),
            accepted: self.accepted.saturating_sub(before.accepted),
        };
        (since.drafts > 0 && since.tokens > 0).then_some(since)
    }

    /// The share of tokens that were right.
    pub(super) fn rate(&self) -> f64 {
        self.accepted as f64 / self.tokens as f64
    }

    /// Tokens that came of a step that had a guess.
    pub(super) fn length(&self) -> f64 {
        1.0 + self.accepted as f64 / self.drafts as f64
    }
}

impl Client {
    /// What the server guessed since it began; `None` where it does not say.
    pub(super) async fn guessed(&self) -> Option<Guessed> {
        let metrics = self.get("/metrics").await.ok()?;
        Guessed::of(&String::from_utf8_lossy(&metrics))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_and_their_growth_counts() {
        let metrics = |drafts: u64| {
            format!(
                "# TYPE vllm:spec_decode_num_drafts_total counter\n\
                 vllm:spec_decode_num_drafts_total{{engine=\"0\",model_name=\"a b\"}} {drafts}.0\n\
                 vllm:spec_decode_num_draft_tokens_total{{engine=\"0\"}} 4e1\n\
                 vllm:spec_decode_num_draft_tokens_total{{engine=\"1\"}} {drafts}\n\
                 vllm:spec_decode_num_accepted_tokens_per_pos_total{{position=\"0\"}} 9\n\
                 vllm:spec_decode_num_accepted_tokens_total 12\n"
            )
        };
        let [before, after] = [3, 5].map(|n| Guessed::of(&metrics(n)).unwrap());
        assert_eq!(
            before,
            Guessed {
                drafts: 3,
                tokens: 43,
                accepted: 12
            }
        );
        let since = after.since(before).unwrap();
        assert_eq!((since.drafts, since.tokens, since.accepted), (2, 2, 0));
        assert_eq!((since.rate(), since.length()), (0.0, 1.0));
        assert_eq!(after.since(after), None);
        assert_eq!(Guessed::of("vllm:generation_tokens_total 3\n"), None);
    }
}
