//! The record of the machine on which a result was taken: what a reader needs to judge the numbers.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::sample::SUITE;
use crate::table::ExitCosts;

/// The first value of `key` in a file of `key : value` lines.
fn field(file: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text
        .lines()
        .find(|line| line.split(':').next().map(str::trim) == Some(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn content(file: &str) -> Option<String> {
    fs::read_to_string(file)
        .ok()
        .map(|text| text.trim().to_owned())
}

/// Describes this machine. `host` is its class; `kernels` are the guests' kernels, whose manifests are taken over.
#[must_use]
pub fn record(host: &str, seed: u64, kernels: &[&Path]) -> Value {
    let manifests: Vec<Value> = kernels
        .iter()
        .map(|kernel| {
            let manifest = kernel.parent().map(|folder| folder.join("manifest.json"));
            let manifest = manifest.and_then(|path| fs::read(path).ok());
            let manifest: Option<Value> = manifest.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let bytes = fs::metadata(kernel).map(|meta| meta.len()).ok();
            json!({ "kernel": kernel.file_name().map(|name| name.to_string_lossy()), "bytes": bytes, "manifest": manifest })
        })
        .collect();
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    json!({
        "suite": SUITE,
        "record": "machine",
        "host": host,
        "seed": seed,
        "unix_time": seconds,
        "cpu": field("/proc/cpuinfo", "model name"),
        "microcode": field("/proc/cpuinfo", "microcode"),
        "cpus": std::thread::available_parallelism().ok().map(std::num::NonZero::get),
        "memory": field("/proc/meminfo", "MemTotal"),
        "kernel": content("/proc/sys/kernel/osrelease"),
        "clocksource": content("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "governor": content("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "paravane": env!("CARGO_PKG_VERSION"),
        "guest_kernels": manifests,
    })
}

/// What `paravane doctor` says that crossings cost on this host, as a line of the result; `None` if it cannot.
pub(crate) fn crossings(program: &Path, host: &str) -> Option<Value> {
    let output = Command::new(program)
        .args(["doctor", "--json"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let report: Value = serde_json::from_slice(&output.stdout).ok()?;
    let crossings = report.get("crossings")?;
    Some(json!({ "suite": SUITE, "record": "crossings", "host": host, "crossings": crossings }))
}

/// The costs of exits by such a line: an OUT to the VMM, and a CPUID, which KVM answers itself.
pub(crate) fn exit_costs(line: &str) -> Option<ExitCosts> {
    let line: Value = serde_json::from_str(line).ok()?;
    let median = |name: &str| {
        line.pointer(&format!("/crossings/{name}/median_ns"))?
            .as_f64()
    };
    Some(ExitCosts {
        to_vmm: median("cpl0.out")?,
        in_kvm: median("cpl0.cpuid")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_costs_are_those_of_out_and_cpuid() {
        let line = r#"{"record":"crossings","crossings":{"cpl0.nop":{"median_ns":1.0},
            "cpl0.out":{"median_ns":82.5},"cpl0.cpuid":{"median_ns":40.0}}}"#;
        assert_eq!(
            exit_costs(line),
            Some(ExitCosts {
                to_vmm: 82.5,
                in_kvm: 40.0
            })
        );
        for without in [
            r#"{"record":"machine"}"#,
            r#"{"crossings":{"cpl0.out":{"median_ns":null},"cpl0.cpuid":{"median_ns":1.0}}}"#,
        ] {
            assert_eq!(exit_costs(without), None);
        }
    }
}
