//! The small files of a checkpoint: config, index, tokenizer.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde_json::{Map, json};

use super::SynthOptions;
use super::config::{SynthConfig, pretty};
use super::error::SynthError;
use super::shards::ShardPlan;
use super::staging::Staging;

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_EXTRAS: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];
const GENERATION: &str = "generation_config.json";

/// Writes them into `staging` and returns their names.
pub(super) fn write(
    staging: &Staging,
    options: &SynthOptions,
    config: &SynthConfig,
    plan: &ShardPlan,
) -> Result<Vec<String>, SynthError> {
    let mut names = Vec::new();
    let mut put = |name: &str, contents: &[u8]| {
        let target = staging.target(name);
        File::create_new(staging.path(name))
            .and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
            .map_err(SynthError::write(&target, plan.total_size_bytes))?;
        names.push(name.to_owned());
        Ok(())
    };

    put("config.json", &config.text)?;
    put(GENERATION, &generation_text(options, config)?)?;
    if let Some(dir) = &options.tokenizer {
        let tokenizer = read_if_present(&dir.join(TOKENIZER))?;
        let path = dir.clone();
        put(
            TOKENIZER,
            &tokenizer.ok_or(SynthError::NoTokenizer { path })?,
        )?;
        for name in TOKENIZER_EXTRAS {
            if let Some(contents) = read_if_present(&dir.join(name))? {
                put(name, &contents)?;
            }
        }
    }
    if plan.shards.len() > 1 {
        let index = json!({
            "metadata": { "total_size": plan.total_size_bytes },
            "weight_map": plan.weight_map(),
        });
        put("model.safetensors.index.json", &pretty(&index))?;
    }
    Ok(names)
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
        Err(error) => Err(SynthError::io("read", path)(error)),
    }
}
