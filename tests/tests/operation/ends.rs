//! Ends of programs: hangups and other signals, while an arbiter, a backup, a file system or a disk
//! doesn't answer.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use hypervisor::program::site::process::Process;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs::{self, File};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tests::programs;
use tests::stage::{Ended, Node, Pair, Stage, pause, wait_until, wake};

const HANGUPS: [Signal; 2] = [Signal::SIGHUP, Signal::SIGQUIT];

#[track_caller]
fn assert_ends(node: &mut Node, code: i32, word: &str) {
    let Ended { code: found, reason } = node.end();
    assert_eq!(found, Some(code), "{reason}");
    assert!(reason.contains(word), "{word:?} is not in {reason:?}");
}

#[test]
fn a_protected_primary_whose_terminal_closes_hands_over() {
    for signal in HANGUPS {
        let stage = Stage::new(programs!());
        let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
        primary.signal(signal);
        assert_ends(&mut primary, 0, "its backup goes on");
        backup.told("live");
    }
}

#[test]
fn an_unprotected_vm_whose_terminal_closes_can_be_resumed_with_a_log_and_restarted_without() {
    for signal in HANGUPS {
        let stage = Stage::new(programs!());
        let log = tempfile::tempdir().unwrap();
        let directory = log.path().to_str().unwrap();
        let mut primary = stage.node("ft-primary", &["--unprotected", "--log", directory]);
        primary.told("log_usable");
        primary.signal(signal);
        assert_ends(&mut primary, 0, "--resume");
        let mut resumed = stage.node("ft-primary", &["--resume", directory]);
        resumed.told("log_usable");
        resumed.interrupt();
        assert_ends(&mut resumed, 0, "can be started again");

        let mut primary = stage.node("ft-primary", &["--unprotected"]);
        primary.told("console");
        primary.signal(signal);
        assert_ends(&mut primary, 0, "can be started again");
    }
}

/// `ft-primary` under a shell that first does `setup`.
fn primary_after(setup: &str, options: &[String]) -> Process {
    let program = programs!().command("ft-primary");
    let mut command = Command::new("bash");
    command.args(["-c", &format!("{setup}; exec -a ft-primary \"$0\" \"$@\"")]).arg(program.get_program());
    command.args(options).args(["--unprotected", "--json"]).stdin(Stdio::null()).stderr(Stdio::null());
    Process::spawn("ft-primary", &mut command).unwrap()
}

#[test]
fn a_hangup_that_a_process_was_started_to_ignore_stays_ignored() {
    let stage = Stage::new(programs!());
    let mut primary = primary_after("trap '' HUP", &stage.site.options());
    primary.wait_for("console", Duration::from_secs(60)).unwrap();
    primary.signal(Signal::SIGHUP);
    // Long enough for a hangup to end the process.
    thread::sleep(Duration::from_millis(500));
    assert!(!primary.has_told("end"));
    assert_eq!(primary.interrupt().unwrap(), Some(0));
}

#[test]
fn a_side_that_cannot_reach_its_arbiter_ends_by_a_signal() {
    let mut stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    let arbiter = format!("tcp:{}", stage.site.arbiter_address());
    let options = ["--vm", "alone", "--arbiter", &arbiter, "--listen", "127.0.0.1:0", "--unprotected"];
    let mut alone = stage.program("ft-primary", &options);
    alone.told("console");
    stage.kill_arbiter();
    primary.kill();
    backup.told("arbiter_unreachable");
    for node in [&mut backup, &mut alone] {
        node.signal(Signal::SIGTERM);
        assert_eq!(node.wait(Duration::from_secs(60)).unwrap(), Some(130));
        let told = node.stderr();
        assert!(told.contains("the arbiter can't be told") && told.contains("--resume"), "{told}");
        assert!(!node.has_told("live"));
    }
}

/// The backup is stopped, as on a host that hangs, and its log fills the connection, so that the
/// guest waits for the backup to read. The failure timeout is so long that only the signal can end
/// the primary.
#[test]
fn a_primary_whose_backup_reads_nothing_ends_by_a_signal() {
    let stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&["--lag-bound-ms", "60000"], &[]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(stage.site.service).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // Resolves the guest's address first: its answer would wait for the backup.
    client.send(b"hello").unwrap();
    client.recv(&mut [0; 10]).unwrap();
    pause(&backup);
    // Sends more than the connection holds, until the vCPU thread, which is the process's first,
    // has not run for a second.
    let (mut ticks, mut since) = (0, Instant::now());
    wait_until("a full connection", || {
        (0..20).for_each(|_| assert_eq!(client.send(&[0; 1400]).unwrap(), 1400));
        thread::sleep(Duration::from_millis(5));
        if ticks != cpu_ticks(primary.pid()) {
            (ticks, since) = (cpu_ticks(primary.pid()), Instant::now());
        }
        since.elapsed() > Duration::from_secs(1)
    });
    primary.signal(Signal::SIGTERM);
    assert_ends(&mut primary, 0, "its backup goes on");
    wake(&backup);
    backup.told("live");
}

/// CPU time of a process's first thread, in the kernel's ticks of 10 ms.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_guest_that_waits_for_its_backup_uses_no_cpu_time_when_keys_are_typed() {
    let stage = Stage::new(programs!());
    let directory = tempfile::tempdir().unwrap();
    let typed = directory.path().join("typed");
    fs::write(&typed, "ls\nls\n").unwrap();
    let options = stage.site.options();
    let arguments: Vec<_> = options.iter().map(String::as_str).collect();
    let input = Stdio::from(File::open(&typed).unwrap());
    let mut primary = Node::start_with_input(&programs!(), directory.path(), "ft-primary", &arguments, input);
    primary.told("listening");
    thread::sleep(Duration::from_millis(500));
    let before = cpu_ticks(primary.pid());
    thread::sleep(Duration::from_secs(3));
    let ticks = cpu_ticks(primary.pid()) - before;
    assert!(ticks < 10, "{ticks} ticks of 10 ms in 3 s for a guest that may not run");
}

#[test]
fn every_program_refuses_a_fifo_in_place_of_a_file() {
    let stage = Stage::new(programs!());
    let directory = tempfile::tempdir().unwrap();
    let [fifo, kernel] = ["fifo", "kernel"].map(|name| directory.path().join(name));
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    fs::write(&kernel, b"kernel").unwrap();
    let [fifo, kernel] = [&fifo, &kernel].map(|path: &std::path::PathBuf| path_text(path));
    let uses: [(&str, &[&str]); 9] = [
        ("ft-primary", &["--guest", fifo]),
        ("ft-primary", &["--kernel", fifo]),
        ("ft-primary", &["--kernel", kernel, "--initrd", fifo]),
        ("ft-primary", &["--disk", fifo]),
        ("ft-primary", &["--bare", fifo]),
        ("ft-backup", &["--guest", fifo]),
        ("ft-record", &["--output", "unused", "--disk", fifo]),
        ("ft-record", &["--guest", "hello", "--force", "--output", fifo]),
        ("ft-replay", &[fifo]),
    ];
    for (program, arguments) in uses {
        assert_ends(&mut stage.program(program, arguments), 1, "FIFO");
    }
}

fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The next claim's file is a FIFO, so that reading it waits, as it does for a file server that is
/// gone.
#[test]
fn a_side_whose_arbiters_file_system_hangs_ends_by_a_signal() {
    let stage = Stage::new(programs!());
    let directory = tempfile::tempdir().unwrap();
    let arbiter = format!("file:{}", path_text(directory.path()));
    let options = ["--arbiter", &arbiter, "--listen", "127.0.0.1:0", "--unprotected"];
    let mut primary = stage.program("ft-primary", &options);
    primary.told("console");
    mkfifo(&directory.path().join("vm0/1.claim"), Mode::S_IRWXU).unwrap();
    primary.signal(Signal::SIGTERM);
    assert_eq!(primary.wait(Duration::from_secs(60)).unwrap(), Some(130));
    let told = primary.stderr();
    assert!(told.contains("the arbiter can't be told") && told.contains("takes too long"), "{told}");
}

/// The file of the log's next snapshot is a FIFO, so that writing it waits, as for a disk that
/// hangs.
#[test]
fn outputs_that_wait_for_a_hung_disk_are_reported_and_the_program_can_be_ended() {
    let stage = Stage::new(programs!());
    let log = tempfile::tempdir().unwrap();
    mkfifo(&log.path().join("snapshot.part"), Mode::S_IRWXU).unwrap();
    let mut primary = stage.node("ft-primary", &["--unprotected", "--log", path_text(log.path())]);
    let told = primary.told("disk_waits");
    assert_eq!(told["directory"], path_text(log.path()));
    assert!(!primary.has_told("console"), "outputs wait for the log");
    primary.signal(Signal::SIGTERM);
    assert_eq!(primary.end().code, Some(0));
}
