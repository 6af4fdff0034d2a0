//! The small files of a checkpoint: config, index, tokenizer.

use std::fs;
use std::path::Path;

use serde_json::{Map, json};
use smq_model::SHARD_INDEX;

use super::SynthOptions;
use super::config::SynthConfig;
use super::error::SynthError;
use super::shards::ShardPlan;
use crate::directory::{DirectoryError, Staging, pretty};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const GENERATION: &str = "generation_config.json";

/// Writes them into `staging` and returns their names.
pub(super) fn write(
    staging: &Staging,
    options: &SynthOptions,
    config: &SynthConfig,
    plan: &ShardPlan,
) -> Result<Vec<String>, SynthError> {
    let mut files = vec![
        (CONFIG.to_owned(), config.text.clone()),
        (GENERATION.to_owned(), generation_text(options, config)?),
    ];
    if let Some(dir) = &options.tokenizer {
        let found = smq_model::side_files(dir)?;
        if !found.iter().any(|(name, _)| name == TOKENIZER) {
            return Err(SynthError::NoTokenizer { path: dir.clone() });
        }
        let written = |name: &str| [CONFIG, GENERATION].contains(&name);
        files.extend(found.into_iter().filter(|(name, _)| !written(name)));
    }
    if plan.shards.len() > 1 {
        let index = json!({
            "metadata": { "total_size": plan.total_size_bytes },
            "weight_map": plan.weight_map(),
        });
        files.push((SHARD_INDEX.to_owned(), pretty(&index)));
    }
    for (name, contents) in &files {
        staging.write(name, contents, plan.total_size_bytes)?;
    }
    Ok(files.into_iter().map(|(name, _)| name).collect())
}

/// From the tokenizer's directory, else from beside the config, else the config's token ids.
fn generation_text(options: &SynthOptions, config: &SynthConfig) -> Result<Vec<u8>, SynthError> {
    let beside_config = options.config.parent();
    for dir in [options.tokenizer.as_deref(), beside_config]
        .into_iter()
        .flatten()
    {
        if let Some(contents) = read_if_present(&dir.join(GENERATION))? {
            return Ok(contents);
        }
    }
    let mut generation = Map::from_iter([("_from_model_config".to_owned(), true.into())]);
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        if let Some(id) = config.json.get(key).filter(|id| !id.is_null()) {
            generation.insert(key.to_owned(), id.clone());
        }
    }
    Ok(pretty(&generation))
}

fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>, SynthError> {
    match fs::read(path) {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DirectoryError::io("read", path)(error).into()),
    }
}
