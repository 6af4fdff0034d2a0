//! `spec/online.toml`: what is asked of servers. Each key is explained there.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::study::contract::{Contract, ContractError, read};

/// Where the study's own is, seen from the repository's root.
pub(crate) const DEFAULT_PATH: &str = "spec/online.toml";
const DEFAULT_TEXT: &str = include_str!("../../../../spec/online.toml");

/// Version of the file's layout.
const VERSION: u64 = 1;
/// Bounds of anything counted in tokens.
const MOST_TOKENS: usize = 1 << 20;
/// Bounds of anything counted in requests or clients.
const MOST_REQUESTS: usize = 1 << 16;

/// The online half of the experiment.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Online {
    /// Layout of the file.
    pub version: u64,
    /// Ids of the configs that are served.
    pub configs: Vec<String>,
    /// What is asked of each.
    pub workload: Workload,
    /// What is asked before.
    pub warmup: Warmup,
    /// The file it came from.
    #[serde(skip)]
    pub path: PathBuf,
    /// BLAKE3 of the file, hex.
    #[serde(skip)]
    pub blake3: String,
}

/// What is asked of a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Workload {
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after it.
    pub output_tokens: usize,
    /// Requests of a level.
    pub num_prompts: usize,
    /// Clients, a level each.
    pub concurrency: Vec<usize>,
    /// Fresh servers, each of which is measured with all numbers of clients.
    pub repeats: usize,
    /// Seed of the prompts.
    pub seed: u64,
}

/// What is asked before, and not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Warmup {
    /// Requests at the most clients, once a server has started.
    pub num_prompts: usize,
    /// Requests one after another before each level.
    pub each_level: usize,
}

impl Online {
    /// Reads a file and checks it against the contract whose configs it names. Where the default
    /// one is not there, as outside of the repository, it is the one that this program was built
    /// with.
    ///
    /// # Errors
    /// [`ContractError`], with the file and the first key that is wrong.
    pub(crate) fn load(path: &Path, contract: &Contract) -> Result<Self, ContractError> {
        let (mut online, blake3): (Self, _) = read(path, (DEFAULT_PATH, DEFAULT_TEXT))?;
        path.clone_into(&mut online.path);
        online.blake3 = blake3;
        online.check(contract)?;
        Ok(online)
    }

    fn check(&self, contract: &Contract) -> Result<(), ContractError> {
        let wrong = |key: &str, value: String, allowed: String| {
            Err(ContractError::Value {
                path: self.path.clone(),
                key: key.to_owned(),
                value,
                allowed,
            })
        };
        if self.version != VERSION {
            return wrong("version", self.version.to_string(), VERSION.to_string());
        }
        for (i, id) in self.configs.iter().enumerate() {
            if contract.config(id).is_none() || self.configs[..i].contains(id) {
                let allowed = format!("each of {} once", contract.ids());
                return wrong("configs", format!("{id:?}"), allowed);
            }
        }
        let (w, warmup) = (&self.workload, &self.warmup);
        for (key, value, least, most) in [
            ("configs", self.configs.len(), 1, contract.configs.len()),
            ("workload.prompt_tokens", w.prompt_tokens, 1, MOST_TOKENS),
            // A time per output token takes two of them.
            ("workload.output_tokens", w.output_tokens, 2, MOST_TOKENS),
            ("workload.num_prompts", w.num_prompts, 1, MOST_REQUESTS),
            ("workload.repeats", w.repeats, 1, 100),
            ("warmup.num_prompts", warmup.num_prompts, 0, MOST_REQUESTS),
            ("warmup.each_level", warmup.each_level, 0, MOST_REQUESTS),
        ] {
            if !(least..=most).contains(&value) {
                return wrong(key, value.to_string(), format!("{least} to {most}"));
            }
        }
        let clients = &w.concurrency;
        let counts = clients.iter().all(|n| (1..=MOST_REQUESTS).contains(n));
        if clients.is_empty() || !counts || !clients.is_sorted_by(|a, b| a < b) {
            let allowed = format!("at least one of 1 to {MOST_REQUESTS}, ascending");
            return wrong("workload.concurrency", format!("{clients:?}"), allowed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = include_str!("../../../../tests/fixtures/online-small.toml");

    fn repository(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
    }

    fn contract() -> Contract {
        Contract::load(&repository("spec/experiment.toml")).unwrap()
    }

    /// What loading the small file says after `from` became `to`.
    fn refused(from: &str, to: &str) -> String {
        assert!(SMALL.contains(from), "{from:?} is not in the small file");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("online.toml");
        std::fs::write(&path, SMALL.replacen(from, to, 1)).unwrap();
        Online::load(&path, &contract()).unwrap_err().to_string()
    }

    #[test]
    fn the_registered_workload_is_what_the_study_fixes() {
        let online = Online::load(&repository(DEFAULT_PATH), &contract()).unwrap();
        assert_eq!(online.configs, ["C0", "C4", "C6"]);
        let w = &online.workload;
        assert_eq!((w.prompt_tokens, w.output_tokens), (512, 128));
        assert_eq!((w.num_prompts, w.repeats), (64, 3));
        assert_eq!(w.concurrency, [1, 4, 8, 16, 32]);
        // Without the repository, the one that is built in is the same.
        let built_in = blake3::hash(DEFAULT_TEXT.as_bytes()).to_hex().to_string();
        assert_eq!(online.blake3, built_in);
    }

    #[test]
    fn every_key_is_required_and_no_other_allowed() {
        for line in SMALL.lines().filter(|l| l.contains(" = ")) {
            let key = line.split(" = ").next().unwrap();
            let without = refused(&format!("\n{line}\n"), "\n");
            assert!(without.contains(&format!("`{key}`")), "{key}: {without}");
        }
        let unknown = refused("seed = 42", "seed = 42\nspeed = 1");
        assert!(unknown.contains("unknown field `speed`"), "{unknown}");
    }

    #[test]
    fn values_are_bounded() {
        for (from, to, expected) in [
            ("version = 1", "version = 2", "version is 2; allowed is 1"),
            ("\"C4\"", "\"C9\"", "configs is \"C9\"; allowed is each of"),
            ("\"C4\"", "\"C0\"", "configs is \"C0\"; allowed is each of"),
            ("[\"C0\", \"C4\"]", "[]", "configs is 0; allowed is 1 to 11"),
            (
                "output_tokens = 5",
                "output_tokens = 1",
                "workload.output_tokens is 1",
            ),
            ("[1, 3]", "[3, 1]", "workload.concurrency is [3, 1]"),
            ("[1, 3]", "[0, 1]", "workload.concurrency is [0, 1]"),
            ("[1, 3]", "[]", "workload.concurrency is []"),
            ("repeats = 2", "repeats = 0", "workload.repeats is 0"),
        ] {
            let error = refused(from, to);
            assert!(error.contains(expected), "{error}");
        }
    }
}
