//! What is done with a whole machine: stops, digests, copies.

use crate::common::{LI, addi, elf, jal, li, machine_of, r_type, small_config, store};
use crate::constructs::{DATA, alu};
use crate::{STEPS, run};
use criterion::{Criterion, Throughput};
use std::hint::black_box;
use vm::{Machine, PAGE_BYTES, PageCopy, Restoration};

/// Steps from one stop to the next.
const STOP_STEPS: u64 = 10_000;

/// Pages that the guest writes to before each digest, and a copy has to take.
const DIRTY_PAGES: u64 = 256;

/// Instructions in a round of the guest that does: three for each page, and those that begin the
/// next round.
const DIRTY_STEPS: u64 = 3 * DIRTY_PAGES + LI + 1;

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("whole");
    group.throughput(Throughput::Elements(STEPS));
    group.bench_function("stops", |bencher| {
        let mut machine = machine_of(&alu());
        bencher.iter(|| (0..STEPS / STOP_STEPS).for_each(|_| run(&mut machine, STOP_STEPS)));
    });
    group.throughput(Throughput::Bytes(DIRTY_PAGES * PAGE_BYTES as u64));
    // With the steps that it takes to make the pages dirty: they are few beside the digest.
    group.bench_function("digest", |bencher| {
        let mut machine = dirtying();
        bencher.iter(|| {
            run(&mut machine, DIRTY_STEPS);
            black_box(machine.digest())
        });
    });
    group.bench_function("copy", |bencher| {
        let mut machine = dirtying();
        run(&mut machine, DIRTY_STEPS);
        bencher.iter(|| copied(&mut machine));
    });
    group.finish();
}

/// A machine whose guest writes to one page after the other. Its stores begin with the first step
/// from here on.
fn dirtying() -> Machine {
    let setup = [li(5, DATA), li(6, PAGE_BYTES as u64), li(7, 1)].concat();
    let page = [store(3, 7, 5, 8), r_type(0x33, 0, 0, 5, 5, 6), addi(7, 7, 1)];
    let round = usize::try_from(DIRTY_PAGES).unwrap();
    let body = [page.repeat(round), li(5, DATA)].concat();
    let back = 4 * i32::try_from(body.len()).unwrap();
    let mut machine = machine_of(&elf(&[&setup[..], &body, &[jal(0, -back)]].concat()));
    run(&mut machine, setup.len() as u64);
    machine
}

/// The machine a second time, by the way that a backup gets it.
fn copied(machine: &mut Machine) -> Machine {
    let mut restoration = Restoration::new(&small_config()).unwrap();
    machine.begin_copy(PageCopy::Backup);
    let mut next = 0;
    let mut pages = 0;
    while let Some((index, page)) = machine.take_page(PageCopy::Backup, next) {
        restoration.put_pages(index, page).unwrap();
        next = index + 1;
        pages += 1;
    }
    assert!(pages >= DIRTY_PAGES, "{pages} pages");
    restoration.finish(&machine.state()).unwrap()
}
