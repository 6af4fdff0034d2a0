//! Several contexts with their continuations, laid out for passes over many rows.
//!
//! ```text
//!   cache rows          | a's context | a's first continuation | a's second | b's context | ...
//!   what a row of a's second continuation sees:
//!                         ^^^^^^^^^^^                            ^^^^^ up to itself
//! ```

use bytemuck::NoUninit;

use crate::engine::Continuations;
use smq_model::ModelConfig;
use smq_model::architecture::Windows;

/// What a row sees of the cache (`attention_prefill.cu`): rows `context_begin .. context_end`, and
/// from `own_begin` to itself. Nothing before `context_begin`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, NoUninit)]
#[repr(C)]
pub(super) struct Seen {
    /// First row of the context that is seen.
    pub context_begin: i32,
    /// Behind its last.
    pub context_end: i32,
    /// First row of the row's own continuation that is seen.
    pub own_begin: i32,
    /// The row's position in its sequence.
    pub position: i32,
}

/// A row whose next token is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scored {
    /// Of the pack.
    pub row: usize,
    /// The token whose probability counts.
    pub target: u32,
    /// Which of the items, and which of its continuations.
    pub of: (usize, usize),
}

/// Rows of one pass, or of several one after the other.
#[derive(Debug, Default)]
pub(super) struct Pack {
    /// Its sequences are in the long range of LongRoPE.
    pub long: bool,
    /// One a row.
    pub tokens: Vec<u32>,
    /// One a row.
    pub seen: Vec<Seen>,
    /// The same in layers with a window, where only some have one; empty where all are alike.
    pub windowed: Vec<Seen>,
    /// By row.
    pub scored: Vec<Scored>,
}

/// Lays out `items`: packs of at most `rows` rows, but for an item that has more.
///
/// The last token of a context is fed with each continuation, so that the context's rows serve for
/// their keys and values alone; a continuation's last token is not fed.
///
/// Contexts are not empty.
#[must_use]
pub(super) fn pack(items: &[Continuations<'_>], c: &ModelConfig, rows: usize) -> Vec<Pack> {
    let mut done = Vec::new();
    let mut open = [false, true].map(|long| Pack {
        long,
        ..Pack::default()
    });
    for (index, item) in items.iter().enumerate() {
        for pack in &mut open {
            let belongs = |i: &usize| {
                let len = item.continuations[*i].len();
                len > 0 && c.rope.is_long(item.context.len() + len - 1) == pack.long
            };
            let chosen: Vec<usize> = (0..item.continuations.len()).filter(belongs).collect();
            if chosen.is_empty() {
                continue;
            }
            let of_continuations = chosen.iter().map(|i| item.continuations[*i].len());
            let more = item.context.len() - 1 + of_continuations.sum::<usize>();
            if !pack.tokens.is_empty() && pack.tokens.len() + more > rows {
                let long = pack.long;
                let fresh = Pack {
                    long,
                    ..Pack::default()
                };
                done.push(std::mem::replace(pack, fresh));
            }
            pack.add(item, index, &chosen, c);
        }
    }
    done.extend(open.into_iter().filter(|p| !p.tokens.is_empty()));
    done
}

impl Pack {
    fn add(&mut self, item: &Continuations<'_>, index: usize, chosen: &[usize], c: &ModelConfig) {
        let Some((&last, shared)) = item.context.split_last() else {
            return;
        };
        let start = self.tokens.len();
        // Of layers without a window of their own, and of those with one.
        let (window, other) = match &c.windows {
            Windows::Alike(window) => (*window, None),
            Windows::ByLayer(windows) => (None, windows.iter().copied().flatten().next()),
        };
        // Positions of the sequence before this one are out of the window.
        let hidden = |window: Option<usize>, position: usize| {
            window.map_or(0, |w| (position + 1).saturating_sub(w))
        };
        for (position, &token) in shared.iter().enumerate() {
            self.push(token, window, other, |window| {
                let own = start + hidden(window, position);
                [own, own, own, position]
            });
        }
        for &continuation in chosen {
            let own = self.tokens.len();
            let targets = &item.continuations[continuation];
            let fed = std::iter::once(&last).chain(&targets[..targets.len() - 1]);
            for (i, (&token, &target)) in fed.zip(targets).enumerate() {
                let position = shared.len() + i;
                self.scored.push(Scored {
                    row: self.tokens.len(),
                    target,
                    of: (index, continuation),
                });
                self.push(token, window, other, |window| {
                    let hidden = hidden(window, position);
                    let own_begin = own + hidden.saturating_sub(shared.len());
                    let context = match hidden < shared.len() {
                        true => [start + hidden, start + shared.len()],
                        false => [own_begin; 2],
                    };
                    [context[0], context[1], own_begin, position]
                });
            }
        }
    }

    /// Appends a row that sees by `window` what `seen` says, and by the `other` where there is one.
    fn push(
        &mut self,
        token: u32,
        window: Option<usize>,
        other: Option<usize>,
        seen: impl Fn(Option<usize>) -> [usize; 4],
    ) {
        let of = |window: Option<usize>| {
            let [context_begin, context_end, own_begin, position] = seen(window).map(|n| n as i32);
            Seen {
                context_begin,
                context_end,
                own_begin,
                position,
            }
        };
        self.tokens.push(token);
        self.seen.push(of(window));
        self.windowed.extend(other.is_some().then(|| of(other)));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(window: Option<usize>) -> ModelConfig {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny/config.json");
        let mut c = ModelConfig::from_json(&std::fs::read(path).unwrap()).unwrap();
        c.windows = Windows::Alike(window);
        c
    }

    #[test]
    fn layers_with_a_window_beside_others_have_rows_of_their_own() {
        let (context, continuations) = ((0..40).collect::<Vec<u32>>(), vec![vec![1, 2, 3]]);
        let items = [Continuations {
            context: &context,
            continuations: &continuations,
        }];
        let packed = |windows| {
            let mut c = config(None);
            c.windows = windows;
            pack(&items, &c, 100).remove(0)
        };
        let both = packed(Windows::ByLayer(vec![Some(16), None]));
        assert_eq!(both.seen, packed(Windows::Alike(None)).seen);
        assert_eq!(both.windowed, packed(Windows::Alike(Some(16))).seen);
        assert!(packed(Windows::Alike(Some(16))).windowed.is_empty());
    }

    /// Each row sees the cache rows whose tokens come before it in its own sequence, and itself.
    fn check(items: &[(Vec<u32>, Vec<Vec<u32>>)], window: Option<usize>, rows: usize) {
        let c = config(window);
        let borrowed: Vec<_> = items
            .iter()
            .map(|(context, continuations)| Continuations {
                context,
                continuations,
            })
            .collect();
        let packs = pack(&borrowed, &c, rows);
        let mut found: Vec<Vec<Vec<u32>>> = items
            .iter()
            .map(|(_, c)| vec![Vec::new(); c.len()])
            .collect();
        for pack in &packs {
            assert_eq!(pack.tokens.len(), pack.seen.len());
            for Scored {
                row,
                target,
                of: (item, continuation),
            } in &pack.scored
            {
                let (context, continuations) = &items[*item];
                let so_far = &mut found[*item][*continuation];
                let sequence = [&context[..], so_far].concat();
                let long = c
                    .rope
                    .is_long(context.len() + continuations[*continuation].len() - 1);
                assert_eq!(long, pack.long);
                let seen = pack.seen[*row];
                assert_eq!(seen.position as usize, sequence.len() - 1);
                let sees = |at: usize| {
                    (seen.context_begin..seen.context_end).contains(&(at as i32))
                        || (seen.own_begin..=*row as i32).contains(&(at as i32))
                };
                let rows: Vec<usize> = (0..=*row).filter(|at| sees(*at)).collect();
                let tokens: Vec<u32> = rows.iter().map(|at| pack.tokens[*at]).collect();
                let kept = sequence.len().min(window.unwrap_or(usize::MAX));
                assert_eq!(tokens, sequence[sequence.len() - kept..]);
                assert!(seen.context_begin as usize <= rows[0]);
                for (at, position) in rows.iter().zip(sequence.len() - kept..) {
                    assert_eq!(pack.seen[*at].position as usize, position);
                    assert!(pack.seen[*at].context_begin as usize <= *at);
                }
                so_far.push(*target);
            }
        }
        for ((_, continuations), found) in items.iter().zip(&found) {
            assert_eq!(continuations, found);
        }
        let own = |pack: &Pack| pack.scored.iter().map(|s| s.of.0).collect::<Vec<_>>();
        for pack in packs.iter().filter(|p| p.tokens.len() > rows) {
            let items = own(pack);
            assert_eq!(items.first(), items.last(), "only one item is larger");
        }
    }

    #[test]
    fn a_row_sees_its_own_sequence() {
        let tokens = |from: u32, n: u32| (from..from + n).collect::<Vec<u32>>();
        let items = vec![
            (tokens(1, 1), vec![tokens(100, 1)]),
            (
                tokens(10, 40),
                vec![tokens(200, 3), vec![], tokens(210, 30)],
            ),
            (tokens(60, 500), vec![tokens(1000, 5), tokens(1100, 40)]),
            (tokens(70, 20), vec![]),
            (tokens(80, 7), vec![tokens(2000, 9); 4]),
        ];
        for window in [None, Some(1), Some(16), Some(45)] {
            for rows in [1, 50, 100, 600, 2048] {
                check(&items, window, rows);
            }
        }
    }
}
