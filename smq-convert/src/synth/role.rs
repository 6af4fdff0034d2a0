//! The statistics of a tensor's weights, by what it does in the model.

use smq_model::Role;

/// Outlier channels along an axis, with their factor.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outliers {
    None,
    /// The same channels in every tensor that reads or writes the residual stream.
    Residual(f32),
    /// Channels of this tensor alone.
    Own(f32),
}

/// Scales along rows or columns: lognormal with this sigma, and outliers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub(super) spread: f32,
    pub(super) outliers: Outliers,
}

/// `w[r, c] = (mean + std * row[r] * t) * column[c]`, with `std = gain / sqrt(columns)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Profile {
    pub(super) mean: f32,
    pub(super) gain: f32,
    pub(super) rows: Axis,
    pub(super) columns: Axis,
}

impl Profile {
    /// Spreads are near those measured on small trained Llama and Phi-3 models; gains keep the
    /// activations of order one.
    pub(super) fn of(role: Role) -> Self {
        use Outliers::{None, Own, Residual};
        let profile = |gain, rows: (f32, Outliers), columns: (f32, Outliers)| Self {
            mean: 0.0,
            gain,
            rows: Axis {
                spread: rows.0,
                outliers: rows.1,
            },
            columns: Axis {
                spread: columns.0,
                outliers: columns.1,
            },
        };
        match role {
            Role::Embedding => profile(1.1, (0.2, None), (0.2, Residual(3.0))),
            Role::AttentionIn => profile(1.1, (0.25, None), (0.15, Residual(2.0))),
            Role::AttentionOut => profile(0.8, (0.15, Residual(3.0)), (0.2, Own(3.0))),
            Role::MlpIn => profile(1.2, (0.1, None), (0.12, Residual(2.0))),
            Role::MlpOut => profile(1.0, (0.1, Residual(3.0)), (0.15, Own(3.0))),
            Role::Head => profile(1.1, (0.15, None), (0.2, Residual(2.0))),
            Role::Bias => profile(1.0, (0.0, None), (0.2, None)),
            Role::Norm => Self {
                mean: 1.0,
                ..profile(3.0, (0.0, None), (0.05, Residual(0.5)))
            },
        }
    }
}
