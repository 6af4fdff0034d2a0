//! Source text to tokens, with `trim_blocks` and `lstrip_blocks` as Jinja has them.

use super::error::{Fault, Result};
use super::literal;

/// A token of a template.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    /// An operator or a delimiter.
    Op(&'static str),
    End,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Data(_) => f.write_str("template data / text"),
            Self::VariableBegin => f.write_str("begin of print statement"),
            Self::VariableEnd => f.write_str("end of print statement"),
            Self::BlockBegin => f.write_str("begin of statement block"),
            Self::BlockEnd => f.write_str("end of statement block"),
            Self::Name(name) => write!(f, "'{name}'"),
            Self::Str(_) => f.write_str("string"),
            Self::Int(_) => f.write_str("integer"),
            Self::Float(_) => f.write_str("float"),
            Self::Op(op) => write!(f, "'{op}'"),
            Self::End => f.write_str("end of template"),
        }
    }
}

/// Longer ones first, so that `**` is not two of `*`.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

/// What Python's `str.isspace` and `\s` count as white space.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Tokens and their lines. The last one is [`Token::End`].
pub(crate) fn tokens(source: &str) -> Result<Vec<(Token, usize)>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop(); // keep_trailing_newline is off
    }
    let mut lexer = Lexer {
        source: &source,
        at: 0,
        line: 1,
        line_starting: true,
        out: Vec::new(),
    };
    lexer.run()?;
    Ok(lexer.out)
}

struct Lexer<'s> {
    source: &'s str,
    /// Byte offset of what is not read yet.
    at: usize,
    line: usize,
    /// Whether what was read last ended a line.
    line_starting: bool,
    out: Vec<(Token, usize)>,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn fail<T>(&self, message: String) -> Result<T> {
        Err(Fault::new(message).at(self.line))
    }

    fn push(&mut self, token: Token) {
        self.out.push((token, self.line));
    }

    /// Steps over `bytes` of the template.
    fn take(&mut self, bytes: usize) {
        let taken = &self.rest()[..bytes];
        self.line += taken.matches('\n').count();
        self.line_starting = taken.ends_with('\n');
        self.at += bytes;
    }

    fn run(&mut self) -> Result<()> {
        while let Some(start) = tag_start(self.rest()) {
            let text = &self.rest()[..start];
            let tag = &self.rest()[start..];
            let sign = tag[2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            let variable = tag.starts_with("{{");
            let kept = match sign {
                Some('-') => text.trim_end_matches(is_space),
                None if !variable => self.without_indent(text),
                _ => text,
            };
            if !kept.is_empty() {
                self.push(Token::Data(kept.to_owned()));
            }
            if let Some(length) = raw_begin(tag) {
                self.take(start + length);
                self.raw()?;
                continue;
            }
            self.take(start + 2 + usize::from(sign.is_some()));
            if tag.starts_with("{#") {
                self.comment()?;
            } else if variable {
                self.push(Token::VariableBegin);
                self.tag(true)?;
            } else {
                self.push(Token::BlockBegin);
                self.tag(false)?;
            }
        }
        let rest = self.rest().to_owned();
        if !rest.is_empty() {
            self.push(Token::Data(rest.clone()));
            self.take(rest.len());
        }
        self.push(Token::End);
        Ok(())
    }

    /// `lstrip_blocks`: without the white space between the last newline and a block.
    fn without_indent<'t>(&self, text: &'t str) -> &'t str {
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        let blank = !text[line..].is_empty() && text[line..].chars().all(is_space);
        match (line > 0 || self.line_starting) && blank {
            true => &text[..line],
            false => text,
        }
    }

    fn comment(&mut self) -> Result<()> {
        let Some(end) = self.rest().find("#}") else {
            return self.fail("Missing end of comment tag".into());
        };
        let sign = self.rest()[..end].chars().next_back();
        self.take(end + 2);
        self.after_block(sign);
        Ok(())
    }

    /// What the end of a block or a comment swallows, given the sign before it.
    fn after_block(&mut self, sign: Option<char>) {
        match sign {
            Some('-') => self.skip_space(),
            Some('+') => {}
            _ if self.rest().starts_with('\n') => self.take(1),
            _ => {}
        }
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        let bytes = rest.len() - rest.trim_start_matches(is_space).len();
        if bytes > 0 {
            self.take(bytes);
        }
    }

    /// From after `{% raw %}` to after `{% endraw %}`.
    fn raw(&mut self) -> Result<()> {
        let rest = self.rest();
        let found = rest.match_indices("{%").find_map(|(start, _)| {
            let tag = &rest[start + 2..];
            let sign = tag.chars().next().filter(|c| matches!(c, '-' | '+'));
            let tag = &tag[usize::from(sign.is_some())..];
            let inner = tag.trim_start_matches(is_space).strip_prefix("endraw")?;
            let close = inner.trim_start_matches(is_space);
            let closing = close.chars().next().filter(|c| matches!(c, '-' | '+'));
            let close = &close[usize::from(closing.is_some())..];
            let after = close.strip_prefix("%}")?;
            Some((start, sign, closing, rest.len() - after.len()))
        });
        let Some((start, sign, closing, length)) = found else {
            return self.fail("Missing end of raw directive".into());
        };
        let text = &rest[..start];
        let kept = match sign {
            Some('-') => text.trim_end_matches(is_space),
            None => self.without_indent(text),
            Some(_) => text,
        };
        if !kept.is_empty() {
            self.push(Token::Data(kept.to_owned()));
        }
        self.take(length);
        self.after_block(closing);
        Ok(())
    }

    /// The inside of `{{ }}` or `{% %}`, and its end.
    fn tag(&mut self, variable: bool) -> Result<()> {
        let mut open: Vec<&str> = Vec::new();
        loop {
            self.skip_space();
            let rest = self.rest();
            if open.is_empty() && self.tag_end(variable) {
                return Ok(());
            }
            let Some(first) = rest.chars().next() else {
                // The parser says what it was looking for.
                self.push(Token::End);
                return Ok(());
            };
            if let Some((token, bytes)) =
                literal::number(rest, self.source[..self.at].ends_with('.'))?
            {
                self.push(token);
                self.take(bytes);
            } else if is_name(first) {
                let bytes = rest.len() - rest.trim_start_matches(is_name).len();
                if first.is_numeric() {
                    return self.fail("Invalid character in identifier".into());
                }
                self.push(Token::Name(rest[..bytes].to_owned()));
                self.take(bytes);
            } else if let Some(bytes) = literal::string_length(rest) {
                let text = literal::unescape(&rest[1..bytes - 1]);
                self.push(Token::Str(text.map_err(|e| e.at(self.line))?));
                self.take(bytes);
            } else if let Some(op) = OPERATORS.iter().find(|op| rest.starts_with(**op)) {
                self.balance(&mut open, op)?;
                self.push(Token::Op(op));
                self.take(op.len());
            } else {
                return self.fail(format!("unexpected char {first:?}"));
            }
        }
    }

    /// Steps over the end of the tag, if it is next.
    fn tag_end(&mut self, variable: bool) -> bool {
        let rest = self.rest();
        let end = if variable { "}}" } else { "%}" };
        let sign = rest.chars().next().filter(|c| match c {
            '-' => true,
            '+' => !variable,
            _ => false,
        });
        if !rest[usize::from(sign.is_some())..].starts_with(end) {
            return false;
        }
        self.push(match variable {
            true => Token::VariableEnd,
            false => Token::BlockEnd,
        });
        self.take(2 + usize::from(sign.is_some()));
        match (variable, sign) {
            (true, Some(_)) => self.skip_space(),
            (true, None) => {}
            (false, sign) => self.after_block(sign),
        }
        true
    }

    fn balance(&self, open: &mut Vec<&'static str>, op: &'static str) -> Result<()> {
        match op {
            "{" => open.push("}"),
            "(" => open.push(")"),
            "[" => open.push("]"),
            "}" | ")" | "]" => match open.pop() {
                None => return self.fail(format!("unexpected '{op}'")),
                Some(expected) if expected != op => {
                    return self.fail(format!("unexpected '{op}', expected '{expected}'"));
                }
                Some(_) => {}
            },
            _ => {}
        }
        Ok(())
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where the next tag begins.
fn tag_start(text: &str) -> Option<usize> {
    let tag =
        |(at, _): &(usize, &str)| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#'));
    text.match_indices('{').find(tag).map(|(at, _)| at)
}

/// Bytes of a `{% raw %}` tag that `tag` begins with, and of the white space that it swallows.
fn raw_begin(tag: &str) -> Option<usize> {
    let inner = tag.strip_prefix("{%")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let inner = inner.trim_start_matches(is_space).strip_prefix("raw")?;
    let inner = inner.trim_start_matches(is_space);
    if let Some(after) = inner.strip_prefix("-%}") {
        return Some(tag.len() - after.trim_start_matches(is_space).len());
    }
    Some(tag.len() - inner.strip_prefix("%}")?.len())
}
