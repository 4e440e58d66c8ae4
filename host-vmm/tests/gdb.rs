//! A guest under gdb: Debian's own, by its command line, and a client of the protocol that does what gdb would not.
//!
//! The guest counts in memory, for ever. Linux under gdb is in `tests/boot`. Where there is no KVM, or no gdb, a test
//! prints `skipped: reason`.

mod counting;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use counting::{COUNTER, COUNTS, Counting, entry, fresh_path};
use paravane::gdb::{Address, Server};
use paravane::stats::Outcome;
use paravane::vm::RunOptions;
use paravane_reference_host::or_skipped;

/// Where INC is, behind the first instruction.
const INC: u64 = 1;

/// The guest, and its debugger's socket.
struct Running {
    path: PathBuf,
    counting: Counting,
}

/// Starts the guest; `None` where there is no KVM.
fn start(waits: bool) -> Option<Running> {
    let path = fresh_path();
    let server = Server::bind(&Address::Unix(path.clone()), waits).unwrap();
    let counting = Counting::start(RunOptions {
        gdb: Some(Arc::new(server)),
        ..RunOptions::default()
    })?;
    Some(Running { path, counting })
}

impl Running {
    fn code(&self) -> [u8; 10] {
        let mut code = [0; 10];
        self.counting.memory.read(entry(), &mut code).unwrap();
        code
    }

    /// What gdb prints for these commands, after which it kills the guest; `None` where there is no gdb.
    fn gdb(self, commands: &[String]) -> Option<String> {
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-batch", "-ex", "set confirm off"]);
        let target = format!("target remote {}", self.path.display());
        for command in [&target].into_iter().chain(commands) {
            gdb.args(["-ex", command]);
        }
        let output = gdb.args(["-ex", "kill"]).output();
        let output = or_skipped(output.map_err(|e| format!("no gdb: {e}")))?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(
            self.counting.thread.join().unwrap().outcome,
            Outcome::Interrupted,
            "{text}"
        );
        Some(text)
    }
}

fn kill(mut client: Client, guest: Running) {
    client.send("k");
    let outcome = guest.counting.thread.join().unwrap().outcome;
    assert_eq!(outcome, Outcome::Interrupted);
}

#[test]
fn a_breakpoint_of_either_kind_is_hit_each_time_the_guest_comes_there() {
    for kind in ["break", "hbreak"] {
        let Some(guest) = start(true) else { return };
        assert_eq!(guest.counting.counter(), 0, "the guest has not waited");
        let commands = [
            format!("{kind} *{:#x}", entry() + INC),
            "continue".to_owned(),
            format!("printf \"first %d\\n\", *(int *){COUNTER:#x}"),
            "continue".to_owned(),
            format!("printf \"second %d\\n\", *(int *){COUNTER:#x}"),
            "info breakpoints".to_owned(),
        ];
        let Some(text) = guest.gdb(&commands) else {
            return;
        };
        for line in ["first 0", "second 1", "already hit 2 times"] {
            assert!(text.contains(line), "{kind}, {line}:\n{text}");
        }
    }
}

#[test]
fn registers_memory_and_steps_are_the_guests() {
    let Some(guest) = start(true) else { return };
    let commands = [
        "info threads".to_owned(),
        format!("printf \"entry %d\\n\", $rip == {:#x}", entry()),
        "stepi".to_owned(),
        format!("printf \"stepped %d\\n\", $rip == {:#x}", entry() + INC),
        format!("set var *(int *){COUNTER:#x} = 41"),
        "stepi".to_owned(),
        format!("printf \"counter %d\\n\", *(int *){COUNTER:#x}"),
        "set var $rbx = 0x1234".to_owned(),
        "set var $xmm3.v2_int64[0] = 5".to_owned(),
        "stepi".to_owned(),
        "printf \"rbx %x, xmm3 %d, paging %d\\n\", $rbx, $xmm3.v2_int64[0], $cr0 >> 31 & 1"
            .to_owned(),
        format!("printf \"back %d\\n\", $rip == {:#x}", entry() + INC),
        "x/2xb 0x7fffffff0000".to_owned(),
    ];
    let Some(text) = guest.gdb(&commands) else {
        return;
    };
    for line in [
        "(vCPU 0)",
        "(vCPU 1, off)",
        "entry 1",
        "stepped 1",
        "counter 42",
        "rbx 1234, xmm3 5, paging 1",
        "back 1",
        "Cannot access memory at address 0x7fffffff0000",
    ] {
        assert!(text.contains(line), "{line}:\n{text}");
    }
}

/// gdb's side of the protocol, by hand.
struct Client(UnixStream);

impl Client {
    fn connect(guest: &Running) -> Self {
        let stream = UnixStream::connect(&guest.path).unwrap();
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).unwrap();
        Self(stream)
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.0.read_exact(&mut byte).unwrap();
        byte[0]
    }

    fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0, u8::wrapping_add);
        write!(self.0, "${packet}#{sum:02x}").unwrap();
        assert_eq!(self.byte(), b'+');
    }

    fn answer(&mut self) -> String {
        while self.byte() != b'$' {}
        let mut text = String::new();
        loop {
            match self.byte() {
                b'#' => break,
                byte => text.push(byte.into()),
            }
        }
        self.0.read_exact(&mut [0; 2]).unwrap();
        // After the last answer nobody listens.
        let _ = self.0.write_all(b"+");
        text
    }

    fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.answer()
    }
}

#[test]
fn a_debugger_comes_to_a_running_guest_interrupts_it_and_leaves_nothing_behind() {
    let Some(guest) = start(false) else { return };
    guest.counting.counts();
    for leaves in ["D", ""] {
        let mut client = Client::connect(&guest);
        // Nothing runs while it is there.
        assert!(client.ask("?").starts_with("T05"));
        let stood = guest.counting.counter();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(guest.counting.counter(), stood);
        client.send("vCont;c");
        guest.counting.counts();
        client.0.write_all(b"\x03").unwrap();
        assert!(client.answer().starts_with("T02"));
        let stood = guest.counting.counter();
        // A breakpoint that is left behind.
        let place = format!("Z0,{:x},1", entry() + INC);
        assert_eq!(client.ask(&place), "OK");
        assert_ne!(guest.code(), COUNTS);
        if leaves == "D" {
            assert_eq!(client.ask("D"), "OK");
        }
        drop(client);
        while guest.counting.counter() == stood {
            assert!(!guest.counting.thread.is_finished(), "the guest has ended");
            std::thread::yield_now();
        }
        assert_eq!(guest.code(), COUNTS);
    }
    kill(Client::connect(&guest), guest);
}

#[test]
fn a_watchpoint_takes_registers_until_there_are_none() {
    let Some(guest) = start(true) else { return };
    let mut client = Client::connect(&guest);
    let _ = client.ask("?");
    // All of them, or none on a host without.
    let answers: Vec<String> = (0..4)
        .map(|slot| client.ask(&format!("Z2,{:x},4", COUNTER + 4 * slot)))
        .collect();
    let has_some = answers[0] == "OK";
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
    assert_ne!(client.ask(&format!("Z2,{COUNTER:x},8")), "OK");
    assert_eq!(client.ask(&format!("z2,{COUNTER:x},4")) == "OK", has_some);
    assert_eq!(client.ask(&format!("Z1,{:x},1", entry() + INC)), "OK");
    kill(client, guest);
}

#[test]
fn a_hostile_client_harms_nobody_but_the_guest() {
    let Some(guest) = start(false) else { return };
    let long = [b"$m".as_slice(), &[b'f'; 70_000]].concat();
    for bytes in [
        b"\x00\xff+++---\x03\x03".as_slice(),
        b"$#00$vCont;c:ffffffffffffffff#00",
        b"$vCont;s:p1.63#fe$Hg99#b2$g#67$m0,ffffffff#00",
        &long,
    ] {
        let mut client = Client::connect(&guest);
        // It may be thrown out in the middle of this.
        let _ = client.0.write_all(bytes);
        drop(client);
        guest.counting.counts();
    }
    // A vCPU that is not there, an address that is not there, more than there is.
    let mut client = Client::connect(&guest);
    let _ = client.ask("?");
    for packet in ["Hg64", "g"] {
        let _ = client.ask(packet);
    }
    assert!(client.ask("mffffffffffffff00,10").starts_with('E'));
    assert!(client.ask("Mffffffffffffff00,1:00").starts_with('E'));
    assert!(client.ask("Z0,ffffffffffffff00,1").starts_with('E'));
    drop(client);
    guest.counting.counts();
    kill(Client::connect(&guest), guest);
}

#[test]
fn a_guest_that_has_waited_goes_on_when_its_debugger_leaves() {
    let Some(guest) = start(true) else { return };
    let mut client = Client::connect(&guest);
    let _ = client.ask("?");
    assert_eq!(guest.counting.counter(), 0);
    drop(client);
    guest.counting.counts();
    kill(Client::connect(&guest), guest);
}
