//! Choosing the next token.

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};

use crate::error::{Error, Result};

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingOptions {
    /// 0 takes the most likely token; higher values flatten the distribution.
    pub temperature: f64,
    /// Samples only from the most likely tokens that together have this probability.
    pub top_p: Option<f64>,
    /// Start of the random stream; equal seeds give equal texts.
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: None,
            seed: 42,
        }
    }
}

/// A seeded sampler.
pub struct Sampler {
    inner: LogitsProcessor,
}

impl Sampler {
    /// A sampler at the start of its random stream.
    ///
    /// # Errors
    /// [`Error::Input`] for a negative temperature or a `top_p` outside 0 to 1.
    pub fn new(options: &SamplingOptions) -> Result<Self> {
        let SamplingOptions {
            temperature,
            top_p,
            seed,
        } = *options;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(Error::Input(format!(
                "temperature is {temperature}, expected 0 or more"
            )));
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return Err(Error::Input(format!(
                "top-p is {p}, expected more than 0 and at most 1"
            )));
        }
        let sampling = match top_p {
            _ if temperature == 0.0 => Sampling::ArgMax,
            Some(p) => Sampling::TopP { p, temperature },
            None => Sampling::All { temperature },
        };
        Ok(Self {
            inner: LogitsProcessor::from_sampling(seed, sampling),
        })
    }

    /// The next token, from `[vocab]` logits.
    ///
    /// # Errors
    /// [`Error::Input`] if the model produced NaN or infinity.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        if !logits.iter().all(|l| l.is_finite()) {
            return Err(Error::Input(
                "the model produced a logit that is not finite: its weights are damaged".into(),
            ));
        }
        Ok(self
            .inner
            .sample(&Tensor::from_slice(logits, logits.len(), &Device::Cpu)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_largest_and_seeds_repeat() {
        let logits = [0.0, 1.0, 3.0, 2.9];
        let mut greedy = Sampler::new(&SamplingOptions::default()).unwrap();
        assert_eq!(greedy.sample(&logits).unwrap(), 2);
        let draw = |seed| {
            let options = SamplingOptions {
                temperature: 1.0,
                top_p: Some(0.9),
                seed,
            };
            let mut sampler = Sampler::new(&options).unwrap();
            (0..40)
                .map(|_| sampler.sample(&logits).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        // Tokens 2 and 3 hold 0.90 of the mass: token 0 never passes.
        assert!(draw(3).iter().all(|t| *t != 0) && draw(3).contains(&3));
    }

    #[test]
    fn bad_options_and_logits_are_refused() {
        assert!(
            Sampler::new(&SamplingOptions {
                temperature: -1.0,
                ..Default::default()
            })
            .is_err()
        );
        assert!(
            Sampler::new(&SamplingOptions {
                top_p: Some(0.0),
                ..Default::default()
            })
            .is_err()
        );
        let mut greedy = Sampler::new(&SamplingOptions::default()).unwrap();
        assert!(greedy.sample(&[0.0, f32::NAN]).is_err());
    }
}
