//! What people and programs write: a fleet's file, options, requests of the control socket.

use paravane::config::FacilitySet;
use paravane::ctl::Request;
use paravane::disk::DiskSpec;
use paravane::fleet::Fleet;
use paravane::gdb;
use paravane::net::NetSpec;

/// Entry.
pub fn run(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let again = serde_json::to_vec(&request).expect("a request is JSON");
        assert_eq!(
            serde_json::from_slice::<Request>(&again).ok(),
            Some(request)
        );
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(fleet) = Fleet::parse(text) {
        for guest in &fleet.guests {
            guest.arguments().expect("it has been read");
            let _ = guest.profile();
        }
    }
    let _ = FacilitySet::parse(text);
    let _ = text.parse::<DiskSpec>();
    let _ = text.parse::<NetSpec>();
    let _ = text.parse::<gdb::Address>();
}
