//! Looking through a range of a recording: it is cut at snapshots, and its pieces are replayed at
//! once on several threads.

use super::{Moment, Monitor, RecordingError, Seeker, Step, Target};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use vm::Machine;

/// Watches the replay of a piece. What it finds is taken in the order of the pieces.
pub trait Observer: Send {
    /// The machine stands where the piece begins.
    fn begin(&mut self, machine: &mut Machine);

    /// An entry was consumed.
    fn step(&mut self, step: &Step, machine: &mut Machine);

    /// The machine stands where the piece ends.
    fn end(&mut self, machine: &mut Machine);
}

/// A range of a recording.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Where it begins.
    pub from: Target,
    /// Where it ends.
    pub to: Target,
    /// Its pieces are looked through from the last one on.
    pub is_backwards: bool,
}

/// A piece of a range.
#[derive(Clone, Copy, Debug)]
struct Piece {
    from: Moment,
    to: Target,
}

/// Stops the other threads when one has failed, or enough is found.
struct Stoppable<'a> {
    monitor: &'a dyn Monitor,
    is_over: AtomicBool,
}

impl Monitor for Stoppable<'_> {
    fn advanced(&self, steps: u64) -> ControlFlow<()> {
        if self.is_over.load(Ordering::Acquire) { ControlFlow::Break(()) } else { self.monitor.advanced(steps) }
    }
}

/// Looks through `span` on at most `jobs` threads, each with a machine of its own, and passes the
/// observer of each piece to `take`, in order, until that says to break.
///
/// # Errors
/// [`RecordingError`] of the first piece that can't be replayed, behind what comes before it; and
/// those of `take`.
pub fn scan<O: Observer, E: From<RecordingError>>(
    seeker: &Seeker<'_>,
    span: Span,
    jobs: usize,
    monitor: &dyn Monitor,
    make: impl Fn() -> O + Sync,
    mut take: impl FnMut(O) -> Result<ControlFlow<()>, E>,
) -> Result<(), E> {
    let pieces = pieces(seeker, span, monitor)?;
    let monitor = &Stoppable { monitor, is_over: AtomicBool::new(false) };
    let jobs = jobs.clamp(1, pieces.len());
    let (orders, ordered) = crossbeam_channel::unbounded::<usize>();
    let (results, done) = crossbeam_channel::unbounded();
    // No thread is further ahead than this: what is found waits in memory.
    let ahead = 2 * jobs;
    for number in 0..pieces.len().min(ahead) {
        let _ = orders.send(number);
    }
    thread::scope(|scope| {
        for number in 0..jobs {
            let (ordered, results, pieces, make) = (ordered.clone(), results.clone(), &pieces, &make);
            let work = move || {
                for number in ordered {
                    let observed = observe(seeker, pieces[number], monitor, make());
                    if results.send((number, observed)).is_err() {
                        return;
                    }
                }
            };
            let spawned = thread::Builder::new().name(format!("scan-{number}")).spawn_scoped(scope, work);
            // One thread is enough.
            if let Err(source) = spawned
                && number == 0
            {
                return Err(RecordingError::Io { path: seeker.recording().path().into(), source }.into());
            }
        }
        drop((ordered, results));
        let mut waiting = BTreeMap::new();
        let mut taken = || {
            for next in 0..pieces.len() {
                while !waiting.contains_key(&next) {
                    let (number, observed) = done.recv().map_err(|_| RecordingError::Interrupted)?;
                    waiting.insert(number, observed);
                }
                let observed = waiting.remove(&next).expect("it was waited for")?;
                if take(observed)?.is_break() {
                    break;
                }
                if next + ahead < pieces.len() {
                    let _ = orders.send(next + ahead);
                }
            }
            Ok(())
        };
        let result = taken();
        monitor.is_over.store(true, Ordering::Release);
        drop(orders);
        result
    })
}

fn observe<O: Observer>(
    seeker: &Seeker<'_>,
    piece: Piece,
    monitor: &dyn Monitor,
    mut observer: O,
) -> Result<O, RecordingError> {
    let mut replay = seeker.seek(Target::Moment(piece.from), monitor)?;
    observer.begin(replay.machine_mut());
    replay.run_to::<RecordingError>(piece.to, monitor, |step, machine| {
        observer.step(step, machine);
        Ok(())
    })?;
    observer.end(replay.machine_mut());
    Ok(observer)
}

/// The pieces of a range; at least one.
fn pieces(seeker: &Seeker<'_>, span: Span, monitor: &dyn Monitor) -> Result<Vec<Piece>, RecordingError> {
    let mut from = seeker.seek(span.from, monitor)?.moment();
    let mut pieces = Vec::new();
    for number in 0..seeker.recording().parts().len() {
        for record in seeker.index(number).map_or(&[][..], |index| index.records()) {
            let moment = Moment { count: record.count, seq: record.place.cursor.seq() };
            let is_inside = moment.seq > from.seq && moment.count > from.count;
            if is_inside && record.is_before(span.to) {
                pieces.push(Piece { from, to: Target::Moment(moment) });
                from = moment;
            }
        }
    }
    pieces.push(Piece { from, to: span.to });
    if span.is_backwards {
        pieces.reverse();
    }
    Ok(pieces)
}
