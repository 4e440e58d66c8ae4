//! stub
use crate::workspace::Workspace;
use anyhow::Result;
pub(crate) fn run(_w: &Workspace, _b: &[String]) -> Result<()> {
    Ok(())
}
pub(crate) fn reference_host() -> Result<()> {
    Ok(())
}
