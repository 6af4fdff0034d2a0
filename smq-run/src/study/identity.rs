//! What makes two measurements comparable: the checkpoint, the commit, the contract.

use std::collections::BTreeMap;
use std::path::Path;

use smq_convert::Checkpoint;

use super::contract::Contract;
use super::online::Online;
use super::record::{Environment, ModelIdentity};
use crate::measure::Machine;
use smq_engine::GpuInfo;
use smq_engine::cuda::compile;

/// Of each end of a shard, this much is hashed.
const END_BYTES: usize = 1 << 20;

/// The commit this program was built from.
pub(crate) const COMMIT: &str = env!("SMQ_COMMIT");

/// Tells checkpoints apart without reading all of them: BLAKE3 of config.json and, of each shard by
/// name, its name, length, and first and last MiB (which hold the header and weights), in hex.
///
/// # Errors
/// If config.json cannot be read.
pub(crate) fn checkpoint(checkpoint: &Checkpoint) -> anyhow::Result<ModelIdentity> {
    let config = checkpoint.config_path();
    let config = std::fs::read(&config)
        .map_err(|e| anyhow::anyhow!("{}: cannot read it: {e}", config.display()))?;
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(&config);
    for shard in checkpoint.shards() {
        let bytes = shard.bytes();
        part(shard.name.as_bytes());
        part(&(bytes.len() as u64).to_le_bytes());
        part(&bytes[..bytes.len().min(END_BYTES)]);
        part(&bytes[bytes.len().saturating_sub(END_BYTES)..]);
    }
    Ok(ModelIdentity {
        path: checkpoint.path().display().to_string(),
        id: hasher.finalize().to_hex().to_string(),
    })
}

/// What every line of a run shares.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    contract_blake3: String,
    /// Of the online half's file, in its lines.
    online_blake3: Option<String>,
    model: ModelIdentity,
    machine: Machine,
    kernels_blake3: BTreeMap<String, String>,
}

impl Surroundings {
    /// The surroundings of this process, which its lines record.
    #[must_use]
    pub(crate) fn new(contract: &Contract, model: ModelIdentity) -> Self {
        Self {
            contract_blake3: contract.blake3.clone(),
            online_blake3: None,
            model,
            machine: Machine::this(),
            kernels_blake3: compile::hashes(),
        }
    }

    /// The same for lines of the online half.
    #[must_use]
    pub(crate) fn online(self, online: &Online) -> Self {
        Self {
            online_blake3: Some(online.blake3.clone()),
            ..self
        }
    }

    /// The environment of a line: what ran it, and on which GPU.
    #[must_use]
    pub(crate) fn environment(&self, command: &[String], gpu: Option<GpuInfo>) -> Environment {
        Environment {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: COMMIT.to_owned(),
            contract_blake3: self.contract_blake3.clone(),
            online_blake3: self.online_blake3.clone(),
            model: self.model.clone(),
            command: command.to_vec(),
            time: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
            machine: self.machine.clone(),
            gpu,
            kernels_blake3: self.kernels_blake3.clone(),
        }
    }

    /// Which checkpoint is measured.
    #[must_use]
    pub(crate) fn model(&self) -> &ModelIdentity {
        &self.model
    }

    /// What tells a line measured elsewhere apart: the key, here, there.
    #[must_use]
    pub(crate) fn difference(&self, line: &Environment) -> Option<(&'static str, String, String)> {
        let of_online = |hash: &Option<String>| hash.clone().unwrap_or("none".to_owned());
        let (here, there) = (&self.online_blake3, &line.online_blake3);
        let pairs = [
            ("model", &self.model.id, &line.model.id),
            ("commit", &COMMIT.to_owned(), &line.commit),
            ("contract", &self.contract_blake3, &line.contract_blake3),
            ("online workload", &of_online(here), &of_online(there)),
        ];
        let (key, here, there) = pairs.into_iter().find(|(_, a, b)| a != b)?;
        Some((key, here.clone(), there.clone()))
    }
}

/// The command that started this process, its path shortened to the program's name.
#[must_use]
pub(crate) fn command() -> Vec<String> {
    let mut args: Vec<String> = std::env::args_os()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    if let Some(program) = args.first_mut()
        && let Some(name) = Path::new(program.as_str()).file_name()
    {
        *program = name.to_string_lossy().into_owned();
    }
    args
}
