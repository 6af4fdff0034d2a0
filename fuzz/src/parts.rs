//! Inputs of several files in one: a checkpoint's side files, as text that can be read.
//!
//! ```text
//! {"model_type": "llama"}
//! === generation_config.json ===
//! {"temperature": 0.5}
//! ```
//!
//! What is before the first heading is the first file. A heading names one of the files that the
//! target knows, so that no input writes anywhere else; any other line is text.

use serde_json::Value;

use crate::json::mutate_json;
use crate::{Mutate, Random};

/// What a file of an input is to the mutator.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// JSON: changed as a value, with these strings among others, and now and then as bytes.
    Json(&'static [&'static str]),
    /// Text: bytes change, and these pieces are put in.
    Text(&'static [&'static str]),
}

/// The files that an input of a target may have, each with its kind; the first needs no heading.
pub type Known = &'static [(&'static str, Kind)];

/// An input taken apart: positions among the known files, and contents.
#[derive(Debug)]
pub struct Parts {
    known: Known,
    parts: Vec<(usize, Vec<u8>)>,
}

impl Parts {
    /// Takes `input` apart, whatever it is; the second file of a name is left out.
    pub fn of(known: Known, input: &[u8]) -> Self {
        let mut parts: Vec<(usize, Vec<u8>)> = vec![(0, Vec::new())];
        for line in input.split_inclusive(|&b| b == b'\n') {
            let named = line
                .strip_prefix(b"=== ")
                .and_then(|rest| rest.strip_suffix(b" ===\n"))
                .and_then(|name| known.iter().position(|k| k.0.as_bytes() == name));
            match (named, parts.last_mut()) {
                (Some(at), _) => parts.push((at, Vec::new())),
                (None, Some((_, contents))) => contents.extend_from_slice(line),
                (None, None) => {}
            }
        }
        let mut seen = vec![false; known.len()];
        parts.retain(|(at, _)| !std::mem::replace(&mut seen[*at], true));
        Self { known, parts }
    }

    /// Names and contents; the first file is always there.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let name = |at: usize| self.known[at].0;
        self.parts
            .iter()
            .map(move |(at, contents)| (name(*at), contents.as_slice()))
    }

    /// A file's contents.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.files()
            .find(|(n, _)| *n == name)
            .map(|(_, contents)| contents)
    }

    /// The input again. A file after the first ends a line, since a heading is one.
    fn put(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (at, contents) in &self.parts {
            if *at > 0 {
                if out.last().is_some_and(|&b| b != b'\n') {
                    out.push(b'\n');
                }
                out.extend(format!("=== {} ===\n", self.known[*at].0).bytes());
            }
            out.extend(contents);
        }
        out
    }
}

/// Mutates one file of an input of at most `limit` bytes, or adds or removes one.
pub fn mutate_parts(
    known: Known,
    input: &[u8],
    limit: usize,
    random: &mut Random,
    mutate: Mutate,
) -> Vec<u8> {
    let mut parts = Parts::of(known, input);
    let at = random.below(parts.parts.len());
    if random.below(24) == 0 {
        let new = random.below(known.len());
        if at > 0 {
            parts.parts.remove(at);
        } else if parts.parts.iter().all(|part| part.0 != new) {
            parts.parts.push((new, b"{}".to_vec()));
        }
    }
    let at = at.min(parts.parts.len() - 1);
    let (known_at, contents) = &mut parts.parts[at];
    match known[*known_at].1 {
        Kind::Json(words) => change_json(contents, random, words, mutate),
        Kind::Text(pieces) => change_text(contents, random, pieces, mutate),
    }
    let out = parts.put();
    if out.len() > limit {
        input.to_vec()
    } else {
        out
    }
}

/// Changes a JSON text as a value, or its bytes where it is none.
pub fn change_json(contents: &mut Vec<u8>, random: &mut Random, words: &[&str], mutate: Mutate) {
    match serde_json::from_slice::<Value>(contents) {
        Ok(mut value) if random.below(8) > 0 => {
            for _ in 0..1 + random.below(3) {
                mutate_json(&mut value, random, words);
            }
            *contents = value.to_string().into_bytes();
        }
        Ok(_) | Err(_) => mutate(contents, 64),
    }
}

/// Puts a piece in, takes a run out, copies one elsewhere, or changes bytes.
fn change_text(contents: &mut Vec<u8>, random: &mut Random, pieces: &[&str], mutate: Mutate) {
    let length = contents.len();
    let at = random.below(length + 1);
    let end = length.min(at + 1 + random.below(24));
    match random.below(8) {
        0..4 => drop(contents.splice(at..at, random.pick(pieces).bytes())),
        4 => drop(contents.drain(at..end)),
        5 => {
            let run = contents[at..end].to_vec();
            let to = random.below(length + 1);
            contents.splice(to..to, run);
        }
        _ => mutate(contents, 64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known = &[
        ("a.json", Kind::Json(&["x"])),
        ("b", Kind::Text(&["y"])),
        ("c", Kind::Text(&["z"])),
    ];

    #[test]
    fn an_input_is_its_files() {
        let input = b"{}\n=== b ===\none\n=== d ===\n=== b ===\ntwo\n=== c ===\n";
        let parts = Parts::of(KNOWN, input);
        let files: Vec<_> = parts.files().collect();
        let expected: [(&str, &[u8]); 3] =
            [("a.json", b"{}\n"), ("b", b"one\n=== d ===\n"), ("c", b"")];
        assert_eq!(files, expected);
        assert_eq!(parts.put(), b"{}\n=== b ===\none\n=== d ===\n=== c ===\n");
    }

    #[test]
    fn mutations_stay_within_the_limit_and_reach_every_file() {
        let input = b"{\"k\": 1}\n=== b ===\none\n";
        let (mut first, mut second, mut third) = (false, false, false);
        for seed in 0..2000 {
            let mut random = Random::new(seed);
            let mut own = |bytes: &mut Vec<u8>, _: usize| bytes.push(b'!');
            let out = mutate_parts(KNOWN, input, 64, &mut random, &mut own);
            assert!(out.len() <= 64);
            let parts = Parts::of(KNOWN, &out);
            first |= parts.get("a.json") != Some(b"{\"k\": 1}\n");
            second |= parts.get("b").is_some_and(|text| text != b"one\n");
            third |= parts.get("c").is_some();
        }
        assert!(first && second && third);
    }
}
