//! The figures of a level, with the names and the definitions of `vllm bench serve`.

use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::client::Outcome;
use super::guessed::Guessed;
use super::level::Ran;

/// Percentiles that are given; vLLM gives the last one unless told otherwise.
const PERCENTILES: [(&str, f64); 2] = [("p95", 0.95), ("p99", 0.99)];

/// Mean, median, standard deviation and percentiles, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Figures {
    pub(crate) mean: f64,
    pub(crate) median: f64,
    pub(crate) std: f64,
    pub(crate) percentiles: [f64; PERCENTILES.len()],
}

impl Figures {
    /// All zero where there are no values, as vLLM has it.
    fn of(mut values: Vec<f64>) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        values.sort_by(f64::total_cmp);
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let percentile = |share| smq_engine::percentile(&values, share);
        Self {
            mean,
            median: percentile(0.5),
            std: (squares / count).sqrt(),
            percentiles: PERCENTILES.map(|(_, share)| percentile(share)),
        }
    }
}

/// What one level came to.
#[derive(Debug, Clone)]
pub(crate) struct Level {
    pub(crate) max_concurrency: usize,
    pub(crate) completed: usize,
    pub(crate) failed: usize,
    /// The first failure, in its own words.
    pub(crate) first_error: Option<String>,
    pub(crate) duration: Duration,
    pub(crate) total_input_tokens: usize,
    pub(crate) total_output_tokens: usize,
    /// Requests within the objectives; `None` where there are none.
    pub(crate) good: Option<usize>,
    pub(crate) ttft: Figures,
    pub(crate) tpot: Figures,
    pub(crate) itl: Figures,
    pub(crate) e2el: Figures,
    /// What the server guessed, where it did.
    pub(crate) guessed: Option<Guessed>,
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Time per output token, the first one left out.
fn tpot(outcome: &Outcome) -> Option<f64> {
    let further = outcome.output_tokens.checked_sub(1).filter(|n| *n > 0)?;
    Some(ms(outcome.latency - outcome.ttft) / further as f64)
}

impl Level {
    pub(super) fn of(
        max_concurrency: usize,
        Ran {
            outcomes,
            duration,
            guessed,
        }: &Ran,
        goodput: &Goodput,
    ) -> Self {
        let done: Vec<&Outcome> = outcomes.iter().filter_map(|o| o.as_ref().ok()).collect();
        let each = |value: &dyn Fn(&Outcome) -> f64| {
            Figures::of(done.iter().map(|outcome| value(outcome)).collect())
        };
        let gaps = done.iter().flat_map(|o| o.gaps.iter().copied().map(ms));
        let good = done
            .iter()
            .filter(|outcome| goodput.is_met(outcome))
            .count();
        Self {
            max_concurrency,
            completed: done.len(),
            failed: outcomes.len() - done.len(),
            first_error: outcomes.iter().find_map(|o| o.as_ref().err().cloned()),
            duration: *duration,
            total_input_tokens: done.iter().map(|o| o.input_tokens).sum(),
            total_output_tokens: done.iter().map(|o| o.output_tokens).sum(),
            good: (!goodput.is_empty()).then_some(good),
            ttft: each(&|o| ms(o.ttft)),
            tpot: Figures::of(done.iter().filter_map(|o| tpot(o)).collect()),
            itl: Figures::of(gaps.collect()),
            e2el: each(&|o| ms(o.latency)),
            guessed: *guessed,
        }
    }

    /// A count as a rate over the level's duration.
    pub(crate) fn per_second(&self, count: usize) -> f64 {
        count as f64 / self.duration.as_secs_f64()
    }

    /// The kinds of times, by vLLM's names.
    pub(crate) fn times(&self) -> [(&'static str, &Figures); 4] {
        [
            ("ttft", &self.ttft),
            ("tpot", &self.tpot),
            ("itl", &self.itl),
            ("e2el", &self.e2el),
        ]
    }
}

/// Flat, with vLLM's keys.
impl Serialize for Level {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.figures().serialize(serializer)
    }
}

impl Level {
    /// Every figure, by vLLM's keys.
    #[must_use]
    pub(crate) fn figures(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut map = serde_json::Map::new();
        let mut put = |key: &str, value: serde_json::Value| map.insert(key.to_owned(), value);
        put("max_concurrency", self.max_concurrency.into());
        put("duration", self.duration.as_secs_f64().into());
        put("completed", self.completed.into());
        put("failed", self.failed.into());
        if let Some(error) = &self.first_error {
            put("first_error", error.clone().into());
        }
        put("total_input_tokens", self.total_input_tokens.into());
        put("total_output_tokens", self.total_output_tokens.into());
        put("request_throughput", self.per_second(self.completed).into());
        let good = self.good.map(|good| self.per_second(good));
        put("request_goodput", good.into());
        let output = self.total_output_tokens;
        let total = self.total_input_tokens + output;
        put("output_throughput", self.per_second(output).into());
        put("total_token_throughput", self.per_second(total).into());
        if let Some(guessed) = &self.guessed {
            put(
                "spec_decode_acceptance_rate",
                (100.0 * guessed.rate()).into(),
            );
            put("spec_decode_acceptance_length", guessed.length().into());
            put("spec_decode_num_drafts", guessed.drafts.into());
            put("spec_decode_draft_tokens", guessed.tokens.into());
            put("spec_decode_accepted_tokens", guessed.accepted.into());
        }
        for (name, figures) in self.times() {
            put(&format!("mean_{name}_ms"), figures.mean.into());
            put(&format!("median_{name}_ms"), figures.median.into());
            put(&format!("std_{name}_ms"), figures.std.into());
            for ((share, _), value) in PERCENTILES.iter().zip(figures.percentiles) {
                put(&format!("{share}_{name}_ms"), value.into());
            }
        }
        map
    }
}

/// A time that a request has to keep to, as `ttft:200` in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Objective {
    kind: Kind,
    most_ms: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Ttft,
    Tpot,
    E2el,
}

impl Kind {
    const ALL: [(&'static str, Self); 3] = [
        ("ttft", Self::Ttft),
        ("tpot", Self::Tpot),
        ("e2el", Self::E2el),
    ];
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(name, limit)| {
            let (_, kind) = Kind::ALL.into_iter().find(|(known, _)| *known == name)?;
            let most_ms = limit
                .parse()
                .ok()
                .filter(|ms: &f64| ms.is_finite() && *ms > 0.0)?;
            Some(Self { kind, most_ms })
        });
        parsed.ok_or_else(|| "expected ttft:MS, tpot:MS or e2el:MS".to_owned())
    }
}

/// All of them; a request that meets each counts as good.
#[derive(Debug, Clone, Default)]
pub(crate) struct Goodput(pub(crate) Vec<Objective>);

impl Goodput {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn is_met(&self, outcome: &Outcome) -> bool {
        self.0.iter().all(|objective| {
            let value = match objective.kind {
                Kind::Ttft => ms(outcome.ttft),
                // One token has no time for a further one.
                Kind::Tpot => tpot(outcome).unwrap_or(0.0),
                Kind::E2el => ms(outcome.latency),
            };
            value <= objective.most_ms
        })
    }
}

impl Serialize for Goodput {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = |kind| {
            Kind::ALL
                .iter()
                .find(|(_, k)| *k == kind)
                .map(|(name, _)| *name)
        };
        let items = self.0.iter();
        serializer.collect_map(items.map(|o| (name(o.kind), o.most_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(ttft: u64, gaps: &[u64], output_tokens: usize) -> Outcome {
        let millis = Duration::from_millis;
        Outcome {
            ttft: millis(ttft),
            latency: millis(ttft + gaps.iter().sum::<u64>()),
            gaps: gaps.iter().copied().map(millis).collect(),
            input_tokens: 10,
            output_tokens,
        }
    }

    #[test]
    fn figures_are_those_of_vllm() {
        let outcomes = vec![
            Ok(outcome(100, &[10, 30], 3)),
            // Two tokens in the second chunk: one gap, and yet two further tokens.
            Ok(outcome(300, &[60], 3)),
            Ok(outcome(200, &[], 1)),
            Err("refused".to_owned()),
        ];
        let goodput = Goodput(vec![
            "ttft:250".parse().unwrap(),
            "tpot:20".parse().unwrap(),
        ]);
        let guessed = Guessed {
            drafts: 20,
            tokens: 80,
            accepted: 30,
        };
        let ran = Ran {
            outcomes,
            duration: Duration::from_secs(2),
            guessed: Some(guessed),
        };
        let level = Level::of(4, &ran, &goodput);
        let json = serde_json::to_value(&level).unwrap();
        for (key, expected) in [
            ("completed", 3.0),
            ("failed", 1.0),
            ("total_input_tokens", 30.0),
            ("total_output_tokens", 7.0),
            ("request_throughput", 1.5),
            ("request_goodput", 1.0),
            ("output_throughput", 3.5),
            ("total_token_throughput", 18.5),
            ("mean_ttft_ms", 200.0),
            ("median_ttft_ms", 200.0),
            ("p95_ttft_ms", 290.0),
            ("p99_ttft_ms", 298.0),
            // (40 / 2 + 60 / 2) / 2; the request of one token has none.
            ("mean_tpot_ms", 25.0),
            ("mean_itl_ms", 100.0 / 3.0),
            ("median_itl_ms", 30.0),
            ("mean_e2el_ms", 700.0 / 3.0),
            ("spec_decode_acceptance_rate", 37.5),
            ("spec_decode_acceptance_length", 2.5),
            ("spec_decode_num_drafts", 20.0),
            ("spec_decode_draft_tokens", 80.0),
            ("spec_decode_accepted_tokens", 30.0),
        ] {
            let value = json[key].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-9, "{key}: {value}");
        }
        // Of the population, as numpy has it.
        let std = (2.0f64 / 3.0).sqrt() * 100.0;
        assert!((json["std_ttft_ms"].as_f64().unwrap() - std).abs() < 1e-9);
        assert_eq!(json["first_error"], "refused");
    }

    #[test]
    fn objectives_are_read() {
        for text in ["ttft", "ttft:", "ttft:0", "itl:3", "tpot:nan"] {
            assert!(text.parse::<Objective>().is_err(), "{text}");
        }
        let goodput = Goodput(vec!["e2el:150".parse().unwrap()]);
        assert_eq!(
            serde_json::to_string(&goodput).unwrap(),
            r#"{"e2el":150.0}"#
        );
        assert!(goodput.is_met(&outcome(100, &[50], 2)));
        assert!(!goodput.is_met(&outcome(100, &[51], 2)));
    }
}
