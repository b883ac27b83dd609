//! Passes the linker script to the guests. The library for a host needs none.

use std::{env, path::Path};

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    let manifest_dir = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR for build scripts");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("riscv64") {
        println!("cargo:rustc-link-arg-bins=-T{}", Path::new(&manifest_dir).join("link.ld").display());
        // The simulator runs `tally` in the smallest machine, thousands of times.
        println!("cargo:rustc-link-arg-bin=tally=--defsym=SMALL_HEAP_BYTES=0x100000");
    }
}
