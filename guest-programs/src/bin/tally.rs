//! Counts requests in raw packets and answers each with a hash of its whole history; prints count
//! and hash twice a second.
#![no_std]
#![no_main]

use guest_programs::platform::power::{self, Outcome};
use guest_programs::platform::{self, Boot, Clock, Nic, Program, entropy};
use guest_programs::println;
use guest_programs::tally::{ANSWER_BYTES, Operation, Tally};
use smoltcp::phy::{Device, RxToken, TxToken};
use smoltcp::time::{Duration, Instant};

guest_programs::entry!(main);

const REPORT_INTERVAL: Duration = Duration::from_millis(500);

fn main(boot: &Boot) -> ! {
    platform::run_program(boot, |_, nic| TallyProgram {
        tally: Tally::default(),
        mac: nic.mac_address(),
        next_report: Instant::ZERO,
    })
}

struct TallyProgram {
    tally: Tally,
    mac: [u8; 6],
    next_report: Instant,
}

impl Program for TallyProgram {
    fn poll(&mut self, clock: &mut Clock, nic: &mut Nic) -> Option<Instant> {
        while let Some((packet, transmission)) = nic.receive(Instant::ZERO) {
            let read = || (clock.read().total_micros().unsigned_abs(), entropy::read());
            let Some(answer) = packet.consume(|packet| self.tally.take(packet, read)) else { continue };
            let mac = self.mac;
            transmission.consume(ANSWER_BYTES, |room| room.copy_from_slice(&answer.packet(mac, 0)));
            for part in 1..answer.parts() {
                // There is room, because the device sends each packet when it is notified.
                let Some(transmission) = nic.transmit(Instant::ZERO) else { break };
                transmission.consume(ANSWER_BYTES, |room| room.copy_from_slice(&answer.packet(mac, part)));
            }
            if answer.operation == Operation::PowerOff {
                println!("tally: the end after {} requests", self.tally.count());
                power::power_off(Outcome::Success);
            }
        }
        None
    }

    fn idle(&mut self, now: Instant) -> bool {
        if now >= self.next_report {
            self.next_report = now + REPORT_INTERVAL;
            println!("tally: {} requests, hash {:016x}", self.tally.count(), self.tally.hash());
        }
        false
    }
}
