//! The results: as a table, or as JSON.

use super::Time;
use crate::os::report::Grouped;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// How a program was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// On our machine, without a log.
    Plain,
    /// On our machine, recorded to a file.
    Recording,
    /// On our machine, replayed from that file.
    Replaying,
    /// As plain, but stopped at every ten-thousandth step.
    Stops,
    /// On QEMU, recorded to a file.
    QemuRecording,
    /// On QEMU.
    Qemu,
}

const WAYS: [Way; 6] = [Way::Plain, Way::Recording, Way::Replaying, Way::Stops, Way::QemuRecording, Way::Qemu];

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Recording => "recorded",
            Self::Replaying => "replayed",
            Self::Stops => "stops",
            Self::QemuRecording => "QEMU rr",
            Self::Qemu => "QEMU",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One speed over another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ratio {
    PlainOverQemuRecording,
    RecordingOverQemuRecording,
    RecordingOverPlain,
    ReplayingOverPlain,
    StopsOverPlain,
}

const RATIOS: [Ratio; 5] = [
    Ratio::PlainOverQemuRecording,
    Ratio::RecordingOverQemuRecording,
    Ratio::RecordingOverPlain,
    Ratio::ReplayingOverPlain,
    Ratio::StopsOverPlain,
];

impl Ratio {
    const fn name(self) -> &'static str {
        match self {
            Self::PlainOverQemuRecording => "plain/QEMU rr",
            Self::RecordingOverQemuRecording => "rec./QEMU rr",
            Self::RecordingOverPlain => "rec./plain",
            Self::ReplayingOverPlain => "repl./plain",
            Self::StopsOverPlain => "stops/plain",
        }
    }

    const fn of(self) -> (Way, Way) {
        match self {
            Self::PlainOverQemuRecording => (Way::Plain, Way::QemuRecording),
            Self::RecordingOverQemuRecording => (Way::Recording, Way::QemuRecording),
            Self::RecordingOverPlain => (Way::Recording, Way::Plain),
            Self::ReplayingOverPlain => (Way::Replaying, Way::Plain),
            Self::StopsOverPlain => (Way::Stops, Way::Plain),
        }
    }
}

/// A program's figures; what wasn't measured is absent.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    program: &'static str,
    /// Steps from reset to the end, on our machine, alone.
    instructions: u64,
    /// Millions of instructions per second.
    mips: BTreeMap<Way, f64>,
    ratios: BTreeMap<Ratio, f64>,
}

impl Row {
    pub(super) fn new(program: &'static str, instructions: u64, mips: BTreeMap<Way, f64>) -> Self {
        let ratio = |ratio: Ratio| {
            let (over, under) = ratio.of();
            Some((ratio, mips.get(&over)? / mips.get(&under)?))
        };
        let ratios = RATIOS.into_iter().filter_map(ratio).collect();
        Self { program, instructions, mips, ratios }
    }
}

/// All results of the benchmark.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    /// Units of work of each program.
    size: u64,
    rounds: u64,
    time: Time,
    qemu: Option<String>,
    programs: Vec<Row>,
    /// The geometric means over all programs.
    geometric_means: Means,
}

#[derive(Debug, Serialize)]
struct Means {
    mips: BTreeMap<Way, f64>,
    ratios: BTreeMap<Ratio, f64>,
}

impl Results {
    pub(super) fn new(size: u64, rounds: u64, time: Time, qemu: Option<String>, programs: Vec<Row>) -> Self {
        let geometric_means = Means {
            mips: geometric_means(programs.iter().map(|row| &row.mips)),
            ratios: geometric_means(programs.iter().map(|row| &row.ratios)),
        };
        Self { size, rounds, time, qemu, programs, geometric_means }
    }
}

/// The mean of each figure that all rows have.
fn geometric_means<'a, K: Copy + Ord + 'a>(rows: impl Iterator<Item = &'a BTreeMap<K, f64>>) -> BTreeMap<K, f64> {
    let rows: Vec<_> = rows.collect();
    let Some(first) = rows.first() else { return BTreeMap::new() };
    let mean = |key: &K| {
        let logarithms: Option<Vec<f64>> = rows.iter().map(|row| row.get(key).map(|figure| figure.ln())).collect();
        let logarithms = logarithms?;
        Some((*key, (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp()))
    };
    first.keys().filter_map(mean).collect()
}

/// The widths of the tables' columns: all together no more than a terminal's 80.
const NAME: usize = 15;
const INSTRUCTIONS: usize = 9;
const WAY: usize = 9;
const RATIO: usize = 13;

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, rounds, time, qemu, programs, geometric_means } = self;
        writeln!(f, "Millions of instructions per second of {}; the best of {rounds} rounds,", time.name())?;
        writeln!(f, "{size} units of work each.")?;
        if let Some(version) = qemu {
            writeln!(f, "{version}.\nIts start and firmware, a run with no work, are taken off. QEMU rr records.")?;
        }
        write!(f, "\n{:<NAME$}{:>INSTRUCTIONS$}", "", "instr. M")?;
        WAYS.iter().try_for_each(|way| write!(f, "{:>WAY$}", way.name()))?;
        writeln!(f)?;
        for row in programs {
            write!(f, "{:<NAME$}{:>INSTRUCTIONS$}", row.program, Grouped(row.instructions / 1_000_000))?;
            write_figures(f, &WAYS, &row.mips, WAY, 0)?;
        }
        write!(f, "{:<NAME$}{:INSTRUCTIONS$}", "geometric mean", "")?;
        write_figures(f, &WAYS, &geometric_means.mips, WAY, 0)?;
        write!(f, "\n{:<NAME$}", "ratio")?;
        RATIOS.iter().try_for_each(|ratio| write!(f, "{:>RATIO$}", ratio.name()))?;
        writeln!(f)?;
        for row in programs {
            write!(f, "{:<NAME$}", row.program)?;
            write_figures(f, &RATIOS, &row.ratios, RATIO, 2)?;
        }
        write!(f, "{:<NAME$}", "geometric mean")?;
        write_figures(f, &RATIOS, &geometric_means.ratios, RATIO, 2)
    }
}

fn write_figures<K: Ord>(
    f: &mut fmt::Formatter<'_>,
    columns: &[K],
    figures: &BTreeMap<K, f64>,
    width: usize,
    digits: usize,
) -> fmt::Result {
    for column in columns {
        match figures.get(column) {
            Some(figure) => write!(f, "{figure:>width$.digits$}")?,
            None => write!(f, "{:>width$}", "-")?,
        }
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::{Ratio, Results, Row, Time, Way};
    use std::collections::BTreeMap;

    fn results(with_qemu: [bool; 2]) -> Results {
        let row = |program, plain, with_qemu: bool| {
            let mut mips = BTreeMap::from([(Way::Plain, plain), (Way::Recording, plain / 2.0)]);
            if with_qemu {
                mips.insert(Way::QemuRecording, 800.0);
            }
            Row::new(program, 1_000_000_000, mips)
        };
        Results::new(7, 3, Time::Cpu, None, vec![row("a", 100.0, with_qemu[0]), row("b", 400.0, with_qemu[1])])
    }

    #[test]
    fn means_are_geometric_and_of_what_all_have() {
        let means = results([true, true]).geometric_means;
        assert!((means.mips[&Way::Plain] - 200.0).abs() < 1e-9, "{means:?}");
        assert!((means.ratios[&Ratio::PlainOverQemuRecording] - 0.25).abs() < 1e-9, "{means:?}");
        let means = results([true, false]).geometric_means;
        assert!(!means.mips.contains_key(&Way::QemuRecording), "{means:?}");
        assert!((means.ratios[&Ratio::RecordingOverPlain] - 0.5).abs() < 1e-9, "{means:?}");
    }

    #[test]
    fn json_names_what_it_tells() {
        let json = serde_json::to_value(results([true, false])).unwrap();
        assert_eq!(json["programs"][0]["mips"]["qemu_recording"], 800.0);
        assert_eq!(json["programs"][1]["ratios"]["recording_over_plain"], 0.5);
        assert_eq!(json["programs"][1]["mips"].get("qemu_recording"), None);
    }

    #[test]
    fn table_has_a_dash_for_what_is_missing() {
        let table = results([true, false]).to_string();
        let row = table.lines().find(|line| line.trim_start().starts_with("b ")).unwrap();
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["b", "1_000", "400", "200", "-", "-", "-", "-"]);
    }

    #[test]
    fn tables_have_at_most_80_columns_all_apart() {
        let ways = [Way::Plain, Way::Recording, Way::Replaying, Way::Stops, Way::QemuRecording, Way::Qemu];
        let mips = ways.map(|way| (way, 12_345.0));
        let row = Row::new("hash-paged", 123_456_789_012, mips.into());
        let version = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)".to_owned();
        let table = Results::new(1_000_000, 1_000, Time::Cpu, Some(version), vec![row]).to_string();
        assert!(table.lines().all(|line| line.len() <= 80), "{table}");
        // "QEMU rr" is two words.
        let cells = |line: &str| line.replace("instr. M", "M").split_whitespace().count();
        let heads: Vec<_> = table.lines().filter(|line| line.contains("plain")).map(cells).collect();
        let rows: Vec<_> = table.lines().filter(|line| line.starts_with("hash-paged")).map(cells).collect();
        assert_eq!((heads, rows), (vec![8, 8], vec![1 + 7, 1 + 5]), "{table}");
    }
}
