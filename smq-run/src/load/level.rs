//! One level of a sweep: so many clients, or requests at a rate.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use tokio::sync::Semaphore;

use super::LoadOptions;
use super::client::{Client, Outcome};
use super::guessed::Guessed;
use super::prompts::Ask;

/// What came of the requests of a level.
pub(super) struct Ran {
    pub(super) outcomes: Outcomes,
    /// From the first request to the last answer.
    pub(super) duration: Duration,
    /// What the server guessed meanwhile, where it says so.
    pub(super) guessed: Option<Guessed>,
}

/// What came of each request, or why it failed.
pub(super) type Outcomes = Vec<Result<Outcome, String>>;

/// Sends the requests of a level and waits for all. The first `warmup` requests come before and are
/// not counted.
pub(super) async fn run(
    client: &Client,
    model: &str,
    clients: usize,
    level: usize,
    mut asks: Vec<Ask>,
    options: &LoadOptions,
    on_request: &impl Fn(),
) -> Ran {
    let one = async |ask: &Ask| {
        let outcome = client.complete(model, ask, options.ignore_eos, options.timeout);
        outcome.await.map_err(|error| format!("{error:#}"))
    };
    let counted = asks.split_off(options.warmup);
    for ask in &asks {
        // A server that fails here fails below too, where it is counted.
        let _ = one(ask).await;
    }
    let before = client.guessed().await;
    let start = Instant::now();
    let outcomes = match options.rate {
        None => {
            let next = AtomicUsize::new(0);
            let client = async || {
                let mut outcomes = Vec::new();
                while let Some(ask) = counted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    outcomes.push(one(ask).await);
                    on_request();
                }
                outcomes
            };
            let all: FuturesUnordered<_> = (0..clients).map(|_| client()).collect();
            all.concat().await
        }
        Some(rate) => {
            let slots = Semaphore::new(clients);
            let times = arrivals(rate, counted.len(), options.seed.wrapping_add(level as u64));
            let request = async |at: Duration, ask: &Ask| {
                tokio::time::sleep_until((start + at).into()).await;
                // Never closed.
                let _slot = slots.acquire().await;
                let outcome = one(ask).await;
                on_request();
                outcome
            };
            let all: FuturesUnordered<_> = times
                .into_iter()
                .zip(&counted)
                .map(|(at, ask)| request(at, ask))
                .collect();
            all.collect().await
        }
    };
    let duration = start.elapsed();
    let after = client.guessed().await;
    Ran {
        outcomes,
        duration,
        guessed: after.and_then(|after| after.since(before?)),
    }
}

/// When requests are sent: intervals of a Poisson process of `rate` a second.
pub(super) fn arrivals(rate: f64, count: usize, seed: u64) -> Vec<Duration> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(!seed);
    let mut at = 0.0;
    let mut next = || {
        let share: f64 = random.random();
        let now = at;
        at += -(1.0 - share).ln() / rate;
        Duration::from_secs_f64(now)
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::arrivals;

    #[test]
    fn arrivals_have_their_rate() {
        let times = arrivals(50.0, 4000, 7);
        assert!(times[0].is_zero() && times.is_sorted());
        let rate = 3999.0 / times[3999].as_secs_f64();
        // Four standard errors of the mean interval.
        assert!((rate / 50.0 - 1.0).abs() < 4.0 / 4000f64.sqrt(), "{rate}");
        assert_eq!(arrivals(50.0, 9, 7), arrivals(50.0, 9, 7));
    }
}
