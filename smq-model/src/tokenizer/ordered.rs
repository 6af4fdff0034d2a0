//! JSON objects in the order in which their file has them.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The keys of an object, and of the objects in it.
#[derive(Debug, Default)]
pub(super) struct Keys(Vec<(String, Keys)>);

impl Keys {
    /// Of a JSON text; none if it is no object.
    pub(super) fn of(json: &[u8]) -> Self {
        serde_json::from_slice(json).unwrap_or_default()
    }

    /// The order within the object under `key`.
    pub(super) fn within(&self, key: &str) -> Option<&Self> {
        let mut found = self.0.iter().rev().filter(|(k, _)| k == key);
        found.next().map(|(_, keys)| keys)
    }

    /// The items of `map` in this order, and then those that are not listed.
    pub(super) fn items<'m>(&self, map: &'m Map<String, Value>) -> Vec<(&'m str, &'m Value)> {
        let mut items: Vec<(&str, &Value)> = Vec::with_capacity(map.len());
        let listed = self.0.iter().filter_map(|(key, _)| map.get_key_value(key));
        for (key, value) in listed.chain(map) {
            if !items.iter().any(|(known, _)| known == key) {
                items.push((key, value));
            }
        }
        items
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeysVisitor;

        impl<'de> Visitor<'de> for KeysVisitor {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    keys.push(entry);
                }
                Ok(Keys(keys))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Keys, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Keys::default())
            }

            fn visit_bool<E>(self, _: bool) -> Result<Keys, E> {
                Ok(Keys::default())
            }

            fn visit_i64<E>(self, _: i64) -> Result<Keys, E> {
                Ok(Keys::default())
            }

            fn visit_u64<E>(self, _: u64) -> Result<Keys, E> {
                Ok(Keys::default())
            }

            fn visit_f64<E>(self, _: f64) -> Result<Keys, E> {
                Ok(Keys::default())
            }

            fn visit_str<E>(self, _: &str) -> Result<Keys, E> {
                Ok(Keys::default())
            }

            fn visit_unit<E>(self) -> Result<Keys, E> {
                Ok(Keys::default())
            }
        }

        deserializer.deserialize_any(KeysVisitor)
    }
}
