//! The live line on a terminal: what goes on right now. In a pipe there is none.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{Output, clean};

/// Nothing at all when nobody looks.
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(out: &Output) -> Self {
        let bar = out.live().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar }
    }

    pub fn show(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(clean(text).replace(['\n', '\t'], " "));
        }
    }

    /// Shows the last line of a piece of a log, after what it belongs to.
    pub fn show_log(&self, what: &str, data: &[u8]) {
        if self.bar.is_some() {
            let text = String::from_utf8_lossy(data);
            if let Some(line) = text.lines().rev().map(str::trim).find(|line| !line.is_empty()) {
                self.show(&format!("{what}: {line}"));
            }
        }
    }

    /// Runs `write` with the line out of its way.
    pub fn beside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
