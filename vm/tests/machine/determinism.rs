//! Digests, runs that don't depend on how the machine is driven, and guests of random code.

use crate::common::hostile::Random;
use crate::common::{
    self, LI, NOP, RAM, UART, WFI, addi, branch, csrrs, drive, for_each_seed, jal, li, machine, run_by, run_on,
    small_config, store,
};
use vm::{ApplyError, Event, Exit, InstructionCount, LoadError, Machine, MachineConfig, OutputOperation};

#[test]
fn digest_sees_every_register() {
    let reference = {
        let mut machine = machine(&[NOP]);
        run_by(&mut machine, 1);
        machine.digest()
    };
    for register in 1..32 {
        // Memory and count are the reference's, because the instruction that ran is turned into a
        // NOP afterwards: only the register differs.
        let mut machine = machine(&[addi(register, register, 1)]);
        run_by(&mut machine, 1);
        for bit in 0..32 {
            if (addi(register, register, 1) ^ NOP) >> bit & 1 == 1 {
                assert!(machine.flip_ram_bit(RAM + bit / 8, u8::try_from(bit % 8).unwrap()));
            }
        }
        assert_eq!(machine.memory(RAM, 4), Some(&NOP.to_le_bytes()[..]));
        assert_ne!(machine.digest(), reference, "x{register}");
    }
}

#[test]
fn digest_sees_every_bit_of_ram_and_forgets_a_flip_taken_back() {
    let mut machine = machine(&[NOP]);
    let reference = machine.digest();
    for address in [RAM, RAM + 0x1fff, RAM + 0x20_0000, RAM + (4 << 20) - 1] {
        for bit in 0..8 {
            assert!(machine.flip_ram_bit(address, bit));
            assert_ne!(machine.digest(), reference, "{address:#x} bit {bit}");
            assert!(machine.flip_ram_bit(address, bit));
            assert_eq!(machine.digest(), reference);
        }
    }
    assert!(!machine.flip_ram_bit(RAM - 1, 0));
    assert!(!machine.flip_ram_bit(RAM + (4 << 20), 0));
    assert!(!machine.flip_ram_bit(RAM, 8));
}

#[test]
fn digest_sees_events_that_change_no_register() {
    let mut machine = machine(&[NOP]);
    let mut seen = vec![machine.digest()];
    for event in [Event::ConsoleInput { bytes: vec![7] }, Event::Packet { number: 3, packet: vec![0; 60] }] {
        machine.apply(&event).unwrap();
        assert!(!seen.contains(&machine.digest()), "{event:?}");
        seen.push(machine.digest());
    }
}

/// A backup that goes live takes both from its machine, so the digest must tell if the sides differ
/// in them.
#[test]
fn digest_sees_the_last_clock_value_and_the_last_packet_number() {
    let clock = |ticks| {
        let mut machine = machine(&[csrrs(0, common::TIME, 0)]);
        assert_eq!(run_by(&mut machine, 1), Exit::ClockRead);
        machine.apply(&Event::ClockRead { ticks }).unwrap();
        machine.digest()
    };
    assert_ne!(clock(1), clock(2));
    let packet = |number| {
        let mut machine = machine(&[NOP]);
        machine.apply(&Event::Packet { number, packet: vec![0; 60] }).unwrap();
        machine.digest()
    };
    assert_ne!(packet(1), packet(2));
}

/// A guest that loops for ever: it prints a letter, ends the line after every twentieth, and reads
/// the clock.
fn chatty() -> Vec<u32> {
    let head = [li(5, UART), li(6, 0x41), li(9, 20)].concat();
    let body = [
        store(0, 6, 5, 0),
        addi(7, 7, 1),
        branch(1, 7, 9, 16), // unless this is the twentieth letter
        addi(8, 0, 10),
        store(0, 8, 5, 0),
        addi(7, 0, 0),
        csrrs(10, common::TIME, 0),
        addi(11, 11, 1),
        jal(0, -32),
    ];
    [head, body.to_vec()].concat()
}

#[test]
fn slicing_changes_neither_state_nor_outputs() {
    const LIMIT: u64 = 20_000;
    let run = |slice| {
        let mut machine = machine(&chatty());
        let (exit, outputs) = drive(&mut machine, LIMIT, slice);
        assert_eq!(exit, Exit::LimitReached);
        (machine.digest(), outputs)
    };
    let whole = run(LIMIT);
    assert!(whole.1.len() > 100, "{} outputs", whole.1.len());
    for slice in [1, 2, 7, 100, 4093] {
        assert_eq!(run(slice), whole, "slices of {slice}");
    }
}

#[test]
fn an_unfinished_line_is_sent_after_a_fixed_number_of_steps() {
    // One letter, then a loop that prints nothing.
    let code = [li(5, UART), li(6, 0x41), vec![store(0, 6, 5, 0), jal(0, 0)]].concat();
    let written = 2 * LI + 1;
    let mut digests = Vec::new();
    for slice in [u64::MAX, 1000, 33_333] {
        let mut machine = machine(&code);
        while run_by(&mut machine, slice) == Exit::LimitReached {}
        assert_eq!(machine.instruction_count().0, written + 100_000, "slices of {slice}");
        assert_eq!(machine.take_output().unwrap().1, OutputOperation::Console(b"A".to_vec()));
        digests.push(machine.digest());
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]));
}

#[test]
fn console_bytes_leave_at_newline_at_256_and_before_sleep() {
    let letters = |count: i32| vec![store(0, 6, 5, 0); usize::try_from(count).unwrap()];
    let head = || [li(5, UART), li(6, 0x41)].concat();
    let mut long = machine(&[head(), letters(257), vec![WFI]].concat());
    assert_eq!(run_on(&mut long), Exit::Output);
    assert_eq!(long.instruction_count().0, 2 * LI + 256);
    assert_eq!(long.take_output().unwrap().1.bytes(), [0x41; 256]);
    assert_eq!(run_on(&mut long), Exit::Output);
    assert_eq!(long.take_output().unwrap().1.bytes(), [0x41; 1], "sleep flushes");
    assert_eq!(run_on(&mut long), Exit::WaitForInterrupt);
    assert_eq!(long.next_output_id().0, 2);
}

#[test]
fn an_event_wakes_a_machine_before_it_is_run_again() {
    let code = [
        vec![addi(5, 0, 0x200), csrrs(0, common::SIE, 5)],
        plic_and_uart_interrupts(),
        vec![WFI, csrrs(6, common::TIME, 0)],
    ];
    let (mut ran, mut left) = (machine(&code.concat()), machine(&code.concat()));
    for machine in [&mut ran, &mut left] {
        assert_eq!(run_on(machine), Exit::WaitForInterrupt);
        machine.apply(&Event::ConsoleInput { bytes: vec![1] }).unwrap();
    }
    assert_eq!(run_on(&mut ran), Exit::ClockRead);
    assert_eq!(ran.digest(), left.digest());
}

/// Enables the console's receive interrupt at the UART and the PLIC.
fn plic_and_uart_interrupts() -> Vec<u32> {
    let write = |address, value, funct3| [li(5, address), li(6, value), vec![store(funct3, 6, 5, 0)]].concat();
    [write(0x0c00_0028, 1, 2), write(0x0c00_2080, 1 << 10, 2), write(UART + 1, 1, 0)].concat()
}

#[test]
fn console_input_interrupts_through_the_plic() {
    let claim = [li(5, 0x0c20_1004), vec![common::load(2, 7, 5, 0), csrrs(8, common::SIP, 0)]].concat();
    let mut machine = machine(&[plic_and_uart_interrupts(), vec![csrrs(9, common::SIP, 0)], claim].concat());
    machine.apply(&Event::ConsoleInput { bytes: vec![1] }).unwrap();
    run_by(&mut machine, 3 * (2 * LI + 1) + 1 + LI + 2);
    let x = machine.registers();
    assert_eq!((x[9], x[7], x[8]), (0x200, 10, 0), "pending, claimed, no longer pending");
}

#[test]
fn events_that_do_not_fit_are_refused() {
    let mut machine = machine(&[NOP]);
    let packet = |number, bytes| Event::Packet { number, packet: vec![0; bytes] };
    machine.apply(&packet(5, 60)).unwrap();
    assert_eq!(machine.last_packet_number(), 5);
    assert_eq!(machine.apply(&packet(5, 60)), Err(ApplyError::PacketOutOfOrder { number: 5, last: 5 }));
    assert_eq!(machine.apply(&packet(6, 1515)), Err(ApplyError::PacketTooLong { bytes: 1515 }));
    assert_eq!(machine.last_packet_number(), 5);
    assert_eq!(machine.dropped_packets().received, 1, "no driver has set the device up");
    let flood = Event::ConsoleInput { bytes: vec![0; 1025] };
    assert_eq!(machine.apply(&flood), Err(ApplyError::ConsoleFull { bytes: 1025, room: 1024 }));
}

/// A random instruction, mostly a real opcode with random fields: most random words are illegal.
fn noise(random: &mut Random) -> u32 {
    const OPCODES: [u32; 14] = [0x03, 0x0f, 0x13, 0x17, 0x1b, 0x23, 0x2f, 0x33, 0x37, 0x3b, 0x63, 0x67, 0x6f, 0x73];
    let word = u32::try_from(random.next() >> 32).unwrap();
    match random.next() % 4 {
        0 => word,
        1 => common::ECALL,
        _ => word & !0x7f | OPCODES[usize::try_from(random.next() % 14).unwrap()],
    }
}

#[test]
fn random_code_never_panics_and_always_advances() {
    const ROUNDS: u64 = 150;
    const STEPS: u64 = 20_000;
    for_each_seed("machine", ROUNDS, |seed| {
        let mut random = Random { state: seed, care: 1 };
        // Registers hold addresses of RAM and devices, so that stores and atomics hit them.
        let places = [RAM + 0x800, UART, common::NET, 0x0c00_2000, RAM + (4 << 20) - 4];
        // The handler skips the instruction that trapped, so that the guest goes on.
        let handler = [csrrs(30, common::SEPC, 0), addi(30, 30, 4), common::csrrw(0, common::SEPC, 30), common::SRET];
        let set_up = [li(31, RAM + 4), vec![common::csrrw(0, common::STVEC, 31)]].concat();
        let mut code = [vec![jal(0, 20)], handler.to_vec(), set_up].concat();
        for register in 1..31 {
            let place = places[usize::try_from(random.next() % 5).unwrap()];
            code.extend(li(register, place));
        }
        code.extend((0..4096).map(|_| noise(&mut random)));
        let run = |slice| {
            let mut machine = machine(&code);
            let (exit, outputs) = drive(&mut machine, STEPS, slice);
            (exit, outputs, machine.instruction_count(), machine.digest())
        };
        let whole = run(STEPS);
        if let Exit::LimitReached = whole.0 {
            assert_eq!(whole.2, InstructionCount(STEPS));
        }
        assert_eq!(run(997), whole);
    });
}

#[test]
fn images_and_configurations_that_cannot_start_are_refused() {
    let image = common::elf(&[NOP]);
    let config = small_config();
    let refused = |config: &MachineConfig, image: &[u8]| Machine::new(config, image).unwrap_err();
    for ram_bytes in [0, (4 << 20) - 4096, (4 << 20) + 1, (4 << 30) + 4096, u64::MAX] {
        let error = refused(&MachineConfig { ram_bytes, ..config.clone() }, &image);
        assert!(matches!(error, LoadError::Config(_)), "{ram_bytes}: {error}");
    }
    let long = MachineConfig { bootargs: "x".repeat(2049), ..small_config() };
    assert!(matches!(refused(&long, &image), LoadError::Config(_)));

    let patched = |offset: usize, bytes: &[u8]| {
        let mut image = image.clone();
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
        refused(&config, &image)
    };
    assert!(matches!(patched(0, b"PK"), LoadError::NotElf(_)));
    assert!(matches!(patched(4, &[1]), LoadError::NotElf(_)), "32 bits");
    assert!(matches!(patched(5, &[2]), LoadError::NotElf(_)), "big-endian");
    assert!(matches!(patched(16, &[3]), LoadError::NotExecutable { found: 3 }));
    assert!(matches!(patched(18, &[62]), LoadError::OtherProcessor { found: 62 }));
    assert!(patched(18, &[62]).to_string().contains("is an ELF file for x86-64 (e_machine 62), not for RISC-V"));
    assert_eq!(patched(24, &[1]), LoadError::Entry { entry: RAM + 1 });
    assert_eq!(patched(27, &[0x40]), LoadError::Entry { entry: 0x4000_0000 });
    assert!(matches!(patched(91, &[0x40]), LoadError::SegmentOutsideRam { address: 0x4000_0000, .. }));
    assert!(matches!(patched(104, &[0xff; 8]), LoadError::SegmentOutsideRam { bytes: u64::MAX, .. }));
    assert!(matches!(patched(106, &[0x40]), LoadError::SegmentOutsideRam { .. }), "over the device tree");
    assert_eq!(patched(72, &[0xff; 8]), LoadError::SegmentNotInImage { segment: 0 });
    assert_eq!(patched(96, &[5]), LoadError::SegmentNotInImage { segment: 0 }, "longer than the segment");
    for length in 0..image.len() {
        assert!(Machine::new(&config, &image[..length]).is_err(), "cut at {length}");
    }
}
