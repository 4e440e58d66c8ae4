//! The reference host runs real commands. Each test boots it, one after the other; without an appliance they are skipped.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use paravane_reference_host::{Appliance, Command, Finished, Input, RunError, or_skipped};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A sink that the test can read afterwards.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("no writer panicked").clone()
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes()).expect("UTF-8")
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no reader panicked").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The turn to use the machine, if there is an appliance.
fn turn() -> Option<MutexGuard<'static, ()>> {
    or_skipped(Appliance::find())?;
    // A test that failed in its turn says nothing about the next one's.
    let turn = ONE_AT_A_TIME.lock();
    Some(turn.unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn shell(script: &str) -> Command {
    Command::new(["sh", "-c", script])
        .expect("the working folder is known")
        .timeout(Duration::from_secs(120))
}

fn run(command: Command) -> (Finished, Kept, Kept) {
    let (output, errors) = (Kept::default(), Kept::default());
    let finished = command.stdout(output.clone()).stderr(errors.clone()).run();
    let finished = finished.unwrap_or_else(|error| panic!("{error}"));
    (finished, output, errors)
}

fn random_file(path: &Path, bytes: u64) -> Vec<u8> {
    let mut random = Vec::new();
    File::open("/dev/urandom")
        .and_then(|file| file.take(bytes).read_to_end(&mut random))
        .expect("random bytes");
    fs::write(path, &random).expect("the file is written");
    random
}

#[test]
fn exit_code_comes_back_and_kvm_is_there() {
    let Some(_turn) = turn() else { return };
    let (finished, output, errors) = run(shell(
        "test -c /dev/kvm && test -r /sys/kernel/tracing/events/kvm/kvm_exit/id && exit 7",
    ));
    assert_eq!(
        (finished.code, output.text(), errors.text()),
        (7, String::new(), String::new())
    );
}

#[test]
fn exit_code_of_a_missing_program_is_that_of_a_shell() {
    let Some(_turn) = turn() else { return };
    let command = Command::new(["no-such-program"]).expect("the working folder is known");
    let (finished, _, errors) = run(command);
    assert_eq!(finished.code, 127);
    assert!(
        errors.text().contains("no-such-program"),
        "{}",
        errors.text()
    );
}

#[test]
fn streams_are_apart_and_exact() {
    let Some(_turn) = turn() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = random_file(&folder.path().join("out"), 1 << 20);
    let err = random_file(&folder.path().join("err"), 300_000);
    let command = shell("cat err >&2 & cat out; wait").current_dir(folder.path());
    let (finished, output, errors) = run(command);
    assert_eq!(finished.code, 0);
    assert!(output.bytes() == out, "output differs");
    assert!(errors.bytes() == err, "errors differ");
}

#[test]
fn input_is_exact_and_ends() {
    let Some(_turn) = turn() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("input");
    let sent = random_file(&path, 1 << 20);
    let input = File::open(&path).expect("the file is there");
    let (finished, output, _) = run(shell("cat").stdin(Input::File(input)));
    assert_eq!(finished.code, 0);
    assert!(output.bytes() == sent, "input differs");
}

#[test]
fn surroundings_are_the_callers_and_files_are_shared() {
    let Some(_turn) = turn() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("from outside"), "outside").expect("the file is written");
    let command = shell("pwd; echo \"$0 $WORD $PARAVANE_REFERENCE_HOST\"; cat 'from outside'; echo inside > 'from inside'; mkdir sub; echo x > sub/x")
        .arg("a 'b' $c\n")
        .env("WORD", "d \"e\" `f`")
        .current_dir(folder.path());
    let (finished, output, errors) = run(command);
    let expected = format!(
        "{}\na 'b' $c\n d \"e\" `f` 1\noutside",
        folder.path().display()
    );
    assert_eq!(
        (finished.code, output.text(), errors.text()),
        (0, expected, String::new())
    );
    assert_eq!(
        fs::read(folder.path().join("from inside")).expect("made inside"),
        b"inside\n"
    );
    assert_eq!(
        fs::read(folder.path().join("sub/x")).expect("made inside"),
        b"x\n"
    );
}

#[test]
fn what_the_command_leaves_running_does_not_hold_it_up() {
    let Some(_turn) = turn() else { return };
    let (finished, output, _) = run(shell("sleep 1000 & echo begun"));
    assert_eq!((finished.code, output.text()), (0, "begun\n".into()));
}

#[test]
fn a_hang_ends_with_the_time_limit() {
    let Some(_turn) = turn() else { return };
    let output = Kept::default();
    let limit = Duration::from_secs(5);
    let result = shell("echo before; exec sleep 1000")
        .timeout(limit)
        .stdout(output.clone())
        .run();
    assert!(
        matches!(&result, Err(RunError::Timeout { limit: told, .. }) if *told == limit),
        "{result:?}"
    );
    assert_eq!(output.text(), "before\n");
}

#[test]
fn a_machine_that_never_comes_up_ends_with_the_boot_limit() {
    let Some(_turn) = turn() else { return };
    let result = shell("true").boot_timeout(Duration::from_millis(200)).run();
    assert!(
        matches!(result, Err(RunError::BootTimeout { .. })),
        "{result:?}"
    );
}

#[test]
fn a_panic_of_the_machine_is_told_with_its_last_messages() {
    let Some(_turn) = turn() else { return };
    match shell("echo c > /proc/sysrq-trigger").run() {
        Err(RunError::Died { log, .. }) => assert!(log.contains("Kernel panic"), "{log}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_signal_ends_the_machine_and_this_process_lives() {
    let Some(_turn) = turn() else { return };
    let result = shell("sleep 1000")
        .on_start(|| {
            let own = process::id().to_string();
            let status = process::Command::new("kill").args(["-TERM", &own]).status();
            assert!(status.is_ok_and(|status| status.success()));
        })
        .run();
    assert!(
        matches!(result, Err(RunError::Interrupted { signal: 15 })),
        "{result:?}"
    );
}

#[test]
fn counted_time_is_the_work_and_nothing_else() {
    let Some(_turn) = turn() else { return };
    // The same work again and again, and what it took.
    let script = "echo $PARAVANE_REFERENCE_HOST; for turn in 1 2 3 4 5; do a=$(date +%s%N); n=0; \
        while [ $n -lt 30000 ]; do n=$((n + 1)); done; b=$(date +%s%N); echo $((b - a)); done";
    let (finished, output, _) = run(shell(script).counted());
    assert!(finished.success());
    let text = output.text();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("counted"));
    let mut took: Vec<u64> = lines.map(|line| line.parse().expect("a number")).collect();
    assert_eq!(took.len(), 5);
    took.sort_unstable();
    // What waits for the file server, in real time, takes longer; the others do the same and take as long.
    let (least, third) = (took[0], took[2]);
    assert!(least > 0 && third - least < least / 10, "{took:?}");
}
