//! Clause ids are permanent: `clauses.lock` has every id that has ever been, in the order of their
//! coming. `cargo ci spec --write` adds to it and takes nothing away.

use crate::spec::clauses::Clause;

/// The first line.
const HEAD: &str = "# Every clause id, in the order of their coming. Made by `cargo ci spec --write`; none ever goes.\n";

/// The file's text, from what it was.
pub(crate) fn add(old: &str, clauses: &[Clause]) -> String {
    let mut text = HEAD.to_owned();
    let known: Vec<&str> = ids(old).collect();
    let new = clauses.iter().map(|clause| clause.id.as_str());
    let new = new.filter(|id| !known.contains(id));
    for id in known.iter().copied().chain(new) {
        text += id;
        text.push('\n');
    }
    text
}

/// Ids that have been, and that the specification has no more.
pub(crate) fn faults(lock: &str, clauses: &[Clause]) -> Vec<String> {
    ids(lock)
        .filter(|id| !clauses.iter().any(|clause| clause.id == *id))
        .map(|id| {
            format!(
                "{id} was a clause, and somebody can have cited it: keep it, and say in it what has \
                 become of it"
            )
        })
        .collect()
}

fn ids(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::clauses;

    #[test]
    fn ids_come_and_do_not_go() {
        let first = clauses::read("**[PV-X-1]** The host MAY.").unwrap();
        let second = clauses::read("**[PV-X-2]** The host MAY.").unwrap();
        let lock = add(&add("", &first), &second);
        assert_eq!(lock, format!("{HEAD}PV-X-1\nPV-X-2\n"));
        assert_eq!(add(&lock, &first), lock, "nothing new");
        let found = faults(&lock, &second);
        assert!(
            found.len() == 1 && found[0].starts_with("PV-X-1"),
            "{found:?}"
        );
    }
}
