//! Numbers of Draft chapters: reserved, and nobody's.

use paravane_abi::call::{CallId, CALLS};
use paravane_abi::registry::{FACILITY_CPU, FACILITY_MMU};

/// The numbers of Draft calls, from their own source.
fn drafts() -> Vec<CallId> {
    let source = include_str!("../src/abi/draft.rs");
    let lines = source.lines().filter(|l| l.starts_with("pub const DRAFT_"));
    lines
        .map(|line| {
            let (_, value) = line.split_once(" = 0x").unwrap();
            let digits = value.trim_end_matches(';').replace('_', "");
            CallId(u32::from_str_radix(&digits, 16).unwrap())
        })
        .collect()
}

#[test]
fn a_draft_call_is_no_call() {
    let drafts = drafts();
    assert!(drafts.len() > 10);
    for (index, id) in drafts.iter().enumerate() {
        assert!(!CALLS.contains(id), "{id:?}");
        assert_eq!(id.name(), None);
        assert!([FACILITY_CPU, FACILITY_MMU].contains(&id.facility()));
        assert!(!drafts[..index].contains(id), "{id:?} stands twice");
    }
}
