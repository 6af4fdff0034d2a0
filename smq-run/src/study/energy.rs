//! Joules a token: work repeated under a power meter, read in two ways.
//!
//! A 64-token decode is shorter than one power sample, so whole generations are repeated for
//! seconds. Prompts are run alone as well, and their energy taken off:
//! `(E - generations * E_prompt) / (generations * (outputs - 1))` is decode without prefill, whose
//! first token the prompt gave.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::contract::EnergyPlan;
use super::gpu_state::PowerSource;
use super::record::{JoulesPerToken, Window};
use smq_engine::Result;

/// Repeats `work` for at least `least_seconds` under the meter, after `settle_seconds` of it that
/// are not recorded.
///
/// # Errors
/// Whatever `work` returns first.
pub(crate) fn window(
    source: &dyn PowerSource,
    sample_ms: u64,
    settle_seconds: f64,
    least_seconds: f64,
    work: &mut dyn FnMut() -> Result<()>,
) -> Result<Window> {
    let settling = Instant::now();
    while settling.elapsed().as_secs_f64() < settle_seconds {
        work()?;
    }
    let sample_every = Duration::from_millis(sample_ms);
    let (stop, stopped) = channel::<()>();
    let joules_before = source.joules();
    let start = Instant::now();
    let sample = || Some((start.elapsed().as_secs_f64(), source.watts()?));
    let first = sample();
    let (result, mut samples, runs) = std::thread::scope(|scope| {
        let sampler = scope.spawn(move || {
            let mut samples: Vec<(f64, f64)> = first.into_iter().collect();
            for k in 1.. {
                let wait = (start + k * sample_every).saturating_duration_since(Instant::now());
                match stopped.recv_timeout(wait) {
                    Err(RecvTimeoutError::Timeout) => samples.extend(sample()),
                    _ => break,
                }
            }
            samples
        });
        let mut runs = 0;
        let mut result = Ok(());
        while result.is_ok() && (runs == 0 || start.elapsed().as_secs_f64() < least_seconds) {
            result = work();
            runs += 1;
        }
        drop(stop);
        // A sampler that panicked leaves no samples, and so no figure.
        (result, sampler.join().unwrap_or_default(), runs)
    });
    result?;
    let seconds = start.elapsed().as_secs_f64();
    let joules_after = source.joules();
    samples.extend(source.watts().map(|watts| (seconds, watts)));
    Ok(Window {
        runs,
        seconds,
        trapezoid_joules: trapezoid(&samples),
        samples,
        counter_joules: joules_before.zip(joules_after).map(|(a, b)| b - a),
    })
}

/// The integral of `(seconds, watts)`, joined by straight lines; none of fewer than two.
#[must_use]
pub(crate) fn trapezoid(samples: &[(f64, f64)]) -> Option<f64> {
    let area = |pair: &[(f64, f64)]| (pair[1].0 - pair[0].0) * (pair[0].1 + pair[1].1) / 2.0;
    (samples.len() > 1).then(|| samples.windows(2).map(area).sum())
}

/// Joules an output token by each method that has both windows.
#[must_use]
pub(crate) fn joules_per_token(
    plan: &EnergyPlan,
    generations: &Window,
    prompts: &Window,
) -> BTreeMap<String, JoulesPerToken> {
    let methods = [
        (
            "trapezoid",
            generations.trapezoid_joules,
            prompts.trapezoid_joules,
        ),
        (
            "counter",
            generations.counter_joules,
            prompts.counter_joules,
        ),
    ];
    let (runs, outputs) = (generations.runs as f64, plan.output_tokens as f64);
    let figures = methods.into_iter().filter_map(|(name, all, prompt)| {
        let (all, prompt) = (all?, prompt? / prompts.runs as f64);
        let figures = JoulesPerToken {
            with_prefill: all / (runs * outputs),
            without_prefill: (all - runs * prompt) / (runs * (outputs - 1.0)),
        };
        Some((name.to_owned(), figures))
    });
    figures.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A meter whose power rises by a watt a reading, and whose counter moves by 7 J a reading.
    #[derive(Default)]
    struct Fake {
        readings: std::sync::atomic::AtomicU32,
        counter: std::sync::atomic::AtomicU32,
    }

    impl PowerSource for Fake {
        fn watts(&self) -> Option<f64> {
            Some(f64::from(
                self.readings
                    .fetch_add(1, std::sync::atomic::Ordering::SeqCst),
            ))
        }

        fn joules(&self) -> Option<f64> {
            Some(
                7.0 * f64::from(
                    self.counter
                        .fetch_add(1, std::sync::atomic::Ordering::SeqCst),
                ),
            )
        }
    }

    /// A meter that knows nothing.
    struct Blind;

    impl PowerSource for Blind {
        fn watts(&self) -> Option<f64> {
            None
        }

        fn joules(&self) -> Option<f64> {
            None
        }
    }

    fn plan() -> EnergyPlan {
        EnergyPlan {
            prompt_tokens: 8,
            output_tokens: 11,
            sample_ms: 5,
            decode_seconds: 0.1,
            prefill_seconds: 0.1,
            settle_seconds: 0.0,
            idle_seconds: 0.0,
        }
    }

    #[test]
    fn trapezoids_of_known_areas() {
        assert_eq!(trapezoid(&[]), None);
        assert_eq!(trapezoid(&[(0.0, 100.0)]), None);
        assert_eq!(trapezoid(&[(0.0, 100.0), (2.0, 100.0)]), Some(200.0));
        // A ramp from 0 to 300 W over 3 s, unevenly sampled: 450 J.
        let ramp = [(0.0, 0.0), (0.5, 50.0), (2.0, 200.0), (3.0, 300.0)];
        assert_eq!(trapezoid(&ramp), Some(450.0));
    }

    #[test]
    fn a_window_spans_its_work_and_counts_it() {
        let meter = Fake::default();
        let mut done = 0;
        let mut work = || {
            done += 1;
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        };
        let w = window(&meter, 5, 0.03, 0.1, &mut work).unwrap();
        assert!(w.seconds >= 0.1 && w.runs >= 1, "{w:?}");
        assert!(
            done > w.runs,
            "work while settling is not recorded: {done}, {w:?}"
        );
        assert_eq!(w.samples.first().map(|s| s.1), Some(0.0));
        assert_eq!(w.samples.last().map(|s| s.0), Some(w.seconds));
        assert!(w.samples.is_sorted_by(|a, b| a.0 <= b.0), "{w:?}");
        assert_eq!(w.counter_joules, Some(7.0));
        assert_eq!(w.trapezoid_joules, trapezoid(&w.samples));
    }

    #[test]
    fn work_longer_than_the_window_is_run_once_and_its_error_returned() {
        let meter = Fake::default();
        let once = window(&meter, 5, 0.0, 0.0, &mut || Ok(())).unwrap();
        assert_eq!(once.runs, 1);
        let mut broken = || Err(smq_engine::Error::Input("no".into()));
        assert!(window(&meter, 5, 0.0, 1e9, &mut broken).is_err());
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let w = window(&Blind, 5, 0.0, 0.0, &mut || Ok(())).unwrap();
        assert_eq!((w.trapezoid_joules, w.counter_joules), (None, None));
        assert!(w.samples.is_empty() && joules_per_token(&plan(), &w, &w).is_empty());
        let json = serde_json::to_value(&w).unwrap();
        assert!(json.get("trapezoid_joules").is_none() && json.get("counter_joules").is_none());
    }

    #[test]
    fn prefill_is_taken_off() {
        let part = |runs, joules| Window {
            runs,
            seconds: 1.0,
            samples: Vec::new(),
            trapezoid_joules: Some(joules),
            counter_joules: None,
        };
        // 3 generations of 11 tokens: 3 x (5 J of prompt + 10 x 2 J of decode) = 75 J; 4 prompts of
        // 5 J.
        let found = joules_per_token(&plan(), &part(3, 75.0), &part(4, 20.0));
        assert_eq!(found.len(), 1);
        let j = found["trapezoid"];
        assert_eq!((j.with_prefill, j.without_prefill), (75.0 / 33.0, 2.0));
    }
}
