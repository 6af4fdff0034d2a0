//! Words that commands, files and tables have in common, each spelled in one place.

/// A word that is none of those that there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct UnknownName {
    /// What there is, for a message: `reference, nearest, search, signed`.
    pub expected: String,
}

/// Spells the variants of an enum: a list that `Display`, `FromStr`, serde and `ALL` share, so that a variant
/// without a name does not compile. Words are read as they are written, in lower case.
macro_rules! names {
    ($type:ident { $($variant:ident => $name:literal,)+ }) => {
        impl $type {
            /// Every variant, in the order in which messages list them.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The word that commands, files and tables have for it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::names::UnknownName;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                let found = Self::ALL.into_iter().find(|v| v.name() == word);
                found.ok_or_else(|| $crate::names::UnknownName {
                    expected: Self::ALL.map(Self::name).join(", "),
                })
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let word = String::deserialize(from)?;
                let unknown = |_| serde::de::Error::unknown_variant(&word, &[$($name),+]);
                word.parse().map_err(unknown)
            }
        }
    };
}
pub(crate) use names;
