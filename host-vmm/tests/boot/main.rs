//! Whole guests, booted on the reference host: what each arm's kernel finds, says and costs.
//!
//! All launches are made once, in one boot of the reference host ([`launches`]); each test looks at what one or two of
//! them left. Counts of exits and calls are compared, times never. What a guest must say and must not say, and what
//! CPUID shows it, is in `tests/golden` ([`golden`]).
//!
//! Where the kernels, the initramfs or the reference host are not built, each test prints `skipped: reason`;
//! `cargo ci test` builds them first.

mod debug;
mod golden;
mod inside;
mod launches;
mod lies;
mod memory;
mod ops;

use launches::{Launch, launches};
use paravane_reference_host::or_skipped;

/// The launch called `name`, or `return` with the reason why nothing was launched.
macro_rules! launch_or_skip {
    ($name:expr) => {
        match paravane_reference_host::or_skipped(launches()) {
            Some(all) => all.get($name),
            None => return,
        }
    };
}

pub(crate) use launch_or_skip;

/// How the arms' kernels name what they run on.
const BARE: &str = "Booting paravirtualized kernel on bare hardware";

#[test]
fn full_boots_on_bare_hardware_and_ends_by_restart() {
    let full: &Launch = launch_or_skip!("full");
    assert_eq!((full.code, full.outcome()), (0, "reboot"), "{full}");
    assert_eq!(full.report["hypervisor"], serde_json::Value::Null);
    assert_eq!(full.report["paravirt"], BARE);
    assert_eq!(full.report["cpuid_hypervisor_bit"], false);
    assert_eq!(full.calls(), 0, "a full guest must not make a call");
    assert!(
        full.user_exits("uart_out") > 1000,
        "a full guest's console is a UART: {full}"
    );
}

#[test]
fn kvm_pv_finds_kvm_and_nothing_of_paravane() {
    let kvm = launch_or_skip!("kvm-pv");
    assert_eq!(kvm.code, 0, "{kvm}");
    assert_eq!(kvm.report["hypervisor"], "Hypervisor detected: KVM");
    assert_eq!(kvm.report["cpuid_signatures"]["0x40000100"], "");
    assert_eq!(kvm.calls(), 0);
}

#[test]
fn para_makes_calls_touches_no_device_of_a_pc_and_powers_off() {
    let para = launch_or_skip!("para");
    assert_eq!((para.code, para.outcome()), (0, "power-off"), "{para}");
    assert_eq!(para.report["hypervisor"], "Hypervisor detected: Paravane");
    assert_eq!(
        para.report["cpuid_signatures"]["0x40000100"],
        "ParavaneHype"
    );
    for call in ["console.notify", "base.power"] {
        assert!(para.call(call) > 0, "no {call}: {para}");
    }
    for device in ["uart_in", "uart_out", "mmio"] {
        assert_eq!(para.user_exits(device), 0, "{device}: {para}");
    }
    let probes = para.user_exits("io_in") + para.user_exits("io_out");
    assert!(
        probes < 10,
        "{probes} accesses to ports that a para guest has no device on"
    );
    assert_eq!(
        para.report["clocksource"], "tsc",
        "the TSC's frequency comes from the boot-info page"
    );
}

#[test]
fn the_para_image_boots_without_privilege() {
    let direct = launch_or_skip!("direct");
    assert_eq!(
        (direct.code, direct.outcome()),
        (0, "power-off"),
        "{direct}"
    );
    assert_eq!(direct.report["hypervisor"], "Hypervisor detected: Paravane");
    for device in ["uart_in", "uart_out", "mmio"] {
        assert_eq!(direct.user_exits(device), 0, "{device}: {direct}");
    }
}

#[test]
fn the_para_image_still_boots_as_full() {
    let launch = launch_or_skip!("para-image-as-full");
    assert_eq!((launch.code, launch.outcome()), (0, "reboot"), "{launch}");
    assert_eq!(launch.report["hypervisor"], serde_json::Value::Null);
    assert_eq!(launch.report["paravirt"], BARE);
    assert_eq!(launch.calls(), 0);
}

#[test]
fn the_para_image_still_boots_as_kvm_pv() {
    let launch = launch_or_skip!("para-image-as-kvm-pv");
    assert_eq!(launch.code, 0, "{launch}");
    assert_eq!(launch.report["hypervisor"], "Hypervisor detected: KVM");
    assert_eq!(launch.calls(), 0);
}

#[test]
fn para_boots_with_a_tenth_of_the_exits() {
    let (full, para) = (launch_or_skip!("full"), launch_or_skip!("para"));
    for (what, count) in [
        ("exits", Launch::exits_at as fn(&Launch, u64) -> u64),
        ("exits to the VMM", Launch::user_exits_at),
    ] {
        let (full, para) = (count(full, 1), count(para, 1));
        assert!(
            para > 0 && para * 10 <= full,
            "{what} to init: full {full}, para {para}"
        );
    }
}

#[test]
fn para_writes_the_console_with_a_hundredth_of_the_exits() {
    let (full, para) = (launch_or_skip!("full"), launch_or_skip!("para"));
    let between = |launch: &Launch| launch.exits_at(3) - launch.exits_at(2);
    let (full, para) = (between(full), between(para));
    assert!(
        para * 100 <= full,
        "exits to write {} bytes: full {full}, para {para}",
        launches::CONSOLE_BYTES
    );
}

#[test]
fn pv_timer_2_every_nap_ends_and_none_too_early() {
    for name in ["full", "para"] {
        let launch = launch_or_skip!(name);
        let line = launch
            .console
            .lines()
            .find_map(|l| l.strip_prefix("PARAVANE-NAPS "));
        let naps: serde_json::Value =
            serde_json::from_str(line.unwrap_or("null")).expect("naps are JSON");
        assert_eq!(naps["early"], 0, "{name}: {launch}");
        let late = naps["late_us_log2"].as_array().into_iter().flatten();
        let ended: u64 = late.filter_map(serde_json::Value::as_u64).sum();
        assert_eq!(ended, 200, "{name}: {launch}");
    }
}

/// Whole lines of the console workload.
fn workload_lines(launch: &Launch) -> usize {
    let lines = launch.console.lines();
    lines
        .filter(|line| *line == launches::WORKLOAD_LINE)
        .count()
}

#[test]
fn every_byte_of_the_workload_arrives() {
    for name in ["full", "para"] {
        let launch = launch_or_skip!(name);
        let lines = workload_lines(launch);
        assert_eq!(lines, launches::CONSOLE_BYTES / 64, "{name}: {launch}");
    }
}

#[test]
fn two_cpus_come_up_in_every_arm() {
    for name in ["full-smp", "kvm-pv-smp", "para-smp"] {
        let launch = launch_or_skip!(name);
        assert_eq!(launch.code, 0, "{launch}");
        assert_eq!(launch.report["cpus_online"], "0-1", "{launch}");
        assert!(
            launch.console.contains("smp: Brought up 1 node, 2 CPUs"),
            "{launch}"
        );
    }
}

#[test]
fn the_clock_of_a_para_guest_agrees_with_that_of_a_full_one() {
    // Both read the time of the host, one from the CMOS clock and one from the boot-info page.
    let (full, para) = (launch_or_skip!("full"), launch_or_skip!("para"));
    let seconds = |launch: &Launch| {
        launch.report["realtime_ns"]
            .as_u64()
            .map(|ns| ns / 1_000_000_000)
    };
    let (full, para) = (seconds(full).unwrap(), seconds(para).unwrap());
    // They were launched within one boot of the reference host.
    assert!(full.abs_diff(para) < 600, "full {full}, para {para}");
}

#[test]
fn a_para_panic_is_explained() {
    let panic = launch_or_skip!("para-panic");
    assert_eq!((panic.code, panic.outcome()), (2, "crash"), "{panic}");
    let report = &panic.errors;
    assert!(report.contains("Attempted to kill init!"), "{report}");
    assert!(
        report.contains("do_exit+0x"),
        "the backtrace is symbolised: {report}"
    );
    assert_eq!(panic.call("crash.report"), 1);
}

#[test]
fn the_module_shows_the_counters() {
    let module = launch_or_skip!("para-module");
    if module
        .console
        .contains("paravane.ko cannot be loaded: errno 2")
    {
        println!(
            "skipped: the initramfs was built without paravane.ko; `cargo ci initramfs` after the para kernel"
        );
        return;
    }
    assert_eq!(module.code, 0, "{module}");
    for file in ["version", "facilities", "transports", "calls"] {
        assert!(
            module.console.contains(&format!("PARAVANE-MODULE {file}")),
            "{file}: {module}"
        );
    }
    assert!(module.console.contains("console.notify "), "{module}");
}

#[test]
fn a_para_guest_without_its_clock_boots_or_says_why_not() {
    let launch = launch_or_skip!("para-without-clock");
    assert_eq!(launch.call("clock.wall"), 0, "{launch}");
    // Where CPUID tells the frequency of the TSC the guest boots; where nothing does, it cannot.
    match launch.outcome() {
        "power-off" => {}
        "crash" => assert!(launch.errors.contains("facility clock"), "{launch}"),
        outcome => panic!("{outcome}: {launch}"),
    }
}

#[test]
fn a_para_guest_without_its_console_boots_all_the_same() {
    let launch = launch_or_skip!("para-without-console");
    assert_eq!(
        (launch.code, launch.outcome()),
        (0, "power-off"),
        "{launch}"
    );
    assert_eq!(launch.call("console.notify"), 0, "{launch}");
    assert!(launch.exits_at(1) > 0);
}

#[test]
fn a_para_guest_bears_an_awkward_host() {
    let para = launch_or_skip!("para");
    for name in ["para-awkward-5", "para-awkward-10", "para-awkward-16"] {
        let launch = launch_or_skip!(name);
        assert_eq!(
            (launch.code, launch.outcome()),
            (0, "power-off"),
            "{launch}"
        );
        assert!(launch.errors.contains("awkward host, seed"), "{launch}");
        assert!(launch.call("console.notify") > 0, "{launch}");
        assert_eq!(workload_lines(launch), workload_lines(para), "{launch}");
        // Also on the hosts that often refuse `clock.wall`: both were launched within one boot of the reference host.
        let seconds =
            |launch: &Launch| launch.report["realtime_ns"].as_u64().unwrap() / 1_000_000_000;
        assert!(seconds(launch).abs_diff(seconds(para)) < 600, "{launch}");
    }
}

#[test]
fn pv_clock_6_a_guest_asks_where_the_counter_is_not_reliable() {
    let mut tried = 0;
    for name in ["para-awkward-5", "para-awkward-10", "para-awkward-16"] {
        let launch = launch_or_skip!(name);
        if launch.errors.contains("TSC not reliable") {
            tried += 1;
            assert!(launch.call("clock.wall") > 0, "{launch}");
        }
    }
    assert!(tried > 0, "no seed of these has an unreliable counter");
}

#[test]
fn para_starts_its_processors_by_a_call() {
    let para = launch_or_skip!("para-smp");
    assert_eq!(para.call("smp.start"), 1, "{para}");
}

#[test]
fn pv_smp_13_para_takes_processors_off_and_on_as_the_host_wants() {
    let Some(all) = or_skipped(launches()) else {
        return;
    };
    let (para, answers) = (all.get("para-hotplug"), all.hotplug());
    assert_eq!((para.code, para.outcome()), (0, "power-off"), "{para}");
    assert_eq!(answers.len(), launches::HOTPLUG.len(), "{answers:#?}");
    let on = |index: usize| answers[index]["cpus_on"].as_array().map(Vec::len);
    let found = [on(0), on(1), on(3), on(5), on(6), on(7)];
    // The wish that came during the pause is followed after it.
    let expected = [1, 3, 3, 2, 4, 64].map(Some);
    assert_eq!(found, expected, "{answers:#?}\n{para}");
    assert_eq!(answers[2]["state"], "paused");
    // Three at the start, then two, then two, then all that there are.
    assert_eq!(para.call("smp.start"), 3 + 2 + 2 + 60, "{para}");
    assert_eq!(para.call("smp.stop"), 3 + 1, "{para}");
}

#[test]
fn pv_delegate_4_para_uses_the_features_of_kvm_that_boot_info_names_and_no_others() {
    let para = launch_or_skip!("para-smp");
    // The kernel says what it has set up. Of KVM's clock there is nothing.
    assert!(
        para.console.contains("KVM setup pv remote TLB flush"),
        "{para}"
    );
    assert!(para.console.contains("setup PV sched yield"), "{para}");
    assert!(!para.console.contains("kvm-clock"), "{para}");
}

#[test]
fn the_vmm_conforms_on_a_stock_kvm_too() {
    let Some(all) = or_skipped(launches()) else {
        return;
    };
    let report = all.conformance();
    let count = |state: &str| report["counts"][state].as_u64();
    assert_eq!(report["host"], "reference", "{report:#}");
    assert_eq!(
        (count("fail"), count("skipped")),
        (Some(0), Some(0)),
        "{report:#}"
    );
    assert!(count("pass") > Some(40), "{report:#}");
}

#[test]
fn the_guests_say_what_they_must_and_nothing_that_they_must_not() {
    for name in ["full", "kvm-pv", "para", "para-image-as-full"] {
        let launch = launch_or_skip!(name);
        golden::check_messages(name, &launch.console);
    }
}

#[test]
fn cpuid_shows_what_it_must() {
    let Some(all) = or_skipped(launches()) else {
        return;
    };
    for name in ["full", "kvm-pv", "para"] {
        golden::check_cpuid(name, all.cpuid(name));
    }
}

/// Whether the test inside has come to `line`; `None`, after a word about it, where nothing was launched.
fn inside_says(line: &str) -> Option<bool> {
    let all = or_skipped(launches())?;
    println!("{}", all.inside());
    // The first comes behind the name of the test.
    Some(all.inside().lines().any(|said| said.ends_with(line)))
}

#[test]
fn the_para_guest_has_random_numbers_before_it_knows_its_clock() {
    let para = launch_or_skip!("para");
    let at = |text: &str| para.console.find(text);
    let (ready, clock) = (at("crng init done"), at("tsc: Detected"));
    assert!(ready.is_some() && ready < clock, "{para}");
}

#[test]
fn pv_rng_6_the_seed_is_gone_when_init_runs() {
    assert_ne!(inside_says(inside::SEED_IS_GONE), Some(false));
}

#[test]
fn pv_clock_9_a_guest_reads_the_page_when_its_host_is_through() {
    // Followed to the second, there and back.
    assert_ne!(inside_says(inside::STEP_IS_FOLLOWED), Some(false));
}

#[test]
fn pv_clock_12_a_step_of_the_hosts_clock_raises_the_event() {
    assert_ne!(inside_says(inside::STEP_IS_FOLLOWED), Some(false));
}

#[test]
fn a_guest_that_is_a_copy_begins_a_new_key() {
    assert_ne!(inside_says(inside::COPY_IS_RESEEDED), Some(false));
}
