//! The network of the launches: a TAP device of this host, and who takes what guests send: a thread, and iperf3's server.

use std::io::{self, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

/// The TAP device.
pub(crate) const TAP: &str = "paravane-bench";
/// The host's address and the port that it listens at: `benches/init/src/net.rs` has them, too.
const HOST: &str = "10.9.0.1";
const PORT: u16 = 5001;

/// It is there until it is dropped.
#[derive(Debug)]
pub(crate) struct Network {
    /// Where iperf3 is installed: without it, its job fails, and no other.
    iperf3: Option<Child>,
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .map_err(|error| format!("`ip` cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    Err(format!(
        "there is no network for the guests: `ip {arguments}`: {said}; it takes root and the module tun"
    ))
}

impl Network {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub(crate) fn new() -> Result<Self, String> {
        // What an earlier process has left; usually there is none.
        let _ = ip(&format!("link delete {TAP}"));
        ip(&format!("tuntap add {TAP} mode tap"))?;
        let mut network = Self { iperf3: None };
        ip(&format!("addr add {HOST}/24 dev {TAP}"))?;
        ip(&format!("link set {TAP} up"))?;
        listen().map_err(|error| format!("nobody can listen at {HOST}:{PORT}: {error}"))?;
        network.iperf3 = Command::new("iperf3")
            .args(["--server", "--bind", HOST])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok();
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(server) = &mut self.iperf3 {
            // Both fail only when it has ended by itself.
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = ip(&format!("link delete {TAP}"));
    }
}

/// Takes what guests send, and closes each connection once it has taken all, until this process ends.
fn listen() -> io::Result<()> {
    let listener = TcpListener::bind((HOST, PORT))?;
    std::thread::Builder::new()
        .name("sink".to_owned())
        .spawn(move || {
            for mut connection in listener.incoming().flatten() {
                // A guest that was killed never closes its own, which must not keep the next one waiting.
                std::thread::spawn(move || {
                    let mut room = vec![0; 1 << 16];
                    while connection.read(&mut room).is_ok_and(|count| count > 0) {}
                });
            }
        })
        .map(drop)
}
