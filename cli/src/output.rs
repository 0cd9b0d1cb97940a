//! Where commands write: text for people, aligned text for pipes, JSON for programs.

pub mod json;

use std::{
    env,
    io::{self, IsTerminal, Write},
};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};

use crate::failure::{Report, Result};

/// What standard output and standard error are, and what was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub json: bool,
    pub stdout_tty: bool,
    pub stderr_tty: bool,
    colours: bool,
}

impl Output {
    pub fn of_process(json: bool) -> Self {
        let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            json,
            stdout_tty: io::stdout().is_terminal(),
            stderr_tty: io::stderr().is_terminal(),
            colours: !plain,
        }
    }

    /// A live progress line makes sense: somebody looks, and not for JSON.
    pub fn live(&self) -> bool {
        self.stderr_tty && !self.json && env::var_os("TERM").is_none_or(|term| term != "dumb")
    }

    pub fn line(&self, text: &str) -> Result<()> {
        Ok(writeln!(io::stdout().lock(), "{text}")?)
    }

    /// The one JSON document of a command.
    pub fn document(&self, value: &serde_json::Value) -> Result<()> {
        // Standard output's own buffer is a line long; a document may be megabytes.
        let mut out = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
        let written = match self.stdout_tty {
            true => serde_json::to_writer_pretty(&mut out, value),
            false => serde_json::to_writer(&mut out, value),
        };
        written.map_err(io::Error::from)?;
        writeln!(out)?;
        Ok(out.flush()?)
    }

    /// The document with `--json`, else the text; nothing when the text is empty.
    pub fn answer(
        &self,
        value: impl FnOnce() -> serde_json::Value,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        if self.json {
            return self.document(&value());
        }
        match text().as_str() {
            "" => Ok(()),
            text => self.line(text),
        }
    }

    /// A remark for people beside the output proper.
    pub fn note(&self, text: &str) {
        if !self.json {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    pub fn report(&self, report: &Report) {
        let mut err = io::stderr().lock();
        let _ = if self.json {
            writeln!(err, "{}", report.to_json())
        } else {
            let (on, off) =
                if self.colours && self.stderr_tty { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
            let hint =
                if report.hint.is_empty() { String::new() } else { format!("\n  hint: {}", report.hint) };
            writeln!(err, "{on}error[{}]{off}: {}{hint}", report.code, clean(&report.message))
        };
    }

    /// Rows under a header. Cells keep their length: ids are there to be copied.
    pub fn table(&self, header: &[&str], rows: Vec<Vec<String>>) -> Result<()> {
        if !self.stdout_tty {
            return self.aligned(header, &rows);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header.iter().map(|name| name.to_uppercase()));
        for row in rows {
            table.add_row(row.iter().map(|cell| {
                let styled = Cell::new(clean(cell));
                match colour(cell).filter(|_| self.colours) {
                    Some(colour) => styled.fg(colour),
                    None => styled,
                }
            }));
        }
        self.line(&table.trim_fmt())
    }

    fn aligned(&self, header: &[&str], rows: &[Vec<String>]) -> Result<()> {
        let header: Vec<String> = header.iter().map(|name| name.to_uppercase()).collect();
        let rows: Vec<Vec<String>> = std::iter::once(header)
            .chain(rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()))
            .collect();
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
            })
            .map(Option::unwrap_or_default)
            .collect();
        let mut out = io::stdout().lock();
        for row in &rows {
            let line: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(out, "{}", line.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Green for what is well, red for what is not, yellow for what waits.
fn colour(cell: &str) -> Option<Color> {
    match cell {
        "ready" | "succeeded" | "online" => Some(Color::Green),
        "failed" | "lost" | "rollback_failed" | "dead_letter" | "timed_out" | "gone" | "refused" => {
            Some(Color::Red)
        }
        "awaiting_approval" | "suspect" | "draining" | "rolling_back" | "rolled_back" => Some(Color::Yellow),
        _ => None,
    }
}

/// Names and messages that came from elsewhere must not steer the terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_others_do_not_reach_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\tc"), "a\u{fffd}[2Jb\tc");
    }
}
