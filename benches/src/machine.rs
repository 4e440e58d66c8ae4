//! The record of the machine on which a result was taken: what a reader needs to judge the numbers, and what two
//! results must have in common to be compared.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::host::Host;
use crate::launch::Launcher;
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

fn hash(path: &Path) -> Option<String> {
    let digits = Sha256::digest(fs::read(path).ok()?);
    Some(digits.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Describes this machine and what runs on it. `host` is its class.
pub(crate) fn record(host: Host, launcher: &Launcher) -> Value {
    let kernels = [&launcher.kernel_full, &launcher.kernel_para];
    let manifests: Vec<Value> = kernels
        .into_iter()
        .filter(|kernel| kernel.exists())
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
        "record": "machine",
        "host": host.name(),
        "time": host.time(),
        "unix_time": seconds,
        "cpu": field("/proc/cpuinfo", "model name"),
        "microcode": field("/proc/cpuinfo", "microcode"),
        "cpus": std::thread::available_parallelism().ok().map(std::num::NonZero::get),
        "memory": field("/proc/meminfo", "MemTotal"),
        "kernel": content("/proc/sys/kernel/osrelease"),
        "clocksource": content("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "governor": content("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "paravane": env!("CARGO_PKG_VERSION"),
        "program": hash(&launcher.program),
        "initramfs": hash(&launcher.initrd),
        // Its name is the hash of its recipe.
        "root": launcher.root.as_ref().and_then(|root| Some(root.file_name()?.to_string_lossy())),
        "guest_kernels": manifests,
    })
}

/// Fields of the record that may differ between two parts of one result.
const INCIDENTAL: [&str; 2] = ["record", "unix_time"];

/// In what two records differ, as far as it matters: `field: this, that`.
#[must_use]
pub fn differences(this: &Value, that: &Value) -> Vec<String> {
    let (Value::Object(this), Value::Object(that)) = (this, that) else {
        return vec!["one of them has no record of its machine".to_owned()];
    };
    let names = this
        .keys()
        .chain(that.keys().filter(|key| !this.contains_key(*key)));
    let brief = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "nothing".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string().chars().take(60).collect(),
    };
    let absent = |value: Option<&Value>| value.is_none_or(Value::is_null);
    names
        .filter(|name| !INCIDENTAL.contains(&name.as_str()))
        .filter(|name| this.get(*name) != that.get(*name))
        // Suites that have no programs have no root.
        .filter(|name| *name != "root" || (!absent(this.get(*name)) && !absent(that.get(*name))))
        .map(|name| {
            format!(
                "{name}: {}, {}",
                brief(this.get(name)),
                brief(that.get(name))
            )
        })
        .collect()
}

/// In what the kernels of one record differ beyond the patches and the arm's own part of the configuration: nothing
/// else may be under test.
#[must_use]
pub fn unequal_kernels(record: &Value) -> Vec<String> {
    let kernels = record.get("guest_kernels").and_then(Value::as_array);
    let manifests: Vec<&Value> = kernels
        .into_iter()
        .flatten()
        .filter_map(|kernel| kernel.get("manifest"))
        .filter(|manifest| !manifest.is_null())
        .collect();
    let Some((first, others)) = manifests.split_first() else {
        return Vec::new();
    };
    let mut differences = Vec::new();
    for other in others {
        for (what, pointer) in [
            ("source", "/source"),
            ("toolchain", "/toolchain"),
            ("base.config", "/config/base.config"),
        ] {
            let (this, that) = (first.pointer(pointer), other.pointer(pointer));
            if this != that {
                differences.push(what.to_owned());
            }
        }
    }
    differences
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
    Some(json!({ "record": "crossings", "host": host, "crossings": crossings }))
}

/// The costs of exits by such a line: an OUT to the VMM, and a CPUID, which KVM answers itself.
#[must_use]
pub fn exit_costs(line: &str) -> Option<ExitCosts> {
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

    #[test]
    fn machines_differ_in_anything_but_the_time() {
        let this = json!({ "unix_time": 1, "cpu": "x", "microcode": "1" });
        let later = json!({ "unix_time": 2, "cpu": "x", "microcode": "1" });
        assert!(differences(&this, &later).is_empty());
        let rooted =
            |root: Value| json!({ "unix_time": 1, "cpu": "x", "microcode": "1", "root": root });
        assert!(differences(&this, &rooted(json!("a"))).is_empty());
        assert!(differences(&rooted(Value::Null), &rooted(json!("a"))).is_empty());
        assert_eq!(
            differences(&rooted(json!("b")), &rooted(json!("a"))),
            ["root: b, a"]
        );
        let other = json!({ "unix_time": 1, "cpu": "x", "microcode": "2", "program": "aa" });
        assert_eq!(
            differences(&this, &other),
            ["microcode: 1, 2", "program: nothing, aa"]
        );
    }

    #[test]
    fn kernels_may_differ_in_their_patches_only() {
        let kernel = |source: &str, base: &str, overlay: &str| {
            json!({ "manifest": { "source": { "sha256": source }, "toolchain": { "clang": "19" },
                "config": { "base.config": base }, "overlay": { "0001.patch": overlay } } })
        };
        let of = |kernels: [Value; 2]| unequal_kernels(&json!({ "guest_kernels": kernels }));
        assert!(of([kernel("s", "b", ""), kernel("s", "b", "p")]).is_empty());
        assert_eq!(
            of([kernel("s", "b", ""), kernel("t", "c", "")]),
            ["source", "base.config"]
        );
        assert!(
            of([json!({ "manifest": null }), kernel("s", "b", "")]).is_empty(),
            "a kernel of the user's own has no manifest"
        );
    }
}
