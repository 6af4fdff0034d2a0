//! Cases as `tests/fixtures/hf/README.md` describes them: what files a checkpoint has, what
//! transformers makes of them, and which refusals are right.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// One file of cases.
pub(crate) struct Cases {
    pub(crate) top: Value,
}

/// A checkpoint with what transformers makes of it.
pub(crate) struct Case<'a> {
    pub(crate) value: &'a Value,
    base: &'a Map<String, Value>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/hf")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

impl Cases {
    /// The cases of the file `NAME_cases.json`.
    pub(crate) fn read(name: &str) -> Self {
        let top = json(&folder().join(format!("{name}_cases.json")));
        Self { top }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Case<'_>> {
        let list = self.top["cases"].as_array().unwrap();
        list.iter().map(|value| Case {
            value,
            base: self.top["base"][value["base"].as_str().unwrap()]
                .as_object()
                .unwrap(),
        })
    }

    /// Runs `check` on every case; what it returns is what is wrong. All of it is shown at the end.
    pub(crate) fn check(&self, mut check: impl FnMut(&Case<'_>) -> Result<(), String>) {
        let (mut count, mut wrong) = (0, Vec::new());
        for case in self.iter() {
            count += 1;
            if let Err(what) = check(&case) {
                wrong.push(format!("{}: {what}", case.name()));
            }
        }
        assert!(count > 0, "no case was read");
        assert!(
            wrong.is_empty(),
            "{} of {count}:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }
}

impl Case<'_> {
    pub(crate) fn name(&self) -> String {
        format!(
            "{} / {}",
            self.value["kind"].as_str().unwrap(),
            self.value["name"].as_str().unwrap()
        )
    }

    /// Contents of the file `name`; `None` where it is absent.
    pub(crate) fn file(&self, name: &str) -> Option<Vec<u8>> {
        let base = self.base.get(name);
        match self.value["files"].get(name) {
            Some(own) => contents(own, base),
            None => base.and_then(|own| contents(own, None)),
        }
    }

    /// Writes all files into `dir`.
    pub(crate) fn write(&self, dir: &Path) {
        let own = self.value["files"].as_object().unwrap();
        for name in self.base.keys().chain(own.keys()) {
            if let Some(contents) = self.file(name) {
                let path = dir.join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, contents).unwrap();
            }
        }
    }

    /// Writes all files into `dir`, beside weights of which there is only what decides whether
    /// embedding and head are one.
    pub(crate) fn write_checkpoint(&self, dir: &Path) {
        self.write(dir);
        let table = |name: &str| {
            (
                name.to_owned(),
                (safetensors::Dtype::BF16, vec![1, 1], &[0u8; 2][..]),
            )
        };
        let tensors = ["model.embed_tokens.weight", "lm_head.weight"].map(table);
        let views = tensors.map(|(name, (dtype, shape, data))| {
            (
                name,
                safetensors::tensor::TensorView::new(dtype, shape, data).unwrap(),
            )
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
    }

    /// Whether `message` refuses what must or may be refused, in the case's words; else what is
    /// wrong with it.
    pub(crate) fn refused(&self, message: &str) -> Result<(), String> {
        let v = self.value;
        let right = !v["error"].is_null() || v["may_refuse"] == true || v["must_refuse"] == true;
        if !right {
            return Err(format!("refused: {message}"));
        }
        let lower = message.to_lowercase();
        let words = v["words"].as_array().cloned().unwrap_or_default();
        let missing = words
            .iter()
            .filter_map(Value::as_str)
            .find(|word| !lower.contains(&word.to_lowercase()));
        match missing {
            Some(word) => Err(format!("the refusal does not say {word:?}: {message}")),
            None => self.blames_nothing_else(message),
        }
    }

    fn blames_nothing_else(&self, message: &str) -> Result<(), String> {
        let never = self.value["never"].as_array().cloned().unwrap_or_default();
        match never
            .iter()
            .filter_map(Value::as_str)
            .find(|word| message.contains(word))
        {
            Some(word) => Err(format!("the message names {word:?}: {message}")),
            None => Ok(()),
        }
    }

    /// What is wrong with taking a case that must be refused.
    pub(crate) fn taken(&self) -> Result<(), String> {
        let v = self.value;
        if v["must_refuse"] == true || (!v["error"].is_null() && v["may_run"] != true) {
            return Err(format!("taken, though transformers says {}", v["error"]));
        }
        Ok(())
    }
}

/// What `own` makes of `base`.
fn contents(own: &Value, base: Option<&Value>) -> Option<Vec<u8>> {
    let set = |mut object: Map<String, Value>, own: &Value| {
        for (key, value) in own["$set"].as_object().into_iter().flatten() {
            object.insert(key.clone(), value.clone());
        }
        for key in own["$drop"].as_array().into_iter().flatten() {
            object.remove(key.as_str().unwrap());
        }
        Some(serde_json::to_vec(&object).unwrap())
    };
    match own {
        Value::Null => None,
        Value::String(text) => Some(text.clone().into_bytes()),
        own if own.get("$tokenizer").is_some() => {
            let name = own["$tokenizer"].as_str().unwrap();
            let path = folder().join(format!("tokenizers/{name}.json"));
            match own.get("$set") {
                None => Some(std::fs::read(path).unwrap()),
                Some(_) => set(json(&path).as_object().unwrap().clone(), own),
            }
        }
        own if own.get("$json").is_some() => Some(serde_json::to_vec(&own["$json"]).unwrap()),
        own if own.get("$base64").is_some() => Some(base64(own["$base64"].as_str().unwrap())),
        own => {
            let base = base.map_or_else(Map::new, |base| match base.get("$json") {
                Some(json) => json.as_object().unwrap().clone(),
                None => json(&folder().join(format!(
                    "tokenizers/{}.json",
                    base["$tokenizer"].as_str().unwrap()
                )))
                .as_object()
                .unwrap()
                .clone(),
            });
            set(base, own)
        }
    }
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u32> = text
        .bytes()
        .filter(|b| *b != b'=')
        .map(|b| ALPHABET.iter().position(|a| *a == b).unwrap() as u32)
        .collect();
    let bytes = |four: &[u32]| {
        let word = (0..4).fold(0, |word, i| word << 6 | four.get(i).copied().unwrap_or(0));
        let bytes = word.to_be_bytes();
        bytes[1..four.len()].to_vec()
    };
    digits.chunks(4).flat_map(bytes).collect()
}

#[test]
fn base64_is_decoded() {
    assert_eq!(base64("aGVsbG8="), b"hello");
    assert_eq!(base64("aGVsbA=="), b"hell");
    assert_eq!(base64("aGVs"), b"hel");
}
