//! Builds the guests from source, so that the programs carry them and `--guest echo` needs no file.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

mod target;

const TARGET: &str = "riscv64imac-unknown-none-elf";
/// What cargo takes encoded flags apart by.
const ENCODED_SEPARATOR: &str = "\x1f";
const GUESTS: [&str; 9] = ["bench", "counter", "echo", "hello", "kv", "lock", "rewrite", "suite", "tally"];

fn main() {
    let hypervisor = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let guests = hypervisor.with_file_name("guest-programs");
    let out = PathBuf::from(variable("OUT_DIR"));
    for path in ["Cargo.toml", "build.rs", "link.ld", "src", "bench", "services"] {
        println!("cargo::rerun-if-changed={}", guests.join(path).display());
    }
    println!("cargo::rerun-if-changed={}", hypervisor.with_file_name("Cargo.lock").display());
    println!("cargo::rerun-if-changed=build");
    if let Err(error) = target::install(TARGET) {
        fail(&error.to_string());
    }
    let target_dir = guest_target_dir(&out);
    build(&guests, &target_dir);
    for guest in GUESTS {
        let elf = target_dir.join(TARGET).join("release").join(guest);
        let embedded = out.join(format!("{guest}.elf"));
        if let Err(error) = fs::copy(&elf, &embedded) {
            panic!("copying {} to {}: {error}", elf.display(), embedded.display());
        }
    }
}

/// One directory for the guests of all profiles, beside them: OUT_DIR is
/// `<target>/<profile>/build/<package>/out`.
fn guest_target_dir(out: &Path) -> PathBuf {
    out.ancestors().nth(4).map_or_else(|| out.to_path_buf(), |target| target.join("guests"))
}

fn build(guests: &Path, target_dir: &Path) {
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args(["build", "--release", "--features", "guest", "--bins", "--target", TARGET])
        .arg("--manifest-path")
        .arg(guests.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target_dir);
    // What the outer build is told about its own compiler calls (lints, wrappers, flags for the
    // host) isn't for the guests, whose image must not depend on how the hypervisor is built.
    for name in ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTDOC"]
    {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", path_flags(guests).join(ENCODED_SEPARATOR));
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("building the guests failed ({status}); the compiler's errors are above")),
        Err(error) => fail(&format!("can't run cargo to build the guests: {error}")),
    }
}

/// Ends the build with a message for a person: a panic's backtrace would only hide it.
fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1)
}

/// Keeps this machine's folders out of the images: a log names its guest by digest, and the same
/// source must be the same guest wherever it was built.
fn path_flags(guests: &Path) -> Vec<String> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let workspace = guests.parent().map(Path::to_path_buf);
    [(home, "/cargo"), (workspace, "/source")]
        .into_iter()
        .filter_map(|(folder, name)| Some(format!("--remap-path-prefix={}={name}", folder?.display())))
        .collect()
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name}: {error}"))
}
