//! `paravane bench report`: what came out, made from raw samples alone.
//!
//! [`model`] computes every figure once, with its interval and its verdict; the page, the Markdown and the CSV only
//! write them down. Results of different classes of host stand side by side and are never compared.

mod claims;
mod csv;
mod html;
mod markdown;
mod model;
mod plot;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use crate::experiment::Saved;
use crate::machine;
use model::Report;

/// Arguments of `paravane bench report`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Every figure is computed anew from the raw samples: the median of the launches, its ratio to the first arm, and the\n\
    95 % interval of that ratio. A gain or a loss is called one only when its interval leaves out 1 and its ratio lies\n\
    outside the interval of the A/A twin. Without --html, --markdown or --csv, the Markdown goes to standard output."
)]
pub struct ReportArgs {
    /// Raw samples, as `--json` of a suite wrote them.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Write one HTML page that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write Markdown, for a paper's appendix.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Write the figures as comma-separated values.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
}

/// Makes a report.
///
/// # Errors
///
/// When a file is not a result, when results of one class are from different machines or programs, or when the report
/// cannot be written.
pub fn report(args: &ReportArgs) -> anyhow::Result<()> {
    let saved: anyhow::Result<Vec<Saved>> =
        args.files.iter().map(|path| Saved::read(path)).collect();
    let saved = saved?;
    check(&saved, &args.files)?;
    let report = Report::of(saved);
    ensure!(
        !report.parts.is_empty() || !report.operations.is_empty(),
        "there is no sample in these files"
    );
    if let Some(path) = &args.html {
        write(path, &html::page(&report))?;
    }
    if let Some(path) = &args.markdown {
        write(path, &markdown::text(&report))?;
    }
    if let Some(path) = &args.csv {
        write(path, &csv::text(&report)?)?;
    }
    if args.html.is_none() && args.markdown.is_none() && args.csv.is_none() {
        print!("{}", markdown::text(&report));
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text)
        .with_context(|| format!("the report `{}` cannot be written", path.display()))
}

/// Whether these results may stand in one report: what has one class of host must be from one machine, with one set of
/// programs, and each suite once.
fn check(saved: &[Saved], files: &[PathBuf]) -> anyhow::Result<()> {
    let class = |saved: &Saved| {
        let machine = saved.machine.as_ref()?;
        Some(machine.get("host")?.as_str()?.to_owned())
    };
    for (index, (this, file)) in saved.iter().zip(files).enumerate() {
        for (that, other) in saved.iter().zip(files).take(index) {
            if class(this) != class(that) {
                continue;
            }
            let (file, other) = (file.display(), other.display());
            if this.experiment.suite == that.experiment.suite {
                bail!(
                    "`{file}` and `{other}` are the same suite on the same class of host; name one of them"
                );
            }
            if let (Some(this), Some(that)) = (&this.machine, &that.machine) {
                let differences = machine::differences(this, that);
                ensure!(
                    differences.is_empty(),
                    "`{file}` and `{other}` cannot stand in one report: {}; take all suites again in one go, with \
                     `paravane bench --all`",
                    differences.join("; ")
                );
            }
        }
    }
    Ok(())
}
