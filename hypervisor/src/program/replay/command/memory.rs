//! `ft-replay memory`.

use super::super::length::Length;
use super::bar::Bar;
use super::{LogOptions, complain, parse_address, resolve, told, view};
use crate::program::Failure;
use crate::recording::{Position, Seeker};
use clap::Args;
use serde::Serialize;

/// The most bytes that are shown.
const BYTES_MAX: u64 = 64 << 20;

/// Bytes on a line.
const ROW: usize = 16;

/// Options of `ft-replay memory`.
#[derive(Args, Debug)]
pub(in crate::program::replay) struct Options {
    #[command(flatten)]
    pub(super) log: LogOptions,
    /// The address of the first byte, virtual in the address space of the moment
    #[arg(value_name = "ADDRESS", value_parser = parse_address)]
    address: u64,
    /// How many bytes
    #[arg(value_name = "LENGTH", default_value = "64", value_parser = parse_address)]
    length: u64,
    /// The moment
    #[arg(long, value_name = "POSITION", default_value = "end")]
    at: Position,
    /// The address is a physical one
    #[arg(long)]
    physical: bool,
    /// Write the bytes as they are to standard output
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

#[derive(Serialize)]
struct Memory {
    event: &'static str,
    instruction_count: u64,
    address: String,
    length: u64,
    /// `null` if not all bytes can be read.
    hex: Option<String>,
}

impl Options {
    pub(super) fn run(&self) -> Result<(), Failure> {
        if self.length > BYTES_MAX {
            return Err(format!("at most {BYTES_MAX} bytes are shown at once").into());
        }
        let recording = self.log.open()?;
        let target = resolve(&recording, &self.at)?;
        let seeker = Seeker::new(&recording);
        let sought = seeker.seek(target, &Bar::new(Length::default(), self.log.json));
        complain(&seeker);
        let replay = sought.map_err(told)?;
        let bytes = view::read(replay.machine(), self.address, self.length, self.physical);
        let whole: Option<Vec<u8>> = bytes.iter().copied().collect();
        let mut lines = self.log.lines();
        if self.raw {
            let whole = whole.ok_or_else(|| format!("not all bytes from {:#x} on can be read", self.address))?;
            lines.bytes(&whole)?;
        } else if lines.is_json() {
            lines.json(&Memory {
                event: "memory",
                instruction_count: replay.moment().count.0,
                address: format!("{:#x}", self.address),
                length: self.length,
                hex: whole.map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
            })?;
        } else {
            let mut address = self.address;
            for row in bytes.chunks(ROW) {
                lines.text(format_args!("{}", dump(address, row)))?;
                address = address.wrapping_add(ROW as u64);
            }
        }
        Ok(lines.flush()?)
    }
}

/// A line of bytes in hexadecimal and as text; what can't be read is `--`.
fn dump(address: u64, row: &[Option<u8>]) -> String {
    let hex: Vec<String> = row.iter().map(|byte| byte.map_or("--".into(), |byte| format!("{byte:02x}"))).collect();
    let printable = |byte: &Option<u8>| byte.map(char::from).filter(|next| next.is_ascii_graphic() || *next == ' ');
    let text: String = row.iter().map(|byte| printable(byte).unwrap_or('.')).collect();
    format!("{address:016x}  {:<47}  |{text}|", hex.join(" "))
}
