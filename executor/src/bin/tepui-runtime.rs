//! The OCI runtime's command line, over the same library as the executor.
//!
//! Its own `main`, which the C library calls: the runtime that Rust starts with would cost every invocation another
//! twenty system calls, twice where it protects its file. What of that is needed is done by `standard`.
#![cfg_attr(not(test), no_main)]

/// The C library's entry.
#[allow(
    unsafe_code,
    reason = "it is the name that the C library calls, and nobody else has it"
)]
#[unsafe(no_mangle)]
#[cfg(not(test))]
extern "C" fn main() -> i32 {
    tepui::runtime::standard::set_up();
    std::process::exit(tepui::runtime::main().into())
}
