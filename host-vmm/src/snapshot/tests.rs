//! Snapshots that are damaged, or of something else: refused, and nothing is built from them.
//!
//! The machine has not run, so that any KVM will do; where there is none, each test prints `skipped: reason`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use paravane_reference_host::or_skipped;
use serde_json::{Value, json};
use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::console::Console;
use crate::doctor::image;
use crate::vm::Vm;

/// A snapshot, and the kernel that it names.
struct Taken {
    file: TempFile,
    /// Kept, because the snapshot names it.
    _kernel: TempFile,
    state: Vec<u8>,
    memory_bytes: u64,
}

fn taken() -> Option<Taken> {
    or_skipped(crate::kvm::open())?;
    let kernel = TempFile::new().unwrap();
    kernel.as_file().write_all(image::ELF).unwrap();
    let config = Config {
        vcpus: 2,
        ..Config::of(Profile::Para, kernel.as_path().to_owned())
    };
    let mut vm = Vm::new(config, Console::memory().unwrap(), Instant::now()).unwrap();
    vm.boot().unwrap();
    let file = TempFile::new().unwrap();
    let length = vm.machine().save(file.as_file()).unwrap();
    assert_eq!(file.as_file().metadata().unwrap().len(), length);
    let (state, memory_bytes) = file::read_state(file.as_file()).unwrap();
    Some(Taken {
        file,
        _kernel: kernel,
        state,
        memory_bytes,
    })
}

impl Taken {
    fn open(&self) -> Result<Snapshot, SnapshotError> {
        let spec = self.file.as_path().to_str().unwrap().parse().unwrap();
        Snapshot::open(&spec, &Instead::default())
    }

    /// Builds the machine.
    fn go_on(&self) -> Result<Vm, String> {
        let snapshot = self.open().map_err(|e| e.to_string())?;
        let config = snapshot.config().clone();
        let console = Console::memory().unwrap();
        Vm::restored(snapshot, config, console, Instant::now()).map_err(|e| e.to_string())
    }

    /// Puts another state into it, with checksums that are right.
    fn put(&self, state: &Value) {
        let bytes = serde_json::to_vec(state).unwrap();
        let end = file::MEMORY_AT + self.memory_bytes;
        self.file.as_file().set_len(end).unwrap();
        file::finish(self.file.as_file(), self.memory_bytes, &bytes).unwrap();
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.state).unwrap()
    }

    /// What is said of the snapshot with another `value` at `pointer`.
    fn said_of(&self, pointer: &str, value: Value) -> String {
        let mut state = self.json();
        *state.pointer_mut(pointer).expect(pointer) = value;
        self.put(&state);
        self.go_on().map(drop).expect_err(pointer)
    }
}

#[test]
fn pv_boot_5_a_guest_that_goes_on_has_another_generation() {
    let Some(taken) = taken() else { return };
    let first = taken.go_on().unwrap();
    let page = first
        .memory()
        .read_obj::<paravane_abi::clock::ClockPage>(crate::pv::CLOCK_PAGE);
    let page = page.unwrap();
    assert_ne!(page.generation, 0);
    assert_eq!((page.sequence % 2, page.disruption), (0, 1));
}

#[test]
fn pv_state_2_a_snapshot_is_gone_on_from_as_often_as_one_likes() {
    let Some(taken) = taken() else { return };
    let first = taken.go_on().unwrap();
    let second = taken.go_on().unwrap();
    let generation = |vm: &Vm| {
        vm.memory()
            .read_obj::<u64>(crate::pv::GENERATION_AT)
            .unwrap()
    };
    assert_ne!(generation(&first), generation(&second));
    // What was saved is saved again, but for clocks.
    let again = TempFile::new().unwrap();
    first.machine().save(again.as_file()).unwrap();
    let (state, _) = file::read_state(again.as_file()).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    let was = taken.json();
    for part in [
        "facility smp",
        "facility ring",
        "facility console",
        "port devices",
    ] {
        assert_eq!(state["parts"][part], was["parts"][part], "{part}");
    }
    for part in ["regs", "sregs", "xcrs", "mp_state"] {
        assert_eq!(state["vcpus"][0][part], was["vcpus"][0][part], "{part}");
    }
    assert_eq!(state["config"], was["config"]);
    let tsc = |state: &Value, vcpu: usize| {
        let state = state["vcpus"][vcpu].clone();
        from_state::<VcpuState>(state).unwrap().tsc()
    };
    // Spec: PV-STATE-3
    for vcpu in [0, 1] {
        assert!(tsc(&state, vcpu) >= tsc(&was, 0), "counter of vCPU {vcpu}");
    }
}

#[test]
fn pv_state_5_a_disk_that_is_another_by_now_is_refused() {
    let file = TempFile::new().unwrap();
    file.as_file().write_all(&[1; 512]).unwrap();
    let saved = Named::look(file.as_path()).unwrap();
    let find = |given| saved.find(given, "disk", "mend").map_err(|e| e.to_string());
    assert_eq!(find(None).unwrap(), file.as_path());
    let copy = TempFile::new().unwrap();
    copy.as_file().write_all(&[1; 512]).unwrap();
    assert_eq!(find(Some(copy.as_path())).unwrap(), copy.as_path());
    copy.as_file().set_len(1024).unwrap();
    assert!(
        find(Some(copy.as_path()))
            .unwrap_err()
            .contains("1024 bytes")
    );
    let later = file.as_file().metadata().unwrap().modified().unwrap() + Duration::from_secs(1);
    file.as_file().set_modified(later).unwrap();
    assert!(find(None).unwrap_err().contains("written to since"));
    assert!(
        find(Some(Path::new("/nowhere")))
            .unwrap_err()
            .contains("not to be had")
    );
}

#[test]
fn a_bit_that_has_changed_is_found_wherever_it_is() {
    let Some(taken) = taken() else { return };
    let file = taken.file.as_file();
    let state_at = file::MEMORY_AT + taken.memory_bytes;
    let content: Content = serde_json::from_slice(&taken.state).unwrap();
    let extents = content.memory.iter();
    let last = |e: &Extent| file::MEMORY_AT + e.at + u64::from(e.bytes) - 1;
    let places = (0..64)
        .chain([64, 1000, 4095])
        .chain(extents.clone().map(|e| file::MEMORY_AT + e.at))
        .chain(extents.map(last))
        // Where there was nothing.
        .chain([state_at - 1, state_at - 0x10_0000])
        .chain((state_at..state_at + taken.state.len() as u64).step_by(997));
    for at in places {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        for bit in [0, 7] {
            file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            let refused = taken.open().map(drop);
            assert!(refused.is_err(), "bit {bit} of byte {at:#x}");
        }
        file.write_all_at(&byte, at).unwrap();
    }
    taken.open().unwrap();
}

#[test]
fn a_file_that_is_cut_off_or_too_long_is_refused() {
    let Some(taken) = taken() else { return };
    let file = taken.file.as_file();
    let whole = file.metadata().unwrap().len();
    let state_at = file::MEMORY_AT + taken.memory_bytes;
    let lengths = (0..80)
        .chain([4095, 4096, 0x10_0000, state_at - 1, state_at])
        .chain((state_at..whole).step_by(991))
        .chain([whole - 1, whole + 1, whole + 4096]);
    for length in lengths {
        let copy = TempFile::new().unwrap();
        let mut source = OpenOptions::new()
            .read(true)
            .open(taken.file.as_path())
            .unwrap();
        if length > state_at {
            io::copy(&mut source, &mut copy.as_file()).unwrap();
        } else {
            io::copy(
                &mut io::Read::take(source, length.min(4096)),
                &mut copy.as_file(),
            )
            .unwrap();
        }
        copy.as_file().set_len(length).unwrap();
        let spec = copy.as_path().to_str().unwrap().parse().unwrap();
        let opened = Snapshot::open(&spec, &Instead::default());
        assert!(opened.is_err(), "{length} of {whole} bytes");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_named() {
    let Some(taken) = taken() else { return };
    let file = taken.json()["config"]["kernel"].clone();
    let disk = json!({ "file": file, "read_only": true, "queues": 5 });
    for (pointer, value, words) in [
        ("/vmm", json!("0.0.1"), "VMM's version was 0.0.1"),
        (
            "/cpuid/0/3",
            json!(1),
            "processor or KVM was one whose CPUID says",
        ),
        ("/config/vcpus", json!(3), "not all vCPUs are there"),
        ("/config/memory_mib", json!(64), "it is of 64 MiB"),
        ("/config/guest", json!("full"), "interrupt controllers"),
        ("/config/facilities", json!("base"), "CPUID"),
        ("/config/disks", json!([disk]), "no 5 queues"),
        (
            "/config/kernel/bytes",
            json!(1),
            "guest's kernel was 1 bytes long",
        ),
        ("/config/kernel/path", json!("/nowhere"), "not to be had"),
        (
            "/parts/facility ring",
            json!([null]),
            "facility ring cannot be",
        ),
        (
            "/parts/facility smp/0",
            json!(["Off", "Off"]),
            "facility smp cannot be",
        ),
        (
            "/parts/facility console/3",
            json!(0x1_0000),
            "event 0x10000 cannot be",
        ),
        (
            "/parts/facility dev",
            json!([[0, null]]),
            "another number of devices",
        ),
        (
            "/vcpus/0/msrs/0/0",
            json!(0xdead_beef_u32),
            "MSR 0xdeadbeef",
        ),
        ("/memory/0/crc", json!(1), "memory has been altered"),
        ("/memory/0/at", json!(u64::MAX), "list of memory"),
    ] {
        let said = taken.said_of(pointer, value);
        assert!(said.contains(words), "{pointer}: {said}");
    }
}

#[test]
fn what_a_copy_would_not_have_is_not_saved() {
    let config = || Config::of(Profile::Para, "/proc/self/exe".into());
    SavedConfig::of(&config()).unwrap();
    for (config, words) in [
        (
            Config {
                vsock: Some(3),
                ..config()
            },
            "vsock",
        ),
        (
            Config {
                complete: true,
                ..config()
            },
            "--complete",
        ),
    ] {
        let refused = SavedConfig::of(&config).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
}

#[test]
fn the_fuzzers_seed_is_a_state() {
    let seed = include_bytes!("../../fuzz/seeds/snapshot/direct.json");
    check(seed, 32 << 20).unwrap();
}

/// The pointers to all that is in `value`; of a list, its first two and its last.
fn pointers(value: &Value, here: &str, all: &mut Vec<String>) {
    let mut add = |name: &str, inner: &Value| {
        let name = format!("{here}/{name}");
        pointers(inner, &name, all);
        all.push(name);
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, inner)| add(name, inner)),
        Value::Array(list) => {
            let last = list.len().saturating_sub(1);
            for (index, inner) in list.iter().enumerate() {
                if index < 2 || index == last {
                    add(&index.to_string(), inner);
                }
            }
        }
        _ => {}
    }
}

#[test]
fn a_state_of_any_form_is_taken_or_refused() {
    let Some(taken) = taken() else { return };
    let state = taken.json();
    let mut all = Vec::new();
    pointers(&state, "", &mut all);
    let (mut refused, mut tries) = (0, 0);
    for pointer in &all {
        let number = state.pointer(pointer).is_some_and(Value::is_number);
        let others = [
            json!("?"),
            json!(null),
            json!(-1),
            json!(u64::MAX),
            json!([]),
            json!({}),
        ];
        for other in others {
            let mut changed = state.clone();
            *changed.pointer_mut(pointer).unwrap() = other.clone();
            taken.put(&changed);
            let result = taken.go_on();
            tries += 1;
            refused += u32::from(result.is_err());
            if number && !other.is_number() {
                assert!(result.is_err(), "{other} at {pointer}");
            }
        }
        // A field that is missing, and one too many.
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let mut changed = state.clone();
        if let Some(Value::Object(fields)) = changed.pointer_mut(parent) {
            let value = fields.remove(name).unwrap();
            taken.put(&changed);
            assert!(
                value.is_null() || taken.go_on().is_err(),
                "without {pointer}"
            );
            let mut changed = state.clone();
            changed.pointer_mut(parent).unwrap()["more"] = value;
            taken.put(&changed);
            assert!(taken.go_on().is_err(), "more in `{parent}`");
        }
    }
    println!("{refused} of {tries} states that are not what was saved are refused");
}

#[test]
fn memory_of_a_file_is_a_copy_and_can_be_discarded() {
    let file = TempFile::new().unwrap();
    let bytes = 1 << 20;
    let at = file::MEMORY_AT;
    file.as_file().write_all_at(&vec![7; bytes], at).unwrap();
    let memory = Memory::of_file(1, file.as_file(), at).unwrap();
    let read = |memory: &Memory, at| memory.read_obj::<u8>(at).unwrap();
    assert_eq!((read(&memory, 0), read(&memory, 0xf_ffff)), (7, 7));
    memory.write(0, &[8]).unwrap();
    memory.discard(0x1000, 0x2000).unwrap();
    let other = Memory::of_file(1, file.as_file(), at).unwrap();
    let bytes = [0, 0xfff, 0x1000, 0x2fff, 0x3000];
    assert_eq!(bytes.map(|at| read(&memory, at)), [8, 7, 0, 0, 7]);
    assert_eq!(bytes.map(|at| read(&other, at)), [7; 5]);
    memory.write(0x1000, &[9]).unwrap();
    assert_eq!(read(&memory, 0x1000), 9);
    // One that is too short cannot be mapped.
    assert!(Memory::of_file(1, file.as_file(), at + 1).is_err());
}
