//! Which stored tensors belong together, and whether they are what config.json declares.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype as StDtype;
use serde_json::Value;
use smq_format::scheme::GROUP_RANGE;
use smq_model::{Checkpoint, Shard, StoredTensor as Stored, dtype};

use super::config::{Declared, Packing, declared};
use super::{Form, Import, REMEDY, refused};
use crate::error::ConvertError;
use crate::tensor::{Layout, Packed, SourceTensor};
use crate::unread::Reader;

/// Ends of the names of an int4 tensor's parts, the integers first.
const PACK_QUANTIZED: [&str; 5] = [
    ".weight_packed",
    ".weight_scale",
    ".weight_shape",
    ".weight_zero_point",
    ".weight_g_idx",
];
const GPTQ: [&str; 4] = [".qweight", ".scales", ".qzeros", ".g_idx"];

/// Turns what the files hold, `stored`, into tensors, int4 ones from their parts, as config.json
/// declares.
///
/// # Errors
/// A quantization, or a part of one, that cannot be imported; an element type that .smq does not
/// hold.
pub(crate) fn assemble(
    files: &Checkpoint,
    stored: Vec<Stored>,
) -> Result<(Vec<SourceTensor>, Option<Import>), ConvertError> {
    let (config_path, shards) = (&files.config_path(), files.shards());
    let config = quantization_config(files)?;
    let declared = match &config {
        Some(config) => declared(config_path, config)?,
        None => {
            refuse_undeclared(config_path, &stored, shards)?;
            let plain = stored.into_iter().map(|s| plain(s, shards));
            return Ok((plain.collect::<Result<_, _>>()?, None));
        }
    };
    let ends: &[&str] = match declared.packing {
        Packing::CompressedTensors => &PACK_QUANTIZED,
        Packing::Gptq { .. } | Packing::AutoRound => &GPTQ,
    };
    let names = stored.iter().filter_map(|s| s.name.strip_suffix(ends[0]));
    let modules: Vec<String> = names.map(str::to_owned).collect();
    if modules.is_empty() {
        return Err(refused(
            config_path,
            format!(
                "quantization_config says {}, but no tensor's name ends in {:?}",
                declared.packing.method(),
                ends[0],
            ),
            "an int4 checkpoint needs one",
            "where the weights are not quantized, remove quantization_config",
        ));
    }
    let mut parts = Parts {
        by_name: stored.into_iter().map(|s| (s.name.clone(), s)).collect(),
        shards,
        stored_zero: None,
    };
    let mut tensors = Vec::new();
    for module in &modules {
        tensors.push(match declared.packing {
            Packing::CompressedTensors => parts.pack_quantized(module, declared)?,
            Packing::Gptq { .. } | Packing::AutoRound => parts.gptq(module, declared)?,
        });
    }
    for rest in std::mem::take(&mut parts.by_name).into_values() {
        let path = &shards[rest.shard].path;
        if let Some(end) = ends.iter().find(|end| rest.name.ends_with(*end)) {
            let module = rest.name.strip_suffix(end).unwrap_or_default();
            return Err(refused(
                path,
                format!("tensor {:?} is part of an int4 tensor", rest.name),
                format!(
                    "its integers {:?} are missing",
                    format!("{module}{}", ends[0])
                ),
                "download the checkpoint again",
            ));
        }
        if modules
            .iter()
            .any(|m| rest.name.strip_suffix(".weight") == Some(m))
        {
            return Err(refused(
                path,
                format!("tensor {:?} is there twice", rest.name),
                "it is also stored in int4",
                "remove one of the two",
            ));
        }
        tensors.push(plain(rest, shards)?);
    }
    let stored_zero = parts.stored_zero.unwrap_or(8);
    let import = Import {
        form: match declared.packing {
            Packing::CompressedTensors => Form::PackQuantized,
            Packing::Gptq { .. } => Form::Gptq { stored_zero },
            Packing::AutoRound => Form::AutoRound { stored_zero },
        },
        grouping: declared.grouping,
        tensors: modules.len(),
    };
    Ok((tensors, Some(import)))
}

/// What config.json has as `quantization_config`; `None` where it is absent or null.
fn quantization_config(files: &Checkpoint) -> Result<Option<Value>, ConvertError> {
    let config = files.json("config.json")?;
    let value = config.and_then(|mut config| config.remove("quantization_config"));
    Ok(value.filter(|value| !value.is_null()))
}

fn refuse_undeclared(
    config_path: &Path,
    stored: &[Stored],
    shards: &[Shard],
) -> Result<(), ConvertError> {
    let packed = |s: &&Stored| s.dtype == StDtype::I32 && ends_with(&s.name);
    let Some(tensor) = stored.iter().find(packed) else {
        return Ok(());
    };
    Err(refused(
        &shards[tensor.shard].path,
        format!("tensor {:?} holds packed integers", tensor.name),
        format!(
            "{} has no quantization_config that says which",
            config_path.display()
        ),
        "put the config.json of the quantized checkpoint beside it",
    ))
}

fn ends_with(name: &str) -> bool {
    name.ends_with(PACK_QUANTIZED[0]) || name.ends_with(GPTQ[0])
}

fn plain(stored: Stored, shards: &[Shard]) -> Result<SourceTensor, ConvertError> {
    let dtype = dtype(stored.dtype).ok_or_else(|| ConvertError::UnsupportedDtype {
        path: shards[stored.shard].path.clone(),
        tensor: stored.name.clone(),
        dtype: format!("{:?}", stored.dtype).to_lowercase(),
    })?;
    Ok(SourceTensor {
        name: stored.name,
        shape: stored.shape,
        dtype,
        shard: stored.shard,
        range: stored.range,
        packed: None,
        reader: Reader::PerhapsModel,
    })
}

/// Stored tensors that are not yet part of a tensor.
struct Parts<'a> {
    by_name: BTreeMap<String, Stored>,
    shards: &'a [Shard],
    /// The zero point of every GPTQ tensor so far.
    stored_zero: Option<u8>,
}

impl Parts<'_> {
    fn pack_quantized(
        &mut self,
        module: &str,
        declared: Declared,
    ) -> Result<SourceTensor, ConvertError> {
        let codes = self.take_i32(module, PACK_QUANTIZED[0])?;
        let shape = self.take(module, PACK_QUANTIZED[2])?;
        if let Some(zero) = self.by_name.get(&format!("{module}{}", PACK_QUANTIZED[3])) {
            return Err(self.refused(
                zero,
                "holds zero points",
                "only symmetric integers can be imported, since a .smq file has no zero points",
                "quantize again with symmetric=true",
            ));
        }
        if let Some(order) = self.by_name.get(&format!("{module}{}", PACK_QUANTIZED[4])) {
            return Err(self.refused(
                order,
                "holds an activation order",
                "only groups of consecutive columns can be imported",
                "quantize again with actorder \"weight\" or none",
            ));
        }
        let (rows, columns) = self.dims(&shape)?;
        self.check_shape(&codes, &[rows, columns.div_ceil(8)])?;
        let group = declared.grouping.elems(columns);
        let groups = columns.div_ceil(group);
        self.finish(
            module,
            PACK_QUANTIZED[1],
            codes,
            (rows, columns),
            (Layout::OutputMajor, group, [rows, groups]),
        )
    }

    fn gptq(&mut self, module: &str, declared: Declared) -> Result<SourceTensor, ConvertError> {
        let codes = self.take_i32(module, GPTQ[0])?;
        let (columns, rows) = match codes.shape[..] {
            [words, rows] if words > 0 && rows > 0 => (8 * words, rows),
            _ => return Err(self.bad_shape(&codes, "[in / 8, out], both at least 1")),
        };
        let group = declared.grouping.elems(columns);
        let groups = columns.div_ceil(group);
        let zeros = self.take_i32(module, GPTQ[2])?;
        self.check_shape(&zeros, &[groups, rows.div_ceil(8)])?;
        self.check_zeros(&zeros, rows, declared.packing)?;
        if self.by_name.contains_key(&format!("{module}{}", GPTQ[3])) {
            let order = self.take_i32(module, GPTQ[3])?;
            self.check_shape(&order, &[columns])?;
            self.check_order(&order, group)?;
        }
        self.finish(
            module,
            GPTQ[1],
            codes,
            (rows, columns),
            (Layout::InputMajor, group, [groups, rows]),
        )
    }

    fn finish(
        &mut self,
        module: &str,
        scales_end: &str,
        codes: Stored,
        (rows, columns): (usize, usize),
        (layout, group, scale_shape): (Layout, usize, [usize; 2]),
    ) -> Result<SourceTensor, ConvertError> {
        let scales = self.take(module, scales_end)?;
        self.check_shape(&scales, &scale_shape)?;
        if !GROUP_RANGE.contains(&group) {
            let supported = format!("only rows of up to {} can be one group", GROUP_RANGE.end());
            let found = format!("is of rows of {columns} elements");
            return Err(self.refused(&codes, found, supported, REMEDY));
        }
        let Some(scale_dtype) = dtype(scales.dtype) else {
            let found = format!("has dtype {}", format!("{:?}", scales.dtype).to_lowercase());
            let supported = "only scales in bf16, f16 or f32 can be imported";
            return Err(self.refused(&scales, found, supported, REMEDY));
        };
        Ok(SourceTensor {
            name: format!("{module}.weight"),
            shape: vec![rows, columns],
            dtype: scale_dtype,
            shard: codes.shard,
            range: codes.range,
            packed: Some(Packed {
                layout,
                group,
                scale_dtype,
                scale_shard: scales.shard,
                scale_range: scales.range,
            }),
            reader: Reader::PerhapsModel,
        })
    }

    fn take(&mut self, module: &str, end: &str) -> Result<Stored, ConvertError> {
        let name = format!("{module}{end}");
        self.by_name.remove(&name).ok_or_else(|| {
            let path = self.shards.first().map_or(Path::new(""), |s| &s.path);
            let dir = path.parent().unwrap_or(path);
            refused(
                dir,
                format!("tensor {:?} is missing", name),
                format!("int4 tensor {:?} needs it", format!("{module}.weight")),
                "download the checkpoint again",
            )
        })
    }

    fn take_i32(&mut self, module: &str, end: &str) -> Result<Stored, ConvertError> {
        let stored = self.take(module, end)?;
        if stored.dtype == StDtype::I32 {
            return Ok(stored);
        }
        let found = format!("has dtype {}", format!("{:?}", stored.dtype).to_lowercase());
        Err(self.refused(&stored, found, "only i32 can be imported", REMEDY))
    }

    fn refused(
        &self,
        stored: &Stored,
        found: impl std::fmt::Display,
        supported: impl Into<String>,
        remedy: &'static str,
    ) -> ConvertError {
        let path = &self.shards[stored.shard].path;
        refused(
            path,
            format!("tensor {:?} {found}", stored.name),
            supported,
            remedy,
        )
    }

    fn bad_shape(&self, stored: &Stored, expected: &str) -> ConvertError {
        self.refused(
            stored,
            format!("has shape {:?}", stored.shape),
            format!("its integers and group size imply {expected}"),
            "the checkpoint is damaged or its config.json is another's; download both again",
        )
    }

    fn check_shape(&self, stored: &Stored, expected: &[usize]) -> Result<(), ConvertError> {
        match stored.shape == expected {
            true => Ok(()),
            false => Err(self.bad_shape(stored, &format!("{expected:?}"))),
        }
    }

    fn bytes(&self, stored: &Stored) -> &[u8] {
        &self.shards[stored.shard].bytes()[stored.range.clone()]
    }

    fn words(&self, stored: &Stored) -> impl Iterator<Item = u32> + '_ {
        let words = self.bytes(stored).as_chunks::<4>().0.iter();
        words.map(|word| u32::from_le_bytes(*word))
    }

    /// The two numbers of a `weight_shape`.
    fn dims(&self, stored: &Stored) -> Result<(usize, usize), ConvertError> {
        let bytes = self.bytes(stored);
        let values: Vec<i64> = match stored.dtype {
            StDtype::I64 => {
                let words = bytes.as_chunks::<8>().0.iter();
                words.map(|b| i64::from_le_bytes(*b)).collect()
            }
            StDtype::I32 => {
                let words = bytes.as_chunks::<4>().0.iter();
                words.map(|b| i64::from(i32::from_le_bytes(*b))).collect()
            }
            _ => Vec::new(),
        };
        // No dimension is over what its bytes can hold, so that products of them cannot overflow.
        match values[..] {
            [rows, columns]
                if (1..=1 << 31).contains(&rows) && (1..=1 << 31).contains(&columns) =>
            {
                Ok((rows as usize, columns as usize))
            }
            _ => Err(self.refused(
                stored,
                format!("holds {values:?}"),
                "two dimensions of 1 to 2^31 are needed",
                "the checkpoint is damaged; download it again",
            )),
        }
    }

    /// All zero points are 8, or all are 7, which GPTQ's first version means as 8.
    fn check_zeros(
        &mut self,
        zeros: &Stored,
        rows: usize,
        packing: Packing,
    ) -> Result<(), ConvertError> {
        let declared = match packing {
            Packing::Gptq { stored_zero } => stored_zero,
            Packing::AutoRound | Packing::CompressedTensors => None,
        };
        let words_a_group = rows.div_ceil(8);
        let mut found = declared.or(self.stored_zero);
        for (at, word) in self.words(zeros).enumerate() {
            let (group, first) = (at / words_a_group, at % words_a_group * 8);
            for row in first..rows.min(first + 8) {
                let zero = (word >> (4 * (row - first)) & 15) as u8;
                if found == Some(zero) || (found.is_none() && matches!(zero, 7 | 8)) {
                    found = Some(zero);
                    continue;
                }
                return Err(self.refused(
                    zeros,
                    format!("stores zero point {zero} for group {group} of output {row}"),
                    match (declared, found) {
                        (Some(declared), _) => format!(
                            "symmetric integers have {declared} in the version of GPTQ that \
                             config.json declares, and only these can be imported"
                        ),
                        (None, Some(found)) => format!(
                            "the ones before it are {found}, and only \
                             equal ones can be imported"
                        ),
                        (None, None) => "only 8 throughout, or 7 as GPTQ's first version stores \
                                         it, can be imported"
                            .to_owned(),
                    },
                    "quantize again with sym=true",
                ));
            }
        }
        self.stored_zero = found;
        Ok(())
    }

    /// Column `c` is in group `c / group`.
    fn check_order(&self, order: &Stored, group: usize) -> Result<(), ConvertError> {
        let wrong = |&(column, found): &(usize, u32)| found as usize != column / group;
        match self.words(order).enumerate().find(wrong) {
            None => Ok(()),
            Some((column, found)) => Err(self.refused(
                order,
                format!("puts column {column} into group {}", found as i32),
                format!(
                    "only groups of {group} consecutive columns can be imported, and \
                     activation order scatters them"
                ),
                "quantize again with desc_act=false",
            )),
        }
    }
}
