//! The kernel's configuration: fragments, and the check that each of their lines took effect.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;
use crate::{Arm, hash};

/// The fragments of an arm, in the order in which they are merged.
pub(crate) fn fragments(workspace: &Workspace, arm: Arm) -> Result<Vec<PathBuf>> {
    let folder = workspace.root.join("ci/kernel");
    let mut fragments = vec![folder.join("base.config")];
    if arm == Arm::Para {
        fragments.push(folder.join("para.config"));
    }
    for fragment in &fragments {
        if !fragment.is_file() {
            bail!(
                "the configuration fragment {} is missing",
                fragment.display()
            );
        }
    }
    Ok(fragments)
}

/// Hash by file name.
pub(crate) fn hashes(fragments: &[PathBuf]) -> Result<BTreeMap<String, String>> {
    let pair = |path: &PathBuf| {
        let name = path.file_name().context("a fragment without a name")?;
        Ok((name.to_string_lossy().into_owned(), hash::file(path)?))
    };
    fragments.iter().map(pair).collect()
}

/// What a configuration says: symbol to value; a symbol that is not set has the value `n`.
pub(crate) fn parse(text: &str) -> BTreeMap<&str, &str> {
    let mut values = BTreeMap::new();
    for line in text.lines() {
        let unset = line
            .strip_prefix("# ")
            .and_then(|rest| rest.strip_suffix(" is not set"));
        if let Some(symbol) = unset {
            values.insert(symbol, "n");
        } else if let Some((symbol, value)) = line.split_once('=')
            && symbol.starts_with("CONFIG_")
        {
            values.insert(symbol, value.trim());
        }
    }
    values
}

/// The lines of `fragments`, a later one over an earlier one, that `config` does not have.
pub(crate) fn without_effect(fragments: &[String], config: &str) -> Vec<String> {
    let mut wanted = BTreeMap::new();
    for fragment in fragments {
        wanted.extend(parse(fragment));
    }
    let have = parse(config);
    let mut lines = Vec::new();
    for (symbol, value) in wanted {
        let is = have.get(symbol).copied().unwrap_or("n");
        if is != value {
            lines.push(format!("{symbol}={value} (the kernel has {is})"));
        }
    }
    lines
}

/// Fails with the names of all symbols that did not take effect.
pub(crate) fn verify(fragments: &[PathBuf], config: &Path) -> Result<()> {
    let texts = fragments
        .iter()
        .map(|path| fs::read_to_string(path).with_context(|| format!("cannot read {path:?}")))
        .collect::<Result<Vec<_>>>()?;
    let lost = without_effect(&texts, &fs::read_to_string(config)?);
    if !lost.is_empty() {
        bail!(
            "Kconfig did not take these lines of the fragments; a dependency is missing, or the \
             symbol has gone from this kernel:\n    {}",
            lost.join("\n    ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_was_dropped_is_named() {
        let base = "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D=n\n".to_owned();
        let para = "CONFIG_B=m\nCONFIG_E=17\n".to_owned();
        let config = "CONFIG_A=y\nCONFIG_B=y\nCONFIG_E=17\n# CONFIG_D is not set\n";
        let lost = without_effect(&[base, para], config);
        assert_eq!(lost, ["CONFIG_B=m (the kernel has y)"]);
    }

    #[test]
    fn a_request_that_took_effect_is_not_named() {
        let base = "# words\nCONFIG_A=y\nCONFIG_S=\"text\"\n".to_owned();
        assert!(without_effect(&[base], "CONFIG_A=y\nCONFIG_S=\"text\"\n").is_empty());
    }

    #[test]
    fn a_symbol_the_kernel_does_not_know_is_named() {
        let lost = without_effect(&["CONFIG_GONE=y\n".to_owned()], "CONFIG_A=y\n");
        assert_eq!(lost, ["CONFIG_GONE=y (the kernel has n)"]);
    }
}
