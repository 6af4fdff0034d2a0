//! Orders tensors for the table.

use super::report::{TensorErrors, TensorReport};
use super::tensor_name::natural;

/// What to sort tensors by; the errors come worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Sort {
    /// Mean relative MSE of the groups.
    #[default]
    RelMse,
    /// Largest relative MSE of a group.
    Max,
    /// Signal to quantization-noise ratio.
    Sqnr,
    /// Cost of the scale format.
    Cost,
    /// Name, layers by number.
    Name,
}

impl Sort {
    /// What the order is, for a heading.
    pub fn describe(self) -> &'static str {
        match self {
            Sort::RelMse => "worst first by mean relative MSE",
            Sort::Max => "worst first by largest relative MSE of a group",
            Sort::Sqnr => "worst first by SQNR",
            Sort::Cost => "worst first by cost of the scale format",
            Sort::Name => "by name",
        }
    }

    /// How bad a tensor's figure is: larger is worse, whatever the figure.
    fn badness(self, e: &TensorErrors) -> f64 {
        match self {
            Sort::RelMse => e.stored.mean_rel_mse,
            Sort::Max => f64::from(e.stored.max_rel_mse),
            Sort::Sqnr => e.stored.sqnr_db.map_or(f64::NEG_INFINITY, |db| -db),
            Sort::Cost => e.scale_format_cost_percent.unwrap_or(f64::INFINITY),
            Sort::Name => 0.0,
        }
    }
}

/// `tensors` in the order of `sort`; equal ones by name, those without statistics last.
pub fn sorted(tensors: &[TensorReport], sort: Sort) -> Vec<&TensorReport> {
    let key = |t: &TensorReport| t.errors.as_ref().map(|e| sort.badness(e));
    let mut keyed: Vec<_> = tensors.iter().map(|t| (key(t), t)).collect();
    keyed.sort_by(|(a, t), (b, u)| {
        let by_error = match (a, b) {
            _ if sort == Sort::Name => std::cmp::Ordering::Equal,
            (Some(a), Some(b)) => b.total_cmp(a),
            _ => b.is_some().cmp(&a.is_some()),
        };
        by_error.then_with(|| natural(&t.name, &u.name))
    });
    keyed.into_iter().map(|(_, t)| t).collect()
}
