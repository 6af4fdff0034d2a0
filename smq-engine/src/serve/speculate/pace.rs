//! How many tokens are worth guessing.

/// What each token may take longer by guesses that come to nothing, as a part of its step.
const ALLOWANCE: f64 = 1.0 / 32.0;
/// The allowance of a sequence that begins, in steps.
const FIRST_CREDIT: f64 = 1.0;
/// The largest that is kept: what a text that stops repeating itself loses at most, in steps.
const MOST_CREDIT: f64 = 4.0;
/// Tokens of the first guess, where its credit allows them.
const FIRST_TOKENS: usize = 4;

/// How far a sequence is guessed ahead: twice as far after a guess that was right to its end, as far
/// as it was right otherwise.
///
/// Time is what it counts. A guessed token costs its share of a step, one that comes true saves a
/// step, and each token of the text brings a small allowance. Nothing is guessed beyond the credit,
/// so a text of `n` tokens of which no guess comes true takes at most `FIRST_CREDIT + n ALLOWANCE`
/// steps longer.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    tokens: usize,
    credit: f64,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self {
            tokens: FIRST_TOKENS,
            credit: FIRST_CREDIT,
        }
    }

    /// How many tokens to guess where each costs `cost` steps.
    pub(crate) fn tokens(&self, cost: f64) -> usize {
        // A negative one becomes 0, and an infinite one all that fits.
        let affordable = (self.credit / cost) as usize;
        self.tokens.min(affordable)
    }

    /// A step gave `chosen` tokens and had computed `guessed` ones that cost `cost` each.
    pub(crate) fn stepped(&mut self, chosen: usize, guessed: usize, cost: f64) {
        let right = chosen.saturating_sub(1).min(guessed);
        let gain = right as f64 - guessed as f64 * cost;
        self.credit = (self.credit + gain + chosen as f64 * ALLOWANCE).min(MOST_CREDIT);
        if guessed > 0 {
            self.tokens = match right == guessed {
                true => self.tokens.max(2 * guessed),
                false => right + 1,
            };
        }
    }
}

/// What a guessed token costs of a sequence's share of a step of `rows` sequences, where it costs
/// `cost` of a step of one: the more of them, the more of the step is arithmetic already.
pub(crate) fn cost_beside(cost: f64, rows: usize) -> f64 {
    let rows = rows.max(1) as f64;
    cost * rows / (1.0 + cost * (rows - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps and computed guesses until `n` tokens are there, `right` of each guess's tokens right.
    fn run(n: usize, cost: f64, most: usize, right: impl Fn(usize) -> usize) -> (usize, usize) {
        let (mut pace, mut tokens, mut steps, mut guessed) = (Pace::new(), 0, 0, 0);
        while tokens < n {
            let count = pace.tokens(cost).min(most);
            let chosen = 1 + right(count).min(count);
            pace.stepped(chosen, count, cost);
            (tokens, steps, guessed) = (tokens + chosen, steps + 1, guessed + count);
        }
        (steps, guessed)
    }

    #[test]
    fn wrong_guesses_cost_no_more_than_the_allowance() {
        for cost in [0.01, 0.05, 0.3, 0.5, 1.0] {
            for n in [1, 10, 64, 1000] {
                let (steps, guessed) = run(n, cost, 16, |_| 0);
                assert_eq!(steps, n);
                let lost = guessed as f64 * cost;
                assert!(lost <= FIRST_CREDIT + n as f64 * ALLOWANCE, "{cost} {n}");
                let tried = n as f64 * ALLOWANCE.min(cost) - cost;
                assert!(lost >= tried, "{cost} {n}: hardly anything is tried");
            }
        }
    }

    #[test]
    fn right_guesses_grow_to_the_most_that_is_allowed() {
        // Beyond those costs the credit's bound is less.
        for cost in [0.05, 0.3, 0.5] {
            let (steps, guessed) = run(900, cost, 8, |count| count);
            assert!(steps < 110, "{cost}: {steps} steps");
            assert!(guessed >= 900 - steps);
        }
    }

    #[test]
    fn it_follows_how_far_guesses_were_right() {
        let mut pace = Pace::new();
        pace.stepped(9, 8, 0.1);
        assert_eq!(pace.tokens(0.1), 16);
        pace.stepped(4, 16, 0.1);
        assert_eq!(pace.tokens(0.1), 4);
        pace.stepped(1, 4, 0.1);
        assert_eq!(pace.tokens(0.1), 1);
        for _ in 0..100 {
            pace.stepped(1, pace.tokens(0.1), 0.1);
        }
        assert!(pace.credit < 0.2, "{pace:?}");
    }

    #[test]
    fn a_guess_costs_more_beside_others() {
        let cost = [1, 2, 8, 64, 1000].map(|rows| cost_beside(0.05, rows));
        assert!(cost.is_sorted() && cost[0] == 0.05 && cost[4] < 1.0 && cost[4] > 0.98);
        assert_eq!(cost_beside(1.0, 9), 1.0);
    }
}
