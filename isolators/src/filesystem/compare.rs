//! Declared and live mounts, side by side.

use libc::{
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
};

use super::linux::{masked, readonly, readonly_root};
use super::mounts::{self, Cgroups, Declared};
use crate::declaration::{Declaration, RootFilesystem};
use crate::launch_info::{Mount, MountKind};
use crate::live::{Finding, Live, LiveMask, LiveMount, Verdict};
use crate::namespaces;

const ISOLATOR: &str = "filesystem/linux";
const NOT_SEEN: &str = "not seen";

/// The restrictions that are compared, and how mountinfo writes them.
const RESTRICTIONS: [(u64, &str); 5] = [
    (MOUNT_ATTR_RDONLY, "ro"),
    (MOUNT_ATTR_NOSUID, "nosuid"),
    (MOUNT_ATTR_NODEV, "nodev"),
    (MOUNT_ATTR_NOEXEC, "noexec"),
    (MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"),
];

/// All findings of `filesystem/linux`.
pub fn findings(declaration: &Declaration, live: &Live) -> Vec<Finding> {
    let mut findings = vec![namespaces::compare(ISOLATOR, "mnt", true, live)];
    findings.push(root(declaration, live));
    let root_propagation = mounts::root_propagation(declaration);
    findings.push(self::root_propagation(root_propagation, live));
    if readonly_root(declaration) {
        findings.push(root_readonly(live));
    }
    match mounts::declared(declaration) {
        Ok(declared) => {
            for (index, one) in declared.iter().enumerate() {
                if declared[index + 1..]
                    .iter()
                    .any(|later| one.is_hidden_by(later))
                {
                    continue;
                }
                findings.push(match one {
                    Declared::Mount(mount) => self::mount(mount, root_propagation, live),
                    Declared::Cgroups(declared) => cgroups(declared, live),
                });
            }
        }
        Err(error) => findings.push(finding(
            "mounts",
            error.to_string(),
            "not compared",
            Verdict::Unknown,
        )),
    }
    for path in masked(declaration) {
        findings.push(mask(path, live));
    }
    for path in readonly(declaration) {
        findings.push(protection(path, live));
    }
    findings
}

fn finding(
    item: impl Into<String>,
    declared: impl Into<String>,
    live: impl Into<String>,
    verdict: Verdict,
) -> Finding {
    Finding {
        isolator: ISOLATOR,
        item: item.into(),
        declared: declared.into(),
        live: live.into(),
        verdict,
        read_from: "mountinfo".to_owned(),
    }
}

fn root(declaration: &Declaration, live: &Live) -> Finding {
    let (declared, fstype) = match &declaration.rootfs {
        RootFilesystem::Host => ("the host's".to_owned(), None),
        RootFilesystem::Directory(path) => (format!("{}", path.display()), None),
        RootFilesystem::Overlay(_) => ("overlay, nodev".to_owned(), Some("overlay")),
    };
    let is_host = declaration.rootfs == RootFilesystem::Host;
    let mount = live.mounted.get("/");
    let (words, verdict) = match (live.root_is_observers, mount) {
        (None, _) => (NOT_SEEN.to_owned(), Verdict::Unknown),
        (Some(true), _) if is_host => ("the host's".to_owned(), Verdict::Match),
        (Some(true), _) => ("the host's".to_owned(), Verdict::Weaker),
        (Some(false), None) => (
            "a directory that nothing is mounted on".to_owned(),
            Verdict::Weaker,
        ),
        (Some(false), Some(mount)) => {
            let lost = fstype.is_some_and(|fstype| fstype != mount.fstype || !has(mount, "nodev"));
            let verdict = match (lost, is_host) {
                (true, _) => Verdict::Weaker,
                (false, true) => Verdict::Stronger,
                (false, false) => Verdict::Match,
            };
            (in_words(mount), verdict)
        }
    };
    finding("root file system", declared, words, verdict)
}

fn root_propagation(declared: u64, live: &Live) -> Finding {
    let is_declared = declared & libc::MS_SHARED != 0;
    let (words, verdict) = match live.mounted.get("/") {
        None => (NOT_SEEN.to_owned(), Verdict::Unknown),
        Some(mount) => match (shared(mount), is_declared) {
            (Some(shared), true) => (shared.to_owned(), Verdict::Match),
            (Some(shared), false) => (shared.to_owned(), Verdict::Weaker),
            (None, true) => ("not shared".to_owned(), Verdict::Stronger),
            (None, false) => ("not shared".to_owned(), Verdict::Match),
        },
    };
    let declared = if is_declared { "shared" } else { "not shared" };
    finding("root propagation", declared, words, verdict)
}

/// The peer group of a mount: its mount events reach others.
fn shared(mount: &LiveMount) -> Option<&str> {
    let mut fields = mount.propagation.iter();
    fields
        .find(|field| field.starts_with("shared:"))
        .map(String::as_str)
}

fn root_readonly(live: &Live) -> Finding {
    let (words, verdict) = match live.mounted.get("/") {
        None => (NOT_SEEN.to_owned(), Verdict::Unknown),
        Some(mount) if is_readonly(mount) => ("read-only".to_owned(), Verdict::Match),
        Some(_) => ("writable".to_owned(), Verdict::Weaker),
    };
    finding("root read-only", "read-only", words, verdict)
}

fn mount(declared: &Mount, root_propagation: u64, live: &Live) -> Finding {
    let target = declared.target.to_string_lossy();
    let mut is_id_mapped = false;
    let fstype = match &declared.kind {
        MountKind::Filesystem { fstype, .. } => Some(fstype.to_string_lossy().into_owned()),
        MountKind::Devices { .. } => Some("tmpfs".to_owned()),
        // Those are compared as a whole.
        MountKind::Cgroup { .. } => None,
        MountKind::Bind { id_map, .. } | MountKind::BindInside { id_map, .. } => {
            is_id_mapped = id_map.is_some();
            None
        }
    };
    let below = declared.recursive_attributes;
    let here = declared.attributes.set & !below.clear | below.set;
    let words_of = |bits: u64| {
        let set = RESTRICTIONS.iter().filter(move |(bit, _)| bits & bit != 0);
        let words = set.map(|(_, word)| *word);
        words
            .chain(is_id_mapped.then_some("idmapped"))
            .collect::<Vec<_>>()
    };
    let asked = words_of(here);
    let words = [&[fstype.as_deref().unwrap_or("bind")][..], &asked]
        .concat()
        .join(",");
    let item = format!("mount {target}");
    let Some(mount) = live.mounted.get(target.as_ref()) else {
        let verdict = if live.mounts.is_empty() {
            Verdict::Unknown
        } else {
            Verdict::Weaker
        };
        return finding(item, words, "nothing is mounted there", verdict);
    };
    let lacks =
        |mount: &LiveMount, asked: &[&str]| asked.iter().any(|word| !restricts(mount, word));
    let mut verdict = match RESTRICTIONS
        .iter()
        .any(|(_, word)| restricts(mount, word) && !asked.contains(word))
    {
        true => Verdict::Stronger,
        false => Verdict::Match,
    };
    let mut seen = in_words(mount);
    if lacks(mount, &asked) || fstype.is_some_and(|fstype| fstype != mount.fstype) {
        verdict = Verdict::Weaker;
    }
    // A peer group is declared for the mount itself, or for all of the root.
    let all_shared = libc::MS_SHARED | libc::MS_REC;
    let may_be_shared = declared.propagation & libc::MS_SHARED != 0
        || declared.propagation == 0 && root_propagation & all_shared == all_shared;
    if let (Some(shared), false) = (shared(mount), may_be_shared) {
        seen = format!("{seen}, {shared}");
        verdict = Verdict::Weaker;
    }
    let asked_below: Vec<_> = words_of(below.set)
        .into_iter()
        .filter(|word| *word != "idmapped")
        .collect();
    let is_below = |other: &&LiveMount| mount.has_below(&other.target);
    let mut all_below = live.mounted.values().filter(is_below);
    if let Some(open) = all_below.find(|mount| lacks(mount, &asked_below)) {
        seen = format!("{seen}, but {} is {}", open.target, in_words(open));
        verdict = Verdict::Weaker;
    }
    finding(item, words, seen, verdict)
}

/// The cgroup mounts: restricted, and rooted in the container's own cgroup. The root of a mount is shown from the
/// observer's cgroup namespace, so `/` there means that the container sees all that the observer sees.
fn cgroups(declared: &Cgroups, live: &Live) -> Finding {
    let target = declared.target.to_string_lossy();
    let top = live.mounted.get(target.as_ref());
    let is_cgroup = |mount: &&LiveMount| {
        let is_here = top.is_some_and(|top| *top == **mount || top.has_below(&mount.target));
        is_here && matches!(mount.fstype.as_str(), "cgroup" | "cgroup2")
    };
    let found: Vec<_> = live.mounted.values().filter(is_cgroup).collect();
    let has_v1 = found.iter().any(|mount| mount.fstype == "cgroup");
    let writable = declared.is_writable_on_v2() && !has_v1;
    let words = match writable {
        true => "its own cgroups, nosuid,nodev,noexec",
        false => "its own cgroups, ro,nosuid,nodev,noexec",
    };
    let mut faults = Vec::new();
    for mount in &found {
        let wanted = ["nosuid", "nodev", "noexec"]
            .iter()
            .chain((!writable).then_some(&"ro"));
        let missing: Vec<_> = wanted
            .filter(|word| !restricts(mount, word))
            .copied()
            .collect();
        if !missing.is_empty() {
            faults.push(format!("{} lacks {}", mount.target, missing.join(",")));
        }
        if mount.root == "/" {
            faults.push(format!("{} shows the host's whole hierarchy", mount.target));
        }
    }
    let (seen, verdict) = match (found.len(), faults.is_empty()) {
        _ if live.mounts.is_empty() => (NOT_SEEN.to_owned(), Verdict::Unknown),
        (0, _) => ("no cgroup is mounted there".to_owned(), Verdict::Weaker),
        (count, true) => (format!("{count} mounts of its own cgroups"), Verdict::Match),
        (_, false) => (faults.join("; "), Verdict::Weaker),
    };
    finding(format!("mount {target}"), words, seen, verdict)
}

fn mask(path: &str, live: &Live) -> Finding {
    let found = live.masks.get(path).copied();
    let verdict = match found {
        None => Verdict::Unknown,
        Some(LiveMask::ReadOnly | LiveMask::Open) => Verdict::Weaker,
        Some(LiveMask::Absent | LiveMask::NullDevice | LiveMask::EmptyReadOnlyDirectory) => {
            Verdict::Match
        }
    };
    path_finding(format!("mask {path}"), "hidden", found, verdict, path)
}

fn protection(path: &str, live: &Live) -> Finding {
    let found = live.masks.get(path).copied();
    let verdict = match found {
        None => Verdict::Unknown,
        Some(LiveMask::Open) => Verdict::Weaker,
        Some(LiveMask::NullDevice) => Verdict::Stronger,
        Some(LiveMask::Absent | LiveMask::ReadOnly | LiveMask::EmptyReadOnlyDirectory) => {
            Verdict::Match
        }
    };
    path_finding(
        format!("read-only {path}"),
        "read-only",
        found,
        verdict,
        path,
    )
}

fn path_finding(
    item: String,
    declared: &str,
    found: Option<LiveMask>,
    verdict: Verdict,
    path: &str,
) -> Finding {
    let words = match found {
        None => NOT_SEEN,
        Some(LiveMask::Absent) => "it does not exist",
        Some(LiveMask::NullDevice) => "the null device",
        Some(LiveMask::EmptyReadOnlyDirectory) => "an empty read-only directory",
        Some(LiveMask::ReadOnly) => "read-only",
        Some(LiveMask::Open) => "open",
    };
    Finding {
        read_from: format!("root{path}"),
        ..finding(item, declared, words, verdict)
    }
}

fn has(mount: &LiveMount, word: &str) -> bool {
    mount.options.iter().any(|option| option == word)
}

fn is_readonly(mount: &LiveMount) -> bool {
    has(mount, "ro") || mount.super_options.iter().any(|option| option == "ro")
}

fn restricts(mount: &LiveMount, word: &str) -> bool {
    match word {
        "ro" => is_readonly(mount),
        _ => has(mount, word),
    }
}

fn in_words(mount: &LiveMount) -> String {
    format!("{} {}", mount.fstype, mount.options.join(","))
}
