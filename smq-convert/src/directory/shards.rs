//! Which tensor goes into which safetensors file, what that is called, and its header.

use std::collections::HashMap;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

/// Hugging Face's rule (`split_torch_state_dict_into_shards`): fill a shard in state-dict order
/// until the next tensor would exceed the limit; a tensor over the limit gets a shard of its own,
/// before the one being filled.
pub(crate) fn fill_shards<T>(
    tensors: impl Iterator<Item = (T, u64)>,
    shard_bytes: u64,
) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    let mut current = Vec::new();
    let mut current_bytes = 0;
    for (tensor, bytes) in tensors {
        if bytes > shard_bytes {
            groups.push(vec![tensor]);
            continue;
        }
        if current_bytes + bytes > shard_bytes {
            groups.push(std::mem::take(&mut current));
            current_bytes = 0;
        }
        current.push(tensor);
        current_bytes += bytes;
    }
    if !current.is_empty() {
        groups.push(current);
    }
    groups
}

/// What Hugging Face calls shard `number`, from 1, of `count`.
pub(crate) fn shard_name(number: usize, count: usize) -> String {
    match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{number:05}-of-{count:05}.safetensors"),
    }
}

/// Length, JSON and the spaces that align the data to 8 bytes (safetensors' README, "Format"), of
/// tensors in file order: name, element type and shape.
pub(crate) fn header<'a>(
    tensors: impl Iterator<Item = (&'a str, Dtype, &'a [usize])>,
) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let mut offset = 0;
    let mut infos = Vec::new();
    for (name, dtype, shape) in tensors {
        let start = offset;
        offset += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let info = TensorInfo {
            dtype,
            shape: shape.to_vec(),
            data_offsets: (start, offset),
        };
        infos.push((name.to_owned(), info));
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut json = serde_json::to_vec(&Metadata::new(Some(format), infos)?)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok(header)
}
