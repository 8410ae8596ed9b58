//! x
use super::error::Result;
use super::store::Entry;
use tepui_isolators::{Declaration, registry};

/// Releases everything that a container has by name, its state directory last.
///
/// # Errors
/// When something is left.
pub fn release(entry: Entry, declaration: &Declaration) -> Result<()> {
    registry::cleanup(&registry::all(), entry.id(), declaration)?;
    entry.remove()?;
    Ok(())
}
