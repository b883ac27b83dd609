//! A recorder's log replays, also in special cases: a guest whose device breaks because of an
//! event, and a machine that is taken over with outputs that its predecessor hadn't logged.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod roles_image;

use ft::event_source::EventSource;
use ft::record::{Intervals, LogSink, Recorder, Slice};
use ft::replay::{Consumed, Replayer};
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use roles_image::image;
use std::collections::VecDeque;
use std::convert::Infallible;
use vm::{
    DeviceFault, Event, InstructionCount, Machine, MachineConfig, OutputId, OutputOperation, StopReason, VirtioDevice,
};

const ECALL: u32 = 0x0000_0073;
const SLICE_STEPS: u64 = 1000;

fn addi(rd: u32, rs1: u32, immediate: u32) -> u32 {
    immediate << 20 | rs1 << 15 | rd << 7 | 0x13
}

fn slli(rd: u32, rs1: u32, amount: u32) -> u32 {
    amount << 20 | rs1 << 15 | 1 << 12 | rd << 7 | 0x13
}

fn lui(rd: u32, upper: u32) -> u32 {
    upper << 12 | rd << 7 | 0x37
}

/// Stores the low 8 (`width` 0) or 32 bits (`width` 2) of `rs2`.
fn store(width: u32, rs2: u32, rs1: u32, offset: u32) -> u32 {
    (offset >> 5) << 25 | rs2 << 20 | rs1 << 15 | width << 12 | (offset & 0x1f) << 7 | 0x23
}

fn machine(code: &[u32]) -> Machine {
    Machine::new(&MachineConfig { ram_bytes: 4 << 20, ..MachineConfig::default() }, &image(code)).unwrap()
}

/// A source whose `events` are due at once, whether or not the machine can take them.
struct Source(VecDeque<Event>);

impl EventSource for Source {
    fn now_ns(&mut self) -> u64 {
        0
    }

    fn ticks(&mut self) -> u64 {
        0
    }

    fn wall_ns(&mut self) -> u64 {
        0
    }

    fn entropy(&mut self) -> u16 {
        0
    }

    fn poll(&mut self, _: &Machine) -> Option<Event> {
        self.0.pop_front()
    }
}

fn packets(count: u64) -> Source {
    Source((1..=count).map(|number| Event::Packet { number, packet: vec![0; 60] }).collect())
}

#[derive(Default)]
struct Log(Vec<LogEntry>);

impl LogSink for Log {
    type Error = Infallible;

    fn append(&mut self, entry: &LogEntry, _: Option<(OutputId, OutputOperation)>) -> Result<(), Infallible> {
        self.0.push(entry.clone());
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

fn replay(machine: Machine, entries: &[LogEntry]) -> (Machine, Vec<Consumed>) {
    let mut replayer = Replayer::new(machine, LogSeq(0));
    let consumed = entries.iter().map(|entry| replayer.consume(entry).unwrap_or_else(|error| panic!("{error}")));
    let consumed = consumed.collect();
    (replayer.into_machine(), consumed)
}

#[test]
fn a_guest_whose_device_an_event_breaks_goes_on() {
    /// Writes to virtio registers: features of version 1, a receive queue of 8 with rings outside
    /// RAM, and the driver's final status.
    const WRITES: [(u32, u32); 9] =
        [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, 0), (0x38, 8), (0x44, 1), (0x70, 15)];
    let mut code = vec![lui(5, 0x10001)];
    for (register, value) in WRITES {
        code.extend([addi(6, 0, value), store(2, 6, 5, register)]);
    }
    let mut log = Log::default();
    let mut recorder = Recorder::new(machine(&code), Source(VecDeque::new()), Intervals::default());
    assert_eq!(recorder.run_slice(&mut log, SLICE_STEPS), Ok(Slice::Waiting));
    *recorder.source_mut() = packets(3);
    assert_eq!(recorder.run_slice(&mut log, SLICE_STEPS), Ok(Slice::Waiting));
    let fault = DeviceFault { device: VirtioDevice::Net, queue: 0, descriptor: None };
    assert_eq!(recorder.machine_mut().take_device_fault(), Some(fault));
    assert_eq!(recorder.machine().dropped_packets().received, 3);
    recorder.digest(&mut log).unwrap();
    let (mut machine, _) = replay(machine(&code), &log.0);
    assert_eq!(machine.take_device_fault(), Some(fault), "a replay comes to it as well");
}

/// A log that fails.
struct FullLog;

impl LogSink for FullLog {
    type Error = &'static str;

    fn append(&mut self, _: &LogEntry, _: Option<(OutputId, OutputOperation)>) -> Result<(), Self::Error> {
        Err("full")
    }

    fn flush(&mut self) -> Result<(), Self::Error> {
        Err("full")
    }
}

/// An event is logged before it is applied: one that the guest has seen and the log hasn't would be
/// lost with the host.
#[test]
fn an_event_that_the_log_does_not_take_has_not_happened() {
    let mut recorder = Recorder::new(machine(&[addi(5, 0, 1)]), packets(1), Intervals::default());
    assert_eq!(recorder.run_slice(&mut FullLog, SLICE_STEPS), Err("full"));
    assert_eq!(recorder.machine().last_packet_number(), 0);
    assert_eq!(recorder.machine().instruction_count(), InstructionCount(0));
}

/// A log whose entries are sent when it is flushed.
#[derive(Default)]
struct SentLog {
    appended: usize,
    outputs_unsent: usize,
    outputs_sent: usize,
}

impl LogSink for SentLog {
    type Error = Infallible;

    fn append(&mut self, _: &LogEntry, output: Option<(OutputId, OutputOperation)>) -> Result<(), Infallible> {
        self.appended += 1;
        self.outputs_unsent += usize::from(output.is_some());
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        self.outputs_sent += std::mem::take(&mut self.outputs_unsent);
        Ok(())
    }
}

/// An output waits for its entry, so the entry must be sent at once.
#[test]
fn an_output_takes_its_log_along_at_once() {
    let code = [addi(17, 0, 1), addi(10, 0, u32::from(b'\n')), ECALL];
    let mut log = SentLog::default();
    let mut recorder = Recorder::new(machine(&code), Source(VecDeque::new()), Intervals::default());
    assert_eq!(recorder.run_slice(&mut log, SLICE_STEPS), Ok(Slice::Waiting));
    assert_eq!((log.outputs_sent, log.outputs_unsent), (1, 0), "of {} entries", log.appended);
}

#[test]
fn outputs_that_a_predecessor_had_not_logged_come_before_everything_else() {
    // One byte through the UART, which waits for the end of its line, and one through the firmware,
    // which flushes that: two outputs of one step.
    let code = [
        lui(5, 0x10000),
        addi(6, 0, u32::from(b'a')),
        store(0, 6, 5, 0),
        lui(17, 0x44424),
        addi(17, 17, 0x34e),
        addi(10, 0, 1),
        addi(11, 0, 1),
        slli(11, 11, 31),
        ECALL,
    ];
    let mut log = Log::default();
    let mut recorder = Recorder::new(machine(&code), Source(VecDeque::new()), Intervals::default());
    assert_eq!(recorder.run_slice(&mut log, SLICE_STEPS), Ok(Slice::Waiting));
    let outputs: Vec<_> = (0..log.0.len()).filter(|at| matches!(log.0[*at].body, EntryBody::Output { .. })).collect();
    assert_eq!(outputs.len(), 2);
    assert_eq!(log.0[outputs[0]].count, log.0[outputs[1]].count);

    // The predecessor dies between the two entries, and the successor gets a packet at once.
    log.0.truncate(outputs[1]);
    let (successor, consumed) = replay(machine(&code), &log.0);
    assert!(matches!(consumed.last(), Some(Consumed::Output(OutputId(0), _))));
    let mut recorder = Recorder::new(successor, packets(1), Intervals::default());
    assert_eq!(recorder.run_slice(&mut log, SLICE_STEPS), Ok(Slice::Waiting));
    let rest: Vec<_> = log.0[outputs[1]..].iter().map(|entry| &entry.body).collect();
    assert!(
        matches!(rest[..], [EntryBody::Output { id: OutputId(1), .. }, EntryBody::Event(Event::Packet { .. })]),
        "{rest:?}"
    );
    replay(machine(&code), &log.0);

    // As before, but the successor's first entry is its generation.
    log.0.truncate(outputs[1]);
    let (successor, _) = replay(machine(&code), &log.0);
    let mut recorder = Recorder::new(successor, packets(1), Intervals::default());
    let Ok(()) = recorder.log_generation(&mut log, Generation(2));
    let Ok(_) = recorder.run_slice(&mut log, SLICE_STEPS);
    let (_, consumed) = replay(machine(&code), &log.0);
    assert_eq!(consumed.iter().filter(|consumed| matches!(consumed, Consumed::Output(..))).count(), 2);
}

#[test]
fn a_guest_that_ended_under_its_predecessor_ends_under_the_successor() {
    // The test finisher's value for success.
    let code = [lui(5, 0x100), lui(6, 0x5), addi(6, 6, 0x555), store(2, 6, 5, 0)];
    let mut log = Log::default();
    let mut recorder = Recorder::new(machine(&code), Source(VecDeque::new()), Intervals::default());
    let expected = StopReason::PowerOff { code: 0 };
    assert_eq!(recorder.run_slice(&mut log, SLICE_STEPS), Ok(Slice::Stopped(expected)));

    let (successor, _) = replay(machine(&code), &log.0);
    let mut recorder = Recorder::new(successor, packets(1), Intervals::default());
    let logged = log.0.len();
    let Ok(()) = recorder.log_generation(&mut log, Generation(2));
    assert_eq!(recorder.run_slice(&mut log, SLICE_STEPS), Ok(Slice::Stopped(expected)));
    let rest: Vec<_> = log.0[logged..].iter().map(|entry| &entry.body).collect();
    assert!(
        matches!(rest[..], [EntryBody::Generation(_), EntryBody::Digest(_), EntryBody::Stopped(reason)] if *reason == expected),
        "{rest:?}"
    );
}

/// A source whose time advances by `step_ns` with every reading.
struct Clock {
    now_ns: u64,
    step_ns: u64,
}

impl EventSource for Clock {
    fn now_ns(&mut self) -> u64 {
        self.now_ns += self.step_ns;
        self.now_ns
    }

    fn ticks(&mut self) -> u64 {
        self.now_ns / 100
    }

    fn wall_ns(&mut self) -> u64 {
        self.now_ns
    }

    fn entropy(&mut self) -> u16 {
        0
    }

    fn poll(&mut self, machine: &Machine) -> Option<Event> {
        machine.timer_deadline().filter(|deadline| *deadline <= self.now_ns / 100).map(|_| Event::TimerInterrupt)
    }
}

/// A host that has a time of day, and whose entropy is a sequence.
struct Host {
    wall_ns: u64,
    drawn: u16,
}

impl EventSource for Host {
    fn now_ns(&mut self) -> u64 {
        0
    }

    fn ticks(&mut self) -> u64 {
        0
    }

    fn wall_ns(&mut self) -> u64 {
        self.wall_ns
    }

    fn entropy(&mut self) -> u16 {
        self.drawn += 1;
        self.drawn
    }

    fn poll(&mut self, _: &Machine) -> Option<Event> {
        None
    }
}

/// 2026-11-29, in nanoseconds since 1970.
const WALL_NS: u64 = 1_795_914_000_000_000_000;

/// Puts `value`, of 11 bits, into a register of the device at `page` by way of x5 and x6.
fn write(page: u32, offset: u32, value: u32) -> Vec<u32> {
    vec![lui(5, page), addi(6, 0, value), store(2, 6, 5, offset)]
}

/// `lw rd, 0(x5)` of the real-time clock.
fn read_time(rd: u32) -> Vec<u32> {
    vec![lui(5, 0x101), rd << 7 | 2 << 12 | 5 << 15 | 0x03]
}

fn times(entries: &[LogEntry]) -> Vec<u64> {
    let time = |entry: &LogEntry| {
        if let EntryBody::Event(Event::WallClock { ns }) = entry.body { Some(ns) } else { None }
    };
    entries.iter().filter_map(time).collect()
}

#[test]
fn a_new_owner_whose_host_is_behind_does_not_turn_the_time_of_day_back() {
    const BEHIND_NS: u64 = 3_000_000_000;
    const STEPS: u64 = 2;
    let code = [read_time(7), read_time(8), read_time(9)].concat();
    let mut log = Log::default();
    let mut recorder = Recorder::new(machine(&code), Host { wall_ns: WALL_NS, drawn: 0 }, Intervals::default());
    recorder.run_slice(&mut log, STEPS).unwrap();
    let (successor, _) = replay(machine(&code), &log.0);
    let host = Host { wall_ns: WALL_NS - BEHIND_NS, drawn: 0 };
    let mut recorder = Recorder::new(successor, host, Intervals::default());
    recorder.run_slice(&mut log, STEPS).unwrap();
    assert_eq!(times(&log.0), [WALL_NS, WALL_NS], "it stands");
    recorder.source_mut().wall_ns = WALL_NS + 1;
    recorder.run_slice(&mut log, STEPS).unwrap();
    assert_eq!(times(&log.0), [WALL_NS, WALL_NS, WALL_NS + 1], "it goes on once the host's has come to it");
    let (replayed, _) = replay(machine(&code), &log.0);
    assert_eq!(replayed.registers()[7..10], recorder.machine().registers()[7..10]);
}

#[test]
fn an_alarm_is_logged_once_the_hosts_time_of_day_has_come_to_it() {
    let read = |rd: u32, offset: u32| offset << 20 | 5 << 15 | 2 << 12 | rd << 7 | 0x03;
    // An alarm at 100 ns after the time that was read.
    let set = [store(2, 8, 5, 12), addi(7, 7, 100), store(2, 7, 5, 8)];
    let code = [&[lui(5, 0x101), read(7, 0), read(8, 4)][..], &set].concat();
    let start_ns = WALL_NS & !0xffff_ffff;
    let mut log = Log::default();
    let mut recorder = Recorder::new(machine(&code), Host { wall_ns: start_ns, drawn: 0 }, Intervals::default());
    let alarms = |log: &Log| log.0.iter().filter(|entry| entry.body == EntryBody::Event(Event::Alarm)).count();
    assert_eq!(recorder.run_slice(&mut log, SLICE_STEPS), Ok(Slice::Waiting));
    assert_eq!((alarms(&log), recorder.machine().alarm_wall_ns()), (0, Some(start_ns + 100)));
    recorder.source_mut().wall_ns = start_ns + 99;
    recorder.run_slice(&mut log, SLICE_STEPS).unwrap();
    assert_eq!(alarms(&log), 0);
    recorder.source_mut().wall_ns = start_ns + 1_000_000_000;
    recorder.run_slice(&mut log, SLICE_STEPS).unwrap();
    assert_eq!((alarms(&log), recorder.machine().alarm_wall_ns()), (1, None));
    replay(machine(&code), &log.0);
}

#[test]
fn the_entropy_device_gets_the_hosts_bytes_before_the_guest_goes_on() {
    /// Virtio registers of a queue of 8, whose parts are filled in by the code below.
    const SET_UP: [(u32, u32); 6] = [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x38, 8)];
    let device = |writes: &[(u32, u32)]| -> Vec<u32> {
        writes.iter().flat_map(|(register, value)| write(0x10003, *register, *value)).collect()
    };
    let in_ram = |offset: u32, upper: u32, value: u32| {
        vec![lui(5, 0x40080), slli(5, 5, 1), lui(6, upper), addi(6, 6, value), store(2, 6, 5, offset)]
    };
    let part = |register: u32, offset: u32| {
        vec![lui(5, 0x10003), lui(6, 0x80100), addi(6, 6, offset), store(2, 6, 5, register)]
    };
    let code = [
        device(&SET_UP),
        [part(0x80, 0), part(0x90, 0x100), part(0xa0, 0x200)].concat(),
        device(&[(0x44, 1), (0x70, 15)]),
        // A descriptor of 5 bytes that the device writes, and an available ring with it.
        [in_ram(0, 0x80100, 0x300), in_ram(8, 0, 5), in_ram(12, 0, 2), in_ram(0x100, 0x10, 0)].concat(),
        device(&[(0x50, 0)]),
    ];
    let code = code.concat();
    let mut log = Log::default();
    let mut recorder = Recorder::new(machine(&code), Host { wall_ns: 0, drawn: 0 }, Intervals::default());
    assert_eq!(recorder.run_slice(&mut log, SLICE_STEPS), Ok(Slice::Waiting));
    assert_eq!(recorder.machine().memory(0x8010_0300, 6), Some(&[1, 0, 2, 0, 3, 0][..]));
    let bytes = log.0.iter().filter_map(|entry| {
        if let EntryBody::Event(Event::RandomBytes { bytes }) = &entry.body { Some(bytes.clone()) } else { None }
    });
    assert_eq!(bytes.collect::<Vec<_>>(), [[1, 0, 2, 0, 3]]);
    recorder.digest(&mut log).unwrap();
    replay(machine(&code), &log.0);
}

/// The longest time without an entry while the guest advanced, in nanoseconds.
fn longest_silence_ns(code: &[u32]) -> u64 {
    let mut log = Log::default();
    let mut recorder = Recorder::new(machine(code), Clock { now_ns: 0, step_ns: 10_000 }, Intervals::default());
    let (mut entries, mut count, mut since_ns, mut longest_ns) = (0, InstructionCount(0), 0, 0);
    for _ in 0..20_000 {
        assert!(!matches!(recorder.run_slice(&mut log, SLICE_STEPS), Ok(Slice::Stopped(_))));
        let now_ns = recorder.source().now_ns;
        if log.0.len() > entries || recorder.machine().instruction_count() == count {
            (entries, count, since_ns) = (log.0.len(), recorder.machine().instruction_count(), now_ns);
        }
        longest_ns = longest_ns.max(now_ns - since_ns);
    }
    let last = log.0.last().unwrap().count;
    assert!(recorder.machine().instruction_count().since(last) < 1_000_000, "the backup may go nearly as far");
    replay(machine(code), &log.0);
    longest_ns
}

/// Scales et al. 2010, §2.1: the backup must know how far it may run, whatever the guest does.
#[test]
fn a_guest_that_computes_sleeps_or_masks_its_interrupts_tells_its_backup_how_far_it_is() {
    const SPIN: u32 = 0x0000_006f;
    /// `csrci sstatus, SIE`
    const MASK_INTERRUPTS: u32 = 0x1001_7073;
    // SBI set_timer(1): an interrupt that is due at once and never taken.
    let set_timer = [addi(10, 0, 1), lui(17, 0x54495), addi(17, 17, 0xd45), addi(16, 0, 0), ECALL];
    let computing = vec![SPIN];
    let masked = [&set_timer[..], &[MASK_INTERRUPTS, SPIN]].concat();
    let sleeping = vec![];
    let bound_ns = Intervals::default().progress_ns + 200_000;
    for (what, code) in [("computes", computing), ("masks", masked), ("sleeps", sleeping)] {
        let silence_ns = longest_silence_ns(&code);
        assert!(silence_ns <= bound_ns, "a guest that {what} was silent for {silence_ns} ns");
    }
}
