//! What a seccomp profile costs a process that uses it once: each sample is a fresh process, cold tables included.
//!
//! `cargo bench -p tepui-isolators --bench seccomp`. The profile is Docker's for its own 14 capabilities, as it stands
//! in a `config.json`.

use std::process::Command;
use std::time::Instant;

use oci_spec::runtime::LinuxSeccomp;
use tepui_isolators::linux::seccomp::{compile, docker_default, resolve};

const SAMPLES: usize = 201;
const DOCKER_CAPS: u64 = 0xa804_25fb;

fn main() {
    let me = std::env::current_exe().expect("our own path");
    if let Some(text) = std::env::var_os("PROFILE_JSON") {
        return sample(&text.to_string_lossy());
    }
    let resolved = resolve(docker_default(), DOCKER_CAPS, (6, 1));
    let text = serde_json::to_string(&resolved).expect("it is plain data");
    let mut samples: Vec<[u64; 2]> = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let output = Command::new(&me)
            .env("PROFILE_JSON", &text)
            .output()
            .expect("it starts");
        let line = String::from_utf8(output.stdout).expect("digits");
        let mut numbers = line.split_whitespace().map(|n| n.parse().expect("digits"));
        samples.push(std::array::from_fn(|_| {
            numbers.next().expect("two numbers")
        }));
    }
    for (index, what) in ["parse the JSON", "compile and prove"].iter().enumerate() {
        let mut sorted: Vec<u64> = samples.iter().map(|sample| sample[index]).collect();
        sorted.sort_unstable();
        println!(
            "{what}: median {:.3} ms, least {:.3} ms",
            sorted[SAMPLES / 2] as f64 / 1e6,
            sorted[0] as f64 / 1e6
        );
    }
}

fn sample(text: &str) {
    let start = Instant::now();
    let seccomp: LinuxSeccomp = serde_json::from_str(text).expect("we wrote it");
    let parsed = start.elapsed();
    let start = Instant::now();
    let compiled = compile(&seccomp).expect("a good profile");
    let done = start.elapsed();
    assert!(compiled.filter.program.len() > 100);
    println!("{} {}", parsed.as_nanos(), done.as_nanos());
}
