//! Which class of transformers' a model's tokenizer is loaded as.
//!
//! Most read tokenizer.json and take it as it is. Some take only its vocabulary, its merges and
//! its post-processor, and build normalizer, pre-tokenizer and decoder of their own, whatever the
//! file says; which one it is depends on three files (`AutoTokenizer.from_pretrained` of
//! transformers 5.24).

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// How a tokenizer is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// `TokenizersBackend`, earlier `PreTrainedTokenizerFast`: tokenizer.json as it is.
    File,
    Llama,
    Gemma,
    Qwen2,
    Qwen3_5,
    Gpt2,
    GptNeoX,
}

/// The class that a model type has if its files name another one, for the types of decoders that
/// transformers lists. For most of them that is tokenizer.json itself, whatever the files name.
const REGISTERED: [(&str, &str); 8] = [
    (
        "TokenizersBackend",
        "arctic chatlm ernie4_5 ernie4_5_moe flex_olmo fuyu glm glm4 glm4_moe glm4_moe_lite \
         gpt_bigcode granite granitemoe granitemoehybrid granitemoeshared h2ovl_chat \
         hyperclovax internlm2 internlm3 iquestcoder jamba kimi_linear llava llava_next \
         mimo_v2_flash minicpm3 minicpmv minimax_m2 ministral ministral3 mistral mistral3 \
         mistral_large4 mixtral modernbert-decoder molmo molmo2 nemotron nvfp4 olmo2 olmo3 \
         olmo_hybrid opencua persimmon phi3 phi3_v phimoe pixtral smolvlm stablelm step3_vl \
         vipllava voxtral",
    ),
    (
        "Qwen2Tokenizer",
        "dots3_note internvl ovis2 qwen2 qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_moe \
         qwen2_vl qwen3 qwen3_moe qwen3_next qwen3_omni_moe qwen3_vl qwen3_vl_moe",
    ),
    (
        "Qwen3_5Tokenizer",
        "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen4_exp",
    ),
    (
        "GemmaTokenizer",
        "diffusion_gemma gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma \
         shieldgemma2 t5gemma zaya",
    ),
    (
        "GPT2Tokenizer",
        "codegen dbrx emu3 gpt2 gpt_neo gptj hyperclovax_vision_v2 jais2 opt phi starcoder2",
    ),
    (
        "GPTNeoXTokenizer",
        "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
    ),
    ("CohereTokenizer", "aya_vision cohere cohere2"),
    ("CodeLlamaTokenizer", "code_llama"),
];

/// Types whose files are known to name a class that does not fit (transformers'
/// `MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS`): the registered one counts.
const WRONGLY_DECLARED: &str = "arctic chatlm ernie4_5 ernie4_5_moe fuyu h2ovl_chat hyperclovax \
                                hyperclovax_vlm hyperclovax_vision_v2 internlm2 internlm3 \
                                iquestcoder jamba llava llava_next minicpm3 minicpmv minimax_m2 \
                                modernbert modernbert-decoder molmo molmo2 nemotron nvfp4 opencua \
                                openvla paddleocr_vl phi3 phi3_v phimoe qwen2 qwen3_5 qwen3_5_moe \
                                qwen3_5_moe_text qwen4_exp step3_vl vipllava siglip2 smolvlm";

/// Classes with a pipeline of their own in transformers that is not built here.
const NOT_BUILT: &str = "AlbertTokenizer BartTokenizer BarthezTokenizer BartphoTokenizer \
                         BertGenerationTokenizer BertJapaneseTokenizer BertTokenizer \
                         BertTokenizerLegacy BertweetTokenizer BigBirdTokenizer BioGptTokenizer \
                         BlenderbotSmallTokenizer BlenderbotTokenizer ByT5Tokenizer CLIPTokenizer \
                         CTRLTokenizer CamembertTokenizer CanineTokenizer CodeGenTokenizer \
                         CodeLlamaTokenizer CohereTokenizer ConvBertTokenizer CpmAntTokenizer \
                         CpmTokenizer DebertaTokenizer DebertaV2Tokenizer DistilBertTokenizer \
                         EsmTokenizer EsmcTokenizer FNetTokenizer FSMTTokenizer FlaubertTokenizer \
                         FunnelTokenizer GPTNeoXJapaneseTokenizer GPTSw3Tokenizer HerbertTokenizer \
                         LEDTokenizer LasrTokenizer LukeTokenizer LxmertTokenizer M2M100Tokenizer \
                         MBart50Tokenizer MBartTokenizer MPNetTokenizer MarianTokenizer \
                         MobileBertTokenizer MvpTokenizer MyT5Tokenizer NllbTokenizer \
                         NougatTokenizer OpenAIGPTTokenizer PLBartTokenizer PegasusTokenizer \
                         PerceiverTokenizer PhobertTokenizer ProphetNetTokenizer ReformerTokenizer \
                         RemBertTokenizer RoCBertTokenizer RoFormerTokenizer RobertaTokenizer \
                         SeamlessM4TTokenizer Siglip2Tokenizer SiglipTokenizer SplinterTokenizer \
                         SqueezeBertTokenizer T5Tokenizer UdopTokenizer WhisperTokenizer \
                         XGLMTokenizer XLMRobertaTokenizer XLMTokenizer XLNetTokenizer";

impl Class {
    /// Of config.json, tokenizer_config.json and whether tokenizer.json names `ByteLevel`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a class whose pipeline is not built here, or code of the model's
    /// own.
    pub(super) fn of(
        config: &Map<String, Value>,
        tokenizer_config: &Map<String, Value>,
        byte_level: bool,
    ) -> Result<Self> {
        let text = |map: &Map<String, Value>, key: &str| {
            let text = map.get(key).and_then(Value::as_str);
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let model_type = text(config, "model_type").unwrap_or_default();
        let declared = text(tokenizer_config, "tokenizer_class");
        let in_config = text(config, "tokenizer_class");
        let hub = declared.as_ref().or(in_config.as_ref());
        let own_code = own_code(tokenizer_config);
        let wrong = listed(WRONGLY_DECLARED, &model_type);
        let registered = REGISTERED
            .iter()
            .find(|(_, types)| listed(types, &model_type));
        let registered = registered.map(|(class, _)| *class);
        if let (Some(hub), false) = (hub, own_code) {
            let hub = plain(hub);
            if hub == "LlamaTokenizer" && !wrong && byte_level {
                return Ok(Self::File);
            }
            if let Some(registered) = registered.filter(|registered| *registered != hub) {
                if registered == "TokenizersBackend" {
                    return Ok(Self::File);
                }
                let name = if wrong { registered } else { hub };
                return Ok(Self::named(name)?.unwrap_or(Self::File));
            }
        }
        let named = match declared.or(in_config) {
            Some(name) => Self::named(plain(&name))?,
            None => registered.map(Self::named).transpose()?.flatten(),
        };
        match named {
            None if own_code && !wrong && registered.is_none() => Err(Error::Tokenizer(
                "tokenizer_config.json's auto_map asks for code of the model's own, which is not \
                 run; remove it and name a tokenizer_class, TokenizersBackend for example"
                    .into(),
            )),
            named => Ok(named.unwrap_or(Self::File)),
        }
    }

    /// A class by its name, `Fast` left off; `None` for a name that transformers does not know.
    fn named(name: &str) -> Result<Option<Self>> {
        Ok(Some(match name {
            "TokenizersBackend" | "PreTrainedTokenizer" | "PythonBackend" | "BloomTokenizer" => {
                Self::File
            }
            "LlamaTokenizer" => Self::Llama,
            "GemmaTokenizer" => Self::Gemma,
            "Qwen2Tokenizer" => Self::Qwen2,
            "Qwen3_5Tokenizer" => Self::Qwen3_5,
            "GPT2Tokenizer" => Self::Gpt2,
            "GPTNeoXTokenizer" => Self::GptNeoX,
            name if listed(NOT_BUILT, name) => {
                return Err(Error::Tokenizer(format!(
                    "tokenizer_class {name} is not implemented: transformers builds a tokenizer \
                     of its own for it; if tokenizer.json holds all of it, set tokenizer_class to \
                     TokenizersBackend in tokenizer_config.json"
                )));
            }
            _ => return Ok(None),
        }))
    }
}

fn listed(words: &str, word: &str) -> bool {
    words.split(' ').any(|listed| listed == word)
}

/// `LlamaTokenizerFast` is another name of `LlamaTokenizer`.
fn plain(name: &str) -> &str {
    name.strip_suffix("Fast").unwrap_or(name)
}

/// Whether tokenizer_config.json names a class that is in the model's repository.
fn own_code(tokenizer_config: &Map<String, Value>) -> bool {
    match tokenizer_config.get("auto_map") {
        Some(Value::Array(_)) => true,
        Some(Value::Object(map)) => map.get("AutoTokenizer").is_some_and(|v| !v.is_null()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn class(model_type: &str, tokenizer_class: &str, byte_level: bool) -> Result<Class> {
        let map = |value: Value| value.as_object().cloned().unwrap_or_default();
        let config = map(json!({"model_type": model_type}));
        let tokenizer_config = match tokenizer_class {
            "" => Map::new(),
            class => map(json!({"tokenizer_class": class})),
        };
        Class::of(&config, &tokenizer_config, byte_level)
    }

    /// `type(AutoTokenizer.from_pretrained(dir)).__name__` of transformers 5.24.0.
    #[test]
    fn the_class_is_the_one_that_transformers_takes() {
        for (model_type, declared, byte_level, expected) in [
            ("llama", "LlamaTokenizer", false, Class::Llama),
            ("llama", "LlamaTokenizerFast", false, Class::Llama),
            ("llama", "LlamaTokenizerFast", true, Class::File),
            ("llama", "PreTrainedTokenizerFast", false, Class::File),
            ("llama", "TokenizersBackend", false, Class::File),
            ("llama", "GPT2Tokenizer", true, Class::Gpt2),
            ("llama", "GPT2TokenizerFast", true, Class::Gpt2),
            ("llama", "GPTNeoXTokenizerFast", true, Class::GptNeoX),
            ("llama", "Qwen2Tokenizer", true, Class::Qwen2),
            ("llama", "GemmaTokenizerFast", false, Class::Gemma),
            ("llama", "SomethingElse", false, Class::File),
            ("llama", "", false, Class::File),
            ("phi3", "LlamaTokenizer", false, Class::File),
            ("phi3", "LlamaTokenizerFast", true, Class::File),
            ("phi3", "GPT2Tokenizer", true, Class::File),
            ("phi3", "", false, Class::File),
            ("mistral", "LlamaTokenizer", false, Class::File),
            ("mixtral", "LlamaTokenizerFast", false, Class::File),
            ("qwen2", "PreTrainedTokenizerFast", true, Class::Qwen2),
            ("qwen2", "LlamaTokenizerFast", true, Class::Qwen2),
            ("qwen2", "", true, Class::Qwen2),
            ("qwen3", "Qwen2Tokenizer", true, Class::Qwen2),
            ("qwen3", "PreTrainedTokenizerFast", true, Class::File),
            ("qwen3", "LlamaTokenizerFast", false, Class::Llama),
            ("gemma2", "GemmaTokenizer", false, Class::Gemma),
            ("gemma2", "PreTrainedTokenizerFast", false, Class::File),
            ("olmo2", "GPT2Tokenizer", true, Class::File),
            ("granite", "GPT2Tokenizer", true, Class::File),
            ("never_heard_of", "LlamaTokenizer", false, Class::Llama),
        ] {
            let found = class(model_type, declared, byte_level).unwrap();
            assert_eq!(found, expected, "{model_type} {declared} {byte_level}");
        }
    }

    #[test]
    fn a_class_that_is_not_built_is_named() {
        let error = class("llama", "XLNetTokenizerFast", false)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("XLNetTokenizer ") && error.contains("TokenizersBackend"),
            "{error}"
        );
        let code = json!({"auto_map": {"AutoTokenizer": ["a.B", null]}, "tokenizer_class": "Own"});
        let error = Class::of(&Map::new(), code.as_object().unwrap(), false).unwrap_err();
        assert!(error.to_string().contains("auto_map"), "{error}");
    }
}
