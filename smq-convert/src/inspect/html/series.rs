//! The tensors of the plots, one series a projection.

use std::collections::BTreeMap;

use plotters::style::RGBColor;

use super::figure::{INK, PALETTE};
use crate::inspect::number::count;
use crate::inspect::report::{Report, TensorErrors, TensorReport};
use crate::inspect::tensor_name::{Shared, natural};

/// A projection: tensors of the same name but for numbers; or a tensor outside the layers.
pub(super) struct Series<'a> {
    /// Name without what all projections share.
    pub label: String,
    /// Colour; the ink's outside the layers.
    pub colour: RGBColor,
    /// Whether these are layers' tensors.
    pub in_layers: bool,
    /// The tensors, by name.
    pub tensors: Vec<(&'a TensorReport, &'a TensorErrors)>,
}

/// A projection's error in one layer.
pub(super) struct LayerPoint {
    /// Number of the layer, from 0.
    pub layer: f64,
    /// Mean relative MSE over all groups.
    pub mean_rel_mse: f64,
    /// The tensor's name, or what the tensors are that share the layer.
    pub name: String,
}

impl Series<'_> {
    /// The mean error of each layer, weighted over groups where several tensors share a layer.
    pub(super) fn by_layer(&self) -> Vec<LayerPoint> {
        let mut layers: BTreeMap<u32, Vec<(&TensorReport, &TensorErrors)>> = BTreeMap::new();
        for (t, e) in &self.tensors {
            layers.entry(t.layer.unwrap_or(0)).or_default().push((t, e));
        }
        let point = |(layer, tensors): (u32, Vec<(&TensorReport, &TensorErrors)>)| LayerPoint {
            layer: f64::from(layer),
            mean_rel_mse: mean_rel_mse(&tensors),
            name: match tensors.as_slice() {
                [(t, _)] => t.name.clone(),
                several => format!(
                    "layer {layer}, {}: {} tensors",
                    self.label,
                    count(several.len() as u64)
                ),
            },
        };
        layers.into_iter().map(point).collect()
    }

    /// Mean relative MSE, weighted over groups.
    pub(super) fn mean_rel_mse(&self) -> f64 {
        mean_rel_mse(&self.tensors)
    }
}

fn mean_rel_mse(tensors: &[(&TensorReport, &TensorErrors)]) -> f64 {
    let weighted =
        |(t, e): &(&TensorReport, &TensorErrors)| t.groups as f64 * e.stored.mean_rel_mse;
    let groups: f64 = tensors.iter().map(|(t, _)| t.groups as f64).sum();
    tensors.iter().map(weighted).sum::<f64>() / groups
}

/// Every tensor with statistics, by projection: those of layers first, in order of name.
pub(super) fn series(report: &Report) -> Vec<Series<'_>> {
    let known = report
        .tensors
        .iter()
        .filter_map(|t| Some((t, t.errors.as_ref()?)));
    let mut groups: BTreeMap<(bool, &str), Vec<_>> = BTreeMap::new();
    for (t, e) in known {
        let key = (t.layer.is_none(), t.projection.as_str());
        groups.entry(key).or_default().push((t, e));
    }
    let in_layers = groups.keys().filter(|k| !k.0).map(|k| k.1);
    let shared = Shared::of(in_layers.collect::<Vec<_>>().into_iter());
    let mut out: Vec<Series<'_>> = Vec::new();
    for ((outside, projection), mut tensors) in groups {
        tensors.sort_by(|(a, _), (b, _)| natural(&a.name, &b.name));
        let (label, colour) = match outside {
            true => (projection, INK),
            false => (shared.strip(projection), PALETTE[out.len() % PALETTE.len()]),
        };
        out.push(Series {
            label: label.to_owned(),
            colour,
            in_layers: !outside,
            tensors,
        });
    }
    out
}
