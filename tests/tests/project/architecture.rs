//! Arrows point one way: between crates, `vm <- logchannel <- ft <- hypervisor <- tests`, and
//! between the layers of each.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 7] =
    ["vm", "logchannel", "hypervisor/ft", "hypervisor", "guest-programs", "guest-programs/services", "tests"];

/// The folders of the hypervisor, each of which may use those after it only.
const LAYERS: [&str; 6] = ["program", "recording", "node", "lan", "arbiter", "os"];

/// The modules of the machine, each of which may use those after it only.
const MACHINE_LAYERS: [&str; 20] = [
    "inspect",
    "snapshot",
    "machine",
    "boot",
    "fast",
    "hart",
    "bus",
    "device",
    "probe",
    "ram",
    "isa",
    "output",
    "digest",
    "fault",
    "exit",
    "event",
    "state",
    "behaviour",
    "count",
    "config",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The crates of this workspace on which the one in `package` depends, not counting its tests.
fn dependencies(package: &str) -> BTreeSet<String> {
    let manifest = read(&workspace().join(package).join("Cargo.toml"));
    let mut section = "";
    let mut found = BTreeSet::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let counts = section.ends_with("dependencies") && section != "dev-dependencies";
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default().trim_matches('"');
        if let Some(package) = CRATES.iter().find(|package| package.rsplit('/').next() == Some(name))
            && counts
        {
            found.insert((*package).to_owned());
        }
    }
    found
}

/// The Rust files under the folder `path`, or the file `path`.
fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.into()];
    }
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut files: Vec<_> = entries.flat_map(|entry| sources(&entry.unwrap().path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files
}

/// A file's code: without comments, and without the tests at its end.
fn code(path: &Path) -> String {
    let text = read(path);
    let tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..tests].lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every occurrence of one of `words` in the code under `path`.
fn occurrences(path: &Path, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in sources(path) {
        let code = code(&file);
        for (number, line) in code.lines().enumerate() {
            let words = words.iter().filter(|word| line.contains(**word));
            found.extend(words.map(|word| format!("{}:{}: {word}", file.display(), number + 1)));
        }
    }
    found
}

#[test]
fn crates_depend_on_those_below_them_only() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(dependencies("vm"), set(&[]));
    assert_eq!(dependencies("logchannel"), set(&["vm"]));
    assert_eq!(dependencies("hypervisor/ft"), set(&["vm", "logchannel"]));
    assert_eq!(dependencies("hypervisor"), set(&["vm", "logchannel", "hypervisor/ft", "guest-programs/services"]));
    assert_eq!(dependencies("guest-programs"), set(&["guest-programs/services"]));
    assert_eq!(dependencies("guest-programs/services"), set(&[]));
    assert_eq!(
        dependencies("tests"),
        set(&["vm", "logchannel", "hypervisor/ft", "hypervisor", "guest-programs/services"])
    );
    let manifest = read(&workspace().join("Cargo.toml"));
    let members = manifest.lines().find(|line| line.starts_with("members")).unwrap();
    assert_eq!(members.matches('"').count(), 2 * CRATES.len(), "a crate this test doesn't know: {members}");
}

#[test]
fn crates_that_decide_use_no_standard_library() {
    // `.ci/run` compiles these crates for a machine without an operating system, which checks what
    // they reach only if they don't use std.
    for (package, part) in [("vm", "vm/src"), ("logchannel", "logchannel/src"), ("ft", "hypervisor/ft/src")] {
        let source = workspace().join(part);
        assert!(code(&source.join("lib.rs")).contains("no_std"), "{package} may reach its host");
        // Files of logs are a host's, and mutations are in no build that runs a VM.
        let mut found = occurrences(&source, &["std::"]);
        found.retain(|found| !found.contains("logchannel/src/file/") && !found.contains("ft/src/mutation.rs"));
        assert!(found.is_empty(), "{found:#?}");
    }
}

/// The places where the code in the folder `layer` names the folder `other`.
fn uses(layer: &str, other: &str) -> Vec<String> {
    occurrences(&workspace().join("hypervisor/src").join(layer), &[&format!("crate::{other}")])
}

#[test]
fn layers_use_those_below_them_only() {
    for (number, layer) in LAYERS.iter().enumerate() {
        assert!(!sources(&workspace().join("hypervisor/src").join(layer)).is_empty(), "no file of {layer} was found");
        let found: Vec<_> = LAYERS[..number].iter().flat_map(|above| uses(layer, above)).collect();
        assert!(found.is_empty(), "{layer} uses what stands above it: {found:#?}");
    }
    // Imports must name one folder each, as the search needs `crate::folder`.
    assert_eq!(occurrences(&workspace().join("hypervisor/src"), &["crate::{"]), Vec::<String>::new());
    // All modules are in one of the layers.
    assert_eq!(modules(&workspace().join("hypervisor/src/lib.rs")), LAYERS.map(str::to_owned).into());
    // `os` doesn't use fault tolerance, and the pure parts of `lan` read no clock.
    let found = occurrences(&workspace().join("hypervisor/src/os"), &["ft::"]);
    assert!(found.is_empty(), "{found:#?}");
    for pure in ["fabric", "wire.rs", "pulse.rs", "attachment.rs"] {
        let source = workspace().join("hypervisor/src/lan").join(pure);
        let found = occurrences(&source, &["crate::os", "std::time", "std::net::Tcp", "tokio", "std::thread"]);
        assert!(found.is_empty(), "{found:#?}");
    }
}

/// The modules that a crate's root file declares.
fn modules(root: &Path) -> BTreeSet<String> {
    let declared = |line: &str| {
        Some(line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod ")?.strip_suffix(';')?.to_owned())
    };
    code(root).lines().filter_map(declared).collect()
}

/// The modules of the crate that the code in `path` names as `crate::module`.
fn named_modules(path: &Path) -> BTreeSet<String> {
    let code = code(path);
    let names = code.split("crate::").skip(1);
    names.map(|rest| rest.chars().take_while(|next| next.is_alphanumeric() || *next == '_').collect()).collect()
}

#[test]
fn the_machines_modules_use_those_below_them_only() {
    let source = workspace().join("vm/src");
    assert_eq!(modules(&source.join("lib.rs")), MACHINE_LAYERS.map(str::to_owned).into());
    for (number, layer) in MACHINE_LAYERS.iter().enumerate() {
        let folder = source.join(layer);
        let files = sources(&if folder.is_dir() { folder } else { source.join(format!("{layer}.rs")) });
        assert!(!files.is_empty(), "no file of {layer} was found");
        for file in files {
            // Re-exports of the root are named at their own module, so that the dependency shows.
            let others = named_modules(&file);
            let above: Vec<_> =
                others.iter().filter(|name| !MACHINE_LAYERS[number..].contains(&name.as_str())).collect();
            assert!(above.is_empty(), "{} uses what doesn't stand below {layer}: {above:?}", file.display());
            // `super` must not leave the layer, where the search wouldn't find it.
            let inside = file.strip_prefix(&source).unwrap();
            let depth = inside.components().count() - usize::from(inside.ends_with("mod.rs"));
            let climbs = occurrences(&file, &["super::".repeat(depth).as_str()]);
            assert!(climbs.is_empty(), "{climbs:?}");
        }
    }
}

#[test]
fn only_the_operating_systems_layer_reads_clocks() {
    let found = occurrences(&workspace().join("hypervisor/src"), &["Instant::now", "SystemTime"]);
    let found: Vec<_> = found.into_iter().filter(|found| !found.contains("hypervisor/src/os/")).collect();
    assert!(found.is_empty(), "{found:#?}");
}
