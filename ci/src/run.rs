//! Running other programs: output kept, the tail shown when one fails.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How many lines of a log are worth showing when it ends badly.
const TAIL_LINES: usize = 25;

/// Runs a program with its output on the terminal.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{} cannot be started", name(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// Runs a program and returns what it printed; its errors become ours.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started", name(command)))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed ({}):\n{}",
            line(command),
            output.status,
            tail(&text)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program with both its outputs into `log`, calling `each` with every line as it comes.
pub(crate) fn logged(command: &mut Command, log: &Path, mut each: impl FnMut(&str)) -> Result<()> {
    let mut file = fs::File::create(log).with_context(|| format!("cannot create {log:?}"))?;
    writeln!(file, "$ {}", line(command))?;
    let (reader, writer) = std::io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command
        .spawn()
        .with_context(|| format!("{} cannot be started", name(command)))?;
    // The command holds the pipe's writing end; without this the reading end never sees an end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes)? != 0 {
        file.write_all(&bytes)?;
        each(String::from_utf8_lossy(&bytes).trim_end());
        bytes.clear();
    }
    let status = child.wait()?;
    if !status.success() {
        let text = fs::read(log)?;
        bail!(
            "{} failed ({status}); its last lines:\n{}\nThe whole log: {}",
            name(command),
            tail(&String::from_utf8_lossy(&text)),
            log.display()
        );
    }
    Ok(())
}

/// The end of a log: what names an error first, then the last lines.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(TAIL_LINES);
    let mut shown: Vec<String> = lines[..start]
        .iter()
        .filter(|line| line.contains("error:") || line.starts_with("error["))
        .take(TAIL_LINES)
        .map(|line| format!("    {line}"))
        .collect();
    if !shown.is_empty() {
        shown.push("    …".to_owned());
    }
    shown.extend(lines[start..].iter().map(|line| format!("    {line}")));
    shown.join("\n")
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
