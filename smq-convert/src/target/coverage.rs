//! How much of a model a target takes, and what it leaves out.

use std::fmt;

use super::{Kinds, Role, Target};
use crate::number::count;
use crate::source::Checkpoint;

/// How much of a checkpoint's linear weights a target takes, and what it leaves out; as text, a
/// line for each.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Coverage {
    target: String,
    /// Linear weights of the decoder layers, those in stacks of experts included.
    linear: Amount,
    /// How many of them are taken.
    taken: Amount,
    taken_kinds: Kinds,
    /// What is taken beside them, such as a head.
    others: Kinds,
    /// Linear weights that are left out for names that the target does not know.
    unknown: Kinds,
    /// Linear weights that are left out for their three dimensions.
    stacked: Kinds,
    /// Matrices that are left out for not being the language model's.
    towers: Kinds,
    /// Matrices, embeddings apart, that an import of what is int4 already leaves as they are.
    left: Kinds,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Amount {
    tensors: usize,
    elems: u64,
}

impl Coverage {
    /// Of `checkpoint`, whose int4 tensors are taken whatever the target is.
    #[must_use]
    pub(crate) fn of(checkpoint: &Checkpoint, target: &Target) -> Self {
        let (by_name, imported) = match target {
            Target::Imported => (false, true),
            Target::Mlp | Target::All => (true, false),
            Target::Pattern(_) => (false, false),
        };
        let mut found = Coverage {
            target: target.name().to_owned(),
            linear: Amount::default(),
            taken: Amount::default(),
            taken_kinds: Kinds::default(),
            others: Kinds::default(),
            unknown: Kinds::default(),
            stacked: Kinds::default(),
            towers: Kinds::default(),
            left: Kinds::default(),
        };
        for tensor in checkpoint.tensors() {
            let (name, elems) = (tensor.name.as_str(), tensor.elems() as u64);
            let taken = tensor.packed.is_some() || target.takes(tensor);
            let role = Role::of(name, &tensor.shape);
            if matches!(role, Role::Linear | Role::Stacked) {
                found.linear.add(elems);
            }
            match role {
                Role::Linear if taken => {
                    found.taken.add(elems);
                    found.taken_kinds.add(name);
                }
                Role::Stacked
                | Role::Tower
                | Role::Embedding
                | Role::Head
                | Role::Norm
                | Role::Router
                | Role::Other
                    if taken =>
                {
                    found.others.add(name);
                }
                Role::Linear | Role::Stacked | Role::Tower | Role::Head if imported => {
                    found.left.add(name);
                }
                Role::Linear if by_name && !target.leaves_knowingly(name) => {
                    found.unknown.add(name);
                }
                Role::Stacked if by_name => found.stacked.add(name),
                Role::Tower if by_name => found.towers.add(name),
                Role::Linear
                | Role::Stacked
                | Role::Tower
                | Role::Embedding
                | Role::Head
                | Role::Norm
                | Role::Router
                | Role::Other => {}
            }
        }
        found
    }

    /// A regex that takes what is taken, and the linear weights whose names are not known.
    fn regex(&self) -> String {
        let kinds = self.taken_kinds.patterns().chain(self.unknown.patterns());
        format!("^({})$", kinds.collect::<Vec<_>>().join("|"))
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.left.is_empty() {
            return writeln!(
                f,
                "left as they are: {} matrices that the checkpoint does not have in int4, {}; \
                 --target takes more",
                count(self.left.tensors()),
                self.left
            );
        }
        if self.linear.tensors > 0 && self.target != Target::Imported.name() {
            write!(
                f,
                "selected: {} of {} linear weights, {:.1} % of their elements (--target {})",
                count(self.taken.tensors),
                count(self.linear.tensors),
                100.0 * self.taken.elems as f64 / self.linear.elems.max(1) as f64,
                self.target
            )?;
            match self.others.is_empty() {
                true => writeln!(f)?,
                false => writeln!(f, ", and {}", self.others)?,
            }
        }
        if !self.unknown.is_empty() {
            writeln!(
                f,
                "warning: --target {} does not know these linear weights and leaves them as they \
                 are: {}; to take them too, pass --target '{}'",
                self.target,
                self.unknown,
                self.regex()
            )?;
        }
        if !self.stacked.is_empty() {
            writeln!(
                f,
                "warning: left as they are, since only matrices are quantized and these have \
                 three dimensions: {}",
                self.stacked
            )?;
        }
        if !self.towers.is_empty() {
            writeln!(
                f,
                "note: left as they are, since they are of a vision or audio tower: {}",
                self.towers
            )?;
        }
        Ok(())
    }
}

impl Target {
    /// Whether a linear weight that is not taken is known not to be what the target is for.
    fn leaves_knowingly(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        match self {
            Target::Mlp => name.contains("attn") || name.contains("attention"),
            Target::Imported | Target::All | Target::Pattern(_) => false,
        }
    }
}

impl Amount {
    fn add(&mut self, elems: u64) {
        self.tensors += 1;
        self.elems += elems;
    }
}
