//! Measured sensitivities: the JSON that `smq-run eval sensitivity --json` writes.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::ConvertError;
use crate::products::{kind, product};
use crate::source::Checkpoint;
use crate::target::Target;
use crate::tensor::SourceTensor;

/// Largest file; a point takes about 500 bytes.
const MAX_BYTES: u64 = 64 << 20;

/// What quantizing single layers, products or projections did to a model's predictions.
#[derive(Debug, Clone)]
pub struct Sensitivity {
    path: PathBuf,
    /// BLAKE3 of the file, which the provenance records.
    pub blake3: String,
    target: Target,
    unit: Unit,
    points: Vec<Point>,
}

#[derive(Deserialize)]
struct Contents {
    target: String,
    #[serde(default)]
    unit: Unit,
    points: Vec<Point>,
}

/// What was quantized for a point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Unit {
    Layer,
    /// Matrices that are multiplied as one, by the first one's name.
    Product,
    #[default]
    Projection,
    /// The same matrix of every layer, with stars for its numbers.
    Kind,
    /// The same product of every layer.
    ProductKind,
}

#[derive(Debug, Clone, Deserialize)]
struct Point {
    /// A tensor's name, what the names of a layer's begin with, or what its unit makes of names.
    name: String,
    /// Elements of the unit's tensors together.
    weights: u64,
    squared_error: f64,
    mean_kl: MeanKl,
}

#[derive(Debug, Clone, Deserialize)]
struct MeanKl {
    value: f64,
}

impl Sensitivity {
    /// Reads a file.
    ///
    /// # Errors
    /// One that cannot be read or is not of this form; a figure that cannot be.
    pub fn read(path: &Path) -> Result<Self, ConvertError> {
        let problem = |problem: String| ConvertError::Sensitivity {
            path: path.to_path_buf(),
            problem,
        };
        let length = std::fs::metadata(path).map_err(ConvertError::io(path, "read it"))?;
        if !length.is_file() || length.len() > MAX_BYTES {
            return Err(problem(format!("not a file of at most {MAX_BYTES} bytes")));
        }
        let text = std::fs::read(path).map_err(ConvertError::io(path, "read it"))?;
        let contents: Contents = serde_json::from_slice(&text).map_err(|e| {
            problem(format!(
                "not the JSON of smq-run eval sensitivity --json: {e}"
            ))
        })?;
        let target = contents
            .target
            .parse()
            .map_err(|e| problem(format!("target {:?}: {e}", contents.target)))?;
        let valid = |x: f64| x.is_finite() && x >= 0.0;
        if let Some(bad) = contents
            .points
            .iter()
            .find(|p| !valid(p.squared_error) || !valid(p.mean_kl.value))
        {
            return Err(problem(format!(
                "{} has a squared error of {} and a mean KL divergence of {} nats, and neither \
                 can be negative",
                bad.name, bad.squared_error, bad.mean_kl.value
            )));
        }
        Ok(Self {
            path: path.to_path_buf(),
            blake3: blake3::hash(&text).to_hex().to_string(),
            target,
            unit: contents.unit,
            points: contents.points,
        })
    }

    /// Nats for each unit of squared error, one for each of `selected`.
    ///
    /// # Errors
    /// Points of tensors that `checkpoint` has not, or has of another size; a selected tensor
    /// without a point.
    pub fn weights(
        &self,
        checkpoint: &Checkpoint,
        selected: &[&SourceTensor],
    ) -> Result<Vec<f64>, ConvertError> {
        let problem = |problem: String| ConvertError::Sensitivity {
            path: self.path.clone(),
            problem,
        };
        for point in &self.points {
            let members = checkpoint.tensors().iter().filter(|t| self.is_of(point, t));
            match members.map(|t| t.elems() as u64).sum::<u64>() {
                elems if elems == point.weights => {}
                0 => {
                    return Err(problem(format!(
                        "measures {}, which {} does not have; give the file that was measured on \
                         this checkpoint",
                        point.name,
                        checkpoint.path().display()
                    )));
                }
                elems => {
                    return Err(problem(format!(
                        "measures {} of {} weights, which has {elems} in {}; give the file that \
                         was measured on this checkpoint",
                        point.name,
                        point.weights,
                        checkpoint.path().display()
                    )));
                }
            }
        }
        let weight = |tensor: &&SourceTensor| {
            let point = self.points.iter().find(|p| self.is_of(p, tensor));
            let point = point.ok_or_else(|| {
                problem(format!(
                    "has no point for tensor {:?}; measure it with the same --target, or choose a \
                     --target that is measured ({})",
                    tensor.name,
                    self.target.name()
                ))
            })?;
            // Without any error there is nothing to lose.
            Ok(match point.squared_error {
                0.0 => 0.0,
                error => point.mean_kl.value / error,
            })
        };
        selected.iter().map(weight).collect()
    }

    /// Whether a tensor was quantized for a point.
    fn is_of(&self, point: &Point, tensor: &SourceTensor) -> bool {
        let is_named = match self.unit {
            Unit::Product => product(&tensor.name) == point.name,
            Unit::Kind => kind(&tensor.name) == point.name,
            Unit::ProductKind => kind(&product(&tensor.name)) == point.name,
            Unit::Layer | Unit::Projection => {
                let rest = tensor.name.strip_prefix(&point.name);
                rest.is_some_and(|r| r.is_empty() || r.starts_with('.'))
            }
        };
        is_named && self.target.takes(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_of_what_its_unit_says() {
        let of = |unit: Option<&str>, point: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            let point = serde_json::json!({
                "name": point, "weights": 1, "squared_error": 1.0, "mean_kl": {"value": 1.0}
            });
            let mut text = serde_json::json!({"target": "all", "points": [point]});
            if let Some(unit) = unit {
                text["unit"] = unit.into();
            }
            std::fs::write(file.path(), text.to_string()).unwrap();
            let read = Sensitivity::read(file.path()).unwrap();
            let names = ["q_proj", "k_proj", "v_proj", "o_proj"];
            names.map(|name| {
                let tensor = SourceTensor {
                    name: format!("model.layers.1.self_attn.{name}.weight"),
                    shape: vec![64, 64],
                    dtype: smq_format::Dtype::Bf16,
                    shard: 0,
                    range: 0..8192,
                    packed: None,
                    reader: crate::unread::Reader::Model,
                };
                read.is_of(&read.points[0], &tensor)
            })
        };
        let q = "model.layers.1.self_attn.q_proj.weight";
        assert_eq!(of(None, q), [true, false, false, false]);
        assert_eq!(of(Some("projection"), q), [true, false, false, false]);
        assert_eq!(of(Some("product"), q), [true, true, true, false]);
        assert_eq!(of(Some("layer"), "model.layers.1"), [true; 4]);
        assert_eq!(of(Some("layer"), "model.layers.11"), [false; 4]);
        let all = "model.layers.*.self_attn.q_proj.weight";
        assert_eq!(of(Some("kind"), all), [true, false, false, false]);
        assert_eq!(of(Some("product-kind"), all), [true, true, true, false]);
    }
}
