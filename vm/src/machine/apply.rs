//! Applying inputs: the only way in.

use super::Machine;
use crate::event::{Event, PACKET_BYTES_MAX};
use crate::exit::StopReason;
use crate::hart::AwaitedValue;

/// Why an event can't be applied: the log belongs to another execution.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A value that the guest's next instruction doesn't need.
    #[error("the machine does not stand at a read of the {0}")]
    NotRead(&'static str),
    /// A clock value less than the one before.
    #[error("the clock would go back from {last} to {ticks} ticks")]
    ClockWentBack {
        /// The refused value.
        ticks: u64,
        /// [`Machine::last_ticks`].
        last: u64,
    },
    /// A timer interrupt that the guest hasn't asked for.
    #[error("the guest has set no timer")]
    NoTimer,
    /// A packet whose number isn't greater than that of the packet before.
    #[error("packet {number} after packet {last}: their numbers must rise")]
    PacketOutOfOrder {
        /// The packet's number.
        number: u64,
        /// [`Machine::last_packet_number`].
        last: u64,
    },
    /// A packet longer than the network device carries.
    #[error("a frame of {bytes} bytes; the longest is {PACKET_BYTES_MAX}")]
    PacketTooLong {
        /// Its length.
        bytes: usize,
    },
    /// More console input than the machine has room for.
    #[error("{bytes} bytes of console input, but room for {room}")]
    ConsoleFull {
        /// Length of the input.
        bytes: usize,
        /// [`Machine::console_room`].
        room: usize,
    },
    /// A time of day less than the one before.
    #[error("the time of day would go back from {last} to {ns} ns since 1970")]
    WallClockWentBack {
        /// The refused value.
        ns: u64,
        /// [`Machine::last_wall_ns`].
        last: u64,
    },
    /// An alarm that the guest hasn't set.
    #[error("the guest has set no alarm")]
    NoAlarm,
    /// Another number of random bytes than the entropy device takes.
    #[error("{bytes} random bytes, but the entropy device takes {needed}")]
    RandomBytes {
        /// How many there are.
        bytes: usize,
        /// [`Machine::random_bytes_needed`].
        needed: usize,
    },
    /// The guest has stopped.
    #[error("the machine has stopped: {0}")]
    Stopped(StopReason),
}

impl Machine {
    /// Applies one input, at the present instruction count.
    ///
    /// An answered read completes its instruction: the count is one more afterwards.
    ///
    /// # Errors
    /// [`ApplyError`] if the machine isn't in a state in which this event could have happened; the
    /// state is unchanged.
    pub fn apply(&mut self, event: &Event) -> Result<(), ApplyError> {
        if let Some(reason) = self.bus.stopped() {
            return Err(ApplyError::Stopped(reason));
        }
        let before = (self.hart.count(), self.hart.pc());
        match event {
            Event::ClockRead { ticks } => self.answer_clock_read(*ticks)?,
            Event::Entropy { bits } => self.answer_seed_read(*bits)?,
            Event::TimerInterrupt => {
                let deadline = self.timer_deadline().ok_or(ApplyError::NoTimer)?;
                self.hart.set_ticks(deadline);
            }
            Event::Packet { number, packet } => self.receive_packet(*number, packet)?,
            Event::ConsoleInput { bytes } => {
                let room = self.console_room();
                if bytes.len() > room {
                    return Err(ApplyError::ConsoleFull { bytes: bytes.len(), room });
                }
                self.bus.uart.receive(bytes);
            }
            Event::WallClock { ns } => self.answer_wall_clock(*ns)?,
            Event::Alarm => {
                let due = self.alarm_wall_ns().ok_or(ApplyError::NoAlarm)?;
                self.bus.rtc.set_host_ns(due);
            }
            Event::RandomBytes { bytes } => self.receive_random(bytes)?,
        }
        self.settle();
        if self.probe.is_some() {
            self.note_event(before);
        }
        Ok(())
    }

    fn answer_clock_read(&mut self, ticks: u64) -> Result<(), ApplyError> {
        if self.hart.next_awaited_value(&self.bus) != Some(AwaitedValue::Clock) {
            return Err(ApplyError::NotRead("clock"));
        }
        let last = self.last_ticks();
        if ticks < last {
            return Err(ApplyError::ClockWentBack { ticks, last });
        }
        self.hart.complete_awaited(&mut self.bus, ticks);
        self.hart.set_ticks(ticks);
        Ok(())
    }

    fn answer_seed_read(&mut self, bits: u16) -> Result<(), ApplyError> {
        /// Field OPST of CSR `seed`: 16 bits of entropy are valid.
        const OPST_ES16: u64 = 0b10 << 30;
        if self.hart.next_awaited_value(&self.bus) != Some(AwaitedValue::Seed) {
            return Err(ApplyError::NotRead("seed"));
        }
        self.hart.complete_awaited(&mut self.bus, OPST_ES16 | u64::from(bits));
        Ok(())
    }

    fn receive_packet(&mut self, number: u64, packet: &[u8]) -> Result<(), ApplyError> {
        if number <= self.last_packet_number {
            return Err(ApplyError::PacketOutOfOrder { number, last: self.last_packet_number });
        }
        if packet.len() > PACKET_BYTES_MAX {
            return Err(ApplyError::PacketTooLong { bytes: packet.len() });
        }
        self.last_packet_number = number;
        self.bus.receive_packet(packet);
        self.hart.drop_reservation();
        Ok(())
    }

    fn answer_wall_clock(&mut self, ns: u64) -> Result<(), ApplyError> {
        if self.hart.next_awaited_value(&self.bus) != Some(AwaitedValue::WallClock) {
            return Err(ApplyError::NotRead("time of day"));
        }
        let last = self.last_wall_ns();
        if ns < last {
            return Err(ApplyError::WallClockWentBack { ns, last });
        }
        self.bus.rtc.set_host_ns(ns);
        self.hart.complete_awaited(&mut self.bus, 0);
        self.hart.drop_reservation();
        Ok(())
    }

    fn receive_random(&mut self, bytes: &[u8]) -> Result<(), ApplyError> {
        let needed = self.random_bytes_needed();
        if !self.bus.rng.is_waiting() || bytes.len() != needed {
            return Err(ApplyError::RandomBytes { bytes: bytes.len(), needed });
        }
        self.bus.receive_random(bytes);
        self.hart.drop_reservation();
        Ok(())
    }
}
