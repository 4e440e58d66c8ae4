//! A progress bar with an honest estimate.
//!
//! The work is counted in steps (lines of a build's output). How many there are, and how long
//! they took, is kept from the last build of the same kind on this machine; the first build has a
//! stored figure, which the measured rate corrects more and more as the build goes on.

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

/// How much work a build was.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Effort {
    /// Steps.
    pub(crate) steps: u64,
    /// Seconds they took together.
    pub(crate) seconds: f64,
}

impl Effort {
    /// What the last build has left in the file `record`, or `guess`.
    pub(crate) fn read(record: &Path, guess: Self) -> Self {
        fs::read(record)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or(guess)
    }
}

/// A running build.
#[derive(Debug)]
pub(crate) struct Progress {
    title: String,
    expected: Effort,
    record: PathBuf,
    done: u64,
    started: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts; `record` is the file with the last build's effort, `guess` the first build's.
    pub(crate) fn start(title: &str, record: &Path, guess: Effort) -> Self {
        let expected = Effort::read(record, guess);
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(expected.steps);
            let style = ProgressStyle::with_template("{prefix} [{bar:30}] {percent}% {msg}");
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(title.to_owned());
            bar
        });
        if bar.is_none() {
            eprintln!("{title}: about {} expected", short(expected.seconds));
        }
        Self {
            title: title.to_owned(),
            expected,
            record: record.to_path_buf(),
            done: 0,
            started: Instant::now(),
            told: Instant::now(),
            bar,
        }
    }

    /// One step is done.
    pub(crate) fn step(&mut self) {
        self.done += 1;
        let left = short(self.seconds_left());
        if let Some(bar) = &self.bar {
            bar.set_length(self.expected.steps.max(self.done));
            bar.set_position(self.done);
            bar.set_message(format!("about {left} left"));
        } else if self.told.elapsed() > Duration::from_secs(20) {
            self.told = Instant::now();
            eprintln!(
                "{}: {} of about {} steps, about {left} left",
                self.title,
                self.done,
                self.expected.steps.max(self.done)
            );
        }
    }

    /// What is left: the rate measured so far, mixed with the expected one as long as little has
    /// been measured.
    fn seconds_left(&self) -> f64 {
        let done = ratio(self.done, self.expected.steps.max(self.done));
        let measured = self.started.elapsed().as_secs_f64() / done.max(0.001);
        let total = done * measured + (1.0 - done) * self.expected.seconds;
        (total * (1.0 - done)).max(0.0)
    }

    /// The work is done; a build from scratch becomes the next estimate.
    pub(crate) fn finish(self, from_scratch: bool) {
        let seconds = self.started.elapsed().as_secs_f64();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{}: done in {}", self.title, short(seconds));
        if from_scratch {
            let effort = Effort {
                steps: self.done,
                seconds,
            };
            // Only an estimate: where it cannot be kept, the next build uses the stored figure.
            if let Ok(text) = serde_json::to_vec(&effort) {
                let _ = fs::write(&self.record, text);
            }
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of build steps are small"
)]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// A duration as one reads it.
pub(crate) fn short(seconds: f64) -> String {
    if seconds < 100.0 {
        format!("{seconds:.0} s")
    } else {
        format!("{:.1} min", seconds / 60.0)
    }
}
