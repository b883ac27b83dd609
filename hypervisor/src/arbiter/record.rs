//! A claim as text: JSON that names the VM and flag that it is for, so that a claim is never taken
//! for another.
//!
//! Version 2: the fields of [`Record`]. Version 1 called the flag `generation`, which is the number
//! of its winner minus one. What is read is checked here.

use ft::claim::{ADDRESS_BYTES_MAX, Claim, ClaimKind};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use serde::{Deserialize, Serialize};

/// The version that this build writes. It reads all up to that.
const VERSION: u32 = 2;

/// The longest record, in bytes.
pub(super) const BYTES_MAX: usize = 4096;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    vm: String,
    #[serde(alias = "generation")]
    flag: u64,
    node: String,
    kind: RecordKind,
    address: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RecordKind {
    Owner,
    Ended,
}

/// The text of a claim, for people too.
pub(super) fn write(vm: &VmId, flag: Generation, claim: &Claim) -> String {
    let record = Record {
        version: VERSION,
        vm: vm.to_string(),
        flag: flag.0,
        node: claim.node.to_string(),
        kind: claim.kind.into(),
        address: claim.address.clone(),
    };
    let mut text = serde_json::to_string_pretty(&record).expect("texts and numbers can be written as JSON");
    text.push('\n');
    text
}

/// The claim that `text` is of `flag` of `vm`, or what is wrong with it.
pub(super) fn read(text: &[u8], vm: &VmId, flag: Generation) -> Result<Claim, String> {
    if text.len() > BYTES_MAX {
        return Err(format!("longer than {BYTES_MAX} bytes"));
    }
    let record: Record = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if !(1..=VERSION).contains(&record.version) {
        return Err(format!("version {}, this build reads 1 to {VERSION}", record.version));
    }
    if record.vm != vm.as_str() || record.flag != flag.0 {
        return Err(format!("it is of VM {:?}, flag {}", record.vm, record.flag));
    }
    if record.address.as_ref().is_some_and(|address| address.len() > ADDRESS_BYTES_MAX) {
        return Err(format!("an address of more than {ADDRESS_BYTES_MAX} bytes"));
    }
    let node: NodeId = record.node.parse().map_err(|error| format!("{error}"))?;
    Ok(Claim { node, kind: record.kind.into(), address: record.address })
}

impl From<ClaimKind> for RecordKind {
    fn from(kind: ClaimKind) -> Self {
        match kind {
            ClaimKind::Owner => Self::Owner,
            ClaimKind::Ended => Self::Ended,
        }
    }
}

impl From<RecordKind> for ClaimKind {
    fn from(kind: RecordKind) -> Self {
        match kind {
            RecordKind::Owner => Self::Owner,
            RecordKind::Ended => Self::Ended,
        }
    }
}
