//! The tepui program.
fn main() {}
