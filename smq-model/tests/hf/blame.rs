//! Broken files: the message blames the right one.

use smq_model::{GenerationSettings, Message, ModelConfig, Result, Source, Tokenizer};

use super::cases::Cases;

#[test]
fn a_broken_file_is_blamed_and_no_other() {
    Cases::read("blame").check(|case| {
        let dir = tempfile::tempdir().unwrap();
        case.write_checkpoint(dir.path());
        match read_all(dir.path()) {
            Ok(()) => case.taken(),
            Err(refusal) => case.refused(&refusal.to_string()),
        }
    });
}

fn read_all(dir: &std::path::Path) -> Result<()> {
    let source = Source::open(dir)?;
    ModelConfig::of(&source)?;
    GenerationSettings::of(&source)?;
    let tokenizer = Tokenizer::load(&source)?;
    match tokenizer.chat() {
        Some(chat) => {
            let message = Message {
                role: "user".to_owned(),
                content: "Hi".to_owned(),
            };
            chat.render(&[message], true).map(drop)
        }
        None => Ok(()),
    }
}
