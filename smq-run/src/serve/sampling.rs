//! The fields that decide how tokens are chosen and what ends a text, alike for both kinds of
//! completions.
//!
//! What a request leaves out has the model's own value, as in `smq-run generate`: a model whose
//! generation_config.json does not sample takes the most likely token unless `temperature` is
//! given.

use serde_json::Value;
use smq_engine::sample::Adjustments;
use smq_model::GenerationSettings;

use super::error::{ApiError, ApiResult};
use super::fields::Fields;

/// Most samples of a request, and the largest bias: OpenAI's bounds.
const MOST_SAMPLES: u32 = 128;
const MOST_BIAS: f64 = 100.0;
/// More than OpenAI's 5 and 20 is of no use to anyone, and costs.
pub(super) const MOST_LOG_PROBS: u32 = 20;
const MOST_STOP_IDS: usize = 1024;
const MOST_BIASES: usize = 4096;
/// Bytes of the longest stop string that is taken.
const MOST_STOP_BYTES: usize = 4096;

/// How one text is made.
#[derive(Debug, Clone)]
pub(super) struct Sampling {
    pub(super) settings: GenerationSettings,
    pub(super) adjustments: Adjustments,
    /// Samples of each prompt.
    pub(super) samples: usize,
    /// The seed of the first sample; each further one has the next.
    pub(super) seed: Option<u64>,
    /// These end the text and are left out of it.
    pub(super) stop: Vec<String>,
    pub(super) stop_ids: Vec<u32>,
    pub(super) ignore_eos: bool,
    /// As given; what there is without it is another matter for chats.
    pub(super) max_tokens: Option<usize>,
}

impl Sampling {
    /// Takes the fields of `fields`; `of_model` are the model's settings and `vocab` its tokens.
    pub(super) fn take(
        fields: &mut Fields,
        of_model: &GenerationSettings,
        vocab: usize,
    ) -> ApiResult<Self> {
        let mut settings = of_model.clone();
        let temperature = fields.number("temperature", 0.0..=2.0)?;
        if let Some(temperature) = temperature {
            settings.do_sample = temperature > 0.0;
            settings.sampling.temperature = temperature;
        }
        Self::narrow(fields, &mut settings, temperature)?;
        if let Some(penalty) = fields.number("repetition_penalty", 0.01..=100.0)? {
            settings.repetition_penalty = penalty;
        }
        if let Some(tokens) = fields.count("min_tokens", 0..=u32::MAX)? {
            settings.min_new_tokens = Some(tokens);
        }
        let adjustments = Adjustments {
            presence_penalty: fields
                .number("presence_penalty", -2.0..=2.0)?
                .unwrap_or(0.0),
            frequency_penalty: fields
                .number("frequency_penalty", -2.0..=2.0)?
                .unwrap_or(0.0),
            logit_bias: logit_bias(fields, vocab)?,
        };
        let stop = match fields.texts("stop")? {
            Some(strings) => checked_stop(strings)?,
            None => std::mem::take(&mut settings.stop_strings),
        };
        // The server looks for them in the text.
        settings.stop_strings.clear();
        let samples = fields.count("n", 1..=MOST_SAMPLES)?.unwrap_or(1);
        let best_of = fields.count("best_of", 1..=MOST_SAMPLES)?;
        if best_of.is_some_and(|best| best != samples) {
            let message = "best_of is served only where it equals n: nothing is ranked";
            return Err(ApiError::unsupported("best_of", message));
        }
        Ok(Self {
            adjustments,
            samples,
            seed: fields
                .integer("seed", i64::MIN..=i64::MAX)?
                .map(i64::cast_unsigned),
            stop,
            stop_ids: stop_ids(fields, vocab)?,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            max_tokens: None,
            settings,
        })
    }

    /// The fields that leave tokens out. Where nothing is sampled they would do nothing: that is
    /// fine where `temperature` is 0, and refused where the client may think that it samples.
    fn narrow(
        fields: &mut Fields,
        settings: &mut GenerationSettings,
        temperature: Option<f64>,
    ) -> ApiResult<()> {
        let top_p = fields.number("top_p", 0.0..=1.0)?;
        let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
        let min_p = fields.number("min_p", 0.0..=1.0)?;
        if top_p == Some(0.0) {
            // OpenAI takes it, and nothing but the most likely token has so little before it.
            settings.do_sample = false;
            return Ok(());
        }
        let narrows = [
            ("top_p", top_p.is_some_and(|p| p < 1.0)),
            ("top_k", top_k.is_some_and(|k| k > 0)),
            ("min_p", min_p.is_some_and(|p| p > 0.0)),
        ];
        let given = narrows.iter().find(|(_, narrows)| *narrows);
        if let (Some((name, _)), None, false) = (given, temperature, settings.do_sample) {
            let message = format!(
                "{name} has no effect: the model's settings take the most likely token; add \
                 temperature to sample"
            );
            return Err(ApiError::field(*name, message));
        }
        if let Some(top_p) = top_p {
            settings.sampling.top_p = top_p;
        }
        if let Some(top_k) = top_k {
            settings.sampling.top_k = top_k.max(0);
        }
        if let Some(min_p) = min_p {
            settings.sampling.min_p = (min_p > 0.0).then_some(min_p);
        }
        Ok(())
    }
}

fn checked_stop(strings: Vec<String>) -> ApiResult<Vec<String>> {
    let wrong = strings
        .iter()
        .find(|s| s.is_empty() || s.len() > MOST_STOP_BYTES);
    match wrong {
        None => Ok(strings),
        Some(string) => {
            let bytes = string.len();
            let message =
                format!("a stop string has {bytes} bytes, expected 1 to {MOST_STOP_BYTES}");
            Err(ApiError::field("stop", message))
        }
    }
}

/// A map from ids, as texts, to what is added to their logits.
fn logit_bias(fields: &mut Fields, vocab: usize) -> ApiResult<Vec<(u32, f32)>> {
    let Some(mut object) = fields.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let map = object.rest();
    if map.len() > MOST_BIASES {
        let message = format!(
            "logit_bias has {} tokens, expected at most {MOST_BIASES}",
            map.len()
        );
        return Err(ApiError::field("logit_bias", message));
    }
    let bias = |(key, value): (String, Value)| {
        let id = key.parse().ok().filter(|id: &u32| (*id as usize) < vocab);
        let bias = value.as_f64().filter(|bias| bias.abs() <= MOST_BIAS);
        match (id, bias) {
            (Some(id), Some(bias)) => Ok((id, bias as f32)),
            (None, _) | (_, None) => {
                let message = format!(
                    "logit_bias expects token ids below {vocab} as keys and numbers of \
                     -{MOST_BIAS} to {MOST_BIAS}"
                );
                Err(ApiError::field("logit_bias", message))
            }
        }
    };
    map.into_iter().map(bias).collect()
}

fn stop_ids(fields: &mut Fields, vocab: usize) -> ApiResult<Vec<u32>> {
    let items = fields.list("stop_token_ids")?.unwrap_or_default();
    let id = |value: &Value| {
        let id = value.as_u64().filter(|id| *id < vocab as u64);
        id.and_then(|id| id.try_into().ok())
    };
    let ids: Option<Vec<u32>> = items.iter().map(id).collect();
    ids.filter(|ids| ids.len() <= MOST_STOP_IDS).ok_or_else(|| {
        let message =
            format!("stop_token_ids expects at most {MOST_STOP_IDS} token ids below {vocab}");
        ApiError::field("stop_token_ids", message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(json: &str, of_model: &GenerationSettings) -> ApiResult<Sampling> {
        let mut fields = Fields::parse(json.as_bytes())?;
        let sampling = Sampling::take(&mut fields, of_model, 100)?;
        fields.finish()?;
        Ok(sampling)
    }

    #[test]
    fn the_models_settings_count_where_a_request_says_nothing() {
        let mut of_model = GenerationSettings::default();
        of_model.do_sample = true;
        of_model.stop_strings = vec!["END".into()];
        of_model.repetition_penalty = 1.1;
        let plain = taken("{}", &of_model).unwrap();
        assert!(plain.settings.do_sample);
        assert_eq!(plain.settings.repetition_penalty, 1.1);
        assert_eq!(plain.stop, ["END"]);
        assert!(plain.settings.stop_strings.is_empty());
        let greedy = taken(
            r#"{"temperature": 0, "top_p": 0.9, "stop": "x"}"#,
            &of_model,
        )
        .unwrap();
        assert!(!greedy.settings.do_sample);
        assert_eq!(greedy.stop, ["x"]);
        let sampled = taken(
            r#"{"temperature": 0.5, "top_k": -1, "min_p": 0.1, "top_p": 0.8, "seed": -1, "n": 3}"#,
            &GenerationSettings::default(),
        );
        let sampled = sampled.unwrap();
        assert!(sampled.settings.do_sample);
        assert_eq!(sampled.settings.sampling.temperature, 0.5);
        assert_eq!(sampled.settings.sampling.top_k, 0);
        assert_eq!(sampled.settings.sampling.min_p, Some(0.1));
        assert_eq!(sampled.settings.sampling.top_p, 0.8);
        assert_eq!((sampled.seed, sampled.samples), (Some(u64::MAX), 3));
    }

    #[test]
    fn a_field_without_an_effect_is_refused_unless_it_is_neutral() {
        let greedy = GenerationSettings::default();
        for json in [r#"{"top_p": 0.9}"#, r#"{"top_k": 5}"#, r#"{"min_p": 0.1}"#] {
            assert!(taken(json, &greedy).is_err(), "{json}");
        }
        taken(
            r#"{"top_p": 1, "top_k": 0, "min_p": 0, "best_of": 1}"#,
            &greedy,
        )
        .unwrap();
        assert!(
            !taken(r#"{"temperature": 1, "top_p": 0}"#, &greedy)
                .unwrap()
                .settings
                .do_sample
        );
    }

    #[test]
    fn each_field_has_its_limits() {
        let of_model = GenerationSettings::default();
        for (good, bad) in [
            (r#"{"temperature": 2}"#, r#"{"temperature": 2.1}"#),
            (
                r#"{"presence_penalty": -2}"#,
                r#"{"presence_penalty": -2.01}"#,
            ),
            (
                r#"{"frequency_penalty": 2}"#,
                r#"{"frequency_penalty": "2"}"#,
            ),
            (
                r#"{"repetition_penalty": 0.01}"#,
                r#"{"repetition_penalty": 0}"#,
            ),
            (r#"{"n": 128}"#, r#"{"n": 129}"#),
            (r#"{"n": 2, "best_of": 2}"#, r#"{"n": 2, "best_of": 3}"#),
            (
                r#"{"logit_bias": {"99": -100}}"#,
                r#"{"logit_bias": {"100": 1}}"#,
            ),
            (r#"{"logit_bias": {}}"#, r#"{"logit_bias": {"1": 101}}"#),
            (
                r#"{"stop_token_ids": [99]}"#,
                r#"{"stop_token_ids": [100]}"#,
            ),
            (r#"{"stop": ["a"]}"#, r#"{"stop": [""]}"#),
            (r#"{"min_tokens": 4294967295}"#, r#"{"min_tokens": -1}"#),
            (
                r#"{"seed": 9223372036854775807}"#,
                r#"{"seed": 9223372036854775808}"#,
            ),
            (r#"{"ignore_eos": true}"#, r#"{"ignore_eos": 1}"#),
            (r#"{"temperature": null}"#, r#"{"beam_width": 4}"#),
        ] {
            taken(good, &of_model).unwrap();
            assert_eq!(taken(bad, &of_model).unwrap_err().status(), 400, "{bad}");
        }
    }
}
