//! The generation settings of `generate`: the model's, and the flags that go before them.

use clap::Args;

use super::at_least_one;
use smq_model::{GenerationSettings, Source};

/// New tokens where neither the model nor a flag limits them.
const DEFAULT_NEW_TOKENS: usize = 256;
const DEFAULT_SEED: u64 = 42;

#[derive(Debug, Args)]
#[command(next_help_heading = "Generation settings, each in place of the model's own")]
pub(in crate::cli) struct SettingArgs {
    /// Stop after this many tokens [default: the model's limit, or 256]
    #[arg(long, short = 'n', value_name = "N", value_parser = at_least_one)]
    max_new_tokens: Option<usize>,
    /// Take the most likely token always and obey no setting of the model but its end-of-sequence
    /// ids, as `bench`, `eval` and `matrix` do
    #[arg(long, conflicts_with_all = [
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size",
        "min_new_tokens", "seed",
    ])]
    greedy: bool,
    /// 0 takes the most likely token; more samples, at 1 from the model's distribution
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f64>,
    /// Sample only from this many of the most likely tokens; 0 is all [default: the model's, or 50]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    top_k: Option<i64>,
    /// Sample only from the most likely tokens that together have this probability
    #[arg(long, value_name = "P", value_parser = probability)]
    top_p: Option<f64>,
    /// Sample only from tokens that are this many times as likely as the most likely one
    #[arg(long, value_name = "P", value_parser = share)]
    min_p: Option<f64>,
    /// Make tokens of the prompt and the text so far less likely, by this factor of the logit
    #[arg(long, value_name = "X", value_parser = positive)]
    repetition_penalty: Option<f64>,
    /// Never repeat a sequence of this many tokens; 0 allows all
    #[arg(long, value_name = "N")]
    no_repeat_ngram_size: Option<usize>,
    /// Do not end the text before it has this many tokens
    #[arg(long, value_name = "N")]
    min_new_tokens: Option<usize>,
    /// Stop behind this text, which stays part of the answer, beside those of the model; may be
    /// given more than once
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true,
        value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Seed of the sampling [default: 42]
    #[arg(long)]
    seed: Option<u64>,
}

impl SettingArgs {
    /// The model's settings with what the flags set in place of them. What is in force though no
    /// flag asked for it is said on standard error.
    ///
    /// # Errors
    /// If the model's are malformed or not implemented, or if a flag has no effect.
    pub(in crate::cli) fn settings(
        &self,
        source: &Source,
        vocab: usize,
    ) -> anyhow::Result<GenerationSettings> {
        if self.greedy {
            let mut settings = GenerationSettings::plain(source)?;
            settings.max_new_tokens = self.max_new_tokens;
            settings.stop_strings.clone_from(&self.stop);
            return Ok(settings);
        }
        let mut settings = GenerationSettings::of(source)?;
        let mut replaced = Vec::new();
        let mut replace = |keys: &[&'static str]| replaced.extend_from_slice(keys);
        if self.max_new_tokens.is_some() {
            settings.max_new_tokens = self.max_new_tokens;
            replace(&["max_new_tokens", "max_length"]);
        }
        if let Some(temperature) = self.temperature {
            settings.do_sample = temperature > 0.0;
            settings.sampling.temperature = temperature;
            replace(&["do_sample", "temperature"]);
        }
        if let Some(top_k) = self.top_k {
            settings.sampling.top_k = top_k;
            replace(&["top_k"]);
        }
        if let Some(top_p) = self.top_p {
            settings.sampling.top_p = top_p;
            replace(&["top_p"]);
        }
        if self.min_p.is_some() {
            settings.sampling.min_p = self.min_p;
            replace(&["min_p"]);
        }
        if let Some(penalty) = self.repetition_penalty {
            settings.repetition_penalty = penalty;
            replace(&["repetition_penalty"]);
        }
        if let Some(size) = self.no_repeat_ngram_size {
            settings.no_repeat_ngram_size = size;
            replace(&["no_repeat_ngram_size"]);
        }
        if self.min_new_tokens.is_some() {
            settings.min_new_tokens = self.min_new_tokens;
            replace(&["min_new_tokens", "min_length"]);
        }
        settings.stop_strings.extend_from_slice(&self.stop);
        self.check_sampling(&settings)?;
        settings.check(vocab)?;
        if let Some(note) = note(&settings, &replaced) {
            smq_convert::cli::print_note(&note);
        }
        Ok(settings)
    }

    /// Most new tokens after a prompt of `prompt` tokens.
    pub(in crate::cli) fn new_tokens(
        settings: &GenerationSettings,
        prompt: usize,
    ) -> smq_model::Result<usize> {
        Ok(settings.new_tokens(prompt)?.unwrap_or(DEFAULT_NEW_TOKENS))
    }

    pub(in crate::cli) fn seed(&self) -> u64 {
        self.seed.unwrap_or(DEFAULT_SEED)
    }

    /// Refuses flags of sampling where nothing is sampled.
    fn check_sampling(&self, settings: &GenerationSettings) -> anyhow::Result<()> {
        let given = [
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
            ("--seed", self.seed.is_some()),
        ];
        let flag = given.iter().find(|(_, is_given)| *is_given);
        match (flag, self.temperature) {
            (Some((flag, _)), None) if !settings.do_sample => anyhow::bail!(
                "{flag} has no effect: the model's settings take the most likely token; \
                 add --temperature to sample"
            ),
            (Some((flag, _)), Some(_)) if !settings.do_sample => {
                anyhow::bail!("{flag} has no effect: --temperature 0 takes the most likely token")
            }
            _ => Ok(()),
        }
    }
}

/// What is in force and not among the `replaced` keys.
fn note(settings: &GenerationSettings, replaced: &[&str]) -> Option<String> {
    let of_model: Vec<_> = settings
        .in_force()
        .filter(|(key, _)| !replaced.contains(key))
        .collect();
    let mut parts = Vec::new();
    if let Some(file) = settings.file.filter(|_| !of_model.is_empty()) {
        let list: Vec<_> = of_model.iter().map(|(k, v)| format!("{k} {v}")).collect();
        parts.push(format!(
            "{file} sets {} (--greedy ignores it)",
            list.join(", ")
        ));
    }
    let is_default = settings.do_sample
        && settings.sampling.top_k > 0
        && !replaced.contains(&"top_k")
        && of_model.iter().all(|(key, _)| *key != "top_k");
    if is_default {
        let top_k = settings.sampling.top_k;
        parts.push(format!(
            "sampling has top_k {top_k}, as in transformers (--top-k changes it)"
        ));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn number(text: &str, expected: &str, is_right: impl Fn(f64) -> bool) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if is_right(value) => Ok(value),
        _ => Err(format!("expected {expected}")),
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    number(text, "0 or more", |t| t >= 0.0 && t.is_finite())
}

fn probability(text: &str) -> Result<f64, String> {
    number(text, "more than 0 and at most 1", |p| p > 0.0 && p <= 1.0)
}

fn share(text: &str) -> Result<f64, String> {
    number(text, "0 to 1", |p| (0.0..=1.0).contains(&p))
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, "more than 0", |x| x > 0.0 && x.is_finite())
}
