//! The control socket of a running VMM, with clients that mean well and others. The guest counts in memory, for ever.
//!
//! Where there is no KVM, each test that needs one prints `skipped: reason`.

mod counting;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use counting::{COUNTS, Counting, entry, fresh_path};
use object::{Object, ObjectSegment};
use paravane::console::Console;
use paravane::ctl::client::{Client, ClientError};
use paravane::ctl::server::Server;
use paravane::ctl::{Power, Request};
use paravane::socket::SocketError;
use paravane::stats::{Outcome, Stats};
use paravane::vm::RunOptions;
use serde_json::Value;
use vmm_sys_util::tempfile::TempFile;

/// The guest, and its socket.
struct Running {
    path: PathBuf,
    counting: Counting,
}

/// Starts the guest with a socket of its own; `None` where there is no KVM.
fn start() -> Option<Running> {
    start_with(&Arc::new(Server::bind(&fresh_path()).unwrap()))
}

/// Starts the guest with this socket; `None` where there is no KVM.
fn start_with(server: &Arc<Server>) -> Option<Running> {
    let counting = Counting::start(RunOptions {
        ctl: Some(Arc::clone(server)),
        host: "kvm".to_owned(),
        ..RunOptions::default()
    })?;
    let path = server.path().to_owned();
    Some(Running { path, counting })
}

impl Running {
    fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    /// Switches the guest off by the socket.
    fn off(self) -> Stats {
        let request = Request::Power { action: Power::Off };
        let status = self.client().ask(request).unwrap();
        assert_eq!(status["state"], "ended");
        self.counting.thread.join().unwrap()
    }
}

/// A connection without manners.
fn raw(path: &Path) -> BufReader<UnixStream> {
    let stream = UnixStream::connect(path).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    BufReader::new(stream)
}

fn line(stream: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|e| panic!("`{line}` is no JSON: {e}"))
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    let Some(guest) = start() else { return };
    let mut client = guest.client();
    let mut ask = |request| client.ask(request).unwrap();
    for _ in 0..20 {
        guest.counting.counts();
        assert_eq!(ask(Request::Pause {})["state"], "paused");
        let stood = guest.counting.counter();
        // A second one changes nothing.
        assert_eq!(ask(Request::Pause {})["state"], "paused");
        assert_eq!(ask(Request::Status {})["state"], "paused");
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(guest.counting.counter(), stood);
        assert_eq!(ask(Request::Resume {})["state"], "running");
    }
    guest.counting.counts();
    let status = ask(Request::Status {});
    assert_eq!(status["guest"], "para");
    assert_eq!(status["cpus"], 2);
    assert_eq!(status["cpus_on"], serde_json::json!([0]));
    assert_eq!(status["memory_mib"], 32);
    assert_eq!(guest.off().outcome, Outcome::PowerOff);
}

/// `mov edi, COUNTER; mov esi, 4096; mov eax, console.write; mov edx, 0x7e; out dx, eax`, and from the beginning.
const PRINTS: [u8; 23] = [
    0xbf, 0x00, 0x00, 0x80, 0x00, 0xbe, 0x00, 0x10, 0x00, 0x00, 0xb8, 0x00, 0x00, 0x02, 0x00, 0xba,
    0x7e, 0x00, 0x00, 0x00, 0xef, 0xeb, 0xe9,
];

#[test]
fn a_guest_whose_output_nobody_reads_ends_when_it_is_told_to() {
    for by_socket in [true, false] {
        let (reader, writer) = std::io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let console = Console::file(Path::new(&path)).unwrap();
        let server = Arc::new(Server::bind(&fresh_path()).unwrap());
        let options = RunOptions {
            ctl: Some(Arc::clone(&server)),
            ..RunOptions::default()
        };
        let limit = Duration::from_secs(if by_socket { 120 } else { 1 });
        let Some(guest) = Counting::of(&PRINTS, console.clone(), limit, options) else {
            return;
        };
        // The pipe is full once nothing more is taken from the guest.
        let mut before = 0;
        while before == 0 || console.bytes() != before {
            before = console.bytes();
            std::thread::sleep(Duration::from_millis(50));
        }
        if by_socket {
            let mut client = Client::connect(server.path()).unwrap();
            let stats = client.ask(Request::Stats {}).unwrap();
            assert_eq!(stats["console"]["out_bytes"], before);
            let request = Request::Power { action: Power::Off };
            client.ask(request).unwrap();
        }
        let start = Instant::now();
        while !guest.thread.is_finished() {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "it has not ended"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let outcome = guest.thread.join().unwrap().outcome;
        let expected = [Outcome::Watchdog, Outcome::PowerOff][usize::from(by_socket)];
        assert_eq!(outcome, expected);
        drop(reader);
    }
}

/// Puts out each byte of its input ring, one at a time: waits until `in_head` is not `in_tail`, and then
/// `lea edi, [IN_BUFFER + in_tail % IN_SIZE]; mov esi, 1; mov eax, console.write; mov edx, 0x7e; out dx, eax; inc dword [in_tail]`.
const ECHOES: [u8; 53] = [
    0x8b, 0x0c, 0x25, 0xc0, 0x10, 0x0e, 0x00, 0x3b, 0x0c, 0x25, 0x80, 0x10, 0x0e, 0x00, 0x74, 0xf0,
    0x81, 0xe1, 0xff, 0x0f, 0x00, 0x00, 0x8d, 0xb9, 0x00, 0x20, 0x0f, 0x00, 0xbe, 0x01, 0x00, 0x00,
    0x00, 0xb8, 0x00, 0x00, 0x02, 0x00, 0xba, 0x7e, 0x00, 0x00, 0x00, 0xef, 0xff, 0x04, 0x25, 0xc0,
    0x10, 0x0e, 0x00, 0xeb, 0xcb,
];

#[test]
fn input_that_finds_no_room_or_comes_in_a_pause_is_not_lost() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: both descriptors are open, and no other test reads standard input.
    assert_eq!(unsafe { libc::dup2(reader.as_raw_fd(), 0) }, 0);
    let console = Console::memory().unwrap();
    let server = Arc::new(Server::bind(&fresh_path()).unwrap());
    let options = RunOptions {
        stdin: true,
        ctl: Some(Arc::clone(&server)),
        ..RunOptions::default()
    };
    let limit = Duration::from_secs(120);
    let Some(counting) = Counting::of(&ECHOES, console.clone(), limit, options) else {
        return;
    };
    let mut client = Client::connect(server.path()).unwrap();
    client.ask(Request::Pause {}).unwrap();
    // More than the VMM keeps, in pieces that are none of its own sizes.
    let input: Vec<u8> = (0..100_000_u32)
        .map(|n| n.to_le_bytes()[usize::from(n % 3 == 0)])
        .collect();
    for piece in input.chunks(1000) {
        writer.write_all(piece).unwrap();
    }
    client.ask(Request::Resume {}).unwrap();
    while console.bytes() < input.len() as u64 {
        let came = console.bytes();
        assert!(!counting.thread.is_finished(), "{came} bytes have come");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(console.contents() == input);
    let path = server.path().to_owned();
    Running { path, counting }.off();
}

#[test]
fn a_paused_guest_can_be_switched_off() {
    let Some(guest) = start() else { return };
    guest.counting.counts();
    guest.client().ask(Request::Pause {}).unwrap();
    let path = guest.path.clone();
    assert_eq!(guest.off().outcome, Outcome::PowerOff);
    assert!(!path.exists(), "the socket is left behind");
}

/// Whatever it is told, and whether that is done or refused.
#[test]
fn a_paused_guest_that_is_told_something_stands_still_until_it_is_resumed() {
    let Some(guest) = start() else { return };
    guest.counting.counts();
    let mut client = guest.client();
    client.ask(Request::Pause {}).unwrap();
    let stood = guest.counting.counter();
    let core = TempFile::new().unwrap();
    let snapshot = TempFile::new().unwrap();
    for (request, file, refused) in [
        (Request::Memory { mib: 16 }, None, None),
        (Request::Memory { mib: 64 }, None, Some("memory")),
        (Request::Cpus { count: 2 }, None, Some("no-hotplug")),
        (Request::Core {}, Some(core.as_file()), None),
        (Request::Core {}, Some(core.as_file()), None),
        (
            Request::Snapshot {},
            Some(snapshot.as_file()),
            Some("snapshot"),
        ),
        (Request::Stats {}, None, None),
        (Request::Metrics {}, None, None),
    ] {
        match (client.ask_with(request, file), refused) {
            (Ok(_), None) => {}
            (Err(ClientError::Refused { code, .. }), Some(expected)) => assert_eq!(code, expected),
            other => panic!("{request:?}: {other:?}"),
        }
        assert_eq!(client.ask(Request::Status {}).unwrap()["state"], "paused");
        assert_eq!(guest.counting.counter(), stood, "{request:?}");
    }
    client.ask(Request::Resume {}).unwrap();
    guest.counting.counts();
    guest.off();
}

#[test]
fn a_pause_and_a_core_at_once_do_not_end_each_other() {
    let Some(guest) = start() else { return };
    guest.counting.counts();
    let mut other = guest.client();
    let writing = std::thread::spawn(move || {
        let core = TempFile::new().unwrap();
        for _ in 0..8 {
            other
                .ask_with(Request::Core {}, Some(core.as_file()))
                .unwrap();
        }
    });
    let mut client = guest.client();
    while !writing.is_finished() {
        assert_eq!(client.ask(Request::Pause {}).unwrap()["state"], "paused");
        let stood = guest.counting.counter();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(guest.counting.counter(), stood);
        client.ask(Request::Resume {}).unwrap();
    }
    writing.join().unwrap();
    guest.counting.counts();
    guest.off();
}

#[test]
fn a_reset_ends_the_run_as_a_restart_in_a_pause_too() {
    let Some(guest) = start() else { return };
    guest.client().ask(Request::Pause {}).unwrap();
    let request = Request::Power {
        action: Power::Reset,
    };
    guest.client().ask(request).unwrap();
    assert_eq!(
        guest.counting.thread.join().unwrap().outcome,
        Outcome::Reboot
    );
}

#[test]
fn a_client_keeps_its_connection_when_the_machine_starts_again() {
    let server = Arc::new(Server::bind(&fresh_path()).unwrap());
    let Some(guest) = start_with(&server) else {
        return;
    };
    let mut client = guest.client();
    let reset = Request::Power {
        action: Power::Reset,
    };
    assert_eq!(client.ask(reset).unwrap()["state"], "ended");
    guest.counting.thread.join().unwrap();
    // In between, a request waits.
    let asking = std::thread::spawn(move || client.ask(Request::Status {}).unwrap());
    let guest = start_with(&server).unwrap();
    assert_eq!(asking.join().unwrap()["state"], "running");
    guest.off();
}

#[test]
fn a_guest_that_does_not_listen_is_not_asked_for_processors() {
    let Some(guest) = start() else { return };
    for (count, expected) in [(2, "no-hotplug"), (3, "too-many")] {
        match guest.client().ask(Request::Cpus { count }) {
            Err(ClientError::Refused { code, .. }) => assert_eq!(code, expected),
            other => panic!("{other:?}"),
        }
    }
    guest.off();
}

#[test]
fn a_core_has_memory_and_registers_and_the_guest_goes_on() {
    let Some(guest) = start() else { return };
    guest.counting.counts();
    let mut client = guest.client();
    match client.ask(Request::Core {}) {
        Err(ClientError::Refused { code, .. }) => assert_eq!(code, "no-file"),
        other => panic!("{other:?}"),
    }
    let path = fresh_path();
    let file = std::fs::File::create_new(&path).unwrap();
    let answer = client.ask_with(Request::Core {}, Some(&file)).unwrap();
    let core = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(answer["bytes"], core.len());
    let parsed = object::File::parse(core.as_slice()).unwrap();
    assert_eq!(parsed.kind(), object::ObjectKind::Core);
    let segment = parsed.segments().find(|segment| segment.address() == 0);
    let memory = segment.unwrap().data().unwrap();
    assert_eq!(memory.len(), 32 << 20);
    let code = usize::try_from(entry()).unwrap();
    assert_eq!(memory[code..code + COUNTS.len()], COUNTS);
    guest.counting.counts();
    // A file that takes nothing.
    let full = std::fs::File::options().read(true).open("/dev/null");
    match client.ask_with(Request::Core {}, Some(&full.unwrap())) {
        Err(ClientError::Refused { code, .. }) => assert_eq!(code, "file"),
        other => panic!("{other:?}"),
    }
    guest.counting.counts();
    guest.off();
}

#[test]
fn a_guest_whose_snapshot_is_refused_goes_on() {
    let Some(guest) = start() else { return };
    guest.counting.counts();
    let mut client = guest.client();
    let mut refused = |file| match client.ask_with(Request::Snapshot {}, file) {
        Err(ClientError::Refused { code, message, .. }) => (code, message),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(None).0, "no-file");
    // Its kernel's file has gone by now.
    let file = TempFile::new().unwrap();
    let (code, message) = refused(Some(file.as_file()));
    assert_eq!(code, "snapshot");
    assert!(message.contains("its kernel is not there"), "{message}");
    guest.counting.counts();
    guest.off();
}

#[test]
fn statistics_and_metrics_tell_the_same() {
    let Some(guest) = start() else { return };
    guest.counting.counts();
    let mut client = guest.client();
    client.ask(Request::Pause {}).unwrap();
    let stats = client.ask(Request::Stats {}).unwrap();
    assert_eq!(stats["outcome"], "running");
    assert!(stats["user_exits"]["interrupted"].as_u64() > Some(0));
    let metrics = client.ask(Request::Metrics {}).unwrap();
    let text = metrics["openmetrics"].as_str().unwrap();
    let sample = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
            .trim()
            .to_owned()
    };
    assert_eq!(
        sample("paravane_user_exits_total{reason=\"interrupted\"}"),
        stats["user_exits"]["interrupted"].to_string()
    );
    assert_eq!(sample("paravane_paused "), "1");
    assert_eq!(sample("paravane_vcpus_on "), "1");
    assert!(text.ends_with("# EOF\n"));
    // A family's samples follow its type.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family = name.trim_end_matches("_total").trim_end_matches("_info");
        assert!(text.contains(&format!("# TYPE {family} ")), "{line}");
    }
    guest.off();
}

#[test]
fn hostile_clients_harm_nobody() {
    let Some(guest) = start() else { return };
    let errors = [
        &b"\n"[..],
        b"status\n",
        b"{\"command\":\"status\"\n",
        b"{\"command\":\"power\",\"action\":\"melt\"}\n",
        b"\xff\xfe\x00\n",
        b"[[[[[[[[[[[[[[[[\n",
    ];
    // Errors leave the connection as it is.
    let mut stream = raw(&guest.path);
    for bytes in errors {
        stream.get_mut().write_all(bytes).unwrap();
        let answer = line(&mut stream);
        assert_eq!(answer["error"]["code"], "bad-request", "{bytes:?}");
        assert!(answer["error"]["mend"].is_string());
    }
    stream
        .get_mut()
        .write_all(b"{\"command\":\"status\"}\n{\"command\":\"status\"}\n")
        .unwrap();
    for _ in 0..2 {
        assert_eq!(line(&mut stream)["ok"]["state"], "running");
    }

    // A line without an end.
    let mut long = raw(&guest.path);
    long.get_mut().write_all(&[b'x'; 5000]).unwrap();
    assert_eq!(line(&mut long)["error"]["code"], "too-long");
    let mut rest = Vec::new();
    // Closed, with what had not been read thrown away.
    let _ = long.read_to_end(&mut rest);
    assert!(rest.is_empty());

    // The end of the stream ends a request as well.
    let mut short = raw(&guest.path);
    short
        .get_mut()
        .write_all(b"{\"command\":\"status\"}")
        .unwrap();
    short.get_mut().shutdown(Shutdown::Write).unwrap();
    assert_eq!(line(&mut short)["ok"]["state"], "running");

    // Half a request each, and more of them than there is room for.
    let held: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = raw(&guest.path);
            let _ = stream.get_mut().write_all(b"{\"command\":");
            stream
        })
        .collect();
    assert_eq!(
        guest.client().ask(Request::Status {}).unwrap()["state"],
        "running"
    );
    drop(held);

    // One that asks and asks and never reads.
    let mut deaf = raw(&guest.path);
    let question = b"{\"command\":\"metrics\"}\n".repeat(100);
    while deaf.get_mut().write_all(&question).is_ok() {}
    assert_eq!(
        guest.client().ask(Request::Status {}).unwrap()["state"],
        "running"
    );
    assert_eq!(guest.off().outcome, Outcome::PowerOff);
}

#[test]
fn the_socket_is_its_owners_alone_and_takes_nobodys_place() {
    let path = fresh_path();
    {
        let _server = Server::bind(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(Server::bind(&path), Err(SocketError::Taken(_))));
    }
    assert!(!path.exists());
    // One whose process has been killed.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(Server::bind(&path).unwrap());

    let file = TempFile::new().unwrap();
    let bound = Server::bind(file.as_path());
    assert!(matches!(bound, Err(SocketError::NoSocket(_))), "{bound:?}");
    let nowhere = Server::bind(Path::new("/nonexistent/socket"));
    assert!(matches!(nowhere, Err(SocketError::Bind { .. })));
    let unheard = Client::connect(&path);
    assert!(matches!(unheard, Err(ClientError::Connect { .. })));
}
