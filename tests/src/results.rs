//! Tables of measurements in `benches/RESULTS.md`, each between marks of its own, with the machine and the date.

use std::fs;

use crate::binary;

/// One row: median, 99th percentile and least of `times` in milliseconds.
pub fn row(what: &str, times: &mut [f64]) -> String {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    format!(
        "| {what} | {:.2} | {:.2} | {:.2} |\n",
        at(0.5),
        at(0.99),
        at(0.0)
    )
}

/// Replaces what stands between the marks `name` of RESULTS.md, or appends it under `title`; prints it too.
///
/// # Panics
/// When the file cannot be written.
pub fn write(name: &str, title: &str, table: &str) {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("procfs");
    let kernel = kernel.split('-').next().unwrap_or_default().trim();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let date = std::process::Command::new("date")
        .arg("+%Y-%m-%d")
        .output()
        .expect("date(1)");
    let date = String::from_utf8_lossy(&date.stdout).trim().to_owned();
    let (start, end) = (
        format!("<!-- {name} -->"),
        format!("<!-- end of {name} -->"),
    );
    let section = format!("{start}\n{date}, Linux {kernel}, {processors} processors. {table}{end}");
    println!("{section}");
    let file = binary::of_package("benches/RESULTS.md");
    let old = fs::read_to_string(&file)
        .unwrap_or_else(|_| "# Results\n\nWritten by `scripts/bench`.\n".to_owned());
    let new = match (old.find(&start), old.find(&end)) {
        (Some(from), Some(to)) => format!("{}{section}{}", &old[..from], &old[to + end.len()..]),
        _ => format!("{old}\n## {title}\n\n{section}\n"),
    };
    fs::write(&file, new).expect("RESULTS.md can be written");
}
