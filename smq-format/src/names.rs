//! Words that commands, files and tables have in common, each spelled in one place.

/// A word that is none of those that there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct UnknownName {
    /// What there is, for a message: `reference, nearest, search, signed`.
    pub expected: String,
}

/// Spells the variants of an enum: a list that `Display`, `FromStr`, serde and `ALL` share, so that
/// a variant without a name does not compile. Words are read as they are written, in lower case.
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
                struct Words;
                impl serde::de::Visitor<'_> for Words {
                    type Value = $type;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        write!(f, "one of {}", $type::ALL.map($type::name).join(", "))
                    }

                    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<$type, E> {
                        let unknown = |_| E::unknown_variant(word, &[$($name),+]);
                        word.parse().map_err(unknown)
                    }
                }
                from.deserialize_str(Words)
            }
        }
    };
}
pub(crate) use names;

#[cfg(test)]
mod tests {
    use crate::scheme::Dtype;

    /// What serde's own derive says, so that the two are told apart by nobody.
    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    #[allow(dead_code)]
    enum Derived {
        Bf16,
        F16,
        F32,
    }

    #[test]
    fn an_unknown_word_is_refused_as_serde_refuses_it() {
        for json in ["[\"f64\"]", "[\"BF16\"]", "[\"\"]"] {
            let ours = serde_json::from_str::<[Dtype; 1]>(json).unwrap_err();
            let derived = serde_json::from_str::<[Derived; 1]>(json).unwrap_err();
            assert_eq!(ours.to_string(), derived.to_string());
        }
        let error = serde_json::from_str::<Dtype>("1").unwrap_err().to_string();
        let expected = "invalid type: integer `1`, expected one of bf16, f16, f32";
        assert!(error.starts_with(expected), "{error}");
    }
}
