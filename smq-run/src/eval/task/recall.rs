//! `recall`: made, not read. A passage says where four things are, goes on about something else
//! for a while, and ends with the beginning of a sentence whose last word only the passage tells.
//!
//! ```text
//!   Anna left the key under the bed. Peter put the map under the tree. ...    four facts
//!   Later that day the baker spoke about the price of grain. ...              the distance
//!   At last Anna came back for the key and found it still under the           -> bed
//! ```
//!
//! All four places of a passage follow the same preposition, so the last words alone do not say
//! which is meant. A story is told at every distance, so that distances compare the same answers.

mod words;

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use smq_engine::{Error, Result};
use smq_model::Tokenizer;

use super::Request;
use crate::eval::encode;
use words::{PREPOSITIONS, TASK, TEXT, Words};

/// Tokens of filler, unless told otherwise.
pub(crate) const DISTANCES: [usize; 3] = [32, 128, 512];
/// Items of the whole task, unless told otherwise: 400 for each of three distances, of which a
/// share has a standard error of 2.5 points at most.
pub(crate) const ITEMS: usize = 1200;
/// Where the generator starts, unless told otherwise.
pub(crate) const SEED: u32 = 1;
/// Facts of a passage.
const FACTS: usize = 4;

/// Which passages are made, and how many.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RecallOptions {
    /// Tokens of filler; items take them in turn.
    pub distances: Vec<usize>,
    /// Where the generator starts.
    pub seed: u32,
    /// Items, of all distances together.
    pub items: usize,
}

impl Default for RecallOptions {
    fn default() -> Self {
        Self {
            distances: DISTANCES.into(),
            seed: SEED,
            items: ITEMS,
        }
    }
}

impl RecallOptions {
    /// In words, as results name what was asked.
    pub(crate) fn describe(&self) -> String {
        let distances: Vec<_> = self.distances.iter().map(usize::to_string).collect();
        format!("seed {}, distances {}", self.seed, distances.join(", "))
    }

    /// The task's items, the distances in turn, for a model of `positions`.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no distance, or one is too long for the model;
    /// [`Error::Tokenizer`](smq_model::Error::Tokenizer).
    pub(crate) fn requests(&self, tokenizer: &Tokenizer, positions: usize) -> Result<Vec<Request>> {
        let passages = self.passages(&TASK, tokenizer, self.distances.len())?;
        let mut requests = Vec::with_capacity(passages.len());
        for Passage {
            context,
            answer,
            distance,
        } in passages
        {
            let continuation = format!(" {answer}");
            let pair = encode::pair(tokenizer, &context, &continuation)?;
            // The last token is never fed. A start left out would take the answer with it.
            let needed = pair.context.len() + pair.continuation.len() - 1;
            if needed > positions {
                return Err(Error::Input(format!(
                    "recall at distance {distance} needs {needed} positions, and the longest \
                     sequence is {positions}; give a larger --context or smaller distances"
                )));
            }
            requests.push(Request::Continuation {
                context,
                continuation,
                distance: Some(distance),
            });
        }
        Ok(requests)
    }

    /// A text of such passages, a paragraph each, with their last sentences complete and a story
    /// each. None of the task's names, things, places or sentences is in it.
    ///
    /// # Errors
    /// As [`RecallOptions::requests`].
    pub(crate) fn text(&self, tokenizer: &Tokenizer) -> Result<String> {
        let passages = self.passages(&TEXT, tokenizer, 1)?;
        let whole = |p: &Passage| format!("{} {}.\n", p.context, p.answer);
        let paragraphs: Vec<String> = passages.iter().map(whole).collect();
        Ok(paragraphs.join("\n"))
    }

    /// `told` passages in a row tell one story.
    fn passages(&self, words: &Words, tokenizer: &Tokenizer, told: usize) -> Result<Vec<Passage>> {
        if self.distances.is_empty() {
            return Err(Error::Input("recall has no distance; give one".into()));
        }
        let mut passages = Vec::with_capacity(self.items);
        for (item, &distance) in (0..self.items).zip(self.distances.iter().cycle()) {
            let story = (item / told) as u64;
            let seed = (u64::from(self.seed) << 32) ^ story;
            let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
            let story = Story::new(words, &mut random);
            // The generator goes on alike, so that longer fillers begin with the shorter ones.
            passages.push(story.at(words, tokenizer, random, distance)?);
        }
        Ok(passages)
    }
}

/// A passage without its last word, and that word.
struct Passage {
    context: String,
    answer: &'static str,
    distance: usize,
}

/// What a passage tells, at whatever distance.
struct Story {
    facts: String,
    question: String,
    answer: &'static str,
}

impl Story {
    fn new(words: &Words, random: &mut impl RngExt) -> Self {
        let people = drawn(words.people, random);
        let things = drawn(words.things, random);
        let places = drawn(words.places, random);
        let preposition = one(&PREPOSITIONS, random);
        let told = |template: &str, i: usize| {
            let letter = |c| match c {
                'P' => people[i].to_owned(),
                'T' => things[i].to_owned(),
                'W' => preposition.to_owned(),
                'L' => places[i].to_owned(),
                other => String::from(other),
            };
            // Templates are words, of which only these single letters are replaced.
            let word = |word: &str| {
                let (name, rest) = word.split_at(word.len().min(1));
                match rest.is_empty() || !rest.starts_with(char::is_alphabetic) {
                    true => name.chars().map(letter).collect::<String>() + rest,
                    false => word.to_owned(),
                }
            };
            template.split(' ').map(word).collect::<Vec<_>>().join(" ")
        };
        let facts: Vec<String> = (0..FACTS)
            .map(|i| told(one(words.facts, random), i))
            .collect();
        let asked = random.random_range(0..FACTS);
        let question = told(one(words.questions, random), asked);
        let question = question.strip_suffix(places[asked]).unwrap_or(&question);
        Self {
            facts: facts.join(" "),
            question: question.trim_end().to_owned(),
            answer: places[asked],
        }
    }

    /// The passage with at least `distance` tokens of filler, in whole sentences.
    fn at(
        &self,
        words: &Words,
        tokenizer: &Tokenizer,
        mut random: impl RngExt,
        distance: usize,
    ) -> Result<Passage> {
        let mut context = self.facts.clone();
        let mut tokens = 0;
        while tokens < distance {
            let sentence = format!(
                " {} {} {}.",
                one(words.openings, &mut random),
                one(words.subjects, &mut random),
                one(words.predicates, &mut random)
            );
            tokens += tokenizer.encode(&sentence, false)?.len();
            context += &sentence;
        }
        context += " ";
        context += &self.question;
        Ok(Passage {
            context,
            answer: self.answer,
            distance,
        })
    }
}

fn one(of: &[&'static str], random: &mut impl RngExt) -> &'static str {
    of.choose(random).copied().unwrap_or_default()
}

/// As many different ones as there are facts.
fn drawn(of: &[&'static str], random: &mut impl RngExt) -> [&'static str; FACTS] {
    let mut all = of.to_vec();
    let (chosen, _) = all.partial_shuffle(random, FACTS);
    std::array::from_fn(|i| chosen.get(i).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use smq_model::Source;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/phi3-tiny");
        Tokenizer::load(&Source::open(path.as_ref()).unwrap()).unwrap()
    }

    fn parts(request: &Request) -> (&str, &str, usize) {
        match request {
            Request::Continuation {
                context,
                continuation,
                distance: Some(distance),
            } => (context, continuation.trim_start(), *distance),
            other => panic!("{other:?}"),
        }
    }

    /// The answer stands once in the passage, in a sentence with the person and the thing that the
    /// last sentence names; three other places stand behind the same preposition.
    #[test]
    fn only_the_passage_tells_the_answer() {
        let options = RecallOptions {
            items: 60,
            ..RecallOptions::default()
        };
        let requests = options.requests(&tokenizer(), 4096).unwrap();
        assert_eq!(requests.len(), 60);
        for request in &requests {
            let (context, answer, _) = parts(request);
            let sentences: Vec<&str> = context.split(". ").collect();
            let question = sentences.last().unwrap();
            let words = |text: &str| -> BTreeSet<String> {
                let bare = |w: &str| w.trim_matches(|c: char| !c.is_alphabetic()).to_owned();
                text.split(' ').map(bare).collect()
            };
            let telling: Vec<_> = sentences
                .iter()
                .filter(|s| words(s).contains(answer))
                .collect();
            assert_eq!(telling.len(), 1, "{context}");
            let (told, asked) = (words(telling[0]), words(question));
            let shared = |of: &[&str]| of.iter().filter(|w| told.contains(**w)).count();
            assert_eq!((shared(TASK.people), shared(TASK.things)), (1, 1));
            for named in [TASK.people, TASK.things] {
                assert!(
                    named
                        .iter()
                        .all(|w| told.contains(*w) == asked.contains(*w))
                );
            }
            let preposition = question.split(' ').rev().nth(1).unwrap();
            let same = format!(" {preposition} the ");
            assert_eq!(context.matches(&same).count(), FACTS, "{context}");
            assert!(question.ends_with(" the"), "{question}");
            let whole = words(context);
            assert!(["P", "T", "W", "L"].iter().all(|w| !whole.contains(*w)));
        }
    }

    /// Distances are those asked for, in tokens of the model, and a story is the same at each.
    #[test]
    fn distances_take_turns_over_the_same_stories() {
        let tokenizer = tokenizer();
        let options = RecallOptions {
            distances: vec![8, 64],
            seed: 5,
            items: 7,
        };
        let requests = options.requests(&tokenizer, 4096).unwrap();
        let distances: Vec<_> = requests.iter().map(|r| parts(r).2).collect();
        assert_eq!(distances, [8, 64, 8, 64, 8, 64, 8]);
        let length = |r: &Request| tokenizer.encode(parts(r).0, false).unwrap().len();
        for pair in requests.chunks_exact(2) {
            let (near, far) = (parts(&pair[0]), parts(&pair[1]));
            assert_eq!(near.1, far.1);
            assert_eq!(near.0.split(". ").next(), far.0.split(". ").next());
            // A sentence of filler has up to 35 tokens of this small vocabulary.
            let more = length(&pair[1]) - length(&pair[0]);
            assert!((21..=91).contains(&more), "{more}");
        }
        assert_eq!(options.requests(&tokenizer, 4096).unwrap(), requests);
        let fewer = RecallOptions {
            items: 3,
            ..options.clone()
        };
        assert_eq!(fewer.requests(&tokenizer, 4096).unwrap(), requests[..3]);
        let other = RecallOptions {
            seed: 6,
            ..options.clone()
        };
        assert_ne!(other.requests(&tokenizer, 4096).unwrap(), requests);
        let error = options.requests(&tokenizer, 100).unwrap_err().to_string();
        assert!(error.contains("the longest sequence is 100"), "{error}");
    }

    /// The task's passages are published figures' input: they change only on purpose.
    #[test]
    fn the_passages_are_pinned() {
        let options = RecallOptions {
            items: 1,
            ..RecallOptions::default()
        };
        let requests = options.requests(&tokenizer(), 4096).unwrap();
        let (context, answer, _) = parts(&requests[0]);
        let told = "Robert dropped the coat under the stairs. Grace dropped the knife under the stove. \
                    Walter left the lantern under the bench. Simon left the mirror under the \
                    carpet. After the market had closed the two sisters waited for news that did \
                    not come. Once again an old sailor spoke about the price of grain. Nobody but \
                    Simon knew that the mirror was under the";
        assert_eq!((context, answer), (told, "carpet"));
    }

    /// The text has its own words: nothing that the task asks about, no sentence of it.
    #[test]
    fn the_text_gives_no_answer_away() {
        let lists = |w: &Words| {
            let all = [w.people, w.things, w.places, w.facts, w.questions];
            let more = [w.openings, w.subjects, w.predicates];
            let lists = all.into_iter().chain(more);
            lists.flat_map(|l| l.iter().copied()).collect::<Vec<_>>()
        };
        let task: BTreeSet<_> = lists(&TASK).into_iter().collect();
        let text: BTreeSet<_> = lists(&TEXT).into_iter().collect();
        assert_eq!(task.len(), lists(&TASK).len());
        assert_eq!(text.len(), lists(&TEXT).len());
        assert!(task.is_disjoint(&text));
        let options = RecallOptions {
            items: 30,
            ..RecallOptions::default()
        };
        let written = options.text(&tokenizer()).unwrap();
        assert_eq!(written.split("\n\n").count(), 30);
        let first = |p: &str| p.split(". ").take(FACTS).collect::<String>();
        let stories: BTreeSet<String> = written.split("\n\n").map(first).collect();
        assert_eq!(stories.len(), 30);
        let words: BTreeSet<_> = written.split(|c: char| !c.is_alphabetic()).collect();
        for named in [TASK.people, TASK.things, TASK.places] {
            assert!(named.iter().all(|w| !words.contains(w)), "{named:?}");
        }
        // Each place that ends a passage stands in it twice.
        for passage in written.split("\n\n") {
            let place = passage.trim_end().trim_end_matches('.').rsplit(' ').next();
            let place = format!(" {}.", place.unwrap());
            assert_eq!(passage.matches(&place).count(), 2, "{passage}");
        }
    }
}
