//! Which tensor goes into which file, and writing one file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use safetensors::Dtype;
use smq_model::TensorSpec;

use super::config::size_bytes;
use super::error::SynthError;
use super::weights::{Generator, TensorGenerator};
use crate::directory::{DirectoryError, Staging, fill_shards, header, shard_name};

/// Bytes generated ahead of the disk; two such buffers are live. Rounded to whole rows, at least
/// one.
const WAVE_BYTES: usize = 16 << 20;

/// The files of a checkpoint.
pub(super) struct ShardPlan<'a> {
    pub(super) shards: Vec<Shard<'a>>,
    pub(super) total_size_bytes: u64,
}

/// One safetensors file of the checkpoint, before it is written.
pub(super) struct Shard<'a> {
    pub(super) file_name: String,
    /// In file order: by name, as the safetensors library sorts tensors of one dtype.
    tensors: Vec<&'a TensorSpec>,
    checkpoint_bytes: u64,
}

impl<'a> ShardPlan<'a> {
    /// Shards by the rule of [`fill_shards`], `tensors` being in state-dict order.
    pub(super) fn new(tensors: &'a [TensorSpec], shard_bytes: u64) -> Result<Self, SynthError> {
        if shard_bytes == 0 {
            return Err(SynthError::ZeroShardBytes);
        }
        let sized = tensors.iter().map(|tensor| (tensor, size_bytes(tensor)));
        let groups = fill_shards(sized, shard_bytes);
        let count = groups.len();
        let total_size_bytes = tensors.iter().map(size_bytes).sum();
        let shards = groups.into_iter().zip(1..).map(|(mut tensors, number)| {
            tensors.sort_by(|a, b| a.name.cmp(&b.name));
            Shard {
                file_name: shard_name(number, count),
                tensors,
                checkpoint_bytes: total_size_bytes,
            }
        });
        Ok(Self {
            shards: shards.collect(),
            total_size_bytes,
        })
    }

    /// The file of each tensor, as the index has it.
    pub(super) fn weight_map(&self) -> BTreeMap<&str, &str> {
        let files = self.shards.iter();
        files
            .flat_map(|shard| {
                let names = shard.tensors.iter().map(|tensor| tensor.name.as_str());
                names.map(|name| (name, shard.file_name.as_str()))
            })
            .collect()
    }
}

impl Shard<'_> {
    /// Writes the file into `staging` and returns the time that fsync took. `advance` gets bytes of
    /// data written since its last call.
    pub(super) fn write(
        &self,
        staging: &Staging,
        generator: &Generator,
        advance: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Duration, SynthError> {
        let path = staging.path(&self.file_name);
        let target = staging.target(&self.file_name);
        let header = self.header().map_err(|source| DirectoryError::Header {
            path: target.clone(),
            source,
        })?;
        let write = |path| DirectoryError::write(path, self.checkpoint_bytes);
        let mut file = File::create_new(&path).map_err(write(&target))?;
        file.write_all(&header).map_err(write(&target))?;
        self.write_data(&mut file, generator, advance)
            .map_err(write(&target))?;
        let start = Instant::now();
        file.sync_all().map_err(write(&target))?;
        Ok(start.elapsed())
    }

    fn header(&self) -> Result<Vec<u8>, safetensors::SafeTensorError> {
        let tensors = self.tensors.iter();
        header(tensors.map(|t| (t.name.as_str(), Dtype::BF16, t.shape.as_slice())))
    }

    /// Writes one buffer while the next is generated.
    fn write_data(
        &self,
        file: &mut File,
        generator: &Generator,
        advance: &mut (dyn FnMut(u64) + Send),
    ) -> io::Result<()> {
        let mut full: Vec<u16> = Vec::new();
        let mut next: Vec<u16> = Vec::new();
        for tensor in &self.tensors {
            let tensor = generator.tensor(tensor);
            let wave_rows = (WAVE_BYTES / 2 / tensor.columns()).max(1);
            for first_row in (0..tensor.rows()).step_by(wave_rows) {
                let rows = wave_rows.min(tensor.rows() - first_row);
                let (written, ()) = rayon::join(
                    || write_elems(file, &full, advance),
                    || generate(&tensor, first_row, rows, &mut next),
                );
                written?;
                std::mem::swap(&mut full, &mut next);
            }
        }
        write_elems(file, &full, advance)
    }
}

fn generate(tensor: &TensorGenerator, first_row: usize, rows: usize, out: &mut Vec<u16>) {
    out.resize(rows * tensor.columns(), 0);
    tensor.fill(first_row, out);
}

fn write_elems(
    file: &mut File,
    elems: &[u16],
    advance: &mut (dyn FnMut(u64) + Send),
) -> io::Result<()> {
    let bytes: &[u8] = bytemuck::cast_slice(elems);
    file.write_all(bytes)?;
    advance(bytes.len() as u64);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use smq_model::Role;

    fn tensor(name: &str, elems: usize) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            shape: vec![elems],
            role: Role::Norm,
            layer: None,
        }
    }

    fn names(tensors: &[TensorSpec], shard_bytes: u64) -> Vec<(String, String)> {
        let plan = ShardPlan::new(tensors, shard_bytes).unwrap();
        let shards = plan.shards.iter().map(|shard| {
            let names: Vec<_> = shard.tensors.iter().map(|t| t.name.as_str()).collect();
            (shard.file_name.clone(), names.join(" "))
        });
        shards.collect()
    }

    /// Worked by hand from the rule of huggingface_hub's `split_torch_state_dict_into_shards`.
    #[test]
    fn shards_follow_the_rule_of_hugging_face() {
        let tensors = [
            tensor("d", 4),
            tensor("b", 5),
            tensor("big", 11),
            tensor("a", 1),
            tensor("c", 2),
        ];
        // d, b and a fill 20 bytes exactly; big stands alone and comes before the shard that was
        // open.
        let shard = |number: u32, of: u32, names: &str| {
            (
                format!("model-{number:05}-of-{of:05}.safetensors"),
                names.to_owned(),
            )
        };
        assert_eq!(
            names(&tensors, 20),
            [shard(1, 3, "big"), shard(2, 3, "a b d"), shard(3, 3, "c")]
        );
        assert_eq!(
            names(&tensors, 46),
            [("model.safetensors".to_owned(), "a b big c d".to_owned())]
        );
        assert_eq!(names(&tensors, 45).len(), 2);
        let alone = ["d", "b", "big", "a", "c"].iter().zip(1..);
        let alone: Vec<_> = alone.map(|(name, number)| shard(number, 5, name)).collect();
        assert_eq!(names(&tensors, 1), alone);
        assert!(matches!(
            ShardPlan::new(&tensors, 0),
            Err(SynthError::ZeroShardBytes)
        ));
    }

    /// The two files of Phi-3.5-mini-instruct, with the sizes that they have on the Hugging Face
    /// hub.
    #[test]
    fn phi_3_5_mini_is_sharded_as_published() {
        let json = r#"{
            "architectures": ["Phi3ForCausalLM"], "hidden_size": 3072, "intermediate_size": 8192,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
            "tie_word_embeddings": false, "vocab_size": 32064
        }"#;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        let config = crate::synth::config::SynthConfig::read(&path, None).unwrap();
        let plan = ShardPlan::new(&config.tensors, crate::directory::DEFAULT_SHARD_BYTES).unwrap();
        let sizes: Vec<u64> = plan
            .shards
            .iter()
            .map(|shard| {
                let data: u64 = shard.tensors.iter().map(|t| size_bytes(t)).sum();
                shard.header().unwrap().len() as u64 + data
            })
            .collect();
        assert_eq!(sizes, [4_972_489_328, 2_669_692_552]);
    }
}
