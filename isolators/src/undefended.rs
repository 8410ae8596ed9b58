//! Defences that a test can switch off, one by one, to show that its attack works without them.
//!
//! Only a build with the feature `undefended` has the switch; everywhere else the question is the constant `false` and
//! the compiler removes it. A release build refuses the feature, so no such program can be installed by mistake.

#[cfg(all(feature = "undefended", not(debug_assertions)))]
compile_error!(
    "the feature `undefended` takes defences away: it is for tests of debug builds only"
);

/// The environment variable with the names of the defences that are off, separated by commas.
#[cfg(feature = "undefended")]
pub const VARIABLE: &str = "TEPUI_UNDEFENDED";

/// Whether the defence of this name is off.
#[cfg(feature = "undefended")]
pub fn undefended(defence: &str) -> bool {
    let off = std::env::var(VARIABLE).unwrap_or_default();
    off.split(',').any(|name| name == defence)
}

/// Whether the defence of this name is off: never.
#[cfg(not(feature = "undefended"))]
#[inline(always)]
pub const fn undefended(_defence: &str) -> bool {
    false
}
