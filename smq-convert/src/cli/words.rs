//! Arguments that are one of a few words, spelled as smq-format spells them.

use crate::{CalibrationMethod, ChooseBy};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use smq_format::{Family, LevelChoice, ScaleRule};

/// Reads a scale rule that needs the weights alone; the help lists them with what they do.
pub fn scale_rule() -> impl TypedValueParser<Value = ScaleRule> {
    rules(&ScaleRule::OF_WEIGHTS)
}

/// Reads any scale rule.
pub(super) fn any_scale_rule() -> impl TypedValueParser<Value = ScaleRule> {
    rules(&ScaleRule::ALL)
}

fn rules(rules: &[ScaleRule]) -> impl TypedValueParser<Value = ScaleRule> + use<> {
    let word = |rule: ScaleRule| {
        PossibleValue::new(rule.name()).help(match rule {
            ScaleRule::Reference => {
                "The published reference: `max|w| / 7`, mantissa rounded half to even, truncated \
                 where x = 0"
            }
            ScaleRule::Nearest => "As `reference`, but x = 0 rounds too",
            ScaleRule::Search => {
                "Of the nearest scale and its two neighbours, the one with the least squared \
                 error of the group"
            }
            ScaleRule::Signed => {
                "The element of largest magnitude maps to -8, through the scale's sign bit"
            }
            ScaleRule::Weighted => {
                "With --calibrate: of all scales of both signs, the one with the least squared \
                 error weighted by the inputs"
            }
        })
    };
    let words: Vec<_> = rules.iter().copied().map(word).collect();
    PossibleValuesParser::new(words).try_map(|word| word.parse::<ScaleRule>())
}

/// Reads what weights are to become.
pub(super) fn family() -> impl TypedValueParser<Value = Family> {
    PossibleValuesParser::new(Family::ALL.map(Family::name)).try_map(|word| word.parse::<Family>())
}

/// Reads what calibration chooses.
pub(super) fn calibration_method() -> impl TypedValueParser<Value = CalibrationMethod> {
    let word = |method: CalibrationMethod| {
        PossibleValue::new(method.name()).help(match method {
            CalibrationMethod::Search => {
                "Scales alone, by how large each column's inputs are; weights go to nearest"
            }
            CalibrationMethod::Gptq => "Codes too: columns make up for each other's errors",
            CalibrationMethod::Asymmetric => {
                "As gptq, and each matrix makes up for the errors of those before it"
            }
        })
    };
    let words = CalibrationMethod::ALL.map(word);
    PossibleValuesParser::new(words).try_map(|word| {
        let is_word = |method: &CalibrationMethod| method.name() == word;
        let found = CalibrationMethod::ALL.into_iter().find(is_word);
        found.ok_or("expected search, gptq or asymmetric")
    })
}

/// Reads whose errors decide.
pub(super) fn choose_by() -> impl TypedValueParser<Value = ChooseBy> {
    let word = |by: ChooseBy| {
        PossibleValue::new(by.name()).help(match by {
            ChooseBy::Weights => "The weights', each counting the same",
            ChooseBy::Outputs => {
                "With --calibrate: the outputs' on the texts, relative to the outputs"
            }
        })
    };
    let words = ChooseBy::ALL.map(word);
    PossibleValuesParser::new(words).try_map(|word| {
        let found = ChooseBy::ALL.into_iter().find(|by| by.name() == word);
        found.ok_or("expected weights or outputs")
    })
}

/// Reads where the levels of a code book come from.
pub(super) fn levels() -> impl TypedValueParser<Value = LevelChoice> {
    PossibleValuesParser::new(LevelChoice::ALL.map(LevelChoice::name))
        .try_map(|word| word.parse::<LevelChoice>())
}
