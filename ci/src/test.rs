//! stub
use crate::workspace::Workspace;
use anyhow::Result;
pub(crate) fn run(_w: &Workspace, _only: Option<&str>, _list: bool) -> Result<()> {
    Ok(())
}
