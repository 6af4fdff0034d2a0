//! Quality: whatever `quality/*.json` holds in the form of a [`Table`], and every page `quality/*.md` but README.md
//! (`smq-run eval suite` writes such), becomes part of the report.

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use super::tables::markdown;

/// A table that something else measured.
#[derive(Debug, Deserialize)]
struct Table {
    title: String,
    #[serde(default)]
    note: Option<String>,
    columns: Vec<String>,
    rows: Vec<Vec<serde_json::Value>>,
}

/// The tables and pages of `out`'s `quality` folder as Markdown, by file name; empty without any. Other files there are left
/// alone.
///
/// # Errors
/// A folder or file that cannot be read.
pub fn sections(out: &Path) -> anyhow::Result<String> {
    let dir = out.join("quality");
    if !dir.is_dir() {
        return Ok(String::new());
    }
    let context = || format!("{}: cannot read it", dir.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let is_page = path.extension().is_some_and(|e| e == "md") && !path.ends_with("README.md");
        if is_page || path.extension().is_some_and(|e| e == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut text = String::new();
    for path in paths {
        let json =
            std::fs::read(&path).with_context(|| format!("{}: cannot read it", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.extension().is_some_and(|e| e == "md") {
            text += &page(&name, &String::from_utf8_lossy(&json));
            continue;
        }
        let Ok(table) = serde_json::from_slice::<Table>(&json) else {
            continue;
        };
        let cell = |v: &serde_json::Value| match v {
            serde_json::Value::String(s) => s.clone(),
            serde_json::Value::Null => String::new(),
            other => other.to_string(),
        };
        let columns: Vec<_> = table.columns.iter().map(String::as_str).collect();
        let rows = table.rows.iter();
        let rows = rows.map(|r| r.iter().map(cell).collect()).collect();
        let note = table.note.map_or(String::new(), |n| format!("{n} "));
        text += &format!(
            "\n### {}\n\n{note}From `quality/{name}`.\n\n{}\n",
            table.title,
            markdown(&columns, rows)
        );
    }
    Ok(text)
}

/// A page as a part of the report: its headings two levels down.
fn page(name: &str, text: &str) -> String {
    let (heading, rest) = text.split_once('\n').unwrap_or((text, ""));
    let down = |line: &str| match line.starts_with('#') {
        true => format!("##{line}\n"),
        false => format!("{line}\n"),
    };
    let rest: String = rest.lines().map(down).collect();
    format!("\n{}\nFrom `quality/{name}`.\n{rest}", down(heading))
}
