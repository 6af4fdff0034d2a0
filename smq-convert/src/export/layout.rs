//! How the quantized tensors are laid out, and what config.json says of that.

use safetensors::Dtype as StDtype;
use serde_json::{Value, json};
use smq_format::{Dtype, SmqFile, TensorData, TensorView};

use super::ExportFormat;
use super::alike::check_alike;
use super::config::{self, QUANTIZATION};
use super::elements::{Content, Half};
use super::packable::{
    Fp8, HEAD, Int4, KERNEL_GROUPS, check_group, check_linear, check_packable, check_whole_words,
    is_fp8, quantized, unquantized,
};
use super::plan::{Output, safetensors_dtype};
use crate::error::ConvertError;
use crate::import::Grouping;
use crate::tensor::Layout as Major;

/// What GPTQ's first version stores for the zero point 8.
const GPTQ_ZERO: u32 = 7;

/// What the quantized tensors of a file become.
#[derive(Debug, Clone, Copy)]
pub(super) enum Layout {
    /// Weights.
    Dequantized(Dtype),
    /// compressed-tensors `pack-quantized`.
    PackQuantized(Grouping),
    /// compressed-tensors `float-quantized`.
    FloatQuantized,
    /// GPTQ's first version.
    Gptq(Grouping),
    /// MLX's affine int4 in groups of so many.
    Mlx { group: usize },
}

impl Layout {
    /// The layout of `format` for what `file` holds.
    ///
    /// # Errors
    /// What the format cannot hold, with the tensor and what to do.
    pub(super) fn of(file: &SmqFile, format: ExportFormat) -> Result<Self, ConvertError> {
        Ok(match format {
            ExportFormat::Safetensors(dtype) => Layout::Dequantized(dtype),
            ExportFormat::CompressedTensors { .. } if is_fp8(file)? => {
                check_linear(file, "compressed-tensors")?;
                check_alike(file)?;
                Layout::FloatQuantized
            }
            ExportFormat::CompressedTensors { .. } => {
                let grouping = check_packable(file, "compressed-tensors")?;
                check_alike(file)?;
                Layout::PackQuantized(grouping)
            }
            ExportFormat::Gptq { .. } => {
                let grouping = check_packable(file, "GPTQ")?;
                check_group(file, "GPTQ", grouping, true)?;
                check_whole_words(file)?;
                check_alike(file)?;
                Layout::Gptq(match grouping {
                    // Rows that are all of one length are one group each all the same.
                    Grouping::Runs(group) if !KERNEL_GROUPS.contains(&group) => Grouping::Row,
                    Grouping::Runs(_) | Grouping::Row => grouping,
                })
            }
            ExportFormat::Mlx { .. } => {
                let grouping = check_packable(file, "MLX")?;
                Layout::Mlx {
                    group: check_group(file, "MLX", grouping, false)?,
                }
            }
        })
    }

    /// The element types that scales may be rounded to, the preferred one first; empty where none
    /// are: FP8's stay in f32.
    pub(super) fn scale_types(self, prefers_f16: bool) -> &'static [Half] {
        match (self, prefers_f16) {
            (Layout::Dequantized(_) | Layout::FloatQuantized, _) => &[],
            (Layout::PackQuantized(_) | Layout::Mlx { .. }, true) => &[Half::F16, Half::Bf16],
            (Layout::PackQuantized(_) | Layout::Mlx { .. }, false) => &[Half::Bf16, Half::F16],
            (Layout::Gptq(_), _) => &[Half::F16],
        }
    }

    /// What makes scales that the layout holds exactly.
    pub(super) fn exact_scales(self) -> &'static str {
        match self {
            Layout::Dequantized(_)
            | Layout::PackQuantized(_)
            | Layout::FloatQuantized
            | Layout::Mlx { .. } => "--mbits 7 or less",
            Layout::Gptq(_) => "--scales f16",
        }
    }

    /// What config.json says of the quantization: keys and values.
    pub(super) fn quantization(self, file: &SmqFile) -> Vec<(&'static str, Value)> {
        let head = file
            .tensor(HEAD)
            .is_some_and(|head| head.scheme().is_quantized());
        let named = head.then(|| "lm_head".to_owned());
        let named = named.as_slice();
        let value = match self {
            Layout::Dequantized(_) => return Vec::new(),
            Layout::PackQuantized(grouping) => {
                config::pack_quantized(grouping, &unquantized(file), named)
            }
            Layout::FloatQuantized => config::float_quantized(&unquantized(file), named),
            Layout::Gptq(grouping) => {
                config::gptq(grouping, &unquantized(file), &quantized(file), head)
            }
            Layout::Mlx { group } => {
                let value = json!({ "bits": 4, "group_size": group });
                // mlx-lm writes both, and reads the first.
                return vec![("quantization", value.clone()), (QUANTIZATION, value)];
            }
        };
        vec![(QUANTIZATION, value)]
    }

    /// The tensors that are written for `view`.
    pub(super) fn outputs(self, view: TensorView<'_>) -> Vec<Output<'_>> {
        let whole = |dtype, content| {
            vec![Output {
                name: view.name().to_owned(),
                dtype: safetensors_dtype(dtype),
                shape: view.shape().to_vec(),
                content,
            }]
        };
        if let TensorData::Raw { dtype, bytes } = view.data() {
            return whole(dtype, Content::Bytes(bytes.into()));
        }
        let packed = match self {
            Layout::Dequantized(dtype) => {
                return whole(dtype, Content::dequantized(view, dtype));
            }
            Layout::FloatQuantized => {
                return Fp8::of(view).map(Fp8::float_quantized).unwrap_or_default();
            }
            Layout::PackQuantized(_) => Int4::pack_quantized,
            Layout::Gptq(_) => Int4::gptq,
            Layout::Mlx { .. } => Int4::mlx,
        };
        // What is not int4 was refused by `check_packable`, and what is not FP8 by `is_fp8`.
        Int4::of(view).map(packed).unwrap_or_default()
    }
}

impl<'a> Fp8<'a> {
    /// The two tensors of compressed-tensors' `float-quantized` form: the codes as they are, and
    /// the rows' scales, `[out, 1]`.
    fn float_quantized(self) -> Vec<Output<'a>> {
        let (rows, columns) = self.view.matrix_shape();
        vec![
            Output {
                name: self.view.name().to_owned(),
                dtype: StDtype::F8_E4M3,
                shape: vec![rows, columns],
                content: Content::Bytes(self.codes.into()),
            },
            Output {
                name: format!("{}_scale", self.view.name()),
                dtype: StDtype::F32,
                shape: vec![rows, 1],
                content: Content::Bytes(self.scales.bytes.into()),
            },
        ]
    }
}

impl<'a> Int4<'a> {
    /// The three tensors of compressed-tensors' `pack-quantized` form.
    fn pack_quantized(self) -> Vec<Output<'a>> {
        let (rows, columns) = self.view.matrix_shape();
        let shape: Vec<u8> = [rows, columns]
            .iter()
            .flat_map(|&n| (n as i64).to_le_bytes())
            .collect();
        let name = |suffix| format!("{}{suffix}", self.view.name());
        vec![
            Output {
                name: name("_packed"),
                dtype: StDtype::I32,
                shape: vec![rows, columns.div_ceil(8)],
                content: self.integers(Major::OutputMajor),
            },
            self.scales(name("_scale"), Major::OutputMajor, 1.0),
            Output {
                name: name("_shape"),
                dtype: StDtype::I64,
                shape: vec![2],
                content: Content::Bytes(shape.into()),
            },
        ]
    }

    /// The four tensors of GPTQ: integers `[in / 8, out]`, zero points `[groups, out / 8]`, scales
    /// `[groups, out]` and the group of each column, `[in]`.
    fn gptq(self) -> Vec<Output<'a>> {
        let (rows, columns) = self.view.matrix_shape();
        let groups = columns.div_ceil(self.group);
        let module = self.view.name().strip_suffix(".weight").unwrap_or_default();
        let output = |suffix, shape, content| Output {
            name: format!("{module}.{suffix}"),
            dtype: StDtype::I32,
            shape,
            content,
        };
        let zeros = Content::Words {
            // Eight zero points of 4 bits.
            word: GPTQ_ZERO * 0x1111_1111,
            rows: groups,
            words: rows / 8,
        };
        vec![
            output(
                "qweight",
                vec![columns / 8, rows],
                self.integers(Major::InputMajor),
            ),
            output("qzeros", vec![groups, rows / 8], zeros),
            self.scales(format!("{module}.scales"), Major::InputMajor, 1.0),
            output(
                "g_idx",
                vec![columns],
                Content::GroupOf {
                    columns,
                    group: self.group,
                },
            ),
        ]
    }

    /// The three tensors of MLX's affine form, `w = scale u + bias` with `u` from 0 to 15: since
    /// `u` is `q + 8`, the bias is -8 scales.
    fn mlx(self) -> Vec<Output<'a>> {
        let (rows, columns) = self.view.matrix_shape();
        let module = self.view.name().strip_suffix(".weight").unwrap_or_default();
        vec![
            Output {
                name: self.view.name().to_owned(),
                dtype: StDtype::U32,
                shape: vec![rows, columns.div_ceil(8)],
                content: self.integers(Major::OutputMajor),
            },
            self.scales(format!("{module}.scales"), Major::OutputMajor, 1.0),
            self.scales(format!("{module}.biases"), Major::OutputMajor, -8.0),
        ]
    }

    fn integers(&self, major: Major) -> Content<'a> {
        Content::Packed {
            nibbles: self.nibbles,
            columns: self.columns,
            major,
        }
    }

    /// Scales, or so many `times` them, whose element type is settled later.
    fn scales(&self, name: String, major: Major, times: f32) -> Output<'a> {
        let (rows, columns) = self.view.matrix_shape();
        let groups = columns.div_ceil(self.group);
        Output {
            name,
            dtype: StDtype::BF16,
            shape: match major {
                Major::OutputMajor => vec![rows, groups],
                Major::InputMajor => vec![groups, rows],
            },
            content: Content::Scales {
                view: self.view,
                scales: self.scales,
                groups,
                to: Half::Bf16,
                major,
                times,
            },
        }
    }
}
