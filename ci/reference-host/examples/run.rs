//! Runs a command on the reference host: `cargo run -p paravane-reference-host --example run -- uname -a`.

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use paravane_reference_host::{Command, Input, build};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("run: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let appliance = build(&|step| eprintln!("run: {step}"))?;
    let mut command = Command::new(env::args_os().skip(1))?
        .appliance(appliance)
        .stdin(Input::Inherit);
    if let Ok(seconds) = env::var("TIMEOUT") {
        command = command.timeout(Duration::from_secs(seconds.parse()?));
    }
    let finished = command.run()?;
    eprintln!(
        "run: exit code {}, boot {:.1} s, command {:.1} s",
        finished.code,
        finished.boot.as_secs_f64(),
        finished.command.as_secs_f64()
    );
    Ok(ExitCode::from(
        u8::try_from(finished.code).unwrap_or(u8::MAX),
    ))
}
