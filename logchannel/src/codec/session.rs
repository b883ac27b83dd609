//! The session header as bytes.

use super::{CodecError, check_length, decode_value, encode_value};
use crate::entry::Generation;
use crate::session::{BOOTARGS_BYTES_MAX, IMAGE_BYTES_MAX, IMAGE_NAME_BYTES_MAX, ImageDigest, SessionHeader, VmId};
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::string::ToString;
use alloc::vec::Vec;
use bincode::{Decode, Encode};
use vm::{BehaviourVersion, BootMode, MachineConfig};

/// The first version with [`WireMachine`].
const FIRST_VERSION_WITH_MACHINE: u32 = 3;

/// The first version with [`WireRun`].
const FIRST_VERSION_WITH_RUN: u32 = 4;

const BOOT_FIRMWARE: u8 = 0;
const BOOT_BARE: u8 = 1;

/// The fields of every version.
#[derive(Encode, Decode)]
struct WireSession {
    vm: String,
    generation: u64,
    ram_bytes: u64,
    mac: [u8; 6],
    bootargs: String,
    rng_seed: [u8; 32],
    image_name: String,
    image_digest: [u8; 32],
    image_bytes: u64,
}

/// The fields since version 3, after [`WireSession`]: the rest of the machine's configuration.
#[derive(Encode, Decode)]
struct WireMachine {
    boot: u8,
    disk_bytes: u64,
}

/// The fields since version 4, after [`WireMachine`].
#[derive(Encode, Decode)]
struct WireRun {
    /// In earlier versions the format's version implied it.
    behaviour: u32,
    booted: u64,
}

/// Appends `header` without its version, which precedes it.
pub(crate) fn encode_session(header: &SessionHeader, out: &mut Vec<u8>) {
    let wire = WireSession {
        vm: header.vm.as_str().to_owned(),
        generation: header.generation.0,
        ram_bytes: header.config.ram_bytes,
        mac: header.config.mac,
        bootargs: header.config.bootargs.clone(),
        rng_seed: header.config.rng_seed,
        image_name: header.image_name.clone(),
        image_digest: header.image_digest.0,
        image_bytes: header.image_bytes,
    };
    let boot = match header.config.boot {
        BootMode::Firmware => BOOT_FIRMWARE,
        BootMode::Bare => BOOT_BARE,
    };
    let machine = WireMachine { boot, disk_bytes: header.config.disk_bytes };
    let run = WireRun { behaviour: header.behaviour.0, booted: header.booted.0 };
    encode_value(&(wire, machine, run), out);
}

/// Decodes a header of this version from all of `bytes`, and checks every limit except those of the
/// machine, which [`vm::Machine::new`] checks, and its behaviour, which callers that replay the log
/// check.
pub(crate) fn decode_session(bytes: &[u8], version: u32) -> Result<SessionHeader, CodecError> {
    // A VM is never resumed from a log of an older version, so the generation of its boot doesn't
    // matter.
    let run = |wire: &WireSession, behaviour| WireRun { behaviour, booted: wire.generation };
    let (wire, machine, run): (WireSession, WireMachine, WireRun) = if version >= FIRST_VERSION_WITH_RUN {
        decode_value(bytes)?
    } else if version >= FIRST_VERSION_WITH_MACHINE {
        let (wire, machine) = decode_value(bytes)?;
        let run = run(&wire, 1);
        (wire, machine, run)
    } else {
        let wire = decode_value(bytes)?;
        let run = run(&wire, 0);
        (wire, WireMachine { boot: BOOT_FIRMWARE, disk_bytes: 0 }, run)
    };
    if run.booted > wire.generation {
        let reason = format!("{}, behind generation {}", run.booted, wire.generation);
        return Err(CodecError::Invalid { what: "generation of the boot", reason });
    }
    let boot = match machine.boot {
        BOOT_FIRMWARE => BootMode::Firmware,
        BOOT_BARE => BootMode::Bare,
        unknown => return Err(CodecError::Invalid { what: "boot mode", reason: format!("there is no {unknown}") }),
    };
    check_length("bootargs", wire.bootargs.len(), BOOTARGS_BYTES_MAX)?;
    check_length("image name", wire.image_name.len(), IMAGE_NAME_BYTES_MAX)?;
    if wire.image_bytes > IMAGE_BYTES_MAX as u64 {
        let reason = format!("{} bytes; at most {IMAGE_BYTES_MAX} are allowed", wire.image_bytes);
        return Err(CodecError::Invalid { what: "image length", reason });
    }
    let vm = VmId::new(&wire.vm).map_err(|error| CodecError::Invalid { what: "VM name", reason: error.to_string() })?;
    Ok(SessionHeader {
        vm,
        generation: Generation(wire.generation),
        booted: Generation(run.booted),
        config: MachineConfig {
            ram_bytes: wire.ram_bytes,
            mac: wire.mac,
            bootargs: wire.bootargs,
            rng_seed: wire.rng_seed,
            boot,
            disk_bytes: machine.disk_bytes,
        },
        behaviour: BehaviourVersion(run.behaviour),
        image_name: wire.image_name,
        image_digest: ImageDigest(wire.image_digest),
        image_bytes: wire.image_bytes,
    })
}
