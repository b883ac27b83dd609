//! `ft-replay state`.

use super::super::length::Length;
use super::bar::Bar;
use super::view::{CSRS, REGISTERS, address_space, cause_name, disassembled, mode_name};
use super::{Lines, LogOptions, complain, guest_seconds, resolve, told};
use crate::os::report::Grouped;
use crate::program::Failure;
use crate::recording::{Moment, Position, Seeker};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use vm::Machine;

/// Options of `ft-replay state`.
#[derive(Args, Debug)]
pub(in crate::program::replay) struct Options {
    #[command(flatten)]
    pub(super) log: LogOptions,
    /// The moment
    #[arg(long, value_name = "POSITION", default_value = "end")]
    at: Position,
    /// Show the floating-point registers and the devices too
    #[arg(long)]
    all: bool,
}

/// A machine's state as JSON. Numbers of 64 bits are in hexadecimal, because not every reader keeps
/// them whole.
#[derive(Serialize)]
struct State {
    event: &'static str,
    instruction_count: u64,
    entry: u64,
    guest_seconds: f64,
    mode: &'static str,
    is_waiting: bool,
    pc: String,
    instruction: String,
    address_space: String,
    state_digest: String,
    registers: BTreeMap<&'static str, String>,
    csrs: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    float_registers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    devices: BTreeMap<&'static str, String>,
}

fn hex(value: u64) -> String {
    format!("{value:#018x}")
}

impl State {
    fn of(machine: &mut Machine, moment: Moment, has_all: bool) -> Self {
        let floats = machine.float_registers().iter().enumerate().filter(|_| has_all);
        let csrs = CSRS.iter().filter_map(|(name, number)| Some((*name, hex(machine.csr(*number)?))));
        Self {
            event: "state",
            instruction_count: moment.count.0,
            entry: moment.seq.0,
            guest_seconds: guest_seconds(machine.last_ticks()),
            mode: mode_name(machine.privilege_level()),
            is_waiting: machine.is_waiting(),
            pc: hex(machine.pc()),
            instruction: disassembled(machine, machine.pc()),
            address_space: address_space(machine.csr(0x180).unwrap_or(0)),
            registers: REGISTERS.iter().zip(machine.registers()).map(|(name, value)| (*name, hex(*value))).collect(),
            csrs: csrs.collect(),
            float_registers: floats.map(|(number, bits)| (format!("f{number}"), hex(*bits))).collect(),
            devices: machine.devices().into_iter().filter(|_| has_all).collect(),
            state_digest: machine.digest().to_string(),
        }
    }

    fn text(&self, lines: &mut Lines) -> Result<(), Failure> {
        let (count, entry) = (Grouped(self.instruction_count), Grouped(self.entry));
        lines.text(format_args!(
            "instruction    {count}, before entry {entry}, guest's time +{:.6} s",
            self.guest_seconds
        ))?;
        let waits = if self.is_waiting { ", waits for an interrupt" } else { "" };
        lines.text(format_args!("mode           {}{waits}; addresses {}", self.mode, self.address_space))?;
        lines.text(format_args!("pc             {}  {}", self.pc, self.instruction))?;
        for names in REGISTERS.chunks(4) {
            let row: Vec<String> = names.iter().map(|name| format!("{name:<5}{}", self.registers[name])).collect();
            lines.text(format_args!("{}", row.join("  ")))?;
        }
        let csrs: Vec<_> = CSRS.iter().filter_map(|(name, _)| Some((*name, self.csrs.get(name)?))).collect();
        for row in csrs.chunks(3) {
            let row: Vec<String> = row.iter().map(|(name, value)| format!("{name:<11}{value}")).collect();
            lines.text(format_args!("{}", row.join("  ")))?;
        }
        let cause = |name: &str| {
            let value = self.csrs.get(name)?.strip_prefix("0x")?;
            u64::from_str_radix(value, 16).ok().filter(|value| *value != 0)
        };
        for name in ["scause", "mcause"] {
            if let Some(value) = cause(name) {
                lines.text(format_args!("{name:<14} {}", cause_name(value)))?;
            }
        }
        let floats: Vec<_> = self.float_registers.iter().collect();
        for row in floats.chunks(4) {
            let row: Vec<String> = row.iter().map(|(name, value)| format!("{name:<5}{value}")).collect();
            lines.text(format_args!("{}", row.join("  ")))?;
        }
        for (name, device) in &self.devices {
            lines.text(format_args!("{name:<14} {device}"))?;
        }
        Ok(lines.text(format_args!("digest         {}", self.state_digest))?)
    }
}

impl Options {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let recording = self.log.open()?;
        let target = resolve(&recording, &self.at)?;
        let seeker = Seeker::new(&recording);
        let sought = seeker.seek(target, &Bar::new(Length::default(), self.log.json));
        complain(&seeker);
        let mut replay = sought.map_err(told)?;
        let moment = replay.moment();
        let state = State::of(replay.machine_mut(), moment, self.all);
        let mut lines = self.log.lines();
        if lines.is_json() {
            lines.json(&state)?;
        } else {
            state.text(&mut lines)?;
        }
        Ok(lines.flush()?)
    }
}
