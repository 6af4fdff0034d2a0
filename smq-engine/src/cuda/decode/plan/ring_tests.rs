//! The ring of `decode.cu`, whose barriers know a use's parity alone, played through in random
//! orders: producers that fill slots in turns, and teams that each empty slots of their own.

use rand::rngs::Xoshiro256PlusPlus as StdRng;
use rand::{RngExt, SeedableRng};

use super::{PRODUCERS, WARPS, landed};

const TEAMS: usize = WARPS / 4;

/// The slots of each team in a product whose tiles take `ksplit` each.
fn slots_of_teams(ksplit: usize, tiles: usize) -> Vec<Vec<usize>> {
    let of = |team| {
        let has = move |tile: usize, slot: usize| match ksplit < TEAMS {
            true => tile % TEAMS == team,
            false => slot % TEAMS == team,
        };
        let all = (0..tiles).flat_map(|tile| (0..ksplit).map(move |slot| (tile, slot)));
        all.filter(|(tile, slot)| has(*tile, *slot))
            .map(|(tile, slot)| tile * ksplit + slot)
            .collect()
    };
    (0..TEAMS).map(of).collect()
}

/// A slot's two barriers: uses that have arrived, and those that are done with.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    full: usize,
    empty: usize,
}

/// Whether a wait for phase `phase` ends, as a barrier in phase `now` sees it.
fn passes(now: usize, phase: usize) -> bool {
    now % 2 != phase % 2
}

/// Plays a product of `ksplit` slots a tile through; `rule`: whether producers wait for others'
/// slots.
fn play(slots: usize, ksplit: usize, tiles: usize, rule: bool, seed: u64) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(seed);
    let total = ksplit * tiles;
    let mut ring = vec![Slot::default(); slots];
    let teams = slots_of_teams(ksplit, tiles);
    let mut taken = [0; TEAMS];
    let mut next: Vec<usize> = (0..PRODUCERS).collect();
    let mut on_their_way: Vec<usize> = Vec::new();
    // Whoever is slow in this play is so all the time.
    let speeds: Vec<f64> = (0..PRODUCERS + TEAMS + 1)
        .map(|_| f64::powi(0.1, random.random_range(0..4)))
        .collect();
    let landed = landed(slots);
    let waited_for = (landed + PRODUCERS).min(2 * landed);
    for _ in 0..2_000_000 {
        if taken.iter().zip(&teams).all(|(n, all)| *n == all.len()) {
            return Ok(());
        }
        let mut moves = Vec::new();
        for (producer, &index) in next.iter().enumerate() {
            let there = |back: usize| {
                let before = index - back;
                passes(ring[before % slots].full, before / slots)
            };
            let own = index < PRODUCERS || there(PRODUCERS);
            let others = !rule
                || (landed..waited_for)
                    .all(|back| back > index || back == PRODUCERS || there(back));
            let free = passes(ring[index % slots].empty, index / slots + 1);
            if index < total && own && others && free {
                moves.push(producer);
            }
        }
        for (team, all) in teams.iter().enumerate() {
            if let Some(index) = all.get(taken[team])
                && passes(ring[index % slots].full, index / slots)
            {
                moves.push(PRODUCERS + team);
            }
        }
        if !on_their_way.is_empty() {
            moves.push(PRODUCERS + TEAMS);
        }
        if moves.is_empty() {
            return Err("nobody can go on".into());
        }
        let chosen = moves[random.random_range(0..moves.len())];
        if random.random::<f64>() > speeds[chosen] && moves.len() > 1 {
            continue;
        }
        match chosen {
            producer if producer < PRODUCERS => {
                let index = next[producer];
                if ring[index % slots].empty != index / slots {
                    return Err(format!("slot {index} is filled while it is in use"));
                }
                on_their_way.push(index);
                next[producer] += PRODUCERS;
            }
            arrival if arrival == PRODUCERS + TEAMS => {
                let at = random.random_range(0..on_their_way.len());
                ring[on_their_way.swap_remove(at) % slots].full += 1;
            }
            team => {
                let team = team - PRODUCERS;
                let index = teams[team][taken[team]];
                if ring[index % slots].full != index / slots + 1 {
                    return Err(format!("slot {index} is read before it is there"));
                }
                ring[index % slots].empty += 1;
                taken[team] += 1;
            }
        }
    }
    Err("it did not end".into())
}

/// No team takes an earlier use of a slot for its own, and nobody waits for ever, whoever is slow.
#[test]
fn uses_of_a_slot_are_told_apart() {
    for slots in [8, 12, 16] {
        for ksplit in 1..=12 {
            for seed in 0..40 {
                let tiles = 60 / ksplit + 1;
                if let Err(what) = play(slots, ksplit, tiles, true, seed) {
                    panic!("{slots} slots, {ksplit} a tile, seed {seed}: {what}");
                }
            }
        }
    }
}

/// Without waiting for the others' slots a team comes to read what is not there: the plays above
/// would find it.
#[test]
fn without_the_rule_they_are_not() {
    let fails = |slots, ksplit| (0..40).any(|seed| play(slots, ksplit, 30, false, seed).is_err());
    assert!(fails(8, 7));
    assert!(fails(12, 7));
    assert!(fails(12, 5));
}
